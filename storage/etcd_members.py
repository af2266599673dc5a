"""The way to an etcd cluster: one channel per member, the next one when one is away, and what a failure means.

Owns which member is asked, for how long, and whether a try that failed may have been carried out. Refuses to know keys
and records.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar

from google.protobuf.message import Message

from chassis.certificates import Tls
from chassis.faults import Fault, FaultCode
from chassis.grpc_network import connect_foreign
from chassis.rpc import Channel
from protos.etcd_rpc import TXN
from protos.rpc import Method
from storage.faults import StorageFault, StoreDenied, StoreFull, StoreUnavailable

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)

# With this a member that has no leader refuses at once, and ends its watches, instead of being silent.
REQUIRE_LEADER = (("hasleader", "true"),)
ROUND_PAUSE_S = 0.05
# etcd's own words, which its clients go by too: codes alone don't tell these apart.
NO_LEADER = "etcdserver: no leader"
COMPACTED = "required revision has been compacted"
STALE_ROLES = "revision of auth store is old"
NO_USER = ("user name is empty", "authentication failed", "permission denied")
NO_SPACE = "database space exceeded"
# The member refused before it proposed anything.
CERTAIN = frozenset({FaultCode.INVALID, FaultCode.NOT_FOUND, FaultCode.CONFLICT, FaultCode.DENIED, FaultCode.EXHAUSTED})


class Silence(Exception):
    """No member answered in time, or not to all that was sent.

    ``uncertain``: a try was sent and its end not seen, so that it may have happened.
    """

    def __init__(self, why: str, *, uncertain: bool) -> None:
        super().__init__(why)
        self.uncertain = uncertain


class Members:
    """The members of one cluster, as one process sees them. Belongs to its event loop."""

    def __init__(
        self, addresses: Sequence[str], tls: Tls, *, answer_s: float, attempt_s: float,
        resolve: Callable[[str], str] | None = None,
    ) -> None:
        """The nearest member comes first; ``resolve`` says where an address is dialled when its name isn't known here.

        ``answer_s`` is for one piece of work with all its tries, ``attempt_s`` for a try at one member.
        """
        self._channels: list[Channel] = [
            connect_foreign(
                resolve(address) if resolve else address, tls, name=address.rsplit(":", 1)[0], metadata=REQUIRE_LEADER
            )
            for address in addresses
        ]
        self.names = ", ".join(addresses)
        self._answer_s = answer_s
        self._attempt_s = attempt_s
        self._at = 0
        self._heard = float("-inf")   # when a member last answered, by the loop's clock

    @property
    def in_doubt(self) -> bool:
        """Whether nothing was heard for a while: then it is worth asking before something is sent that may get lost."""
        return self._now() - self._heard > self._answer_s

    def until(self) -> float:
        """The end of a piece of work that begins now."""
        return self._now() + self._answer_s

    @property
    def nearest(self) -> Channel:
        """The member to use now."""
        return self._channels[self._at]

    def avoid(self, channel: Channel) -> None:
        """This member failed: the next one is used from now on, unless somebody else moved on already."""
        if self.nearest is channel:
            self._at = (self._at + 1) % len(self._channels)

    async def ask(
        self, method: Method[Request, Response], request: Request, *, until: float
    ) -> tuple[Response, bool]:
        """The first answer of any member, and whether an earlier try may have been carried out besides.

        So `request` has to be one that may be carried out twice. Raises Silence, StoreDenied, Fault; StoreFull, after
        which a transaction may have been carried out nonetheless.
        """
        uncertain = False
        tries = 0
        while True:
            channel = self.nearest
            left_s = until - self._now()
            try:
                response = await channel.call(method, request, timeout_s=max(0.001, min(left_s, self._attempt_s)))
            except Fault as fault:
                final = refusal(fault, method.name)
                if final is not None and uncertain and method is TXN:
                    raise Silence(f"an answer was lost, and then: {final.message}", uncertain=True) from fault
                if final is not None:
                    raise final from fault
                tries += 1
                uncertain |= not _certain(fault)
                self.avoid(channel)
                if self._now() >= until:
                    self._heard = float("-inf")
                    raise Silence(fault.message, uncertain=uncertain) from fault
                if tries % len(self._channels) == 0:
                    await asyncio.sleep(min(ROUND_PAUSE_S, max(0.0, until - self._now())))
            else:
                self._heard = self._now()
                return response, uncertain

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()

    def unavailable(self, why: str) -> StoreUnavailable:
        return StoreUnavailable(f"etcd ({self.names}) doesn't answer: {why}")

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


def refusal(fault: Fault, what: str) -> Fault | None:
    """What a member's last word means, or None when another member, or the same one later, may do the work."""
    text = fault.message
    if fault.code is FaultCode.DENIED or any(word in text for word in NO_USER):
        return StoreDenied(what, text)
    if NO_SPACE in text:
        remedy = "compact it, defragment its members, raise --quota-backend-bytes, then `etcdctl alarm disarm`"
        return StoreFull("etcd (its quota)", "the change", remedy)
    if fault.code in CERTAIN and fault.code is not FaultCode.EXHAUSTED and STALE_ROLES not in text:
        return fault
    return None


def _certain(fault: Fault) -> bool:
    return fault.code in CERTAIN or NO_LEADER in fault.message


def storage_fault(fault: Fault) -> StorageFault:
    """For callers that expect nothing but faults of storage."""
    return fault if isinstance(fault, StorageFault) else StoreUnavailable(fault.message)
