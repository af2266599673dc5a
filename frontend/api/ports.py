"""What the API's operations need from the rest of the frontend, as small protocols.

Owns these interfaces and the values that cross them. Refuses to know who implements them: the real ones are the data
path, the ledger's client and the metadata store; tests use small ones in memory.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from frontend.functions import FunctionRecord


class Functions(Protocol):
    """Function records. ``frontend.function_records.FunctionStore`` implements all but ``cached``."""

    def cached(self, account: str, name: str) -> FunctionRecord | None:
        """The record as this frontend's watch has it: no storage on the warm path. None also means "don't know"."""
        ...

    def newest(self, record: FunctionRecord) -> FunctionRecord | None:
        """What a request that came with ``record`` has to run by now; None: it was deleted meanwhile."""
        ...

    async def get(self, account: str, name: str) -> FunctionRecord | None: ...

    async def list(self, account: str) -> list[FunctionRecord]: ...

    async def create(
        self, account: str, name: str, make: Callable[[int], FunctionRecord]
    ) -> tuple[FunctionRecord, int] | None: ...

    async def change(
        self, account: str, name: str, change: Callable[[FunctionRecord], FunctionRecord]
    ) -> tuple[FunctionRecord, int] | None: ...

    async def delete(self, account: str, name: str) -> int | None: ...


class Settling(Protocol):
    """Brings creations, updates and deletions to their end on every frontend."""

    def begin(self, record: FunctionRecord, stored: int) -> None:
        """Complete the record's phase in the background, once every live frontend knows store revision ``stored``."""
        ...

    async def deleted(self, record: FunctionRecord, stored: int) -> None:
        """Return when every live frontend knows the deletion and nothing starts any more, or after a short bound."""
        ...


class Blobs(Protocol):
    """Code archives by their SHA-256 (64 hexadecimal digits)."""

    async def put(self, data: bytes) -> str:
        """Store durably; the digest."""
        ...

    def get(self, sha256: str) -> AsyncIterator[bytes]:
        """The archive in chunks, verified."""
        ...

    async def has(self, sha256: str) -> bool: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountLimits:
    """An account's concurrency as the ledger has it. ``unreserved`` is what no function has reserved."""

    concurrency: int
    unreserved: int
    reserved: Mapping[str, int]


class BelowFloor(Exception):
    """The ledger refused a reservation: the account's unreserved rest would fall below ``floor``."""

    def __init__(self, *, account_limit: int, reserved_elsewhere: int, floor: int) -> None:
        super().__init__(f"{account_limit} - {reserved_elsewhere} reserved leaves less than {floor}")
        self.account_limit = account_limit
        self.reserved_elsewhere = reserved_elsewhere
        self.floor = floor


class Limits(Protocol):
    """The ledger, the only home of limits."""

    async def put_reserved(self, account: str, function: str, value: int | None) -> bool:
        """Set or remove (None) a reservation; returns once it binds everywhere. Whether it changed anything.

        Raises BelowFloor, or a Fault when the ledger is away.
        """
        ...

    async def get(self, account: str) -> AccountLimits: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class InvokeRequest:
    """One synchronous invoke, authenticated and checked. ``deadline`` is on the monotonic clock, in seconds.

    ``gone`` returns when the client has gone; None: nobody can tell.
    """

    request_id: str
    account: str
    function: FunctionRecord
    qualifier: str | None
    invoked_arn: str
    payload: bytes
    client_context: str | None
    log_tail: bool
    trace_id: str
    deadline: float
    gone: Callable[[], Awaitable[None]] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class InvokeAnswer:
    """What came back. ``log_tail`` is the last of this invoke's log: UTF-8, of 4,096 bytes as they were logged, not yet
    base64.

    ``phases`` says where the time went, in milliseconds by phase, for a caller that asks to have it explained.
    """

    payload: bytes | AsyncIterator[bytes]
    content_type: str = "application/json"
    function_error: str | None = None
    executed_version: str
    log_tail: bytes | None = None
    phases: Mapping[str, float] = field(default_factory=dict)


class Throttled(Exception):
    """No permit. ``reason`` is AWS's word; ``detail`` names limit, value, counter and remedy."""

    def __init__(self, reason: str, detail: Mapping[str, Any], retry_after_s: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.detail = detail
        self.retry_after_s = retry_after_s


class Unavailable(Exception):
    """The invoke certainly did not start and can't now. ``message`` says what is away and what to do."""

    def __init__(self, message: str, detail: Mapping[str, Any] | None = None, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail
        self.retry_after_s = retry_after_s


class Deleted(Exception):
    """The function was deleted while the request waited: nothing was started."""


class Invoker(Protocol):
    """The data path."""

    async def invoke(self, request: InvokeRequest) -> InvokeAnswer:
        """Run it. Raises Throttled, Unavailable, Deleted, or a Fault: ``definite`` says whether it may have run."""
        ...


class Ids(Protocol):
    """New ids, from the process's one source of randomness."""

    def uuid(self) -> str:
        """A random UUID (version 4)."""
        ...

    def hexadecimal(self, digits: int) -> str: ...


class Runtimes(Protocol):
    """Which runtimes this region's workers have now, by placement's word."""

    def __call__(self) -> frozenset[str]: ...
