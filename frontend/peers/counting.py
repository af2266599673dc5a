"""The ledger as a frontend reaches it: one stream to every member, and the unary calls about limits.

Owns the streams, heartbeats, and the translation between protobuf and the admission core's words. Refuses to know what
an answer means, and so who leads: the core says that.
"""

import asyncio
import random
from collections.abc import Callable
from functools import partial

import structlog

from chassis.beat import next_beat
from chassis.clock import Clock
from chassis.directory import Directory
from chassis.faults import Fault, FaultCode
from chassis.members import Members
from chassis.process import Tasks
from chassis.rpc import Channel, Network, Outbox, converse
from frontend import messages as m
from frontend.admission import ToCounting
from frontend.api.ports import AccountLimits, BelowFloor
from frontend.permits import Pool, PoolKind
from protos import common_pb2, counting_pb2, counting_rpc

COMMAND_VERSION = 1
HEARTBEAT_S = 0.5         # of 3 s until the ledger suspects
REDIAL_S = 0.2
CALL_S = 2.0              # one attempt of a read
LIMIT_S = 15.0            # a change of limits answers after 10 s at most, and a new leader may have to be found

_log = structlog.get_logger(__name__)

_Outbox = Outbox[counting_pb2.FrontendMessage]
_Up = counting_pb2.FrontendMessage


class CountingLinks:
    """Streams to all members. What they say goes to ``feed``; what the core says comes by ``send``."""

    def __init__(
        self, *, network: Network, seeds: dict[str, str], node: str, nonce: int, feed: Callable[[m.Event], None],
        leader: Callable[[], int | None], usage: Callable[[], dict[Pool, tuple[int, int]]],
        on_gone: Callable[[list[tuple[str, int]]], None],
    ) -> None:
        """``leader``: the link to whom the core takes for it. ``usage``: (held, in use) by pool, told with a heartbeat
        when it changed. ``on_gone`` hears of workers."""
        self._members = Members(network=network, service="counting", seeds=seeds, follow=self._follow)
        self._node = node
        self._nonce = nonce
        self._feed = feed
        self._leader = leader
        self._usage = usage
        self._on_gone = on_gone
        self._told: dict[Pool, tuple[int, int]] = {}
        self._outboxes: dict[int, _Outbox] = {}
        self._nodes: dict[int, str] = {}
        self._links = 0
        self._welcomed = asyncio.Event()
        self._over = asyncio.Event()
        self._tasks = Tasks()

    def start(self) -> None:
        self._members.start()
        self._tasks.start(self._keep_beating(), name="heartbeat to counting")

    def see(self, directory: Directory) -> None:
        """The region's view is another one: members may have come or gone."""
        self._members.see(directory)

    async def close(self) -> None:
        await self._tasks.cancel()
        await self._members.close()

    async def welcomed(self, timeout_s: float) -> bool:
        """Waits for the first session; whether there is one."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._welcomed.wait()
        except TimeoutError:
            return False
        return True

    @property
    def has_session(self) -> bool:
        """Whether it ever had one: blocks that are held serve on without the ledger (rule 8)."""
        return self._welcomed.is_set()

    async def goodbye(self, timeout_s: float) -> bool:
        """Waits for the leader's word that the session is closed; whether it came."""
        self._over.clear()
        try:
            async with asyncio.timeout(timeout_s):
                await self._over.wait()
        except TimeoutError:
            return False
        return True

    def channels(self) -> list[tuple[str, Channel]]:
        """Every member with its channel, whom this frontend takes for the leader first."""
        leader = self._nodes.get(self._leader() or 0, "")
        return sorted(self._members.channels.items(), key=lambda member: member[0] != leader)

    def send(self, message: ToCounting) -> None:
        outbox = self._outboxes.get(message.link)
        if outbox is not None:
            outbox.put(to_wire(message, self._node, self._nonce))

    def ask_gone(self, incarnations: list[tuple[str, int]]) -> None:
        """Asks the leader which of these workers are members no more; without one, the next question is soon."""
        outbox = self._outboxes.get(self._leader() or 0)
        if outbox is not None:
            asked = [common_pb2.Incarnation(host=host, nonce=nonce) for host, nonce in incarnations]
            outbox.put(_Up(ask_gone=_Up.AskGone(incarnations=asked)))

    async def _follow(self, node: str, channel: Channel) -> None:
        while True:
            self._links += 1
            link = self._links
            stream = channel.stream(counting_rpc.FRONTEND)
            outbox: _Outbox = Outbox(stream)
            self.opened(link, node, outbox)
            try:
                await converse(stream, outbox, partial(self.hear, link))
            except Fault as fault:
                _log.debug("counting", member=node, fault=fault.message)
            finally:
                stream.cancel()
                self.closed(link)
            await asyncio.sleep(REDIAL_S)

    async def _keep_beating(self) -> None:
        while True:
            await next_beat(HEARTBEAT_S)
            self.beat()

    def beat(self) -> None:
        """Tells the leader that this frontend lives, and what of its use has changed."""
        outbox = self._outboxes.get(self._leader() or 0)
        if outbox is not None:
            outbox.put(_Up(heartbeat=_Up.Heartbeat(holdings=self._changed())))

    def _changed(self) -> list[counting_pb2.FrontendMessage.Holding]:
        """What of each pool's use the leader doesn't know yet. Nothing is held: nothing is in use."""
        told, self._told = self._told, self._usage()
        gone = dict.fromkeys((pool for pool in told if pool not in self._told), (0, 0))
        news = {pool: now for pool, now in self._told.items() if told.get(pool) != now} | gone
        return [
            _Up.Holding(pool=pool_to_wire(pool), held=held, in_use=in_use) for pool, (held, in_use) in news.items()
        ]

    # ------------------------------------------------------------ one stream: walks do this without one

    def opened(self, link: int, node: str, outbox: _Outbox) -> None:
        self._outboxes[link], self._nodes[link] = outbox, node
        self._feed(m.LinkUp(link=link))

    def closed(self, link: int) -> None:
        del self._outboxes[link]
        self._feed(m.LinkDown(link=link, cause=self._nodes.pop(link)))

    def hear(self, link: int, answer: counting_pb2.FrontendAnswer) -> None:
        if answer.HasField("gone"):
            self._on_gone([(i.host, i.nonce) for i in answer.gone.incarnations])
            return
        event = from_wire(link, answer)
        if isinstance(event, m.Welcomed):
            self._told = {}     # a late one of a leader that is no more costs a longer heartbeat, no more
            self._welcomed.set()
        elif isinstance(event, m.Fenced):
            self._over.set()
        if event is not None:
            self._feed(event)


