"""Code tickets: a worker's right to fetch one archive, and the service that honours it.

Owns the signature and its check. Workers have no credentials for the store (architecture: storage): a frontend signs,
any frontend of the region serves. Refuses to know how blobs are kept.
"""

import hmac
from collections.abc import AsyncIterator, Callable

from chassis.clock import Clock
from chassis.faults import Fault, FaultCode
from chassis.rpc import Caller
from frontend.api.ports import Blobs
from protos import frontend_pb2, worker_pb2
from storage.faults import BlobMissing, StorageFault

LIFETIME_S = 900.0       # a create waits at most so long for its code
CHUNK_BYTES = 64 * 1024


def derive_key(data_key: bytes, purpose: str) -> bytes:
    """A key for one purpose from the region's data key, which all frontends hold and nobody else."""
    return hmac.digest(data_key, f"labda {purpose}".encode(), "sha256")


class Tickets:
    """Signs and checks. ``addresses`` are this frontend's own and then others that serve code."""

    def __init__(self, key: bytes, clock: Clock, addresses: Callable[[], list[str]]) -> None:
        self._key = key
        self._clock = clock
        self._addresses = addresses

    def issue(self, sha256: str, size: int) -> worker_pb2.CodeTicket:
        expires = float(int(self._clock.wall() + LIFETIME_S))
        return worker_pb2.CodeTicket(
            sha256=sha256, size=size, expires=expires, signature=self._sign(sha256, size, expires),
            addresses=self._addresses(),
        )

    def check(self, ticket: worker_pb2.CodeTicket) -> None:
        """Raises Fault (denied) for a ticket that is forged or over."""
        right = self._sign(ticket.sha256, ticket.size, ticket.expires)
        if not hmac.compare_digest(right, ticket.signature):
            raise Fault(
                f"the ticket for code {ticket.sha256[:12]} was not signed by a frontend of this region",
                code=FaultCode.DENIED, definite=True,
            )
        if self._clock.wall() > ticket.expires:
            raise Fault(
                f"the ticket for code {ticket.sha256[:12]} expired: have the sandbox created again",
                code=FaultCode.DENIED, definite=True,
            )

    def _sign(self, sha256: str, size: int, expires: float) -> bytes:
        return hmac.digest(self._key, f"ticket\n{sha256}\n{size}\n{int(expires)}".encode(), "sha256")


class CodeService:
    """``Code.Fetch``: the archive that a ticket names, in chunks of at most 64 KiB, verified by the store."""

    def __init__(self, tickets: Tickets, blobs: Blobs) -> None:
        self._tickets = tickets
        self._blobs = blobs

    async def fetch(
        self, request: frontend_pb2.FetchRequest, _caller: Caller
    ) -> AsyncIterator[frontend_pb2.CodeChunk]:
        self._tickets.check(request.ticket)
        try:
            async for piece in self._blobs.get(request.ticket.sha256):
                for at in range(0, len(piece), CHUNK_BYTES):
                    yield frontend_pb2.CodeChunk(data=piece[at : at + CHUNK_BYTES])
        except BlobMissing as missing:
            raise Fault(str(missing), code=FaultCode.NOT_FOUND, definite=True) from missing
        except StorageFault as fault:
            raise Fault(f"the code can't be read: {fault}", code=FaultCode.UNAVAILABLE, definite=True) from fault
