"""The load: requests that are due at times drawn from a seed, each with a nonce that its answer has to carry.

Owns the schedule, the function under load, and what each request's life was. An open loop: a request is sent when it is
due, whatever became of those before, and its life is counted from when it was due. Refuses to know faults and limits.
"""

import asyncio
import dataclasses
import hashlib
import hmac
import io
import json
import random
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import count, takewhile
from typing import Any
from urllib.parse import urlsplit

from chassis.process import Tasks
from labda.api import FUNCTIONS
from labda.chaos.connections import BROKEN, Connections, Reply
from labda.chaos.history import Request, now
from labda.signing import SERVICE
from labda.state import Credentials

TIMEOUT_SLACK_S = 60        # of the functions, beyond what a run takes: one that is timed out says no END
LATE_S = 0.002              # the schedule is looked at so often at most: requests of one look are sent together

# Says when it ran by a clock that all processes of this machine share; in the answer, and in the log for runs whose
# answer nobody gets.
SOURCE = """
import time

calls = 0


def handler(event, context):
    global calls
    calls += 1
    begun = time.clock_gettime(time.CLOCK_BOOTTIME)
    print(f"RUN {event['nonce']} START {begun:.6f}", flush=True)
    time.sleep(event["run_s"])
    ended = time.clock_gettime(time.CLOCK_BOOTTIME)
    print(f"RUN {event['nonce']} END {ended:.6f}", flush=True)
    return {"nonce": event["nonce"], "function": context.function_name, "sandbox": context.log_stream_name,
            "calls": calls, "begun": begun, "ended": ended}
"""
HANDLER = "app.handler"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadConfig:
    """How much is asked for. Modest by default: generator and cluster share one machine."""

    functions: int = 2
    pool: int = 50              # reserved concurrency of each function
    use: float = 0.55           # of each pool, on average
    rate: float = 20.0          # requests per second over all functions, on average
    memory_mb: int = 128
    ramp_s: float = 15.0        # in which the rate grows from 0: a sandbox for each that runs has to be made first

    def __post_init__(self) -> None:
        for name, low, high in (
            ("functions", 1, 50), ("pool", 1, 900), ("use", 0.01, 1.0), ("rate", 0.1, 2000.0), ("ramp_s", 0.0, 600.0),
            ("memory_mb", 128, 10240),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name.replace('_', '-')} is {value}, it must be between {low} and {high}")
        if self.run_s > 300.0:
            raise ValueError(
                f"pools of {self.pool} at {self.use:.0%} need runs of {self.run_s:.0f} s at {self.rate:g} requests/s: "
                "300 s at most, raise the rate"
            )

    @property
    def run_s(self) -> float:
        """How long each run takes, so that this rate keeps that share of the pools in use."""
        return self.functions * self.pool * self.use / self.rate

    @property
    def timeout_s(self) -> int:
        return int(self.run_s) + TIMEOUT_SLACK_S

    @property
    def names(self) -> list[str]:
        return [f"chaos-{number}" for number in range(1, self.functions + 1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """``at``: seconds from the load's begin."""

    at: float
    function: str
    nonce: str


def arrivals(config: LoadConfig, seed: int) -> Iterator[Arrival]:
    """Without an end, thinned while it ramps up. Equal for equal seeds.

    In each slot of 1/rate seconds every function gets one request, at a time drawn from the whole slot: irregular, but
    a pool that is used at 55 % on average is used at about that at any time. (A Poisson process would use a pool of 50
    at 75 % now and then, and no promise is made for such pools.)
    """
    rng = random.Random(seed)  # noqa: S311 - a schedule, no secret
    slot_s = config.functions / config.rate
    for slot in count():
        drawn = sorted((slot_s * (slot + rng.random()), name) for name in config.names)
        for at, function in drawn:
            nonce = f"{rng.getrandbits(96):024x}"
            if rng.random() * config.ramp_s <= at:
                yield Arrival(at=at, function=function, nonce=nonce)


def archive(name: str) -> bytes:
    """The code under load; each function's is its own, so that no worker knows one because it ran another."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as out:
        entry = zipfile.ZipInfo("app.py", (2026, 1, 1, 0, 0, 0))
        entry.external_attr = 0o100644 << 16
        out.writestr(entry, f"# {name}\n{SOURCE}")
    return buffer.getvalue()


class Signer:
    """Signed Invokes as bytes. What all requests of a second share is computed once: one costs about 15 us here."""

    def __init__(self, credentials: Credentials, *, endpoint: str, region: str) -> None:
        self._credentials = credentials
        self._region = region
        self._host = urlsplit(endpoint).netloc
        self._second = 0
        self._stamp = self._scope = ""
        self._key = b""

    def invoke(self, function: str, body: bytes) -> bytes:
        """``function``: a name that needs no quoting."""
        second = int(time.time())
        if second != self._second:
            self._turn(second)
        path = f"{FUNCTIONS}/{function}/invocations"
        canonical = (
            f"POST\n{path}\n\nhost:{self._host}\nx-amz-date:{self._stamp}\n\nhost;x-amz-date\n"
            f"{hashlib.sha256(body).hexdigest()}"
        )
        text = f"AWS4-HMAC-SHA256\n{self._stamp}\n{self._scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
        signature = hmac.digest(self._key, text.encode(), "sha256").hex()
        return (
            f"POST {path} HTTP/1.1\r\nhost: {self._host}\r\nx-amz-date: {self._stamp}\r\n"
            f"authorization: AWS4-HMAC-SHA256 Credential={self._credentials.key_id}/{self._scope}, "
            f"SignedHeaders=host;x-amz-date, Signature={signature}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        ).encode() + body

    def _turn(self, second: int) -> None:
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(second))
        self._second, self._stamp = second, stamp
        self._scope = f"{stamp[:8]}/{self._region}/{SERVICE}/aws4_request"
        key = b"AWS4" + self._credentials.secret.encode()
        for part in self._scope.split("/"):
            key = hmac.digest(key, part.encode(), "sha256")
        self._key = key


class Load:
    """``run`` until cancelled or told to stop; every request's life goes to ``tell`` when it is over."""

    def __init__(
        self, config: LoadConfig, seed: int, *, connections: Connections, signer: Signer,
        tell: Callable[[Request], None],
    ) -> None:
        self._config = config
        self._seed = seed
        self._signer = signer
        self._tell = tell
        self._connections = connections
        self._thin = random.Random(seed + 1)  # noqa: S311
        self._stopped = self._paused = False
        self._resumed_at = 0.0
        self._tasks = Tasks()
        self.unsent = self.answered = self.failed = 0

    @property
    def under_way(self) -> int:
        return self._connections.under_way

    async def run(self) -> None:
        await self._follow(arrivals(self._config, self._seed))

    @property
    def capacity(self) -> float:
        """Requests per second that the pools allow."""
        return self._config.rate / self._config.use

    async def surge(self, rate: float, lasts_s: float) -> None:
        """From now on so much is asked for in all, for so long. Returns at once."""
        more = dataclasses.replace(self._config, rate=rate - self._config.rate, ramp_s=0.0)
        schedule = takewhile(lambda arrival: arrival.at < lasts_s, arrivals(more, self._seed + 2))
        self._tasks.start(self._follow(schedule), name="a surge of requests")

    async def _follow(self, schedule: Iterable[Arrival]) -> None:
        begin = now()
        for arrival in schedule:
            due = begin + arrival.at
            if (ahead_s := due - now()) > 0:
                await asyncio.sleep(max(LATE_S, ahead_s))
            if self._stopped:
                return
            if not self._paused and self._thin.random() * self._config.ramp_s <= due - self._resumed_at:
                self._send(arrival, due)

    def ask(self, function: str) -> None:
        """One request beyond the schedule, now."""
        self._send(Arrival(at=0.0, function=function, nonce=f"{self._thin.getrandbits(96):024x}"), now())

    def pause(self) -> None:
        """What would be due until ``resume`` isn't sent."""
        self._paused = True

    def resume(self) -> None:
        """The rate grows from 0 as it did at the begin: sandboxes have to be made again."""
        self._paused = False
        self._resumed_at = now()

    async def stop(self, timeout_s: float) -> bool:
        """Sends no more and waits for the answers; whether all came."""
        self._stopped = True
        await self._tasks.cancel()
        answered = await self._connections.finish(timeout_s)
        self._connections.close()
        return answered

    def _send(self, arrival: Arrival, due: float) -> None:
        body = json.dumps({"nonce": arrival.nonce, "run_s": self._config.run_s}).encode()
        sent = now()

        def over(reply: Reply) -> None:
            told = request(arrival, reply, due=due, sent=sent, done=now())
            self.answered += 1
            self.failed += bool(told.error)
            self._tell(told)

        if not self._connections.send(self._signer.invoke(arrival.function, body), over):
            self.unsent += 1


def request(arrival: Arrival, reply: Reply, *, due: float, sent: float, done: float) -> Request:
    """What the client got, as a record."""
    fields: dict[str, Any] = {}
    if reply.status == BROKEN:
        fields["error"] = reply.body.decode(errors="replace")
    elif reply.status != 200 or reply.header("x-amz-function-error"):
        fields |= _refusal(reply)
    else:
        fields |= _own(arrival, reply.body)
    return Request(
        at=due, sent=sent, done=done, nonce=arrival.nonce, function=arrival.function, status=reply.status, **fields
    )


def _own(arrival: Arrival, body: bytes) -> dict[str, Any]:
    try:
        told = json.loads(body)
        other = "" if told["function"] == arrival.function else f" of {told['function']}"
        return {
            "echo": f"{told['nonce']}{other}", "sandbox": str(told["sandbox"]),
            "calls": int(told["calls"]), "begun": float(told["begun"]), "ended": float(told["ended"]),
        }
    except (ValueError, KeyError, TypeError) as error:
        return {"error": f"not an answer of this function: {error!r}"}


def _refusal(reply: Reply) -> dict[str, Any]:
    """Its type and reason; ``explained`` only where it has a type and says in Detail which limit, or why."""
    kind = reply.header("x-amzn-errortype") or reply.header("x-amz-function-error")
    try:
        told = json.loads(reply.body)
    except ValueError:
        return {"error": kind or f"HTTP {reply.status}", "reason": reply.body[:120].decode(errors="replace")}
    detail = told.get("Detail") if isinstance(told, dict) else None
    reason = ""
    if isinstance(detail, dict):
        reason = str(detail.get("reason") or detail.get("limit") or detail.get("counter") or detail.get("cause") or "")
    elif isinstance(detail, str):
        reason = detail
    if not reason and isinstance(told, dict):
        reason = str(told.get("errorMessage") or told.get("message") or told.get("Message") or "")
    return {
        "error": kind or f"HTTP {reply.status}", "reason": reason[:200], "explained": bool(kind and detail),
        "retry_after": reply.header("retry-after"),
    }
