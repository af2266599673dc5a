"""Worker managers as a frontend reaches them: one stream to each, requests batched.

Owns the streams, who owns a function by the region's map, and replies on their way. Refuses to know what is done with a
reservation (linger.py, invoke.py). A reservation starts nothing: asking again after a break is safe.
"""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import structlog

from chassis.directory import Directory
from chassis.faults import Fault
from chassis.process import Tasks
from chassis.rendezvous import owner_of
from chassis.rpc import Network, Outbox, converse
from protos import common_pb2, worker_manager_pb2, worker_manager_rpc

_Request = worker_manager_pb2.FrontendRequest
_Reply = worker_manager_pb2.ManagerReply
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manager:
    """A manager by node id and address."""

    node: str
    address: str


class Managers:
    """All links to managers. ``on_recall`` hears of reservations that are wanted back, ``on_break`` of a link's end."""

    def __init__(
        self,
        *,
        network: Network,
        node: str,
        directory: Directory,
        on_recall: Callable[[str, int], None],
        on_break: Callable[["ManagerLink"], None],
    ) -> None:
        self._network = network
        self._node = node
        self._directory = directory
        self._on_recall = on_recall
        self._on_break = on_break
        self._links: dict[str, ManagerLink] = {}
        self._tasks = Tasks()
        self._owners_version = 0
        self._closed = False
        self.on_owners: Callable[[], None] = lambda: None      # functions have other managers now
        directory.observe(self._see)

    def owner(self, account: str, function: str) -> Manager | None:
        """Who manages the function by the newest map; None while nobody does."""
        owners = {owner.manager: owner.address for owner in self._directory.owners}
        node = owner_of(owners, account, function)
        return Manager(node=node, address=owners[node]) if node else None

    def find(self, node: str) -> Manager | None:
        """A manager by its node id, as a NotMine names it."""
        found = self._directory.nodes.get(node)
        return Manager(node=node, address=found.address) if found is not None else None

    def link(self, manager: Manager) -> "ManagerLink":
        """The stream to a manager, opened when it is first needed and again after a break."""
        link = self._links.get(manager.address)
        if link is None or link.over:
            link = ManagerLink(manager, self._network, self._node, self._on_recall)
            self._links[manager.address] = link
            self._tasks.start(self._run(link), name=f"reserve stream to {manager.node}")
        return link

    def revised(self, function: common_pb2.FunctionId, *, deleted: bool, vouched: bool = False) -> None:
        """This frontend serves the revision: the function's manager may let older sandboxes go.

        ``vouched``: its copy is certainly current, so that frontends that can't know may be served the same.
        """
        owner = self.owner(function.account, function.function)
        if owner is not None and not self._closed:  # a copy says it late, and no stream may be opened for that then
            revised = _Request.Revised(function=function, deleted=deleted, vouched=vouched)
            self.link(owner).put(_Request(revised=revised))

    @property
    def waiting(self) -> int:
        """Questions that no manager has answered yet."""
        return sum(link.waiting for link in self._links.values())

    async def retire(self, function: common_pb2.FunctionId, *, deleted: bool) -> None:
        """Returns when nothing older than the revision (``deleted``: nothing up to it) can start any more.

        Only the function's manager hands out rights to start, so that where none is active nothing is to be waited for.
        Raises Fault (definite) when it can't be reached or isn't the manager any more: ask again.
        """
        owner = self.owner(function.account, function.function)
        if owner is None:
            return
        what = "deletion" if deleted else "revision"
        asked = f"{what} {function.revision} of {function.account}/{function.function}"
        revised = _Request.Revised(function=function, deleted=deleted)
        reply = await self.link(owner).ask(_Request(invocation=asked, revised=revised))
        if not reply.HasField("retired"):
            raise Fault(f"manager {owner.node} did not take the {asked}: {reply.refused.message}", definite=True)

    async def close(self) -> None:
        self._closed = True
        await self._tasks.cancel()

    def _see(self, directory: Directory) -> None:
        """Who asked a manager that owns nothing any more asks its successor: the old one may never answer."""
        if directory.owners_version != self._owners_version:
            self._owners_version = directory.owners_version
            self.on_owners()
        owners = {owner.manager for owner in directory.owners}
        for link in self._links.values():
            if link.manager.node not in owners and owners:
                link.give_up(f"its functions are {' and '.join(sorted(owners))}'s")

    async def _run(self, link: "ManagerLink") -> None:
        try:
            await link.run()
        finally:
            self._on_break(link)


