"""Files that are moved onto a disk that can be filled, and back."""

import errno
import os

import pytest

from labda.chaos.small_disk import MOUNT, move_back, move_onto
from labda.leftovers import move_back as move_all_back
from labda.state import State


@pytest.fixture
def folder(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("needs root: it mounts a tmpfs")
    found = tmp_path / "nodes" / "counting-az1" / "raft"
    found.mkdir(parents=True)
    (found / "journal").write_bytes(b"one")
    yield found
    move_back(found)


def test_what_is_written_there_comes_back(folder):
    disk = move_onto(folder)
    assert os.path.ismount(disk.path)
    with (folder / "journal").open("ab") as file:
        file.write(b" two")
    move_back(folder)
    assert not folder.is_symlink()
    assert (folder / "journal").read_bytes() == b"one two"
    assert sorted(path.name for path in folder.parent.iterdir()) == ["raft"]
    move_back(folder)   # nothing is there to move
    assert (folder / "journal").read_bytes() == b"one two"


def test_a_full_one_takes_nothing_and_gives_back_what_it_has(folder):
    disk = move_onto(folder)
    disk.fill()
    with pytest.raises(OSError, match="No space") as refused:
        (folder / "more").write_bytes(bytes(100_000))
    assert refused.value.errno == errno.ENOSPC
    move_back(folder)
    assert (folder / "journal").read_bytes() == b"one"
    assert not (folder.parent / MOUNT).exists()


def test_room_is_made_again(folder):
    disk = move_onto(folder)
    assert move_onto(folder).path == disk.path, "once is enough"
    disk.fill()
    disk.empty()
    (folder / "dump").write_bytes(bytes(100_000))


def test_a_cluster_that_ends_moves_them_back(folder, tmp_path):
    move_onto(folder)
    (folder / "journal").write_bytes(b"newer")
    move_all_back(State(tmp_path))
    assert not folder.is_symlink()
    assert (folder / "journal").read_bytes() == b"newer"
