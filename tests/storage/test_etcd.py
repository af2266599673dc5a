"""The contract on etcd, and what only a cluster has: members that go away, users who may not touch everything."""

import asyncio
import contextlib
import json
import shutil
from collections.abc import AsyncIterator
from typing import Any

import pytest

from chassis.clock import SystemClock
from chassis.faults import Fault, FaultCode
from protos import etcd_pb2
from protos.etcd_rpc import COMPACT, RANGE, TXN
from protos.rpc import Method
from storage.etcd import EtcdMetadata, EtcdSettings
from storage.etcd_members import NO_SPACE
from storage.faults import NewerSchema, OutcomeUnknown, StoreDenied, StoreFull, StoreUnavailable, WatchGap
from storage.founding import RECORDS_OF, found_etcd
from tests.storage import contract
from tests.storage.etcd_world import EtcdWorld
from tests.storage.servers import Authorities, EtcdTrio
from tests.storage.worlds import eventually


@pytest.fixture(scope="module")
async def trio(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EtcdTrio]:
    trio = EtcdTrio(tmp_path_factory.mktemp("etcd"))
    try:
        trio.start_all()
        await trio.ready()
        await found_etcd(trio.addresses, trio.authorities.client("operator"))
        yield trio
    finally:
        trio.end()


@pytest.fixture
async def world(trio: EtcdTrio) -> AsyncIterator[EtcdWorld]:
    world = EtcdWorld(trio, trio.authorities.client("operator"))
    yield world
    await world.close()


class TestCompareAndSwap(contract.CompareAndSwapContract): ...


class TestWatch(contract.WatchContract): ...


class TestAcknowledgement(contract.AcknowledgementContract): ...


class TestLease(contract.LeaseContract): ...


def store_of(trio: EtcdTrio, user: str, *, authorities: Authorities | None = None) -> EtcdMetadata:
    """For strangers it is in vain: they find that out soon."""
    tls = (authorities or trio.authorities).client(user)
    settings = EtcdSettings(answer_s=3.0, attempt_s=0.5) if authorities else EtcdSettings(answer_s=30.0, attempt_s=10.0)
    return EtcdMetadata(trio.addresses, tls, SystemClock(), settings)


KEYS = {
    "frontend": ("accounts/1/functions/f", "keys/k", "registry/accounts"),
    "placement": ("leases/w", "leadership/placement", "enrolment/n"),
}


async def test_founding_again_changes_nothing(trio: EtcdTrio) -> None:
    await found_etcd(trio.addresses, trio.authorities.client("operator"))
    await found_etcd(trio.addresses, trio.authorities.client("operator"))


@pytest.mark.parametrize("user", RECORDS_OF)
async def test_each_service_touches_only_its_own_keys(trio: EtcdTrio, user: str) -> None:
    store, operator = store_of(trio, user), store_of(trio, "operator")
    try:
        for owner, keys in KEYS.items():
            for key in keys:
                if owner == user:
                    revision = await store.put(key, b"1", expected=None)
                    assert (await store.list(key)).revision >= revision
                    await store.delete(key, expected=revision)
                    continue
                with pytest.raises(StoreDenied) as denied:
                    await store.put(key, b"1", expected=0)
                assert denied.value.definite
                with pytest.raises(StoreDenied):
                    await store.get(key)
                with pytest.raises(StoreDenied):
                    await contract.first_changes(store, key, after=0, count=1)
                assert await operator.get(key) is None
        with pytest.raises(StoreDenied):
            await store.list("")
        if user == "frontend":
            await store.acknowledge("frontend-1", 0, 0.0)
        else:
            with pytest.raises(StoreDenied):
                await store.acknowledgements()
    finally:
        await store.close()
        await operator.close()


async def test_only_the_operator_founds(trio: EtcdTrio) -> None:
    with pytest.raises(StoreDenied):
        await found_etcd(trio.addresses, trio.authorities.client("placement"))


