"""Function records that tell when a revision is served, so that managers may let older sandboxes go.

Owns noticing the change. Refuses to know how managers are reached.
"""

from collections.abc import Callable

from chassis.clock import Clock
from frontend.auth.keys import Cipher
from frontend.functions import FunctionRecord
from frontend.metadata import WatchedFunctions
from protos import common_pb2
from storage.interfaces import Change, MetadataStore


class RevisingFunctions(WatchedFunctions):
    """``on_revised(function, deleted=...)`` is called once a newer revision, or a deletion, is served here."""

    def __init__(self, metadata: MetadataStore, cipher: Cipher, clock: Clock) -> None:
        super().__init__(metadata, cipher, clock)
        self.on_revised: Callable[..., None] = lambda _function, *, deleted: None

    def apply(self, change: Change) -> bool:
        parts = change.key.split("/", 3)
        at = (parts[1], parts[3]) if len(parts) == 4 else ("", "")
        before = self._records.get(at)
        due = super().apply(change)
        after = self._records.get(at)
        if before is not None and (after is None or after.revision > before.revision):
            served = after or before
            self.on_revised(_identity(served), deleted=after is None)
        return due


def _identity(record: FunctionRecord) -> common_pb2.FunctionId:
    return common_pb2.FunctionId(
        account=record.account, function=record.name, version=record.version, revision=record.revision
    )
