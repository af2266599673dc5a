"""The cluster as an operator sees it: the region's view, the ledger's pools, the managers' sandboxes.

Owns the operator's connections. Everything comes by RPC under the operator's certificate; no file of a service is read.
"""

import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import TypeVar

from google.protobuf.message import Message

from chassis import logs
from chassis.certificates import Tls, TlsFiles
from chassis.clock import SystemClock
from chassis.credentials import Credentials
from chassis.directory import Directory
from chassis.faults import Fault
from chassis.grpc_network import GrpcNetwork, is_serving
from chassis.rpc import Network
from labda.refusal import Refusal, Status
from labda.state import State
from protos import (
    common_pb2,
    counting_pb2,
    counting_rpc,
    placement_pb2,
    worker_manager_pb2,
    worker_manager_rpc,
    worker_pb2,
    worker_rpc,
)
from protos.rpc import Method

OPERATOR = "operator"
VIEW_S = 3.0
CALL_S = 2.0
CHANGE_S = 8.0          # of members: a majority has to agree, and a leader to hand over
FOLLOW_S = 86_400.0

Node = placement_pb2.Node
Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)


class Region:
    """Use ``opened``. ``directory`` follows the region's view."""

    def __init__(self, network: Network, directory: Directory) -> None:
        self._network = network
        self.directory = directory

    @property
    def nodes(self) -> list[Node]:
        """Every process that placement knows, by AZ, service and name."""
        return sorted(self.directory.nodes.values(), key=lambda node: (node.az, node.service, node.node))

    async def serving(self, node: Node) -> bool:
        """Asks the process itself (gRPC health)."""
        return await is_serving(self._network, node.address, service=node.service, node=node.node, timeout_s=CALL_S)

    async def call(
        self, node: Node, method: Method[Request, Response], request: Request, *, timeout_s: float = CALL_S
    ) -> Response:
        """One question to one process. Raises Fault."""
        channel = self._network.connect(node.address, service=node.service, node=node.node)
        try:
            return await channel.call(method, request, timeout_s=timeout_s)
        finally:
            await channel.close()

    async def pools(self) -> counting_pb2.ListPoolsAnswer | None:
        """From the leader of counting; None while there is none that answers."""
        return await self._ask_leader(counting_rpc.LIST_POOLS, counting_pb2.ListPoolsRequest())

    async def hosts(self) -> counting_pb2.ListHostsAnswer | None:
        """Likewise."""
        return await self._ask_leader(counting_rpc.LIST_HOSTS, counting_pb2.ListHostsRequest())

    async def declare_dead(
        self, incarnation: common_pb2.Incarnation, *, force: bool
    ) -> counting_pb2.DeclareDeadAnswer | None:
        """Likewise; one that was declared and isn't known to have been may be declared again."""
        request = counting_pb2.DeclareDeadRequest(incarnation=incarnation, force=force)
        return await self._ask_leader(counting_rpc.DECLARE_DEAD, request)

    async def counting_members(self) -> counting_pb2.ListMembersAnswer | None:
        """Likewise."""
        return await self._ask_leader(counting_rpc.LIST_MEMBERS, counting_pb2.ListMembersRequest())

    async def change_counting(
        self, member: str, *, add: bool
    ) -> counting_pb2.ChangeMembersAnswer | None:
        """Likewise; said twice it is done once. None also when it isn't known whether it is done."""
        method = counting_rpc.ADD_MEMBER if add else counting_rpc.REMOVE_MEMBER
        return await self._ask_leader(method, counting_pb2.ChangeMembersRequest(member=member), timeout_s=CHANGE_S)

    async def _ask_leader(
        self, method: Method[Request, Response], request: Request, *, timeout_s: float = CALL_S
    ) -> Response | None:
        members = self.directory.of_service("counting")
        for node in sorted(members, key=lambda member: member.role != "leader"):
            try:
                answer = await self.call(node, method, request, timeout_s=timeout_s)
            except Fault:
                continue
            if not answer.HasField("not_leader"):
                return answer
        return None

    async def logs(self, node: Node, request: worker_pb2.LogsRequest) -> AsyncIterator[worker_pb2.LogLines.Line]:
        """One function's lines on one worker. Raises Fault when the worker goes away."""
        channel = self._network.connect(node.address, service="worker", node=node.node)
        try:
            timeout_s = FOLLOW_S if request.follow else CALL_S
            async for batch in channel.fetch(worker_rpc.LOGS, request, timeout_s=timeout_s):
                for line in batch.lines:
                    yield line
        finally:
            await channel.close()

    async def managers(self) -> dict[str, worker_manager_pb2.DescribeAnswer]:
        """What each manager that answers holds, by node."""
        found = {}
        for node in self.directory.of_service("worker_manager"):
            channel = self._network.connect(node.address, service="worker_manager", node=node.node)
            with contextlib.suppress(Fault):
                found[node.node] = await channel.call(
                    worker_manager_rpc.DESCRIBE, worker_manager_pb2.DescribeRequest(), timeout_s=CALL_S
                )
            await channel.close()
        return found


@contextlib.asynccontextmanager
async def opened(state: State, placements: Sequence[str]) -> AsyncIterator[Region]:
    """Follows the region's view while inside. The first view may not be there yet: ``wait``."""
    logs.configure(service="labda", node=OPERATOR, level="error")  # a peer that is away is no news on standard output
    files = TlsFiles(
        authority=str(state.authority), certificate=str(state.certificate(OPERATOR)), key=str(state.key(OPERATOR))
    )
    try:
        network = GrpcNetwork(Credentials.fixed(Tls.read(files)), resolve=state.resolver)
    except OSError as error:
        raise Refusal(f"can't read {error.filename} ({error.strerror}): run labda as the user who started the cluster",
                      Status.HOST) from error
    node = placement_pb2.Node(node=OPERATOR, service="operator", az="az1", host="operator")
    directory = Directory(network=network, clock=SystemClock(), seeds=tuple(placements), node=node)
    directory.start()
    try:
        yield Region(network, directory)
    finally:
        await directory.close()


async def wait(region: Region, state: State) -> None:
    """For the first view. Raises Refusal."""
    try:
        await region.directory.ready(VIEW_S)
    except TimeoutError:
        raise Refusal(
            f"placement doesn't answer within {VIEW_S:.0f} s: its log is {state.where_logs_are}; if it stays away, "
            f"`{state.end_command} --state {state.root}` and start again", Status.NO_CLUSTER,
        ) from None
