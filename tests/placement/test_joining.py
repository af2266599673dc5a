"""A process joins, keeps its certificate, starts again with it, renews it: its side, against real listeners."""

import asyncio
import itertools
import random
import stat
import time
from dataclasses import replace

import pytest

from chassis import enrolment, proofs
from chassis.certificates import Authority, Tls, TlsFiles, new_key
from chassis.clock import SystemClock
from chassis.config import EnrolmentConfig, IssuerConfig, NodeConfig
from chassis.enrolment import credentials_of
from chassis.faults import Fault, FaultCode
from chassis.keeping import Keep, Kept
from chassis.rpc import Caller
from chassis.tokens import Token
from placement.node_record import REPEAT_S
from protos import enrolment_pb2, enrolment_rpc
from storage.faults import StoreUnavailable
from tests.placement.trust import WORKER, Region, ended


@pytest.fixture
async def region(tmp_path):
    async with Region(tmp_path) as region:
        yield region


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Waits between questions are short here."""
    monkeypatch.setattr(enrolment, "PAUSE_S", 0.02)
    monkeypatch.setattr(enrolment, "RETRY_S_MAX", 0.05)


def shown(region, credentials):
    return region.read(credentials.current.certificate)


async def test_a_restart_needs_neither_token_nor_placement(region, tmp_path):
    placement = await region.placement()
    token = await region.add()
    async with ended(process := region.process(token=token)):
        first = (await process.start()).current
    files = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / WORKER.node).iterdir()}
    assert files == {"identity.pem": 0o600}
    assert token.secret not in (tmp_path / WORKER.node / "identity.pem").read_text()
    await placement.close()
    for again in (token, ""):
        async with ended(process := region.process(token=again)):
            assert (await process.start()).current == first


async def test_a_crash_before_the_answer_is_kept_costs_no_token(region, tmp_path):
    """The token was used, the answer never arrived: the key is on the disk, and asks again."""
    placement = await region.placement()
    token = await region.add()
    key = Keep(tmp_path / WORKER.node).first_key(token.digest)
    await region.enrol(token, placement, key=key)
    async with ended(process := region.process(token=token)):
        found = shown(region, await process.start())
    assert proofs.fingerprint(found.key) == proofs.fingerprint(key.public_key())
    # Too late: an operator has to look at it.
    other = Caller(service="worker", node="worker-az1-2", az="az1", host="h2")
    late = await region.add(other)
    await region.enrol(late, placement, key=Keep(tmp_path / other.node).first_key(late.digest))
    placement.clock.ahead_s = REPEAT_S + 1
    with pytest.raises(Fault, match="was used already"):
        await region.process(other, token=late).start()


async def test_a_renewal_after_a_lost_answer_leaves_the_newer_tokens_key(region, tmp_path):
    """A placement that hasn't heard of the token's use renews the older enrolment once more."""
    behind, knows = await region.placement("placement-az1"), await region.placement("placement-az2")
    async with ended(process := region.process(token=await region.add())):
        await process.start()
    keep = Keep(tmp_path / WORKER.node)
    newer = await region.add()
    unused = await region.record()
    key = keep.first_key(newer.digest)
    kept = keep.read()
    assert kept is not None
    await region.enrol(newer, knows, key=key)       # the answer is lost
    behind.trust.records.get = lambda _: unused
    renewed = new_key()
    chain = await region.renew(kept.chain, kept.key, behind, key=renewed, first=kept.first)
    keep.write(replace(kept, key=renewed, chain=chain))
    async with ended(process := region.process(token=newer)):
        found = shown(region, await process.start())
    assert (found.caller.enrolment, proofs.fingerprint(found.key)) == (2, proofs.fingerprint(key.public_key()))
    assert not (tmp_path / WORKER.node / "joining.pem").exists()


async def test_a_process_waits_for_whoever_serves_enrolment(region):
    placement = await region.placement()
    token = await region.add()
    await placement.trust.close()
    config = EnrolmentConfig(authority="", directory=str(region.tmp_path / "n"), seeds=(placement.trust.address,))
    process = enrolment.Enrolment(
        WORKER, config, enrolment.Given(authority=region.root.pem, token=token.text), SystemClock(),
        random.SystemRandom(),
    )
    starting = asyncio.ensure_future(process.start())
    await asyncio.sleep(0.2)
    assert not starting.done()
    again = await region.placement(listen=placement.trust.address)
    async with ended(process):
        assert shown(region, await asyncio.wait_for(starting, 60)).caller.node == WORKER.node
    assert again.outcomes == {"enrol granted": 1}


@pytest.mark.parametrize(
    ("token", "root", "reason"),
    [
        ("", None, "neither a certificate nor a token"),
        ("labda-1.worker-az1-1.short.abc", None, "malformed"),
        ("another node's", None, "the token is worker-az2-1's, this process is worker-az1-1"),
        ("own", "another", "belongs to a region with another root"),
    ],
)
async def test_what_is_wrong_is_said_before_anybody_sees_the_token(region, token, root, reason):
    placement = await region.placement()
    own = await region.add()
    text = {"own": own.text, "another node's": Token.draw("worker-az2-1", region.root.pem).text}.get(token, token)
    given = enrolment.Given(authority=Authority.create().pem if root else region.root.pem, token=text)
    config = EnrolmentConfig(authority="", directory=str(region.tmp_path / "n"), seeds=(placement.trust.address,))
    with pytest.raises(Fault, match=reason) as caught:
        await enrolment.Enrolment(WORKER, config, given, SystemClock(), random.SystemRandom()).start()
    assert caught.value.definite
    assert own.secret not in caught.value.message
    assert placement.outcomes == {}


async def test_a_listener_that_the_root_does_not_vouch_for_never_sees_the_token(region, tmp_path):
    """Somebody serves enrolment at the seed's address, with a certificate of his own making."""
    async with Region(tmp_path / "thief") as thief:
        theirs = await thief.placement()
        token = await region.add()
        config = EnrolmentConfig(authority="", directory=str(tmp_path / "n"), seeds=(theirs.trust.address,))
        process = enrolment.Enrolment(
            WORKER, config, enrolment.Given(authority=region.root.pem, token=token.text), SystemClock(),
            random.SystemRandom(),
        )
        starting = asyncio.ensure_future(process.start())
        await asyncio.sleep(0.3)
        assert not starting.done()
        starting.cancel()
        assert theirs.outcomes == {}