async def test_a_stranger_is_let_in_by_nobody(trio: EtcdTrio) -> None:
    """Of another authority; of ours, but nobody's user; without a certificate that serves."""
    other = store_of(trio, "operator", authorities=Authorities())
    with pytest.raises(StoreUnavailable):
        await other.get("accounts/x")
    await other.close()
    unknown = store_of(trio, "worker")
    with pytest.raises(StoreDenied):
        await unknown.get("accounts/x")
    await unknown.close()


async def test_a_member_by_another_name_is_not_trusted(trio: EtcdTrio) -> None:
    """The names in the certificate are checked, wherever the address leads."""
    store = EtcdMetadata(
        ["etcd.elsewhere:2379"], trio.authorities.client("operator"), SystemClock(),
        EtcdSettings(answer_s=1.0, attempt_s=0.5), resolve=lambda _: trio.addresses[0],
    )
    with pytest.raises(StoreUnavailable):
        await store.get("accounts/x")
    await store.close()


# ---------------------------------------------------------------- a full member, and what comes after a lost answer


class OneMember:
    """A member in memory, with a script of what becomes of each transaction: carried out unless it says otherwise.

    Refuses to know etcd: it has what an `EtcdMetadata` asks of one key.
    """

    def __init__(self) -> None:
        self.script: list[str] = []
        self.kvs: dict[bytes, etcd_pb2.KeyValue] = {}
        self.revision = 1
        self.reads = True

    async def call(self, method: Method[Any, Any], request: Any, *, timeout_s: float) -> Any:
        if method is RANGE:
            if not self.reads:
                raise Fault("etcdserver: no leader", code=FaultCode.UNAVAILABLE)
            return self.range(request)
        assert method is TXN
        fate = self.script.pop(0) if self.script else "done"
        answer = self.carried_out(request) if fate.startswith("done") else None
        if fate.endswith("lost"):
            raise Fault("deadline exceeded", code=FaultCode.TIMEOUT)
        if fate.endswith("full"):
            raise Fault(f"etcdserver: mvcc: {NO_SPACE}", code=FaultCode.EXHAUSTED)
        if fate.endswith("denied"):
            raise Fault("etcdserver: permission denied", code=FaultCode.DENIED)
        assert answer is not None
        return answer

    def range(self, request: etcd_pb2.RangeRequest) -> etcd_pb2.RangeResponse:
        found = [kv for key, kv in self.kvs.items() if key == request.key]
        return etcd_pb2.RangeResponse(header=etcd_pb2.ResponseHeader(revision=self.revision), kvs=found)

    def carried_out(self, request: etcd_pb2.TxnRequest) -> etcd_pb2.TxnResponse:
        answer = etcd_pb2.TxnResponse(succeeded=all(
            compare.mod_revision == (self.kvs[compare.key].mod_revision if compare.key in self.kvs else 0)
            for compare in request.compare
        ))
        if answer.succeeded:
            self.revision += 1
            put = request.success[0].request_put
            self.kvs[put.key] = etcd_pb2.KeyValue(key=put.key, value=put.value, mod_revision=self.revision)
        else:
            answer.responses.add().response_range.CopyFrom(self.range(request.failure[0].request_range))
        answer.header.revision = self.revision
        return answer

    async def close(self) -> None: ...


@pytest.fixture
def member() -> OneMember:
    return OneMember()


@pytest.fixture
async def store_of_one(member: OneMember) -> AsyncIterator[EtcdMetadata]:
    store = EtcdMetadata(
        ["any:2379"], Authorities().client("operator"), SystemClock(), EtcdSettings(answer_s=1.0, attempt_s=0.5)
    )
    await store._members.close()
    store._members._channels = [member]  # type: ignore[list-item]
    yield store
    await store.close()


async def test_what_a_full_member_refused_was_not_written(member: OneMember, store_of_one: EtcdMetadata) -> None:
    first = await store_of_one.put("a", b"1", expected=0)
    for expected in (first, None):
        member.script = ["full"]
        with pytest.raises(StoreFull, match=r"quota.*was not written") as full:
            await store_of_one.put("a", b"2", expected=expected)
        assert full.value.definite
    assert await store_of_one.put("a", b"3", expected=first) > first


