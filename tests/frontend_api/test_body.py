"""Bodies: hashed whatever happens, kept within limit and budget, and nothing held after a failure."""

import asyncio
import hashlib
from collections.abc import MutableMapping
from typing import Any

import pytest

from frontend.api import body as reading
from frontend.api.body import BodyBudget, Disconnected, Receive, read_body
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


@pytest.mark.parametrize("chunks", [(b"",), (b"abc",), (b"ab", b"c"), (b"", b"", b"abc")])
async def test_a_body_in_any_pieces(chunks: tuple[bytes, ...]) -> None:
    whole = b"".join(chunks)
    budget = BodyBudget()
    body = await read_body(arriving(*chunks), 3, budget)
    assert (body.data, body.size, body.sha256) == (whole, len(whole), hashlib.sha256(whole).hexdigest())
    assert budget.held == body.held == (0 if len(chunks) == 1 else len(whole))


@pytest.mark.parametrize("chunks", [(b"abcd",), (b"ab", b"cd"), (b"abcd", b"")])
async def test_a_body_over_the_limit_is_hashed_and_not_kept(chunks: tuple[bytes, ...]) -> None:
    budget = BodyBudget()
    body = await read_body(arriving(*chunks), 3, budget)
    assert (body.data, body.size, body.sha256) == (None, 4, hashlib.sha256(b"abcd").hexdigest())
    assert budget.held == 0


async def test_the_budget_refuses_and_holds_nothing_then() -> None:
    budget = BodyBudget(bytes_max=5)
    kept = await read_body(arriving(b"ab", b"c"), 100, budget)
    with pytest.raises(ApiError) as caught:
        await read_body(arriving(b"de", b"f", b"g"), 100, budget)
    assert caught.value.status == 503
    assert budget.held == 3
    budget.give(kept.held)
    assert (await read_body(arriving(b"de", b"f", b"gh"), 100, budget)).data == b"defgh"


async def test_a_client_that_leaves_and_one_that_is_too_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    budget = BodyBudget()
    with pytest.raises(Disconnected):
        await read_body(arriving(b"ab", then=dict(DISCONNECT)), 100, budget)
    monkeypatch.setattr(reading, "READ_S_MAX", 0.01)
    with pytest.raises(ApiError) as caught:
        await read_body(arriving(b"ab", then={"type": "http.request", "body": b"c", "more_body": True}), 100, budget)
    assert caught.value.status == 408
    assert budget.held == 0


async def test_a_body_without_end_is_not_read_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "DRAIN_BYTES_MAX", 10)
    with pytest.raises(ApiError) as caught:
        await read_body(arriving(b"x" * 6, b"x" * 6, b"x"), 3, BodyBudget())
    assert caught.value.status == 413
