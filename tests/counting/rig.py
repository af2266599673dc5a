"""A leader's core over a ledger that commits at once: what stories and random walks of the core run on.

Raft is left out (its own tests are test_raft.py); everything else is the real code, the encoding of batches included.
"""

from counting import commands as c
from counting import messages as m
from counting.core import CountingCore
from counting.leadership import Timing
from counting.ledger import Ledger
from counting.snapshot import dump, load

WALL = 1_700_000_000.0


class Rig:
    """A core that commits what it proposes. ``handle`` returns everything that follows from an event, commits included.

    ``hold``: proposals wait until ``commit()``, so that a story can let something happen while a batch is on its way.
    """

    def __init__(self, timing: Timing | None = None) -> None:
        self.ledger = Ledger()
        self.core = CountingCore(self.ledger, timing or Timing())
        self.hold = False
        self.wake: float | None = None
        self._index = 0
        self._proposed: list[c.Batch] = []

    def handle(self, event: m.Event | tuple[m.Event, ...], now: float) -> list[m.Effect]:
        """A tuple stands for events of one turn of the event loop: they share a batch."""
        effects: list[m.Effect] = []
        for item in event if isinstance(event, tuple) else (event,):
            effects += self.core.handle(item, now)
        return self._settle(effects, now)

    def commit(self, now: float) -> list[m.Effect]:
        """Commits one batch that was held back."""
        batch = c.decode(c.encode(self._proposed.pop(0)))
        results = tuple(self.ledger.apply(batch))
        self._index += 1
        assert dump(load(dump(self.ledger))) == dump(self.ledger)
        return self._settle(self.core.handle(m.Committed(index=self._index, batch=batch, results=results), now), now)

    def _settle(self, effects: list[m.Effect], now: float) -> list[m.Effect]:
        shown: list[m.Effect] = []
        flush = False
        for effect in effects:
            match effect:
                case m.FlushSoon():
                    flush = True
                case m.WakeAt(at=at):
                    self.wake = at
                case m.Propose(batch=batch):
                    self._proposed.append(batch)
                    shown.append(effect)
                case _:
                    shown.append(effect)
        if flush:
            shown += self._settle(self.core.handle(m.Flush(wall=WALL + now), now), now)
        while self._proposed and not self.hold:
            shown += self.commit(now)
        return shown

    def check(self) -> None:
        self.core.check()
