"""A member of the ledger whose disk is full: it promises nothing unsynced and ends; the others go on."""

import contextlib
import time

import pytest

from counting.raft.journal import Journal
from tests.counting.client import Client
from tests.counting.processes import Processes
from tests.counting.region import REST, counting, frontend
from tests.counting.test_processes import SERVES_S, led_by
from tests.small_disk import small_disk


def test_a_journal_that_could_not_be_written_stays_so_and_keeps_what_was_synced(tmp_path):
    with small_disk(tmp_path / "disk", size_mb=1) as disk:
        path = disk.path / "journal"
        Journal.create(path, "m1")
        journal = Journal(path, "m1")
        journal.add(b"synced", 1, 1)
        journal.sync()
        disk.fill()
        journal.add(bytes(8000), 2, 1)      # more than the rest of the file's last page
        with pytest.raises(OSError, match="No space left"):
            journal.sync()
        disk.empty()
        journal.add(b"later", 3, 1)
        with pytest.raises(OSError, match="No space left"):
            journal.sync()                  # entry 2 is missing: nothing behind it may count as written
        journal._destroy()
        again = Journal(path, "m1")
        assert [(command, index) for command, index, _ in again.entries()] == [(b"synced", 1)]
        again.add(b"anew", 2, 2)
        again.sync()
        again._destroy()
        last = Journal(path, "m1")
        assert [command for command, _, _ in last.entries()] == [b"synced", b"anew"]
        last._destroy()


async def test_a_leader_whose_disk_is_full_ends_and_is_replaced(tmp_path):
    with contextlib.ExitStack() as stack:
        disks = {
            counting(n).node: stack.enter_context(small_disk(tmp_path / counting(n).node, size_mb=2)) for n in (1, 2, 3)
        }
        processes = Processes(tmp_path)
        stack.callback(processes.close)
        processes.start()
        client = await Client(processes.network(frontend(1)), frontend(1).node, processes.addresses).start()
        await client.welcomed(SERVES_S)
        await processes.set_limit(client, 2)
        await client.take(REST, within_s=SERVES_S)
        leader = client.leader
        disks[leader].fill()
        deadline = time.monotonic() + SERVES_S
        limit = 100
        while processes.running[leader].poll() is None:     # it has more to write, as a follower too
            assert time.monotonic() < deadline, "it goes on without a journal"
            limit += 1
            await processes.set_limit(client, limit)
        assert processes.running.pop(leader).wait(SERVES_S) == 2
        await processes.set_limit(client, 2)
        assert client.leader != leader
        await client.take(REST, within_s=SERVES_S)
        assert (await client.refused(REST)).limit == 2
        disks[leader].empty()
        processes.launch(int(leader[-1]))
        processes.kill(await led_by(client))                # what came back is needed for a majority now
        client.give(REST)
        await client.take(REST, within_s=SERVES_S)
        assert (await client.refused(REST)).limit == 2
        await client.stop()
        assert set(processes.close().values()) == {0}
