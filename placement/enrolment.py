"""Enrolment as placement serves it: certificates for tokens, certificates for certificates, new tokens, revocations.

Owns the order of the checks, and that a token is used once: its record is changed by compare-and-swap in the store
before anybody gets a certificate. Any placement serves, active or not. Refuses to know what makes a token good
(``node_record``) and how a certificate is made (``chassis.certificates``).
"""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

import structlog

from chassis import proofs
from chassis.certificates import Authority
from chassis.clock import Clock
from chassis.faults import Fault, FaultCode
from chassis.identity import SERVICES
from chassis.metrics import Counts, Metrics
from chassis.rpc import Caller
from chassis.tokens import NODE, digest
from placement import node_record
from placement.attempts import Attempts
from placement.metrics import measure_enrolment
from placement.node_record import NodeRecord, Refused, certified, judge_renewal, judge_token, key_of, with_token
from placement.records import NodeRecords
from protos import enrolment_pb2
from storage.faults import Conflict, OutcomeUnknown, StorageFault
from storage.interfaces import MetadataStore

SWAPS_MAX = 5       # tries of one compare-and-swap; others change the same record once or twice in its life
STORE_S = 3.0       # for all that one request asks of the store
COPY_S_MIN = 30.0   # a copy of this age is good enough, however short certificates live

_log = structlog.get_logger(__name__)

_SAID = {
    Refused.UNKNOWN: "this is no token of {node}'s, or {node} is no node of this region",
    Refused.OTHER_NODE: "the token is for another node than {node}",
    Refused.EXPIRED: "the token of {node} has expired",
    Refused.USED: "the token of {node} was used already; if not by you, revoke the node",
    Refused.REVOKED: "{node} was revoked",
    Refused.KEY: "the key that the token of {node} was used for isn't behind the request",
}


