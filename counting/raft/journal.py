"""A member's journal: its log, its term and its vote, durable before anything built on them leaves the member.

Stands in for pysyncobj's own (which never syncs, reads a corrupt term as 0 and stores it apart from the log: defect 5).
What is added is written by ``sync`` in one write and one fdatasync; term and vote are synced at once. A torn tail
is cut (nothing of it was acknowledged); anything else that fails its checksum refuses to start.
Refuses to know what entries mean.
"""

import os
from pathlib import Path

from counting.raft.framing import DamagedFileError, frame, frames, replace_file
from protos import raft_pb2

FORMAT = 1

Entry = tuple[bytes, int, int]
"""pysyncobj's own shape of a log entry: (command, index, term)."""


class Journal:
    """pysyncobj's journal interface over one file. Positions are places in the list, not log indices.

    ``durable`` False leaves the fdatasync out (simulations of crashes of the process, not of the host).
    """

    def __init__(self, path: Path, member: str, *, durable: bool = True) -> None:
        self._path = path
        self._member = member
        self._durable = durable
        self._entries: list[Entry] = []
        self._term = 0
        self._voted_for: str | None = None
        self._waiting: list[raft_pb2.JournalRecord] = []
        self._failed: OSError | None = None
        self.joins = False      # no founder of its group
        self.syncs = 0
        self.truncations = 0    # entries that another leader's replaced, by times
        self._load()
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND)

    @staticmethod
    def create(path: Path, member: str, *, joins: bool = False) -> None:
        """The journal of a new member, a founder unless it ``joins``. Raises FileExistsError for one that is there."""
        if path.exists():
            raise FileExistsError(f"{path} is there already: a member's journal is created once")
        replace_file(path, _framed([_header(member, joins=joins)]))

    # ------------------------------------------------------------ what pysyncobj calls

    def add(self, command: bytes, idx: int, term: int) -> None:
        self._entries.append((command, idx, term))
        entry = raft_pb2.Entry(command=command, index=idx, term=term)
        self._write(raft_pb2.JournalRecord(entry=entry))

    def clear(self) -> None:
        self._entries = []
        self._rewrite()

    def deleteEntriesFrom(self, entryFrom: int) -> None:  # noqa: N802, N803 - pysyncobj's names
        if entryFrom >= len(self._entries):
            return
        self.truncations += 1
        self._write(raft_pb2.JournalRecord(truncate_from=self._entries[entryFrom][1]))
        del self._entries[entryFrom:]

    def deleteEntriesTo(self, entryTo: int) -> None:  # noqa: N802, N803
        self.replace(self._entries[entryTo:])

    def __getitem__(self, item: int) -> Entry:
        return self._entries[item]

    def __len__(self) -> int:
        return len(self._entries)

    def setRaftCommitIndex(self, raftCommitIndex: int) -> None:  # noqa: N802, N803
        """Not kept: Raft's commit index is volatile, a restarted member learns it from the next leader."""

    def getRaftCommitIndex(self) -> int:  # noqa: N802
        return 1

    def setCurrentTerm(self, term: int, votedForNodeId: str | None) -> None:  # noqa: N802, N803
        """Durable on return: no message may reflect a term or a vote that a crash can take back."""
        self._term, self._voted_for = term, votedForNodeId
        self._write(self._vote())
        self.sync()

    def getCurrentTerm(self) -> int:  # noqa: N802
        return self._term

    def getVotedForNodeId(self) -> str | None:  # noqa: N802
        return self._voted_for

    def onOneSecondTimer(self) -> None:  # noqa: N802
        """pysyncobj saves its commit index here; ours isn't kept."""

    def _destroy(self) -> None:
        if self._failed is None:
            self.sync()
        os.close(self._file)

    # ------------------------------------------------------------ ours

    def sync(self) -> None:
        """Writes and syncs what was added since the last sync. Does nothing when that is nothing.

        Raises OSError, for good once it did: what lies behind a write that was cut short would be cut with it at the
        next start, and a sync that failed once says nothing when it works the next time.
        """
        if self._failed is not None:
            raise self._failed
        if not self._waiting:
            return
        try:
            view = memoryview(_framed(self._waiting))
            self._waiting = []
            while view:
                view = view[os.write(self._file, view) :]
            if self._durable:
                os.fdatasync(self._file)
        except OSError as error:
            self._failed = error
            raise
        self.syncs += 1

    def entries(self) -> list[Entry]:
        return list(self._entries)

    def replace(self, entries: list[Entry]) -> None:
        """The whole log anew, in one step that a crash leaves done or undone."""
        self._entries = list(entries)
        self._rewrite()

    def abandon(self) -> None:
        """Closes without writing what isn't synced, as a crash would (simulations)."""
        os.close(self._file)

    def _write(self, record: raft_pb2.JournalRecord) -> None:
        self._waiting.append(record)

    def _vote(self) -> raft_pb2.JournalRecord:
        vote = raft_pb2.JournalRecord.Vote(term=self._term)
        if self._voted_for is not None:
            vote.voted_for = self._voted_for
        return raft_pb2.JournalRecord(vote=vote)

    def _rewrite(self) -> None:
        self._waiting = []  # it is part of what is written now
        entries = [raft_pb2.Entry(command=command, index=index, term=term) for command, index, term in self._entries]
        records = [
            _header(self._member, joins=self.joins), self._vote(),
            *(raft_pb2.JournalRecord(entry=entry) for entry in entries),
        ]
        replace_file(self._path, _framed(records), sync=self._durable)
        os.close(self._file)
        self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND)

    def _load(self) -> None:
        data = self._path.read_bytes()
        writes, end = frames(data, str(self._path))
        records = [record for write in writes for record in raft_pb2.JournalWrite.FromString(write).records]
        for position, record in enumerate(records):
            self._replay(position, record)
        if not records:
            raise DamagedFileError(f"{self._path} has no header: this member's log is lost, add a new member instead")
        if end < len(data):
            os.truncate(self._path, end)

    def _replay(self, position: int, record: raft_pb2.JournalRecord) -> None:
        kind = record.WhichOneof("record")
        if (position == 0) != (kind == "header"):
            raise DamagedFileError(f"{self._path}: record {position} is a {kind}, a journal begins with its header")
        match kind:
            case "header":
                self._check_header(record.header)
            case "entry":
                entry = record.entry
                self._entries.append((entry.command, entry.index, entry.term))
            case "truncate_from":
                self._entries = [entry for entry in self._entries if entry[1] < record.truncate_from]
            case "vote":
                vote = record.vote
                self._term = vote.term
                self._voted_for = vote.voted_for if vote.HasField("voted_for") else None
            case _:
                raise DamagedFileError(f"{self._path}: record {position} is of a kind that this build doesn't know")

    def _check_header(self, header: raft_pb2.JournalRecord.Header) -> None:
        if header.format != FORMAT:
            raise DamagedFileError(f"{self._path} is of format {header.format}, this build reads {FORMAT}: upgrade it")
        if header.member != self._member:
            raise DamagedFileError(
                f"{self._path} belongs to member {header.member}, this is {self._member}: check the state directory"
            )
        self.joins = header.joins


def _header(member: str, *, joins: bool) -> raft_pb2.JournalRecord:
    return raft_pb2.JournalRecord(header=raft_pb2.JournalRecord.Header(format=FORMAT, member=member, joins=joins))


def _framed(records: list[raft_pb2.JournalRecord]) -> bytes:
    return frame(raft_pb2.JournalWrite(records=records).SerializeToString())