async def test_what_crossed_the_quota_was_written(member: OneMember, store_of_one: EtcdMetadata) -> None:
    """etcd applies it, and then says that it is full."""
    member.script = ["done, full"]
    revision = await store_of_one.put("a", b"1", expected=0)
    record = await store_of_one.get("a")
    assert record is not None
    assert (record.value, record.revision) == (b"1", revision)


async def test_what_a_full_member_did_is_not_claimed_where_nothing_tells(
    member: OneMember, store_of_one: EtcdMetadata
) -> None:
    await store_of_one.put("a", b"1", expected=0)
    member.script = ["full"]
    with pytest.raises(OutcomeUnknown, match="somebody else"):
        await store_of_one.put("a", b"2", expected=0)
    await store_of_one.get("a")
    member.script, member.reads = ["done, full"], False
    with pytest.raises(OutcomeUnknown, match=r"quota.*no leader"):
        await store_of_one.put("b", b"1", expected=0)
    member.script, member.reads = ["done, full"], True
    with pytest.raises(OutcomeUnknown, match="quota"):
        await store_of_one.acknowledge("frontend-1", 5, 10.0)


@pytest.mark.parametrize("later", ["full", "denied"])
async def test_a_refusal_after_a_lost_answer_claims_nothing(
    member: OneMember, store_of_one: EtcdMetadata, later: str
) -> None:
    member.script = ["done, lost", later]
    with pytest.raises(OutcomeUnknown, match="an answer was lost, and then: "):
        await store_of_one.put("a", b"1", expected=0)


# ---------------------------------------------------------------- members that go away


async def write_on(store: EtcdMetadata, key: str, written: list[int], stop: asyncio.Event) -> list[Fault]:
    """Counts up under one key until told to stop; what the store didn't vouch for is read again."""
    faults: list[Fault] = []
    number, revision = 0, 0
    while not stop.is_set():
        try:
            revision = await store.put(key, b"%d" % (number + 1), expected=revision)
        except (OutcomeUnknown, StoreUnavailable) as fault:
            faults.append(fault)
            with contextlib.suppress(StoreUnavailable):
                record = await store.get(key)
                number, revision = (int(record.value), record.revision) if record else (0, 0)
            continue
        number += 1
        written.append(revision)
    return faults


@pytest.mark.parametrize("fault", ["kill", "pause"])
@pytest.mark.parametrize("member", [0, 1, 2])
async def test_a_member_may_go_and_nothing_acknowledged_is_lost(
    trio: EtcdTrio, world: EtcdWorld, fault: str, member: int
) -> None:
    """Whichever it is: one of the three leads."""
    store, watcher = world.metadata(attempt_s=1.0), world.metadata(attempt_s=1.0)
    name = trio.names[member]
    start = (await store.list("")).revision
    written: list[int] = []
    stop = asyncio.Event()
    seen: list[int] = []

    async def watch() -> None:
        async for change in watcher.watch("n", after=start):
            seen.append(change.revision)  # noqa: PERF401 -- looked at while it grows

    writing = asyncio.create_task(write_on(store, "n", written, stop))
    watching = asyncio.create_task(watch())
    try:
        await eventually(lambda: len(written) > 10)
        at = len(written)
        if fault == "kill":
            trio.kill(name)
            await eventually(lambda: len(written) > at + 10)
            trio.start(name)
            await trio.ready()
        else:
            with trio.paused(name):
                await eventually(lambda: len(written) > at + 10)
        await eventually(lambda: len(written) > at + 20)
        stop.set()
        assert await writing == []      # tried again elsewhere, or recognised
        await eventually(lambda: seen[-1:] == written[-1:])
        assert seen == written
    finally:
        stop.set()
        watching.cancel()
        await asyncio.gather(watching, writing, return_exceptions=True)


async def test_without_a_majority_a_write_is_refused_for_certain(trio: EtcdTrio, world: EtcdWorld) -> None:
    store = world.metadata()
    await store.put("a", b"1", expected=0)
    with trio.paused(*trio.names[:2]), world.impatient(store):
        # The first one may be on its way when the majority goes. From then on nothing is sent that may get lost.
        with contextlib.suppress(OutcomeUnknown, StoreUnavailable):
            await store.put("first", b"", expected=0)
        for _ in range(2):
            with pytest.raises(StoreUnavailable) as refused:
                await store.put("b", b"", expected=0)
            assert refused.value.definite
        with pytest.raises(StoreUnavailable):
            await store.get("a")
        with pytest.raises(StoreUnavailable):
            await contract.first_changes(store, "a", after=0, count=1)
    await trio.ready()
    assert await store.get("b") is None
    await store.put("b", b"", expected=0)