class Enrolment:
    """One placement's. ``records`` is followed by somebody else."""

    def __init__(
        self, *, authority: Authority, lifetime_s: float, metadata: MetadataStore, records: NodeRecords, clock: Clock,
        metrics: Metrics,
    ) -> None:
        self._authority = authority
        self._lifetime_s = lifetime_s
        self._metadata = metadata
        self._records = records
        self._clock = clock
        self._attempts = Attempts()
        self._outcomes = Counts([(what, how) for what in ("enrol", "renew") for how in ("granted", "refused", "away")])
        measure_enrolment(metrics, self._outcomes)

    async def enrol(self, request: enrolment_pb2.EnrolRequest, peer: str) -> enrolment_pb2.Certificate:
        """Raises Fault: denied or invalid (definite), exhausted, unavailable."""
        return await self._counted("enrol", peer, request.node, lambda: self._enrol(request, peer))

    async def renew(self, request: enrolment_pb2.RenewRequest, peer: str) -> enrolment_pb2.Certificate:
        """Raises Fault: denied or invalid (definite), exhausted, unavailable."""
        return await self._counted("renew", peer, "", lambda: self._renew(request, peer))

    async def admit(self, request: enrolment_pb2.AdmitRequest, caller: Caller) -> enrolment_pb2.AdmitAnswer:
        """A new token for a node. Raises Fault."""
        who = Caller(service=request.service, node=request.node, az=request.az, host=request.host)
        if not NODE.fullmatch(who.node) or who.service not in SERVICES or not who.az or not who.host:
            raise Fault(f"{who} can't be a node", code=FaultCode.INVALID, definite=True)
        if request.enrolment:
            change = partial(certified, who=who, enrolment=request.enrolment)
        else:
            change = partial(with_token, who=who, digest=request.token, expires=request.expires)
        record = await self._swap_in_time(who.node, change)
        _log.info("node admitted", for_node=who.node, enrolment=record.enrolment, by=caller.node)
        return enrolment_pb2.AdmitAnswer(enrolment=record.enrolment)

    async def revoke(self, request: enrolment_pb2.RevokeRequest, caller: Caller) -> enrolment_pb2.RevokeAnswer:
        """Raises Fault: not found, unavailable."""

        def change(found: NodeRecord | None) -> NodeRecord:
            if found is None:
                raise Fault(
                    f"{request.node} is no node of this region: `labda status` lists them", code=FaultCode.NOT_FOUND,
                    definite=True,
                )
            return node_record.revoked(found)

        record = await self._swap_in_time(request.node, change)
        _log.warning("node revoked", for_node=record.node, enrolment=record.revoked, by=caller.node)
        return enrolment_pb2.RevokeAnswer(enrolment=record.revoked)

    # ------------------------------------------------------------ certificates

    async def _enrol(self, request: enrolment_pb2.EnrolRequest, peer: str) -> bytes:
        key = proofs.key_of(request.request)
        fingerprint, secret = proofs.fingerprint(key), digest(request.secret)

        def use(found: NodeRecord | None) -> NodeRecord:
            judged = judge_token(found, digest=secret, key=fingerprint, now=self._clock.wall())
            if judged is Refused.UNKNOWN and self._records.has_token(secret):
                judged = Refused.OTHER_NODE
            if isinstance(judged, Refused):
                raise _refusal(judged, request.node)
            return judged

        if not NODE.fullmatch(request.node):
            raise _refusal(Refused.UNKNOWN, request.node[:40])
        record = await self._swap(request.node, use)
        _log.info("enrolled", for_node=record.node, enrolment=record.enrolment, peer=peer, key=fingerprint[:16])
        return self._authority.certify(key, record.caller, lifetime_s=self._lifetime_s, now=self._clock.wall())

    async def _renew(self, request: enrolment_pb2.RenewRequest, peer: str) -> bytes:
        now = self._clock.wall()
        shown = proofs.read(request.certificate, self._authority.root, now)
        if not proofs.proves(shown.key, request.request, request.proof):
            raise Fault(
                f"the certificate of {shown.caller.node} was shown by somebody who doesn't hold its key",
                code=FaultCode.DENIED, definite=True,
            )
        key = proofs.key_of(request.request)
        record = await self._known(shown.caller.node)
        refused = judge_renewal(record, shown.caller, key=_first_key(request))
        if refused is not None:
            raise _refusal(refused, shown.caller.node)
        _log.info("renewed", for_node=shown.caller.node, enrolment=shown.caller.enrolment, peer=peer,
                  expired=now >= shown.ends_at)
        return self._authority.certify(key, shown.caller, lifetime_s=self._lifetime_s, now=now)

    async def _known(self, node: str) -> NodeRecord | None:
        """By the copy, which may be as old as a certificate gets: without its store a region keeps its certificates.

        Raises Fault (unavailable) for an older one.
        """
        age_s = self._records.age_s
        if age_s is None or age_s > max(self._lifetime_s, COPY_S_MIN):
            raise Fault(
                "this placement hasn't heard of its store for longer than certificates last: it can't know who was "
                "revoked", code=FaultCode.UNAVAILABLE, definite=True,
            )
        found = self._records.get(node)
        if found is None or not found.key:      # new, perhaps: only the store can say that it isn't
            stored = await self._metadata.get(key_of(node))
            if stored is not None:
                found = NodeRecord.decode(stored.value)
        return found

    # ------------------------------------------------------------ the store

    async def _swap_in_time(self, node: str, change: Callable[[NodeRecord | None], NodeRecord]) -> NodeRecord:
        try:
            async with asyncio.timeout(STORE_S):
                return await self._swap(node, change)
        except TimeoutError:
            raise Fault(
                f"the store didn't answer within {STORE_S} s: whether the record of {node} was changed is unknown, "
                "say it again", code=FaultCode.TIMEOUT,
            ) from None

    async def _swap(self, node: str, change: Callable[[NodeRecord | None], NodeRecord]) -> NodeRecord:
        """Changes a record by what it is now; ``change`` raises to leave it. Raises Fault."""
        for _ in range(SWAPS_MAX):
            stored = await self._metadata.get(key_of(node))
            before = NodeRecord.decode(stored.value) if stored is not None else None
            after = change(before)
            if stored is not None and after == before:
                return after
            try:
                revision = await self._metadata.put(
                    key_of(node), after.encode(), expected=stored.revision if stored is not None else 0
                )
            except (Conflict, OutcomeUnknown) as fault:
                _log.info("record changed meanwhile, or perhaps", for_node=node, fault=fault.message)
                continue
            self._records.learn(after, revision)
            return after
        raise Fault(f"the record of {node} couldn't be changed in {SWAPS_MAX} tries", code=FaultCode.UNAVAILABLE)

    # ------------------------------------------------------------ who is refused, and why

    async def _counted(
        self, what: str, peer: str, node: str, work: Callable[[], Awaitable[bytes]]
    ) -> enrolment_pb2.Certificate:
        now, node = self._clock.monotonic(), node[:64]
        self._attempts.admit(peer, now)
        try:
            async with asyncio.timeout(STORE_S):
                chain = await work()
        except (StorageFault, TimeoutError) as fault:
            self._outcomes.add(what, "away")
            _log.warning("no certificate while the store is away", asked=what, for_node=node, fault=str(fault))
            raise Fault("placement's store doesn't answer: ask again", code=FaultCode.UNAVAILABLE) from fault
        except Fault as fault:
            if fault.code not in (FaultCode.DENIED, FaultCode.INVALID):
                self._outcomes.add(what, "away")
                raise
            self._attempts.fail(peer, now)
            self._outcomes.add(what, "refused")
            _log.warning("certificate refused", asked=what, for_node=node, peer=peer, reason=fault.message)
            raise
        self._outcomes.add(what, "granted")
        return enrolment_pb2.Certificate(chain=chain)


def _first_key(request: enrolment_pb2.RenewRequest) -> str:
    """Fingerprint of the first key that is behind the request; empty: none is. Raises Fault (invalid)."""
    if not request.first_key:
        return ""
    key = proofs.parsed(request.first_key)
    return proofs.fingerprint(key) if proofs.proves(key, request.request, request.first_proof) else ""


def _refusal(reason: Refused, node: str) -> Fault:
    return Fault(
        f"{_SAID[reason].format(node=node)}: `labda cluster token {node}` makes a new token",
        code=FaultCode.DENIED, definite=True,
    )
