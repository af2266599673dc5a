"""Journal and dump files: torn tails are cut, damage refuses to start."""

import random

import pytest

from counting.raft.dump import Chunk, Dumps, Snapshot
from counting.raft.framing import SECTOR, DamagedFileError
from counting.raft.journal import Journal


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "journal"
    Journal.create(path, "m1")
    return path


def written(path, writes, size=20):
    """A journal with one entry per sync; returns where each write ends in the file."""
    journal = Journal(path, "m1")
    ends = []
    for n in range(1, writes + 1):
        journal.add(bytes((65 + n % 26,)) * size, n, 1)
        journal.sync()
        ends.append(path.stat().st_size)
    journal._destroy()
    return ends


def indices(path):
    journal = Journal(path, "m1")
    found = [entry[1] for entry in journal.entries()]
    journal._destroy()
    return found


def test_everything_synced_is_read_again(path):
    journal = Journal(path, "m1")
    journal.add(b"a", 1, 0)
    journal.setCurrentTerm(3, "m2")
    for index in (2, 3, 4):
        journal.add(b"%d" % index, index, 3)
    journal.deleteEntriesFrom(2)
    journal.add(b"other", 3, 4)
    journal.sync()
    journal.add(b"never synced", 4, 4)
    journal.abandon()
    again = Journal(path, "m1")
    assert again.entries() == [(b"a", 1, 0), (b"2", 2, 3), (b"other", 3, 4)]
    assert (again.getCurrentTerm(), again.getVotedForNodeId()) == (3, "m2")
    again.deleteEntriesTo(1)
    again.setCurrentTerm(5, None)
    again._destroy()
    last = Journal(path, "m1")
    assert last.entries() == [(b"2", 2, 3), (b"other", 3, 4)]
    assert (last.getCurrentTerm(), last.getVotedForNodeId()) == (5, None)
    last._destroy()


def test_many_entries_cost_one_sync(path):
    journal = Journal(path, "m1")
    for index in range(1, 50):
        journal.add(b"x", index, 1)
    journal.sync()
    journal.sync()
    assert journal.syncs == 1
    journal._destroy()


def test_a_torn_tail_is_cut_at_every_byte(path):
    ends = written(path, 4)
    whole = path.read_bytes()
    for cut in range(ends[-2] + 1, ends[-1]):
        path.write_bytes(whole[:cut])
        assert indices(path) == [1, 2, 3]
        assert path.stat().st_size == ends[-2]


def test_a_tail_with_sectors_that_were_never_written_is_cut(path):
    ends = written(path, 3, size=4 * SECTOR)
    data = bytearray(path.read_bytes())
    start = (ends[-2] // SECTOR + 2) * SECTOR
    data[start : start + SECTOR] = bytes(SECTOR)
    path.write_bytes(data)
    assert indices(path) == [1, 2]


def test_a_changed_bit_refuses_to_start(path):
    """Whichever it is: also one of the last record's length, which then points beyond the file's end as if torn."""
    written(path, 3)
    whole = path.read_bytes()
    for at in range(len(whole)):
        for bit in range(8):
            data = bytearray(whole)
            data[at] ^= 1 << bit
            path.write_bytes(data)
            with pytest.raises(DamagedFileError):
                Journal(path, "m1")


def test_the_last_record_changed_in_place_is_no_torn_write(path):
    ends = written(path, 3)
    data = bytearray(path.read_bytes())
    data[ends[-1] - 1] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedFileError, match="new member under a new id"):
        Journal(path, "m1")


def test_another_members_journal_is_refused(path):
    with pytest.raises(DamagedFileError, match="belongs to member m1"):
        Journal(path, "m2")


def test_an_empty_journal_is_a_lost_one(path):
    path.write_bytes(b"")
    with pytest.raises(DamagedFileError, match="has no header"):
        Journal(path, "m1")


def test_a_journal_is_created_once(path):
    with pytest.raises(FileExistsError):
        Journal.create(path, "m1")


def test_a_dump_travels_in_chunks_and_is_checked_before_it_replaces_anything(tmp_path):
    snapshot = Snapshot(before=(b"a", 4, 1), last=(b"b", 5, 2), state=random.Random(1).randbytes(600_000))
    sender, receiver = Dumps(tmp_path / "a", lambda: b""), Dumps(tmp_path / "b", lambda: b"")
    sender.store(snapshot)
    chunks: list[Chunk] = []
    while not chunks or not chunks[-1][2]:
        chunk = sender.getTransmissionData("m2")
        assert chunk is not None
        chunks.append(chunk)
    assert [(first, last) for _, first, last in chunks] == [(True, False), (False, False), (False, True)]
    assert [receiver.receive(chunk) for chunk in chunks[:2]] == [None, None]
    assert receiver.receive(chunks[2]) == snapshot
    assert not (tmp_path / "b").exists()
    damaged = [(bytes((chunks[0][0][0] ^ 1,)) + chunks[0][0][1:], True, False), *chunks[1:]]
    assert [receiver.receive(chunk) for chunk in damaged[:2]] == [None, None]
    with pytest.raises(DamagedFileError):
        receiver.receive(damaged[2])


def test_a_damaged_dump_refuses_to_start(tmp_path):
    dumps = Dumps(tmp_path / "dump", lambda: b"")
    dumps.store(Snapshot(before=(b"a", 4, 1), last=(b"b", 5, 2), state=b"state"))
    data = bytearray((tmp_path / "dump").read_bytes())
    data[-1] ^= 1
    (tmp_path / "dump").write_bytes(data)
    with pytest.raises(DamagedFileError, match="checksum"):
        Dumps(tmp_path / "dump", lambda: b"").read()
