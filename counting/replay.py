"""What a trace of counting's core needs beside its events: the entries that Raft applies to the ledger under it.

Owns the recording of them and how they are redone. Refuses to know Raft and files.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from chassis.machine import Core
from chassis.replay import Recipe, decode
from counting import messages as m
from counting.commands import Batch
from counting.core import CountingCore
from counting.leadership import Timing
from counting.ledger import Ledger
from counting.snapshot import load


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """An entry of the log, applied to the ledger."""

    index: int
    batch: Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """The ledger became what a snapshot says (``counting.snapshot``)."""

    snapshot: str


class LedgerAside:
    """``chassis.machine.Aside`` of a member: told by whoever changes the ledger."""

    def __init__(self) -> None:
        self._changes: list[Applied | Restored] = []

    def applied(self, index: int, batch: Batch) -> None:
        self._changes.append(Applied(index=index, batch=batch))

    def restored(self, snapshot: bytes) -> None:
        self._changes.append(Restored(snapshot=snapshot.decode()))

    def changes(self) -> list[Applied | Restored]:
        changes, self._changes = self._changes, []
        return changes

    def settled(self) -> None:
        """Nothing to do: entries are told one by one."""


def _make(parameters: Mapping[str, Any]) -> CountingCore:
    return CountingCore(Ledger(), decode(Timing, parameters["timing"]))


def _redo(core: Core[Any, Any], item: Any) -> None:
    assert isinstance(core, CountingCore)
    change: Applied | Restored = decode(Applied | Restored, item)
    if isinstance(change, Applied):
        core.ledger.apply(change.batch)
    else:
        core.ledger.become(load(change.snapshot.encode()))


RECIPE = Recipe(make=_make, event=m.Event, aside=_redo)