async def test_a_record_that_says_somebody_else_is_not_taken(region):
    await region.placement()
    token = await region.add(Caller(service="worker", node=WORKER.node, az="az2", host="h2"))
    with pytest.raises(Fault, match="its configuration and the node's record differ"):
        await region.process(token=token).start()


async def test_after_a_week_the_kept_certificate_buys_a_new_one(region, tmp_path):
    placement = await region.placement()
    key = new_key()
    await region.enrol(await region.add(), placement, key=key)
    caller = (await region.record()).caller
    long_ago = time.time() - 7 * 86_400
    old = placement.authority.certify(key.public_key(), caller, lifetime_s=86_400.0, now=long_ago)
    Keep(tmp_path / WORKER.node).write(Kept(token="", first=key, key=key, chain=old))
    async with ended(process := region.process()):
        found = shown(region, await process.start())
    assert found.ends_at > time.time() + 80_000
    assert proofs.fingerprint(found.key) != proofs.fingerprint(key.public_key())
    kept = Keep(tmp_path / WORKER.node).read()
    assert kept is not None
    assert region.read(kept.chain) == found


async def test_a_certificate_is_renewed_in_its_second_half_under_the_same_number(region):
    await region.placement("placement-az1", lifetime_s=2.0)
    await region.placement("placement-az2", lifetime_s=2.0)
    async with ended(process := region.process(token=await region.add())):
        credentials = await process.start()
        seen = [credentials.current]
        credentials.observe(seen.append)
        async with asyncio.timeout(60):
            while len(seen) < 4:
                await asyncio.sleep(0.05)
    read = [region.read(tls.certificate) for tls in seen]
    assert {one.caller for one in read} == {(await region.record()).caller}
    assert len({proofs.fingerprint(one.key) for one in read}) == 4
    for before, after in itertools.pairwise(read):
        assert 0.0 <= after.issued_at - before.issued_at <= 2.0     # whole seconds, as certificates have them
    assert seen[-1].key != seen[0].key


async def test_a_revoked_node_is_not_renewed_and_comes_back_by_a_new_token(region, tmp_path):
    placement = await region.placement()
    first = await region.add()
    async with ended(process := region.process(token=first)):
        old = shown(region, await process.start())
    await placement.as_operator(enrolment_rpc.REVOKE, enrolment_pb2.RevokeRequest(node=WORKER.node))
    keep = Keep(tmp_path / WORKER.node)
    kept = keep.read()
    assert kept is not None
    expired = placement.authority.certify(kept.key.public_key(), old.caller, lifetime_s=1.0, now=time.time() - 100)
    keep.write(replace(kept, chain=expired))
    with pytest.raises(Fault, match="was revoked"):
        await region.process(token=first).start()
    second = await region.add()
    async with ended(process := region.process(token=second)):
        assert shown(region, await process.start()).caller.enrolment == 2
    # A token that nobody has used, while the kept certificate is good and the store away: what is kept goes on.
    third = await region.add()
    get, region.store.get = region.store.get, unavailable
    async with ended(process := region.process(token=third)):
        assert shown(region, await process.start()).caller.enrolment == 2
        region.store.get = get
        await placement.as_operator(enrolment_rpc.REVOKE, enrolment_pb2.RevokeRequest(node=WORKER.node))
    fourth = await region.add()
    region.store.get = unavailable
    async with ended(process := region.process(token=fourth)):
        credentials = await process.start()
        assert shown(region, credentials).caller.enrolment == 2     # revoked, and nobody could take the token
        region.store.get = get
        async with asyncio.timeout(60):
            while shown(region, credentials).caller.enrolment != 4:
                await asyncio.sleep(0.02)
    # The first token lies about again: what is kept is newer.
    async with ended(process := region.process(token=first)):
        assert shown(region, await process.start()).caller.enrolment == 4