class ManagerLink:
    """One stream to one manager, for its life."""

    def __init__(
        self, manager: Manager, network: Network, node: str, on_recall: Callable[[str, int], None]
    ) -> None:
        self.manager = manager
        self.over = False
        self._channel = network.connect(manager.address, service="worker_manager", node=manager.node)
        self._stream = self._channel.stream(worker_manager_rpc.RESERVE)
        self._outbox: Outbox[worker_manager_pb2.FrontendRequests] = Outbox(self._stream, combine=_combine)
        self._on_recall = on_recall
        self._waiting: dict[str, asyncio.Future[Any]] = {}
        self.put(_Request(hello=_Request.Hello(frontend=node)))

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def reserve(
        self, invocation: str, reserve: "_Request.Reserve", answer: "asyncio.Future[Any]"
    ) -> Coroutine[Any, Any, Any]:
        """The manager's reply, or whatever else ``answer`` is settled with: then the ask is withdrawn.

        Raises Fault (definite) when the stream breaks; a cancelled one leaves none behind.
        """
        return self._ask(_Request(invocation=invocation, reserve=reserve), answer)

    async def ask(self, request: "_Request") -> "_Reply":
        reply: _Reply = await self._ask(request, asyncio.get_running_loop().create_future())
        return reply

    async def _ask(self, request: "_Request", answer: "asyncio.Future[Any]") -> Any:
        invocation = request.invocation
        self._waiting[invocation] = answer
        self.put(request)
        try:
            outcome = await answer
        except asyncio.CancelledError:
            replied = answer.done() and not answer.cancelled() and answer.exception() is None
            if replied and isinstance(answer.result(), _Reply):
                self._let_go(answer.result())
            else:
                self._withdraw(invocation)
            raise
        finally:
            self._waiting.pop(invocation, None)
            del answer  # a fault's traceback refers to this frame: through it, to itself
        if not isinstance(outcome, _Reply):
            self._withdraw(invocation, served=True)
        return outcome

    def _withdraw(self, invocation: str, *, served: bool = False) -> None:
        self.put(_Request(invocation=invocation, cancel=_Request.Cancel(served=served)))

    def release(self, sandbox: str, sequence: int) -> None:
        """The reservation is not needed any more; batched with whatever else goes out in this turn."""
        self.put(_Request(release=_Request.Release(sandbox=sandbox, sequence=sequence)))

    def put(self, request: "_Request") -> None:
        if not self.over:
            self._outbox.put(request)

    def give_up(self, reason: str) -> None:
        """Nobody waits for this manager any longer. What it still answers is given back at once."""
        for invocation, future in self._waiting.items():
            if not future.done():
                future.set_exception(Fault(f"manager {self.manager.node}: {reason}", definite=True))
                self._withdraw(invocation)

    async def run(self) -> None:
        reason = "it closed the stream"
        try:
            await converse(self._stream, self._outbox, self._hear)
        except Fault as fault:
            reason = fault.message
        finally:
            self.over = True
            self._stream.cancel()
            self.give_up(f"it is away: {reason}")
            _log.info("reserve stream over", manager=self.manager.node, reason=reason)
            await self._channel.close()

    def _hear(self, replies: worker_manager_pb2.ManagerReplies) -> None:
        for reply in replies.replies:
            if reply.HasField("recall"):
                self._on_recall(reply.recall.sandbox, reply.recall.sequence)
                continue
            future = self._waiting.get(reply.invocation)
            if future is None or future.done():
                self._let_go(reply)
            else:
                future.set_result(reply)

    def _let_go(self, reply: "_Reply") -> None:
        """A reservation that came too late."""
        if reply.HasField("reserved"):
            self.release(reply.reserved.reservation.sandbox, reply.reserved.reservation.sequence)


def _combine(requests: list[_Request]) -> worker_manager_pb2.FrontendRequests:
    return worker_manager_pb2.FrontendRequests(requests=requests)
