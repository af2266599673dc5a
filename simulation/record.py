"""What happened in one run, as the functions and the clients of a simulated region tell it, and its trace.

Owns the data. Functions stamp their own beginnings and ends in true time, so that a run whose client lost its answer
counts too. Refuses to judge (``verdict.py``).
"""

import json
import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

LOST = 0        # status of a request whose frontend was killed: its client saw the connection break


@dataclass(slots=True, kw_only=True)
class Request:
    """One attempt of a client. ``revision``: the function's newest that was Successful when this was sent."""

    name: str
    function: str
    frontend: int
    asked: float
    revision: int
    answered: float = math.inf
    status: int | None = None
    body: bytes = b""
    error_type: str = ""        # of an HTTP error; a function's own failure is told as a 200 with another header
    failed: bool = False        # the function did, or its sandbox


@dataclass(slots=True, kw_only=True)
class Run:
    """One beginning of a function. ``with_it``: how many of the function ran then, itself included; ``in_all``: of the
    account."""

    name: str
    function: str
    named: str                  # the function that its sandbox was made for
    sandbox: int
    revision: int
    began: float
    with_it: int
    in_all: int
    ended: float = math.inf


@dataclass(slots=True, kw_only=True)
class LimitChange:
    """``value`` None: without a reservation. ``function`` "": the account's. ``binds_at``: when Put returned with it
    binding everywhere; infinite: not known to bind."""

    function: str
    value: int | None
    sent: float
    binds_at: float = math.inf


class Lines:
    """The region's trace in memory, with the true time of every line: a process's own says its host's.

    Lines are kept as JSON's values: their text, which costs as much again, is made for whoever asks.
    """

    def __init__(self) -> None:
        self.at: list[float] = []
        self.values: list[dict[str, Any]] = []
        self.now: Callable[[], float] = lambda: 0.0

    def put(self, line: dict[str, Any]) -> None:
        self.at.append(self.now())
        self.values.append(line)

    @property
    def text(self) -> list[str]:
        """As NDJSON, as a real process writes it."""
        encode = json.JSONEncoder(separators=(",", ":")).encode
        return [f"{encode(line)}\n" for line in self.values]

    def until(self, at: float) -> int:
        """How many lines there are up to that true time."""
        return bisect_right(self.at, at)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bug:
    """A failure of a service, by its node, or what never came true. ``at``: true time, infinite for the end."""

    what: str
    node: str = ""
    at: float = math.inf


@dataclass(slots=True, kw_only=True)
class Record:
    seed: int
    lease_scale: float = 1.0
    requests: dict[str, Request] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)
    request_ids: dict[str, str] = field(default_factory=dict)       # by name, of what began
    limits: list[LimitChange] = field(default_factory=list)
    lines: Lines = field(default_factory=Lines)
    told: list[tuple[float, str]] = field(default_factory=list)     # what the plan did, in true time
    over_at: float = math.inf       # true time at which everything had been looked at, and the region was shut down
    bugs: list[Bug] = field(default_factory=list)

    def parsed(self) -> list[dict[str, Any]]:
        """The trace's lines."""
        return self.lines.values
