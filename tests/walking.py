"""How long random walks are: a few seconds each in CI, the same ones in every run; many others when asked.

Profiles are registered in conftest.py: ``ci`` is the default, ``pytest --hypothesis-profile=deep`` walks fifty times as
far with draws of its own, and prints what it finds as code.
"""

from hypothesis import HealthCheck, settings

CI_EXAMPLES = 100    # what the profile ci says: the others are measured against it


def walk(*, examples: int, steps: int) -> settings:
    """``examples`` walks of up to ``steps`` steps in CI; the profile in force multiplies the walks."""
    factor = settings().max_examples / CI_EXAMPLES
    return settings(
        max_examples=max(1, round(examples * factor)), stateful_step_count=steps,
        suppress_health_check=[HealthCheck.too_slow],
    )
