"""Who belongs to a running cluster: nodes are revoked, and get new tokens, by way of any placement.

Owns the order in which a new token comes to be: first the region knows its hash, then the node's folder has it. Refuses
to know how a cluster is found (``labda.state``, ``labda.region``).
"""

import asyncio
import contextlib
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from google.protobuf.message import Message

from chassis.certificates import write_private
from chassis.directory import Directory
from chassis.faults import Fault, FaultCode
from labda.cluster import trust
from labda.refusal import Refusal, Status
from labda.region import Region, opened, wait
from labda.state import State
from labda.topology import Member
from placement import node_record
from placement.node_record import NodeRecord
from protos import enrolment_pb2, enrolment_rpc
from protos.rpc import Method

BIND_S = 5.0        # a region that is well needs less than two
STORE_S = 5.0       # placement asks its store, which may be electing a leader

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)


@dataclass(frozen=True, slots=True)
class Revoked:
    enrolment: int
    bound_s: float | None       # when the active placement had told everybody; None: it didn't within BIND_S


@dataclass(frozen=True, slots=True)
class Made:
    enrolment: int
    token: str                  # empty for a placement: it got an intermediate
    folder: Path


async def revoke(state: State, node: str) -> Revoked:
    """Raises Refusal when no placement could write it down."""
    async with opened(state, state.cluster()["placements"]) as region:
        await wait(region, state)
        began = time.monotonic()
        answer = await _ask(region, enrolment_rpc.REVOKE, enrolment_pb2.RevokeRequest(node=node))
        bound = asyncio.Event()

        def see(directory: Directory) -> None:
            if directory.revoked.get(node, -1) >= answer.enrolment:
                bound.set()

        region.directory.observe(see)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(BIND_S):
                await bound.wait()
                return Revoked(answer.enrolment, time.monotonic() - began)
        return Revoked(answer.enrolment, None)


async def token(state: State, node: str) -> Made:
    """Raises Refusal for a node that this directory doesn't know, and when no placement could write it down."""
    kept = state.root / "enrolment" / f"{node}.json"
    if not kept.exists():
        raise Refusal(
            f"{node} is no node of {state.root}: add it to the topology, then `labda cluster init`", Status.REFUSED
        )
    before = NodeRecord.decode(kept.read_bytes())
    who = Member(service=before.service, node=node, az=before.az, host=before.host)
    if before.service == "operator":
        return await _new_operator(state, before)
    is_placement = before.service == "placement"
    made, record = trust.new_token(state.root, who, before=before, token_s=node_record.TOKEN_S)
    async with opened(state, state.cluster()["placements"]) as region:
        await wait(region, state)
        answer = await _ask(region, enrolment_rpc.ADMIT, enrolment_pb2.AdmitRequest(
            node=node, service=who.service, az=who.az, host=who.host, token="" if is_placement else made.digest,
            expires=record.expires,
        ))
    folder = state.root / "nodes" / node
    if is_placement:
        trust.renew_intermediate(state.root, who, answer.enrolment)
        record = replace(record, token="")
    else:
        trust.put_token(state.root, made)
    write_private(kept, replace(record, enrolment=answer.enrolment).encode())
    return Made(answer.enrolment, "" if is_placement else made.text, folder)


async def _new_operator(state: State, before: NodeRecord) -> Made:
    """A new certificate for whoever holds the root's key; then, under it, an end to all before it."""
    after = replace(before, enrolment=before.enrolment + 1)
    trust.certify_operator(state.root, after.enrolment)
    write_private(state.root / "enrolment" / "operator.json", after.encode())
    async with opened(state, state.cluster()["placements"]) as region:
        await wait(region, state)
        await _ask(region, enrolment_rpc.ADMIT, enrolment_pb2.AdmitRequest(
            node=after.node, service=after.service, az=after.az, host=after.host, enrolment=after.enrolment
        ))
    return Made(after.enrolment, "", state.root / "tls")


async def _ask(region: Region, method: Method[Request, Response], request: Request) -> Response:
    """The first placement that can. Raises Refusal."""
    said = "no placement is registered"
    for node in region.directory.of_service("placement"):
        try:
            return await region.call(node, method, request, timeout_s=STORE_S)
        except Fault as fault:
            if fault.code in (FaultCode.NOT_FOUND, FaultCode.INVALID, FaultCode.DENIED):
                raise Refusal(fault.message, Status.REFUSED) from fault
            said = fault.message
    raise Refusal(f"no placement could write it down ({said}): nothing was changed, as far as known", Status.REFUSED)
