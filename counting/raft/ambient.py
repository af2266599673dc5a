"""pysyncobj's module globals, replaced in one place: its clock, its randomness, its poller, its journal and its dump.

pysyncobj reads time and randomness from module globals. They are pointed at whichever member is being driven just now
(all members of a process run on one thread), so that a member gets its clock and generator passed in like everything
else, and a simulation can hold many. Refuses to know the defects (guards.py).
"""

import random
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


_Seen = tuple[Clock | None, random.Random | None]


class NoPoller:
    """Nothing to poll: messages come in by call, not by descriptor."""

    def poll(self, timeout: float) -> None: ...


_ambient = _Ambient()


class driven:  # noqa: N801 - used as a verb
    """While inside, pysyncobj sees this clock and this generator. A class: it is entered several times per message."""

    __slots__ = ("_before", "_now")

    def __init__(self, clock: Clock, generator: random.Random) -> None:
        self._now: _Seen = (clock, generator)

    def __enter__(self) -> None:
        self._before: _Seen = (_ambient.clock, _ambient.generator)
        _ambient.clock, _ambient.generator = self._now

    def __exit__(self, *_: object) -> None:
        _ambient.clock, _ambient.generator = self._before


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