async def test_a_member_that_lost_its_disk_is_replaced(trio: EtcdTrio, world: EtcdWorld) -> None:
    """As docs say: out, and in again as a new member, never with its old id."""
    store, name = world.metadata(attempt_s=1.0), trio.names[2]
    revision = await store.put("a", b"before", expected=0)
    trio.kill(name)
    shutil.rmtree(trio.folder / name / "data")
    members = json.loads(await trio.control("member", "list", "--write-out=json"))["members"]
    lost = next(member["ID"] for member in members if member["name"] == name)
    await trio.control("member", "remove", f"{lost:x}")
    revision = await store.put("a", b"meanwhile", expected=revision)
    await trio.control("member", "add", name, f"--peer-urls=https://127.0.0.1:{trio.ports[name].peer}")
    trio.joining.add(name)
    trio.start(name)
    await trio.ready()
    with trio.paused(trio.names[0]):    # it counts again
        await store.put("a", b"after", expected=revision)
    record = await store.get("a")
    assert record is not None
    assert record.value == b"after"


async def test_a_write_whose_answer_was_lost_is_recognised(world: EtcdWorld) -> None:
    store = world.metadata(attempt_s=1.0)
    async with world.lost_answers(store, members=1):
        revision = await store.put("a", b"1", expected=0)
    record = await store.get("a")
    assert record is not None
    assert (record.value, record.revision) == (b"1", revision)
    async with world.lost_answers(store, members=1):
        assert await store.delete("a", expected=None) > revision
    assert await store.get("a") is None


async def test_a_deletion_whose_answer_was_lost_is_not_claimed(world: EtcdWorld) -> None:
    """Somebody else may have deleted it: nothing is left to tell by."""
    store = world.metadata(attempt_s=1.0)
    revision = await store.put("a", b"1", expected=0)
    async with world.lost_answers(store, members=1):
        with pytest.raises(OutcomeUnknown):
            await store.delete("a", expected=revision)


async def test_a_lost_acknowledgement_is_given_again(world: EtcdWorld) -> None:
    store = world.metadata(attempt_s=1.0)
    async with world.lost_answers(store, members=1):
        await store.acknowledge("frontend-1", 5, 10.0)
    assert [item.revision for item in await store.acknowledgements()] == [5]


async def test_a_watch_of_what_was_compacted_lists_again(trio: EtcdTrio, world: EtcdWorld) -> None:
    store = world.metadata()
    first = await store.put("a", b"1", expected=0)
    newest = await store.put("a", b"2", expected=first)
    await store._members.ask(COMPACT, etcd_pb2.CompactionRequest(revision=newest), until=store._members.until())
    with pytest.raises(WatchGap) as gap:
        await contract.first_changes(store, "a", after=first - 1, count=1)
    assert gap.value.oldest == newest


async def test_a_value_of_a_newer_version_is_refused(trio: EtcdTrio, world: EtcdWorld) -> None:
    store = world.metadata()
    key = f"{world.root}records/a".encode()
    put = etcd_pb2.RequestOp(request_put=etcd_pb2.PutRequest(key=key, value=b"\x02something else"))
    await store._members.ask(TXN, etcd_pb2.TxnRequest(success=[put]), until=store._members.until())
    with pytest.raises(NewerSchema, match=r"version 2.*newer program"):
        await store.get("a")


async def test_hosts_clocks_may_differ(world: EtcdWorld) -> None:
    """An acknowledgement counts a little longer for others than for whoever gave it."""
    store = world.metadata(drift_s=0.5)
    await store.acknowledge("frontend-1", 5, 10.0)
    world.clock.now += 10.4
    assert len(await store.acknowledgements()) == 1
    world.clock.now += 0.2
    assert await store.acknowledgements() == ()
