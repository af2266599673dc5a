"""Function records that tell managers which revision is served: older sandboxes may go, and the copy vouches for it.

Owns noticing the change, and the telling of all of them to managers that may not have heard: a region whose stores go
away is served what was vouched for while they were there (decision 14). Refuses to know how managers are reached.
"""

import asyncio
from collections.abc import Callable

from chassis.clock import Clock
from frontend.auth.keys import Cipher
from frontend.functions import FunctionRecord
from frontend.metadata import WatchedFunctions
from protos import common_pb2
from storage.interfaces import Change, MetadataStore

AGAIN_S = 1.0   # a manager hears that functions are its own within this


class RevisingFunctions(WatchedFunctions):
    """``on_revised(function, deleted=..., vouched=...)`` is called once a revision, or a deletion, is served here."""

    def __init__(self, metadata: MetadataStore, cipher: Cipher, clock: Clock) -> None:
        super().__init__(metadata, cipher, clock)
        self.on_revised: Callable[..., None] = lambda _function, *, deleted, vouched: None

    def apply(self, change: Change) -> bool:
        parts = change.key.split("/", 3)
        at = (parts[1], parts[3]) if len(parts) == 4 else ("", "")
        before = self._records.get(at)
        due = super().apply(change)
        after = self._records.get(at)
        if after is None and before is not None:
            self.on_revised(_identity(before), deleted=True, vouched=False)
        elif after is not None and after.revision > (before.revision if before is not None else 0):
            self.on_revised(_identity(after), deleted=False, vouched=self.sure)
        return due

    def vouch_for_all(self) -> None:
        """Managers have changed, or the copy has become current: each function's is told. They forget it when theirs
        comes to them anew, which is about now: it is said twice."""
        self._vouch()
        asyncio.get_running_loop().call_later(AGAIN_S, self._vouch)

    def _vouch(self) -> None:
        if self.sure:
            for record in self.all():
                self.on_revised(_identity(record), deleted=False, vouched=True)


def _identity(record: FunctionRecord) -> common_pb2.FunctionId:
    return common_pb2.FunctionId(
        account=record.account, function=record.name, version=record.version, revision=record.revision
    )