class Limits:
    """``frontend.api.ports.Limits`` over the ledger: tries the leader first, follows hints, within a deadline."""

    def __init__(self, *, links: CountingLinks, clock: Clock, rng: random.Random) -> None:
        self._links = links
        self._clock = clock
        self._rng = rng

    async def put_reserved(self, account: str, function: str, value: int | None) -> bool:
        request = counting_pb2.SetReservedRequest(
            account=account, function=function, value=value, request=f"{self._rng.getrandbits(128):032x}"
        )
        deadline = self._clock.monotonic() + LIMIT_S
        while True:
            for member, channel in self._links.channels():
                try:
                    answer = await channel.call(
                        counting_rpc.SET_RESERVED, request, timeout_s=max(0.1, deadline - self._clock.monotonic())
                    )
                except Fault as fault:
                    _log.info("limits", member=member, fault=fault.message)
                    continue  # the request's id makes it applied once, whichever member hears it again
                match answer.WhichOneof("outcome"):
                    case "generation":
                        self._tell_outstanding(account, function, answer)
                        return answer.changed
                    case "below_floor":
                        below = answer.below_floor
                        raise BelowFloor(
                            account_limit=below.account_limit, reserved_elsewhere=below.reserved_elsewhere,
                            floor=below.floor,
                        )
                    case _:
                        continue
            await self._pause(deadline, "the reservation is not known to have been set")

    async def get(self, account: str) -> AccountLimits:
        request = counting_pb2.GetLimitsRequest(account=account)
        deadline = self._clock.monotonic() + LIMIT_S
        while True:
            for member, channel in self._links.channels():
                try:
                    answer = await channel.call(
                        counting_rpc.GET_LIMITS, request, timeout_s=CALL_S
                    )
                except Fault as fault:
                    _log.info("limits", member=member, fault=fault.message)
                    continue
                if not answer.HasField("not_leader"):
                    return AccountLimits(
                        concurrency=answer.account_limit, unreserved=answer.unreserved, reserved=dict(answer.reserved)
                    )
            await self._pause(deadline, "the account's limits can't be read", definite=True)

    async def _pause(self, deadline: float, what: str, *, definite: bool = False) -> None:
        if self._clock.monotonic() >= deadline:
            raise Fault(
                f"no leader of the ledger answers, so that {what}: try again", code=FaultCode.UNAVAILABLE,
                definite=definite,
            )
        await asyncio.sleep(REDIAL_S)

    def _tell_outstanding(
        self, account: str, function: str, answer: counting_pb2.SetReservedAnswer
    ) -> None:
        if answer.outstanding:
            _log.warning(
                "a limit doesn't bind everywhere yet", account=account, function=function,
                outstanding={part.node: part.until for part in answer.outstanding},
            )


