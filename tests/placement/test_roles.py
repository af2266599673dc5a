"""Who gives a worker to whom: the policy alone."""

import pytest

from placement.roles import choose_handover

FAIR = [("m1", "az1"), ("m2", "az2")]


@pytest.mark.parametrize(("managers", "held", "giver"), [
    (["m1", "m2"], FAIR, ("", "")),
    (["m1", "m2"], [("m1", "az1"), ("m1", "az1")], ("m1", "az1")),
    # Found by a simulated AZ that was cut off and healed: its placement granted one more worker before it knew better.
    (["m1", "m2"], [*FAIR, ("m3", "az3")], ("m3", "az3")),
    ([], [("m3", "az3")], ("", "")),
])
def test_a_handover_makes_the_parts_fair_and_leaves_nothing_with_a_standby(managers, held, giver):
    assert choose_handover(managers, held) == giver
