"""A member of the ledger whose disk is full: it promises nothing unsynced and ends; the others go on."""

import asyncio
import contextlib
import time

import pytest

from chassis.faults import Fault
from counting.raft.journal import Journal
from protos import counting_pb2, counting_rpc
from tests.counting.client import Client, Refused
from tests.counting.processes import Processes
from tests.counting.region import OPERATOR, REST, A, counting, frontend
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
        await client.welcomed(20.0)
        await set_limit(processes, client.leader, 2)
        await client.take(REST)
        leader = client.leader
        disks[leader].fill()
        deadline = time.monotonic() + 15.0
        limit = 100
        while processes.running[leader].poll() is None:
            assert time.monotonic() < deadline, "it goes on without a journal"
            limit += 1
            with contextlib.suppress(Fault):                # it ended
                await set_limit(processes, leader, limit)
        assert processes.running[leader].wait(5) == 2
        while client.leader == leader:
            assert time.monotonic() < deadline, "nobody else leads"
            await asyncio.sleep(0.05)
        await set_limit(processes, client.leader, 2)
        await client.take(REST, within_s=10.0)
        with pytest.raises(Refused, match="limit: 2"):
            await client.take(REST, within_s=10.0)
        disks[leader].empty()
        processes.running.pop(leader)
        processes.launch(int(leader[-1]))
        processes.kill(client.leader)                       # what came back is needed for a majority now
        client.give(REST)
        await client.take(REST, within_s=20.0)
        with pytest.raises(Refused, match="limit: 2"):
            await client.take(REST, within_s=10.0)
        await client.stop()
        assert set(processes.close().values()) == {0}


async def set_limit(processes, leader, limit):
    channel = processes.network(OPERATOR).connect(processes.addresses[leader], service="counting")
    request = counting_pb2.SetAccountLimitRequest(account=A, limit=limit)
    assert (await channel.call(counting_rpc.SET_ACCOUNT_LIMIT, request, timeout_s=12)).changed
    await channel.close()
