"""Enrolment over real TLS on loopback: who gets a certificate, who doesn't, and what log and store say after."""

import asyncio
import contextlib
import time
from dataclasses import replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID
from structlog.testing import capture_logs

from chassis import open_network, proofs
from chassis.certificates import Authority, new_key
from chassis.clock import SystemClock
from chassis.credentials import Revocations
from chassis.faults import Fault, FaultCode
from chassis.rpc import Caller
from chassis.tokens import Token
from placement import records
from placement.attempts import ADDRESSES_MAX, FAILURES_MAX, RECOVER_S, Attempts
from placement.node_record import REPEAT_S, NodeRecord, key_of
from protos import enrolment_pb2, enrolment_rpc
from storage.faults import OutcomeUnknown, StoreUnavailable
from storage.memory import MemoryMetadata
from tests.placement.trust import OPERATOR, WORKER, Region


@pytest.fixture
async def region(tmp_path):
    async with Region(tmp_path) as region:
        yield region


async def until(condition, timeout_s=60.0):
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)


def csr(key, *, name="placement", san="labda://az1/h/operator/operator", signer=None):
    """A request that asks for what it shouldn't get."""
    builder = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(san)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=3), critical=True)
    )
    return builder.sign(signer or key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


async def refused(call, code=FaultCode.DENIED):
    """The refusal's text, and what was logged of it."""
    with capture_logs() as logs, pytest.raises(Fault) as caught:
        await call
    assert (caught.value.code, caught.value.definite) == (code, True), caught.value.message
    lines = [line for line in logs if line["event"] == "certificate refused"]
    assert len(lines) == 1
    assert lines[0]["peer"].startswith("ipv4:127.0.0.1:")
    assert lines[0]["reason"] in caught.value.message
    return caught.value.message


async def test_the_certificate_is_of_the_identity_in_the_record_whatever_the_request_says(region):
    placement = await region.placement(lifetime_s=3600.0)
    token, key = await region.add(), new_key()
    shown = region.read(await region.enrol(token, placement, request=csr(key)))
    assert shown.caller == Caller(
        service="worker", node="worker-az1-1", az="az1", host="host-az1-1", enrolment=1
    )
    assert proofs.fingerprint(shown.key) == proofs.fingerprint(key.public_key())
    assert shown.issuer == "labda placement-az1 CA 1"
    assert abs(shown.ends_at - time.time() - 3600) < 10
    record = await region.record()
    assert record.used_at
    assert record.key == proofs.fingerprint(key.public_key())
    assert placement.outcomes == {"enrol granted": 1}


async def test_a_used_token_is_refused_to_another_key_and_answers_its_own_for_a_while(region):
    placement = await region.placement()
    token, key = await region.add(), new_key()
    first = region.read(await region.enrol(token, placement, key=key))
    again = region.read(await region.enrol(token, placement, key=key))
    assert again.caller == first.caller     # its answer may have been lost
    assert "was used already" in await refused(region.enrol(token, placement))
    placement.clock.ahead_s = REPEAT_S + 1
    assert "was used already" in await refused(region.enrol(token, placement, key=key))


async def test_tokens_that_open_nothing(region):
    placement = await region.placement()
    token = await region.add()
    other = await region.add(Caller(service="worker", node="worker-az2-1", az="az2", host="h2"))
    await until(lambda: placement.trust.records.has_token(other.digest))
    stranger = Token.draw("worker-az1-1", region.root.pem)
    said = await refused(region.enrol(stranger, placement))
    assert "no token of worker-az1-1's" in said
    unheard = await refused(region.enrol(Token.draw("worker-az9-9", region.root.pem), placement))
    assert unheard.split(":", 1)[1].replace("worker-az9-9", "worker-az1-1") == said.split(":", 1)[1]
    assert "is for another node than worker-az1-1" in await refused(region.enrol(other, placement, node=token.node))
    assert (await region.record("worker-az2-1")).used_at == 0
    late = await region.add(lasts_s=-1.0)
    assert "has expired" in await refused(region.enrol(late, placement))
    assert "no token" in await refused(region.enrol(token, placement))      # the operator made a newer one
    assert "no token" in await refused(region.enrol(late, placement, node="../leases/w"))
    revoked = await region.add()
    await placement.as_operator(enrolment_rpc.REVOKE, enrolment_pb2.RevokeRequest(node="worker-az1-1"))
    assert "was revoked" in await refused(region.enrol(revoked, placement))
    assert placement.outcomes == {"enrol refused": 7}


async def test_requests_that_prove_nothing(region):
    placement = await region.placement()
    token = await region.add()
    for request, reason in (
        (b"", "can't be read"), (b"x" * 9000, "9000 bytes"),
        (csr(new_key(), signer=rsa.generate_private_key(65537, 2048)), "P-256"),
        (csr(ec.generate_private_key(ec.SECP384R1())), "P-256"),
        (forged(), "isn't signed by its own key"),
    ):
        assert reason in await refused(region.enrol(token, placement, request=request or b"-"), FaultCode.INVALID)
    assert (await region.record()).used_at == 0


def forged():
    """A request for a key that its sender has only seen: the signature is another one's."""
    theirs = new_key()
    good, mine = csr(theirs), csr(new_key())
    signature = x509.load_der_x509_csr(mine).signature
    signed = x509.load_der_x509_csr(good)
    return good.replace(signed.signature, signature[: len(signed.signature)].ljust(len(signed.signature), b"\0"))


async def test_two_placements_race_for_one_token(region):
    """Both read the unused record before either writes: the store decides."""
    one, two = await region.placement("placement-az1"), await region.placement("placement-az2")
    token = await region.add()
    both = asyncio.Barrier(2)
    meetings = iter((True, True))

    async def meet(_key):
        if next(meetings, False):
            await both.wait()

    region.store.before_write = meet
    answers = await asyncio.gather(region.enrol(token, one), region.enrol(token, two), return_exceptions=True)
    given = [answer for answer in answers if isinstance(answer, bytes)]
    refusals = [answer for answer in answers if isinstance(answer, Fault)]
    assert len(given) == len(refusals) == 1, answers
    assert "was used already" in refusals[0].message
    assert (await region.record()).key == proofs.fingerprint(region.read(given[0]).key)


async def test_one_process_that_asks_both_gets_one_identity(region):
    """The answer of the first was lost: the second knows the key from the record."""
    one, two = await region.placement("placement-az1"), await region.placement("placement-az2")
    token, key = await region.add(), new_key()
    answers = await asyncio.gather(region.enrol(token, one, key=key), region.enrol(token, two, key=key))
    assert len({region.read(answer).caller for answer in answers}) == 1


async def test_an_unknown_outcome_is_read_again(region):
    placement = await region.placement()
    token = await region.add()
    lost = iter((True,))

    async def lose(key):
        if next(lost, False):
            raise OutcomeUnknown(key, "the answer was lost")

    region.store.after_write = lose
    assert region.read(await region.enrol(token, placement)).caller.node == "worker-az1-1"


async def test_without_the_store_nobody_enrols_and_everybody_renews(region):
    placement = await region.placement(lifetime_s=100.0)
    token, key = await region.add(), new_key()
    chain = await region.enrol(token, placement, key=key)
    other = await region.add(Caller(service="worker", node="worker-az1-2", az="az1", host="h2"))
    await until(lambda: placement.trust.records.has_token(other.digest))

    async def away(*_):
        raise StoreUnavailable("the store is away")

    get, region.store.get = region.store.get, away
    with pytest.raises(Fault) as caught:
        await region.enrol(other, placement)
    assert caught.value.code is FaultCode.UNAVAILABLE
    assert not caught.value.definite
    assert region.read(await region.renew(chain, key, placement)).caller == region.read(chain).caller
    # For as long as a certificate lasts: after that nobody can say who was revoked meanwhile.
    region.store.list = away
    placement.clock.ahead_s = 120.0
    with pytest.raises(Fault, match="can't know who was revoked") as caught:
        await region.renew(chain, key, placement)
    assert caught.value.code is FaultCode.UNAVAILABLE
    region.store.get, placement.clock.ahead_s = get, 0.0
    assert region.read(await region.enrol(other, placement)).caller.node == "worker-az1-2"


async def test_a_certificate_that_expired_long_ago_is_renewed_until_its_node_is_revoked(region):
    one, two = await region.placement("placement-az1"), await region.placement("placement-az2")
    key = new_key()
    await region.enrol(await region.add(), one, key=key)
    caller = (await region.record()).caller
    expired = one.authority.certify(key.public_key(), caller, lifetime_s=60.0, now=time.time() - 8 * 86_400)
    assert region.read(expired).ends_at < time.time() - 7 * 86_400
    new = new_key()
    renewed = region.read(await region.renew(expired, key, two, key=new))
    assert renewed.caller == caller
    assert renewed.ends_at > time.time() + 86_000
    assert proofs.fingerprint(renewed.key) == proofs.fingerprint(new.public_key())
    answer = await one.as_operator(enrolment_rpc.REVOKE, enrolment_pb2.RevokeRequest(node=caller.node))
    assert answer.enrolment == 1
    await until(lambda: two.trust.records.revoked == {caller.node: 1}, 2.0)
    assert "was revoked" in await refused(region.renew(expired, key, two))
    assert "was revoked" in await refused(region.renew(expired, key, one))


async def test_certificates_that_are_not_renewed(region):
    placement = await region.placement()
    key = new_key()
    chain = await region.enrol(await region.add(), placement, key=key)
    proof = proofs.prove(key, proofs.request(new_key()))    # of another request
    assert "doesn't hold its key" in await refused(region.renew(chain, key, placement, proof=proof))
    foreign = Authority.create().intermediate("placement-az1")
    stolen = foreign.certify(key.public_key(), WORKER, lifetime_s=100.0)
    assert "no root of this region" in await refused(region.renew(stolen, key, placement))
    own = region.root.certify(key.public_key(), WORKER, lifetime_s=100.0)      # of no enrolment: no token bought it
    assert "was revoked" in await refused(region.renew(own, key, placement))
    unknown = placement.authority.certify(
        key.public_key(), Caller(service="worker", node="worker-az7-1", az="az1", host="h"), lifetime_s=100.0
    )
    assert "no node of this region" in await refused(region.renew(unknown, key, placement))
    operator = Caller(service="operator", node="worker-az1-1", az="az1", host="host-az1-1")
    dressed = placement.authority.certify(key.public_key(), operator, lifetime_s=100.0)
    assert "another node" in await refused(region.renew(dressed, key, placement))
    for broken in (b"", chain[:200], chain + chain, placement.authority.pem):
        await refused(region.renew(broken, key, placement), FaultCode.INVALID)


async def test_what_a_thief_signs_with_an_intermediate_buys_nothing_before_its_revocation_or_after(region):
    """Another placement would vouch for him otherwise, and its word would outlive the revocation."""
    thief, other = await region.placement("placement-az1"), await region.placement("placement-az2")
    for who in (OPERATOR, Caller(service="placement", node="placement-az1", az="az1", host="placement-az1"),
                Caller(service="placement", node="placement-az2", az="az1", host="placement-az2")):
        await found(region, who)
    await region.enrol(await region.add(), other, key=(first := new_key()))
    key = new_key()
    made_up = [
        thief.authority.certify(key.public_key(), replace(who, enrolment=1), lifetime_s=100.0)
        for who in (WORKER, OPERATOR, Caller(service="placement", node="placement-az2", az="az1", host="placement-az2"))
    ]

    async def launder():
        for chain in made_up:
            for changed in (
                {"first_key": b"", "first_proof": b""},
                {},                                                     # a first key of his own making
                {"first_key": proofs.spelled(first.public_key())},      # one that he has only heard of
            ):
                said = await refused(region.renew(chain, key, other, **changed))
                assert "isn't behind the request" in said
                other.clock.ahead_s += RECOVER_S    # he has the patience

    await launder()
    await other.as_operator(enrolment_rpc.REVOKE, enrolment_pb2.RevokeRequest(node="placement-az1"))
    await launder()
    assert "renew granted" not in other.outcomes


async def test_what_a_stolen_intermediate_bought_ends_with_it_and_honest_nodes_go_on(region):
    """To the end: who is admitted anywhere once the revocation was heard, and renewed."""
    stolen, other = await region.placement("placement-az1"), await region.placement("placement-az2")
    await found(region, Caller(service="placement", node="placement-az1", az="az1", host="placement-az1"))
    first, key = new_key(), new_key()
    honest = await region.enrol(await region.add(), stolen, key=first)
    has = [(stolen.authority.certify(key.public_key(), replace(WORKER, enrolment=1), lifetime_s=100.0), key)]
    with contextlib.suppress(Fault):
        has.append((await region.renew(*has[0], other, key=(laundered := new_key())), laundered))
    await other.as_operator(enrolment_rpc.REVOKE, enrolment_pb2.RevokeRequest(node="placement-az1"))
    heard = Revocations()
    heard.add(other.trust.records.revoked)
    for chain, its_key in has:
        shown = region.read(chain)
        with pytest.raises(Fault, match="was revoked"):
            heard.admit(shown.caller, shown.issuer)
        await refused(region.renew(chain, its_key, other))
    new = new_key()
    renewed = await region.renew(honest, first, other, key=new)
    again = region.read(await region.renew(renewed, new, other, first=first))
    heard.admit(again.caller, again.issuer)
    assert (again.caller.enrolment, again.issuer) == (1, "labda placement-az2 CA 1")


async def test_an_unused_token_leaves_a_node_its_renewals_whoever_signed_its_certificate(region):
    one, other = await region.placement("placement-az1"), await region.placement("placement-az2")
    await found(region, Caller(service="placement", node="placement-az1", az="az1", host="placement-az1"))
    first, second, thiefs = new_key(), new_key(), new_key()
    chain = await region.enrol(await region.add(), one, key=first)
    await other.as_operator(enrolment_rpc.REVOKE, enrolment_pb2.RevokeRequest(node="placement-az1"))
    token = Token.draw(WORKER.node, region.root.pem)
    await other.as_operator(enrolment_rpc.ADMIT, enrolment_pb2.AdmitRequest(
        node=WORKER.node, service=WORKER.service, az=WORKER.az, host=WORKER.host, token=token.digest,
        expires=time.time() + 100,
    ))
    assert region.read(await region.renew(chain, first, other)).caller.enrolment == 1
    # Not one of the enrolment to come: who has the first key and an intermediate would be in before the token is used.
    ahead = one.authority.certify(thiefs.public_key(), replace(WORKER, enrolment=2), lifetime_s=100.0)
    assert "isn't behind the request" in await refused(region.renew(ahead, thiefs, other, first=first))
    chain = await region.enrol(token, other, key=second)
    assert region.read(await region.renew(chain, second, other)).caller.enrolment == 2
    assert "isn't behind the request" in await refused(region.renew(chain, second, other, first=first))
    assert "isn't behind the request" in await refused(region.renew(ahead, thiefs, other, first=first))


async def test_a_placement_asks_the_store_about_who_enrolled_elsewhere_a_moment_ago(region):
    knows, behind = await region.placement("placement-az1"), await region.placement("placement-az2")
    token, key = await region.add(), new_key()
    unused = await region.record()
    chain = await region.enrol(token, knows, key=key)
    behind.trust.records.get = lambda _: unused
    assert region.read(await region.renew(chain, key, behind)).caller.enrolment == 1


async def found(region, who):
    """A record as founding writes it for who gets no token."""
    record = NodeRecord(node=who.node, service=who.service, az=who.az, host=who.host)
    await region.store.put(key_of(who.node), record.encode(), expected=0)
    await until(lambda: all(placement.trust.records.get(who.node) == record for placement in region.placements))


async def test_who_fails_too_often_is_not_looked_at_for_a_while(region):
    placement = await region.placement()
    token = await region.add()
    for _ in range(FAILURES_MAX):
        await refused(region.enrol(Token.draw(token.node, region.root.pem), placement))
    with pytest.raises(Fault, match="too many failed attempts") as caught:
        await region.enrol(token, placement)
    assert caught.value.code is FaultCode.EXHAUSTED
    placement.clock.ahead_s = RECOVER_S
    await region.enrol(token, placement)


def test_failures_are_counted_by_address_and_forgotten():
    attempts = Attempts()
    for n in range(FAILURES_MAX):
        attempts.fail(f"ipv4:10.0.0.1:{n}", 0.0)
    with pytest.raises(Fault):
        attempts.admit("ipv4:10.0.0.1:99", 1.0)
    attempts.admit("ipv4:10.0.0.2:99", 1.0)
    for n in range(ADDRESSES_MAX):
        attempts.fail(f"ipv6:[fd00::{n:x}]:1", 2.0)
    attempts.admit("ipv4:10.0.0.1:99", 2.0)     # the table is bounded: the longest untouched was forgotten


async def test_only_the_enrolment_methods_are_on_the_open_listener(region):
    placement = await region.placement()
    for call in (
        open_network.call(placement.trust.address, "placement", enrolment_rpc.REVOKE, enrolment_pb2.RevokeRequest(),
                          roots=region.root.pem, timeout_s=60),
        open_network.call(placement.trust.address, "placement", enrolment_rpc.ADMIT, enrolment_pb2.AdmitRequest(),
                          roots=region.root.pem, timeout_s=60),
    ):
        with pytest.raises(Fault, match=r"(?i)not found"):
            await call


async def test_nobody_revokes_or_admits_what_is_no_node(region):
    placement = await region.placement()
    with pytest.raises(Fault, match="no node of this region"):
        await placement.as_operator(enrolment_rpc.REVOKE, enrolment_pb2.RevokeRequest(node="worker-az1-1"))
    for node, service, az in (("a b", "worker", "az1"), ("n", "king", "az1"), ("n", "worker", "")):
        with pytest.raises(Fault, match="can't be a node"):
            await placement.as_operator(
                enrolment_rpc.ADMIT, enrolment_pb2.AdmitRequest(node=node, service=service, az=az, host="h", token="d")
            )


async def test_the_copy_of_records_survives_a_gap_and_an_absence(region, monkeypatch):
    monkeypatch.setattr(records, "RETRY_S", 0.01)
    monkeypatch.setattr(records, "LIST_S", 0.05)
    placement = await region.placement()
    copy = placement.trust.records
    token = await region.add()
    await until(lambda: copy.has_token(token.digest))
    listing, region.store.list = region.store.list, unavailable
    await until(lambda: copy.age_s > 0.3)
    second = await region.add()
    region.store.list = listing
    await until(lambda: copy.has_token(second.digest))
    await until(lambda: copy.age_s < 0.2)
    await region.store.delete("enrolment/worker-az1-1", expected=None)
    await until(lambda: copy.get("worker-az1-1") is None)


async def test_a_store_that_was_restored_has_the_last_word(region, tmp_path):
    """Its revisions begin anew: what is kept of the old one seems newer and isn't."""
    first = await region.placement("placement-az1", directory=str(tmp_path / "kept"))
    for _ in range(5):
        token = await region.add()
    await until(lambda: first.trust.records.has_token(token.digest))
    await first.close()
    region.store = MemoryMetadata(SystemClock())
    newest = await region.add()
    again = await region.placement("placement-az1", directory=str(tmp_path / "kept"))
    await until(lambda: again.trust.records.has_token(newest.digest))
    assert not again.trust.records.has_token(token.digest)


async def test_a_placement_that_starts_without_its_store_knows_whom_to_renew(region, tmp_path):
    first = await region.placement("placement-az1", directory=str(tmp_path / "kept"))
    key = new_key()
    chain = await region.enrol(await region.add(), first, key=key)
    gone = await region.add(Caller(service="worker", node="worker-az1-2", az="az1", host="h2"))
    gone_key = new_key()
    gone_chain = await region.enrol(gone, first, key=gone_key)
    await first.as_operator(enrolment_rpc.REVOKE, enrolment_pb2.RevokeRequest(node="worker-az1-2"))
    await until(lambda: b'"revoked": 1' in (tmp_path / "kept" / "node-records.json").read_bytes())
    await first.close()
    region.store.list = region.store.get = unavailable
    again = await region.placement("placement-az1", directory=str(tmp_path / "kept"), lifetime_s=100.0)
    await until(lambda: again.trust.records.age_s is not None)
    assert region.read(await region.renew(chain, key, again)).caller.node == "worker-az1-1"
    assert "was revoked" in await refused(region.renew(gone_chain, gone_key, again))
    again.clock.ahead_s = 110.0
    with pytest.raises(Fault, match="can't know who was revoked"):
        await region.renew(chain, key, again)
    (tmp_path / "kept" / "node-records.json").write_text("{")
    damaged = await region.placement("placement-az1", directory=str(tmp_path / "kept"))
    with pytest.raises(Fault, match="can't know who was revoked"):
        await region.renew(chain, key, damaged)


async def unavailable(*_):
    raise StoreUnavailable("the store is away")
