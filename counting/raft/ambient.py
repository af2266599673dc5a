"""pysyncobj's module globals, replaced in one place: its clock, its randomness, its poller, its journal and its dump.

pysyncobj reads time and randomness from module globals. They are pointed at whichever member is being driven just now
(all members of a process run on one thread), so that a member gets its clock and generator passed in like everything
else, and a simulation can hold many. Refuses to know the defects (guards.py).
"""

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import pysyncobj.syncobj as target
from pysyncobj.version import VERSION

from chassis.clock import Clock

REQUIRED = "0.3.17"
"""Guards override private methods: another release needs them read and measured again."""


class WrongReleaseError(Exception):
    """Another pysyncobj than the one that the guards were written for."""


class _Ambient:
    """Stands in for the modules `random` and `monotonic` inside pysyncobj."""

    clock: Clock | None = None
    generator: random.Random | None = None

    def monotonic(self) -> float:
        assert self.clock is not None, "pysyncobj ran outside of `driven`"
        return self.clock.monotonic()

    def random(self) -> float:
        assert self.generator is not None, "pysyncobj ran outside of `driven`"
        return self.generator.random()


class NoPoller:
    """Nothing to poll: messages come in by call, not by descriptor."""

    def poll(self, timeout: float) -> None: ...


_ambient = _Ambient()


@contextlib.contextmanager
def driven(clock: Clock, generator: random.Random) -> Iterator[None]:
    """While inside, pysyncobj sees this clock and this generator."""
    before = _ambient.clock, _ambient.generator
    _ambient.clock, _ambient.generator = clock, generator
    try:
        yield
    finally:
        _ambient.clock, _ambient.generator = before


def install() -> None:
    """Points pysyncobj's globals at us. Raises WrongReleaseError for any release but the measured one."""
    if VERSION != REQUIRED:
        raise WrongReleaseError(
            f"pysyncobj {VERSION} is installed, counting's guards are written for {REQUIRED}: install the locked one"
        )
    replaced: dict[str, Any] = {
        "monotonicTime": _ambient.monotonic,
        "random": _ambient,
        "createPoller": lambda _kind: NoPoller(),
        "createJournal": lambda journal: journal,  # conf.journalFile is our journal itself
        "PIPE_NOTIFIER_ENABLED": False,            # nobody would read the pipe
    }
    for name, value in replaced.items():
        assert hasattr(target, name), name
        setattr(target, name, value)
