"""What an operator is told when nobody answers, by the kind of cluster."""

from typing import Any

import pytest

from labda import region
from labda.refusal import Refusal, Status
from labda.target import COMPOSE, EMBEDDED, state_of


class Silent:
    """A directory that no placement ever tells anything."""

    async def ready(self, within_s):
        raise TimeoutError


@pytest.mark.parametrize(("target", "log", "command"), [
    (EMBEDDED, "in {root}/logs;", "`labda down --state {root}`"),
    (COMPOSE, "what `docker logs` shows", "`labda cluster stop --state {root}`"),
])
async def test_who_gets_no_view_of_the_region_is_told_where_to_look(tmp_path, target, log, command):
    silent: Any = Silent()
    with pytest.raises(Refusal) as refused:
        await region.wait(region.Region(silent, silent), state_of(target, tmp_path))
    assert refused.value.status is Status.NO_CLUSTER
    for part in (log, command):
        assert part.format(root=tmp_path) in refused.value.message
