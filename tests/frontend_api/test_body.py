"""Bodies: hashed whatever happens, kept within limit and budget, and nothing held after a failure."""

import asyncio
import hashlib
from collections.abc import MutableMapping
from typing import Any

import pytest

from frontend.api import body as reading
from frontend.api.body import BodyBudget, BodyLimit, Disconnected, Receive, check_declared, discard, read_body
from frontend.api.errors import ApiError

DISCONNECT = {"type": "http.disconnect"}


def arriving(*chunks: bytes, then: MutableMapping[str, Any] | None = None) -> Receive:
    """A receive of a body in pieces, followed by ``then`` or by nothing for ever."""
    messages: list[MutableMapping[str, Any]] = [
        {"type": "http.request", "body": chunk, "more_body": then is not None or at < len(chunks) - 1}
        for at, chunk in enumerate(chunks)
    ]
    if then is not None:
        messages.append(then)

    async def receive() -> MutableMapping[str, Any]:
        if not messages:
            await asyncio.Event().wait()
        return messages.pop(0)

    return receive


def limit(bytes_max: int) -> BodyLimit:
    return BodyLimit(bytes_max=bytes_max, refuse=lambda size: ApiError("TooLarge", 413, f"{size} bytes"))


@pytest.mark.parametrize("chunks", [(b"",), (b"abc",), (b"ab", b"c"), (b"", b"", b"abc")])
async def test_a_body_in_any_pieces(chunks: tuple[bytes, ...]) -> None:
    whole = b"".join(chunks)
    budget = BodyBudget()
    body = await read_body(arriving(*chunks), limit(3), budget)
    assert (body.data, body.sha256) == (whole, hashlib.sha256(whole).hexdigest())
    assert budget.held == body.held == len(whole)


@pytest.mark.parametrize(
    "chunks", [(b"abcd",), (b"ab", b"cd"), (b"abcd", b""), (b"ab", b"c", b"d"), (b"abc", b"d", b"")]
)
async def test_a_body_over_the_limit_is_read_on_and_not_kept(chunks: tuple[bytes, ...]) -> None:
    budget = BodyBudget()
    with pytest.raises(ApiError, match="4 bytes"):
        await read_body(arriving(*chunks), limit(3), budget)
    assert budget.held == 0


async def test_the_budget_refuses_and_holds_nothing_then() -> None:
    budget = BodyBudget(bytes_max=5)
    kept = await read_body(arriving(b"ab", b"c"), limit(100), budget)
    for chunks in ((b"de", b"f", b"g"), (b"def",)):
        with pytest.raises(ApiError) as caught:
            await read_body(arriving(*chunks), limit(100), budget)
        assert caught.value.status == 503
        assert caught.value.detail is not None
        assert budget.held == 3
    budget.give(kept.held)
    assert (await read_body(arriving(b"de", b"f", b"gh"), limit(100), budget)).data == b"defgh"


@pytest.mark.parametrize("bytes_max", [1, 3, 100])
async def test_a_client_that_leaves(bytes_max: int) -> None:
    budget = BodyBudget()
    with pytest.raises(Disconnected):
        await read_body(arriving(b"ab", then=dict(DISCONNECT)), limit(bytes_max), budget)
    assert budget.held == 0


async def test_a_body_without_end_is_not_read_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "DRAIN_BYTES_MAX", 10)
    more: MutableMapping[str, Any] = {"type": "http.request", "body": b"x" * 6, "more_body": True}

    async def endless() -> MutableMapping[str, Any]:
        return more

    with pytest.raises(ApiError, match="18 bytes"):
        await read_body(endless, limit(3), BodyBudget())


def test_a_declared_length_is_judged_before_anything_is_read() -> None:
    check_declared([(b"content-length", b"3")], limit(3))
    check_declared([(b"transfer-encoding", b"chunked")], limit(3))
    with pytest.raises(ApiError, match="4 bytes"):
        check_declared([(b"host", b"x"), (b"content-length", b"4")], limit(3))


async def test_what_nobody_wants_is_read_unless_the_client_waits() -> None:
    await discard(arriving(b"ab", b"c"), [])
    asked = False

    async def receive() -> MutableMapping[str, Any]:
        nonlocal asked
        asked = True
        return {"type": "http.request"}

    await discard(receive, [(b"expect", b"100-Continue")])
    assert not asked
