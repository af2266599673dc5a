"""A member's dump: the state after some entry, in a checksummed file, and its transfer in chunks.

Stands in for pysyncobj's Serializer (which pickles, forks, never syncs, and puts a received file in the place of
the own one before it was looked at: defects 4, 5, 8, 9). Refuses to know what the state is.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pysyncobj.config import SERIALIZER_STATE

from counting.raft.framing import DamagedFileError, frame, read_frame, replace_file
from counting.raft.group import Group, from_wire, to_wire
from counting.raft.journal import Entry
from protos import raft_pb2

FORMAT = 1
CHUNK_BYTES = 256 * 1024

Chunk = tuple[bytes, bool, bool]
"""pysyncobj's own shape of a chunk: (data, is the first, is the last)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """State after `last`; `before` is the entry before it (pysyncobj's log always keeps two). ``group``: who votes
    after it; None where the log never said it."""

    before: Entry
    last: Entry
    state: bytes
    group: Group | None = None


class Dumps:
    """pysyncobj's serializer interface over one file; `save` gives the state as bytes, ``group_at`` who votes after an
    entry, if the log says it (the node sets it)."""

    group_at: Callable[[int], Group | None]

    def __init__(self, path: Path, save: Callable[[], bytes], *, durable: bool = True) -> None:
        self._path = path
        self._save = save
        self._durable = durable
        self.group_at = lambda _index: None
        self._outcome = SERIALIZER_STATE.NOT_SERIALIZING
        self._id: int | None = None
        self._data = path.read_bytes() if path.exists() else b""
        self._sent: dict[Any, int] = {}
        self._arriving: bytearray | None = None
        self.made = 0           # of the own state
        self.installed = 0      # a leader's

    # ------------------------------------------------------------ what pysyncobj calls

    def checkSerializing(self) -> tuple[int, int | None]:  # noqa: N802 - pysyncobj's name
        outcome, self._outcome = self._outcome, SERIALIZER_STATE.NOT_SERIALIZING
        return outcome, self._id

    def serialize(self, data: tuple[Any, Entry, Entry, Any], id: int) -> None:  # noqa: A002
        """Dumps the state now. Small by design, so no fork and no thread."""
        _, last, before, _ = data
        self.store(Snapshot(before=before, last=last, state=self._save(), group=self.group_at(last[1])))
        self._id, self._outcome = id, SERIALIZER_STATE.SUCCESS
        self.made += 1

    def getTransmissionData(self, transmissionID: Any) -> Chunk | None:  # noqa: N802, N803
        """The next chunk for a peer, or None while there is no dump."""
        if not self._data:
            return None
        at = self._sent.get(transmissionID, 0)
        data = self._data[at : at + CHUNK_BYTES]
        last = at + CHUNK_BYTES >= len(self._data)
        if last:
            self._sent.pop(transmissionID, None)
        else:
            self._sent[transmissionID] = at + CHUNK_BYTES
        return data, at == 0, last

    def cancelTransmisstion(self, id: Any) -> None:  # noqa: N802, A002
        self._sent.pop(id, None)

    # ------------------------------------------------------------ ours

    def store(self, snapshot: Snapshot) -> None:
        """Durable on return."""
        dump = raft_pb2.Dump(
            format=FORMAT, before=_plain(snapshot.before), last=_plain(snapshot.last), state=snapshot.state,
            group=to_wire(snapshot.group) if snapshot.group is not None else None,
        )
        self._data = frame(dump.SerializeToString())
        self._sent.clear()
        replace_file(self._path, self._data, sync=self._durable)

    def install(self, snapshot: Snapshot) -> None:
        """A leader's in the place of the own one. Durable on return."""
        self.store(snapshot)
        self.installed += 1

    def read(self) -> Snapshot | None:
        """The own dump; None when there is none. Raises DamagedFileError."""
        return parse(self._data, str(self._path)) if self._data else None

    def receive(self, chunk: Chunk) -> Snapshot | None:
        """Takes a chunk of a leader's dump; the whole of it after the last one, checked. Nothing is stored yet."""
        data, first, last = chunk
        if first:
            self._arriving = bytearray()
        if self._arriving is None:
            return None
        self._arriving += data
        if not last:
            return None
        whole, self._arriving = bytes(self._arriving), None
        return parse(whole, "a snapshot from the leader")


def parse(data: bytes, name: str) -> Snapshot:
    payload = read_frame(data, 0)
    if payload is None:
        raise DamagedFileError(f"{name} fails its checksum: this member's state is lost, add a new member instead")
    dump = raft_pb2.Dump.FromString(payload)
    if dump.format != FORMAT:
        raise DamagedFileError(f"{name} is of format {dump.format}, this build reads {FORMAT}: upgrade this member")
    group = from_wire(dump.group) if dump.HasField("group") else None
    return Snapshot(before=_rich(dump.before), last=_rich(dump.last), state=dump.state, group=group)


def _plain(entry: Entry) -> raft_pb2.Entry:
    return raft_pb2.Entry(command=entry[0], index=entry[1], term=entry[2])


def _rich(entry: raft_pb2.Entry) -> Entry:
    return entry.command, entry.index, entry.term
