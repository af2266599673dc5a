"""An open loop of HTTP requests: they are sent when they are due, whatever became of those before.

Owns the schedule and what came back; connections are ``labda.chaos.connections``'s. A closed loop slows down with the
server that it loads and so can't overload it; this one doesn't. Requests are signed once and replayed (a signature is
good for five minutes), so that one costs about 40 us here. Refuses to know what is asked: a request is bytes.
"""

import asyncio
import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from labda.chaos.connections import Connections, Reply


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """One request's end. Seconds of the event loop's clock; status 0: the connection broke or was refused."""

    kind: str
    due: float
    done: float
    status: int
    explained: bool     # a refusal that says which limit, in its Detail
    reason: str = ""

    @property
    def took_s(self) -> float:
        return self.done - self.due


@dataclass(slots=True)
class Tally:
    """What came back."""

    answers: list[Answered] = field(default_factory=list)
    unsent: int = 0     # due when every connection was taken: the generator's own bound, counted as lost

    def statuses(self, kind: str | None = None) -> Counter[int]:
        return Counter(one.status for one in self.of(kind))

    def of(self, kind: str | None = None, *, status: int | None = None) -> list[Answered]:
        return [one for one in self.answers if kind in (None, one.kind) and status in (None, one.status)]

    def unexplained(self) -> list[Answered]:
        """Everything that is neither a success nor a 429 or 503 that says why."""
        return [one for one in self.answers if one.status != 200 and not one.explained]

    def reasons(self) -> Counter[tuple[int, str]]:
        return Counter((one.status, one.reason) for one in self.answers if one.status != 200)

    def goodput(self, kind: str | None, begin: float, end: float) -> float:
        """Successes per second that were answered within this time."""
        return sum(1 for one in self.of(kind, status=200) if begin <= one.done < end) / (end - begin)

    def percentile_ms(self, share: float, kind: str | None = None, *, status: int = 200) -> float:
        took = sorted(one.took_s for one in self.of(kind, status=status))
        return took[min(len(took) - 1, int(len(took) * share))] * 1000 if took else math.nan

    def recovered_after_s(self, kind: str | None, begin: float, end: float, *, share: float = 0.98) -> float:
        """From ``begin`` on, after how long ``share`` of what was due in each second succeeded, until ``end``."""
        back = math.inf
        second = math.floor(end - begin)
        while second > 0:
            due = [one for one in self.of(kind) if begin + second - 1 <= one.due < begin + second]
            if due and sum(one.status == 200 for one in due) < share * len(due):
                break
            second -= 1
            back = float(second)
        return back


class OpenLoop:
    """``run`` sends what is due, ``finish`` waits for the last answer."""

    def __init__(self, host: str, port: int, *, connections_max: int = 4000) -> None:
        self.tally = Tally()
        self._connections = Connections(host, port, connections_max=connections_max)

    async def run(self, requests: dict[str, tuple[bytes, float]], seconds: float) -> tuple[float, float]:
        """Sends each kind's request at its rate per second, evenly spaced. When it began and ended."""
        loop = asyncio.get_running_loop()
        begin = loop.time()
        schedule = sorted(
            (n / rate, kind) for kind, (_, rate) in requests.items() for n in range(int(seconds * rate))
        )
        for after, kind in schedule:
            due = begin + after
            if due > loop.time():
                await asyncio.sleep(due - loop.time())
            self._send(kind, requests[kind][0], due)
        await asyncio.sleep(max(0.0, begin + seconds - loop.time()))
        return begin, loop.time()

    async def closed(self, request: bytes, clients: int, seconds: float) -> float:
        """A closed loop of so many clients, for the capacity: successes per second."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        before = len(self.tally.answers)

        async def one() -> None:
            while (due := loop.time()) < end:
                done = asyncio.Event()
                self._send("closed", request, due, done.set)
                await done.wait()

        await asyncio.gather(*(one() for _ in range(clients)))
        return sum(answer.status == 200 for answer in self.tally.answers[before:]) / seconds

    async def finish(self, timeout_s: float) -> bool:
        """Whether everything was answered in time."""
        return await self._connections.finish(timeout_s)

    def close(self) -> None:
        self._connections.close()

    @property
    def under_way(self) -> int:
        return self._connections.under_way

    def _send(self, kind: str, request: bytes, due: float, then: Callable[[], None] | None = None) -> None:
        def over(reply: Reply) -> None:
            explained, reason = _explained(reply.status, reply.body)
            self.tally.answers.append(Answered(
                kind=kind, due=due, done=asyncio.get_running_loop().time(), status=reply.status,
                explained=explained, reason=reason,
            ))
            if then is not None:
                then()

        if not self._connections.send(request, over):
            self.tally.unsent += 1


def _explained(status: int, body: bytes) -> tuple[bool, str]:
    """Whether a refusal names its reason in Detail; and the reason, as far as one can be read."""
    if status == 200:
        return True, ""
    try:
        told = json.loads(body)
    except ValueError:
        return False, body[:60].decode(errors="replace")
    detail = told.get("Detail") if isinstance(told, dict) else None
    reason = ""
    if isinstance(detail, dict):
        reason = str(detail.get("limit") or detail.get("reason") or detail.get("counter") or detail)
    return status in (429, 503) and bool(detail), reason or str(told)[:120]

