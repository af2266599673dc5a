"""What is asked of a simulated region, and the story of what it answered.

Owns the first scenario: a function is created from a zip, invoked cold and warm, and one with a reservation of one is
invoked twice at once. Refuses to judge: tests and the command do.
"""

import asyncio
import base64
import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from simulation.client import Answer
from simulation.region import ACCOUNT, FUNCTIONS, Region

RUNTIME = "python3.11"
_ROLE = f"arn:aws:iam::{ACCOUNT}:role/any"
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)   # a zip holds times: the same bytes in every run need the same one
_ACTIVE_S = 5.0
_POLL_S = 0.05
SLEEP_S = 1.0                       # how long the throttled function's invocations run


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """One line of the story: when it was answered (virtual seconds), what was asked, and what came."""

    at: float
    what: str
    expected: int       # HTTP status
    answer: Answer

    @property
    def outcome(self) -> tuple[str, int, Any]:
        """What a client's program sees, which is the same whatever the seed, unlike ids, times and recall rounds."""
        body = self.answer.json()
        if isinstance(body, dict):
            body.get("Detail", {}).pop("recall_round", None)
        return self.what, self.answer.status, body

    @property
    def as_expected(self) -> bool:
        return self.answer.status == self.expected

    @property
    def phases(self) -> Mapping[str, float]:
        """Milliseconds by phase; empty for what is no invoke or was refused."""
        shown = self.answer.headers.get("x-labda-phases", "")
        return {name: float(spent) for name, _, spent in (part.partition("=") for part in shown.split(",") if part)}

    @property
    def cold(self) -> bool:
        return "init" in self.phases


@dataclass(slots=True)
class Story:
    """Lines in the order in which a reader should get them."""

    region: Region
    lines: list[Told] = field(default_factory=list)

    def tell(self, what: str, answer: Answer, expected: int = 200, *, at: float | None = None) -> None:
        """``at``: when it was answered, if not just now."""
        answered = self.region.clock.monotonic() if at is None else at
        self.lines.append(Told(at=answered, what=what, answer=answer, expected=expected))

    async def invoke(
        self, what: str, function: str, payload: Any, *, frontend: int = 0, expected: int = 200
    ) -> None:
        answer = await self.region.invoke(function, json.dumps(payload).encode(), frontend=frontend)
        self.tell(what, answer, expected)


def archive(handler: str) -> bytes:
    """A zip of one module that says which handler it is. Sandboxes in memory run the handler of that name."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        packed.writestr(zipfile.ZipInfo("app.py", _ZIP_TIME), f"def {handler}(event, context): ...\n")
    return buffer.getvalue()


async def create(
    region: Region, name: str, handler: str, *, timeout_s: int = 10, memory_mb: int = 128, frontend: int = 0
) -> Answer:
    """CreateFunction, then waits until the function is Active. The answer is the last GetFunctionConfiguration's."""
    body = json.dumps({
        "FunctionName": name, "Runtime": RUNTIME, "Handler": f"app.{handler}", "Role": _ROLE, "Timeout": timeout_s,
        "MemorySize": memory_mb, "Code": {"ZipFile": base64.b64encode(archive(handler)).decode()},
    })
    created = await region.request("POST", FUNCTIONS, body.encode(), frontend=frontend)
    if created.status != 201:
        return created
    async with asyncio.timeout(_ACTIVE_S):
        while True:
            answer = await region.request("GET", f"{FUNCTIONS}/{name}/configuration", frontend=frontend)
            if answer.status != 200 or answer.json()["State"] == "Active":
                return answer
            await asyncio.sleep(_POLL_S)


async def reserve(region: Region, name: str, concurrency: int) -> Answer:
    """PutFunctionConcurrency: answered when it binds everywhere."""
    body = json.dumps({"ReservedConcurrentExecutions": concurrency}).encode()
    return await region.request("PUT", f"/2017-10-31/functions/{name}/concurrency", body)


def _state(created: Answer) -> Answer:
    """Of a configuration only what every run answers alike."""
    found = created.json()
    kept = {name: found[name] for name in ("FunctionName", "State", "CodeSha256", "Handler") if name in found}
    return Answer(status=created.status, headers=created.headers, body=json.dumps(kept or found).encode())


async def first_invokes(region: Region) -> list[Told]:
    """Cold, warm, warm by another frontend, and a throttle: two at once through two frontends for one permit."""
    story = Story(region)
    story.tell("create hello", _state(await create(region, "hello", "echo")))
    await story.invoke("cold", "hello", {"message": "hello, world"})
    await story.invoke("warm", "hello", {"message": "hello again"})
    await story.invoke("warm by another frontend", "hello", {"message": "hello from az2"}, frontend=1)
    story.tell("create sleeper", _state(await create(region, "sleeper", "sleep")))
    story.tell("reserve 1 for sleeper", await reserve(region, "sleeper", 1))

    payload = json.dumps(SLEEP_S).encode()

    async def one(frontend: int) -> tuple[Answer, float]:
        return await region.invoke("sleeper", payload, frontend=frontend), region.clock.monotonic()

    # Which of them gets the permit is the seed's to say: the story tells the one that ran first.
    ran, refused = sorted(await asyncio.gather(one(0), one(1)), key=lambda answered: answered[0].status)
    story.tell("two at once: one runs", ran[0], at=ran[1])
    story.tell("the other is throttled", refused[0], 429, at=refused[1])
    return story.lines
