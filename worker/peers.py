"""The worker's typed outbound calls: the ledger's members, and frontends that serve code.

Owns streams, renewals and who leads. Refuses to know what a fence means. Frontends are found in the ticket, then in the
directory; the ledger's members are seeds, and those that the directory shows.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial

import structlog

from chassis.clock import Clock
from chassis.directory import Directory
from chassis.faults import Fault
from chassis.members import Members
from chassis.process import Tasks
from chassis.rpc import Channel, Network, Outbox, converse
from protos import counting_pb2, counting_rpc, frontend_pb2, frontend_rpc
from worker import messages as m
from worker.translation import block_out, incarnation_out, running_out, session, session_out, ticket_out

COMMAND_VERSION = 1
REDIAL_S = 0.2
REJOIN_S = 0.3          # between questions for the leader
SILENT_S = 2.0          # a leader that doesn't answer a renewal this long may have lost its quorum
RENEWALS_PER_AUTHORITY = 4      # at least: some may be lost, and a new leader takes a while
GRACE_S = 30.0          # of a member of a release that didn't say it
FETCH_S = 30.0

_Message = counting_pb2.WorkerMessage
_Answer = counting_pb2.WorkerAnswer
_Outbox = Outbox[counting_pb2.WorkerMessage]
_log = structlog.get_logger(__name__)


class CountingLinks:
    """One stream to every member; whichever leads takes this incarnation in, renews its authority and lets it go.

    ``left``: the ledger has said that this incarnation, which wanted to leave, is no member any more.
    """

    def __init__(
        self, *, network: Network, seeds: dict[str, str], clock: Clock, incarnation: m.Incarnation,
        timeout_cap_s: int, renew_s: float, tasks: Tasks, feed: Callable[[m.Event], None],
        running: Callable[[], tuple[m.Running, ...]],
    ) -> None:
        self._members = Members(network=network, service="counting", seeds=seeds, follow=self._follow)
        self._clock = clock
        self._incarnation = incarnation
        self._timeout_cap_s = timeout_cap_s
        self._renew_s = renew_s
        self._authority_s = math.inf    # what the newest renewal gave
        self._tasks = tasks
        self._feed = feed
        self._running = running
        self._outboxes: dict[int, _Outbox] = {}
        self._links = 0
        self._leader = 0            # link of the member that took us in; 0: none
        self._term = 0
        self._renewal = 0
        self._sent: dict[int, float] = {}       # when each renewal was sent
        self._unanswered_since: float | None = None
        self._leaving = False
        self.left = asyncio.Event()

    def start(self) -> None:
        self._members.start()
        self._tasks.start(self._keep_authority(), name="authority")

    def see(self, directory: Directory) -> None:
        """The region's view is another one: members may have come or gone."""
        self._members.see(directory)

    async def close(self) -> None:
        await self._members.close()

    # ------------------------------------------------------------ what the core says

    def acknowledge(self, effect: m.AcknowledgeFence) -> None:
        outbox = self._outboxes.get(effect.link)
        if outbox is not None:  # else: whoever leads next sends the fence again
            outbox.put(_Message(fence_ack=_Message.FenceAck(
                session=session_out(effect.session), running=running_out(effect.running)
            )))

    def report_end(self, effect: m.ReportEnd) -> None:
        outbox = self._outboxes.get(effect.link or self._leader)
        if outbox is not None:  # else: the core repeats it when a leader has taken us in
            outbox.put(_Message(end=_Message.End(block=block_out(effect.block), invocation=effect.invocation)))

    def leave(self) -> None:
        """Nothing runs here and nothing starts any more. Said to every later leader too, until ``left``: one that goes
        may take it with it, and a member that nobody hears of counts for as long as anything might run on it."""
        self._leaving = True
        self._say_leave()

    # ------------------------------------------------------------ streams

    async def _follow(self, node: str, channel: Channel) -> None:
        while True:
            self._links += 1
            link = self._links
            stream = channel.stream(counting_rpc.WORKER)
            outbox: _Outbox = Outbox(stream)
            self._outboxes[link] = outbox
            self._join(link)
            try:
                await converse(stream, outbox, partial(self._hear, link))
            except Fault as fault:
                _log.debug("counting", member=node, fault=fault.message)
            finally:
                stream.cancel()
                del self._outboxes[link]
                if self._leader == link:
                    self._leader = 0
            await asyncio.sleep(REDIAL_S)

    def _hear(self, link: int, answer: counting_pb2.WorkerAnswer) -> None:
        kind = answer.WhichOneof("message")
        if kind == "not_leader":
            if self._leader == link:
                self._leader = 0
            return
        if answer.stamp.term < self._term:
            return  # from a leader that another one has followed (counting, rule 10)
        self._term = answer.stamp.term
        match kind:
            case "joined":
                self._leader = link
                self._unanswered_since = None
                self._feed(m.Joined(link=link, watermarks=tuple(map(session, answer.joined.watermarks)), cause="join"))
                if self._leaving:
                    self._say_leave()
                else:
                    self._renew()
            case "fence":
                self._feed(m.Fenced(link=link, session=session(answer.fence.session), cause="fence"))
            case "renewed":
                self._unanswered_since = None
                self._authority_s = answer.renewed.authority_s
                sent = self._sent.pop(answer.renewed.number, None)
                if sent is not None:
                    self._feed(m.AuthorityRenewed(
                        until=sent + answer.renewed.authority_s, cause="renewal",
                        grace_s=answer.renewed.grace_s or GRACE_S,
                    ))
            case "end_applied":
                self._feed(m.EndApplied(invocation=answer.end_applied.invocation, cause="counting"))
            case "evicted" if self._leaving:
                self.left.set()
            case "evicted":
                self._feed(m.Evicted(cause="counting"))
            case _:
                _log.warning("counting says what this release doesn't know", kind=kind)

    def _join(self, link: int) -> None:
        """Also of one that leaves: who isn't taken in isn't heard."""
        if self.left.is_set():
            return
        self._outboxes[link].put(_Message(join=_Message.Join(
            incarnation=incarnation_out(self._incarnation), timeout_cap_s=self._timeout_cap_s,
            version=COMMAND_VERSION, running=running_out(self._running()),
        )))

    def _say_leave(self) -> None:
        """A Leave has no answer of its own. What is asked behind it has: who is no member isn't renewed but told so."""
        outbox = self._outboxes.get(self._leader)
        if outbox is not None:
            outbox.put(_Message(leave=_Message.Leave()))
            self._renew()

    def _renew(self) -> None:
        """A renewal to whoever took us in. Authority counts from now, not from its answer (rule 7)."""
        outbox = self._outboxes.get(self._leader)
        if outbox is None:
            return
        now = self._clock.monotonic()
        self._renewal += 1
        self._sent = {number: at for number, at in self._sent.items() if at > now - 60.0}
        self._sent[self._renewal] = now
        if self._unanswered_since is None:
            self._unanswered_since = now
        outbox.put(_Message(renew=_Message.Renew(number=self._renewal)))

    async def _keep_authority(self) -> None:
        renewed = self._clock.monotonic()
        while not self.left.is_set():
            await asyncio.sleep(REJOIN_S)
            now = self._clock.monotonic()
            silent = self._unanswered_since is not None and now - self._unanswered_since > SILENT_S
            if self._leader == 0 or silent:
                for link in list(self._outboxes):
                    self._join(link)
                self._unanswered_since = None
            elif self._leaving:
                if self._unanswered_since is None:  # renewed once more: the Leave was to come into a later entry
                    self._say_leave()
            elif now - renewed >= min(self._renew_s, self._authority_s / RENEWALS_PER_AUTHORITY):
                renewed = now
                self._renew()


class CodeFrontends:
    """``CodeSource`` over the frontends of the region."""

    def __init__(self, *, network: Network, directory: Directory) -> None:
        self._network = network
        self._directory = directory
        self._channels: dict[str, Channel] = {}

    def addresses(self, ticket: m.Ticket) -> Sequence[str]:
        """The ticket's first, the signer foremost; then every other frontend that is known."""
        known = [node.address for node in self._directory.of_service("frontend")]
        return list(dict.fromkeys([*ticket.addresses, *known]))

    async def fetch(self, address: str, ticket: m.Ticket) -> AsyncIterator[bytes]:
        channel = self._channels.get(address)
        if channel is None:
            channel = self._channels[address] = self._network.connect(address, service="frontend")
        request = frontend_pb2.FetchRequest(ticket=ticket_out(ticket))
        async for chunk in channel.fetch(frontend_rpc.FETCH, request, timeout_s=FETCH_S):
            yield chunk.data

    async def close(self) -> None:
        for channel in self._channels.values():
            await channel.close()