async def unavailable(*_):
    raise StoreUnavailable("the store is away")


@pytest.mark.parametrize("heard", ["while it runs", "while it was away"])
async def test_when_its_issuer_is_revoked_a_process_goes_to_another_placement_at_once(region, heard):
    """Nobody takes what a revoked placement signed; the node's first key, which the record knows, buys another."""
    thief = await region.placement("placement-az1")
    process = region.process(token=await region.add())
    credentials = await process.start()
    assert shown(region, credentials).issuer == "labda placement-az1 CA 1"
    other = await region.placement("placement-az2")
    await other.as_operator(enrolment_rpc.ADMIT, enrolment_pb2.AdmitRequest(
        node="placement-az1", service="placement", az="az1", host="placement-az1"
    ))
    await other.as_operator(enrolment_rpc.REVOKE, enrolment_pb2.RevokeRequest(node="placement-az1"))
    await process.close()
    process = region.process()      # which knows both placements; what the thief offers it may take until it has heard
    async with ended(process):
        if heard == "while it was away":
            await thief.close()
        credentials = await process.start()
        if heard == "while it runs":
            credentials.revoked.add(other.trust.records.revoked)
        async with asyncio.timeout(60):
            while shown(region, credentials).issuer != "labda placement-az2 CA 1":
                await asyncio.sleep(0.02)
    assert shown(region, credentials).caller.enrolment == 1


async def test_a_placement_that_is_behind_is_not_the_last_word(region):
    """One says no by an old copy; the other one knows the node."""
    behind, knows = await region.placement("placement-az1"), await region.placement("placement-az2")
    key = new_key()
    chain = await region.enrol(await region.add(), knows, key=key)

    async def nothing(_key):
        return None

    behind.trust.records.get = lambda _: None
    behind.trust._enrolment._metadata = type("Empty", (), {"get": staticmethod(nothing)})()
    with pytest.raises(Fault, match="no node of this region"):
        await region.renew(chain, key, behind)
    caller = region.read(chain).caller
    expired = knows.authority.certify(key.public_key(), caller, lifetime_s=1.0, now=time.time() - 99)
    Keep(region.tmp_path / WORKER.node).write(Kept(token="", first=key, key=key, chain=expired))
    async with ended(process := region.process()):
        assert shown(region, await process.start()).ends_at > time.time()


async def test_a_damaged_directory_is_said_and_a_full_one_loses_no_certificate(region, tmp_path):
    placement = await region.placement(lifetime_s=2.0)
    directory = tmp_path / WORKER.node
    directory.mkdir()
    (directory / "identity.pem").write_bytes(b"\0" * 100)
    async with ended(process := region.process(token=await region.add())):
        credentials = await process.start()
        kept = (directory / "identity.pem").read_bytes()
        (directory / "identity.pem.new").mkdir()       # nothing can be written there any more
        seen: list[Tls] = []
        credentials.observe(seen.append)
        async with asyncio.timeout(60):
            while len(seen) < 2:
                await asyncio.sleep(0.05)
    assert (directory / "identity.pem").read_bytes() == kept
    (directory / "identity.pem.new").rmdir()
    async with ended(process := region.process()):
        assert shown(region, await process.start()).ends_at > time.time() - 2
    assert placement.outcomes["renew granted"] >= 2


async def test_a_placement_gives_itself_what_it_shows(region, tmp_path):
    region.root.intermediate("placement-az1", 3).save(tmp_path, "intermediate")
    (tmp_path / "root.pem").write_bytes(region.root.pem)

    def node(name):
        return NodeConfig(
            service="placement", node=name, az="az1", host="h", listen="127.0.0.1:0", placement=(),
            enrolment=EnrolmentConfig(authority=str(tmp_path / "root.pem"), issuer=IssuerConfig(
                certificate=str(tmp_path / "intermediate.pem"), key=str(tmp_path / "intermediate.key"),
                listen="127.0.0.1:0",
            )),
        )

    credentials = await credentials_of(node("placement-az1"), SystemClock(), random.SystemRandom())
    assert shown(region, credentials).caller == Caller(
        service="placement", node="placement-az1", az="az1", host="h", enrolment=3
    )
    with pytest.raises(Fault, match="no intermediate of placement-az2"):
        await credentials_of(node("placement-az2"), SystemClock(), random.SystemRandom())


async def test_files_that_are_not_there_are_named(tmp_path):
    files = TlsFiles(authority=str(tmp_path / "a"), certificate=str(tmp_path / "c"), key=str(tmp_path / "k"))
    node = NodeConfig(service="worker", node="w", az="az1", host="h", listen="", placement=(), tls=files)
    with pytest.raises(Fault, match=str(tmp_path / "a")) as caught:
        await credentials_of(node, SystemClock(), random.SystemRandom())
    assert caught.value.code is FaultCode.INVALID
    with pytest.raises(ValueError, match="either tls"):
        NodeConfig(service="worker", node="w", az="az1", host="h", listen="", placement=())
