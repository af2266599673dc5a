"""A leader's core over a ledger that commits at once: what stories and random walks of the core run on.

Raft is left out (its own tests are in test_raft.py); everything else is the real code, the encoding of batches included.
"""

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from enum import Enum

from counting import commands as c
from counting import messages as m
from counting.core import CountingCore, Timing
from counting.ledger import Ledger
from counting.snapshot import dump, load
from counting.words import Incarnation, Pool, Session

WALL = 1_700_000_000.0


class Rig:
    """Feeds events, commits what is proposed and keeps the story. `hold`: proposals wait until `commit()`."""

    def __init__(self, tell: Callable[[str], None] = lambda _: None, timing: Timing | None = None) -> None:
        self.ledger = Ledger()
        self.core = CountingCore(self.ledger, timing or Timing())
        self.now = 0.0
        self.index = 0
        self.hold = False
        self.proposed: list[c.Batch] = []
        self.sent: list[m.Effect] = []
        self.wake: float | None = None
        self._tell = tell

    def lead(self, term: int = 1) -> "Rig":
        return self.feed(m.Led(term=term))

    def feed(self, *events: m.Event) -> "Rig":
        """Events of one turn of the event loop: they go into one batch."""
        flush = False
        for event in events:
            self._tell(f"> {words(event)}")
            flush |= self._perform(self.core.handle(event, self.now))
        if flush:
            self._perform(self.core.handle(m.Flush(wall=WALL + self.now), self.now))
        if not self.hold:
            self.commit()
        return self

    def commit(self) -> None:
        while self.proposed:
            batch = c.decode(c.encode(self.proposed.pop(0)))
            results = tuple(self.ledger.apply(batch))
            self.index += 1
            assert dump(load(dump(self.ledger))) == dump(self.ledger)
            event = m.Committed(index=self.index, batch=batch, results=results)
            if self._perform(self.core.handle(event, self.now)):
                self._perform(self.core.handle(m.Flush(wall=WALL + self.now), self.now))
            if self.hold:
                return

    def at(self, now: float) -> "Rig":
        """Lets time pass, with the ticks that the core asked for."""
        while self.wake is not None and self.wake <= now:
            self.now, self.wake = max(self.wake, self.now), None
            self._tell(f"> (at {self.now:g} s) Tick")
            if self._perform(self.core.handle(m.Tick(), self.now)):
                self._perform(self.core.handle(m.Flush(wall=WALL + self.now), self.now))
            self.commit()
        self.now = now
        self._tell(f"--- {now:g} s")
        return self

    def take(self, kind: type) -> list[m.Effect]:
        """Effects of a kind since the last take, in order."""
        found = [effect for effect in self.sent if isinstance(effect, kind)]
        self.sent = [effect for effect in self.sent if not isinstance(effect, kind)]
        return found

    def _perform(self, effects: list[m.Effect]) -> bool:
        self.core.check()
        flush = False
        for effect in effects:
            match effect:
                case m.FlushSoon():
                    flush = True
                case m.WakeAt(at=at):
                    self.wake = at
                case m.Propose(batch=batch):
                    self.proposed.append(batch)
                    for command in batch.commands:
                        self._tell(f"    commit {words(command)}")
                    if not batch.commands:
                        self._tell("    commit nothing (a barrier)")
                case _:
                    self.sent.append(effect)
                    self._tell(f"  {words(effect)}")
        return flush


def words(value: object) -> str:
    """A message as one readable line: defaults are left out."""
    if isinstance(value, Pool | Session | Incarnation):
        return str(value)
    if isinstance(value, Enum):
        return value.name
    if is_dataclass(value) and not isinstance(value, type):
        shown = [
            f"{field.name}={words(getattr(value, field.name))}" for field in fields(value)
            if field.name != "cause" and getattr(value, field.name) != field.default
        ]
        return f"{type(value).__name__}({', '.join(shown)})"
    if isinstance(value, tuple):
        return "[" + ", ".join(words(item) for item in value) + "]"
    return repr(value)