# ---------------------------------------------------------------- translation


def _pool(pool: common_pb2.Pool) -> Pool:
    return Pool(
        account=pool.account, kind=PoolKind(pool.kind), function=pool.function, qualifier=pool.qualifier
    )


def pool_to_wire(pool: Pool) -> common_pb2.Pool:
    kind = common_pb2.Pool.Kind.ValueType(int(pool.kind))
    return common_pb2.Pool(account=pool.account, kind=kind, function=pool.function, qualifier=pool.qualifier)


def to_wire(message: ToCounting, node: str, nonce: int) -> counting_pb2.FrontendMessage:
    """What the core says, as the stream carries it."""
    out = counting_pb2.FrontendMessage
    match message:
        case m.SayHello():
            holdings = [
                out.Holding(pool=pool_to_wire(h.pool), held=h.held, in_use=h.in_use, generation=h.generation)
                for h in message.holdings
            ]
            return out(hello=out.Hello(
                frontend=node, nonce=nonce, epoch=message.epoch, version=COMMAND_VERSION, holdings=holdings
            ))
        case m.Ask():
            return out(ask=out.Ask(
                pool=pool_to_wire(message.pool), generation=message.generation, waiting=message.waiting,
                spare=message.spare, seen=message.seen,
            ))
        case m.GiveBack():
            return out(sequence=message.sequence, give_back=out.GiveBack(
                pool=pool_to_wire(message.pool), generation=message.generation, count=message.count,
                function=message.function,
            ))
        case m.AnswerRecall():
            return out(recall_answer=out.RecallAnswer(
                round=message.round, pool=pool_to_wire(message.pool), given_back=message.given_back,
                in_use=message.in_use, waiting=message.waiting,
            ))
        case m.AcknowledgeGeneration():
            return out(sequence=message.sequence, generation_ack=out.GenerationAck(
                pool=pool_to_wire(message.pool), generation=message.generation,
                in_use_older=sum(count for _, count in message.moved), moved=dict(message.moved),
            ))
        case m.SayGoodbye():
            return out(sequence=message.sequence, goodbye=out.Goodbye())


def from_wire(link: int, answer: counting_pb2.FrontendAnswer) -> m.Event | None:
    """What a member says, as the core hears it. None for a kind that this release doesn't know."""
    stamp = (answer.stamp.term, answer.stamp.index)
    match answer.WhichOneof("message"):
        case "welcome":
            welcome = answer.welcome
            return m.Welcomed(
                link=link, stamp=stamp, epoch=welcome.session.epoch, applied=welcome.applied_sequence
            )
        case "grant":
            grant = answer.grant
            return m.Granted(
                link=link, stamp=stamp, pool=_pool(grant.pool), generation=grant.generation, count=grant.count,
                applied=grant.applied_sequence, size=grant.size,
            )
        case "recall":
            return m.Recalled(
                link=link, stamp=stamp, round=answer.recall.round, pool=_pool(answer.recall.pool)
            )
        case "throttled":
            throttled = answer.throttled
            return m.Throttled(
                link=link, stamp=stamp, pool=_pool(throttled.pool), waiting=tuple(throttled.waiting),
                limit=throttled.limit, in_use=throttled.in_use, round=throttled.round,
            )
        case "unavailable":
            away = answer.unavailable
            return m.Unproven(
                link=link, stamp=stamp, pool=_pool(away.pool), waiting=tuple(away.waiting), reason=away.reason,
                silent=tuple(away.silent), retry_after_s=away.retry_after_s or 1,
            )
        case "generation":
            generation = answer.generation
            return m.GenerationChanged(
                link=link, stamp=stamp, pool=_pool(generation.pool), generation=generation.generation,
                limit=generation.limit, gone=generation.gone,
            )
        case "not_leader":
            return m.NotLeader(link=link, stamp=stamp, cause=answer.not_leader.hint)
        case "fenced":
            return m.Fenced(link=link, stamp=stamp)
        case _:
            return None
