"""Reservations between two invocations: who gets one that is about to be free, and what becomes of it otherwise."""

import asyncio
from dataclasses import dataclass, field

import pytest

from frontend.linger import Held, Lingering
from protos import common_pb2

KEY = ("000000000000", "f", "$LATEST", 1)


@dataclass
class Lender:
    released: list[str] = field(default_factory=list)

    def release(self, sandbox: str, sequence: int) -> None:
        self.released.append(sandbox)


@pytest.fixture
def lender():
    return Lender()


def in_use(
    lingering: Lingering, lender: Lender, sandbox: str, *, linger_s: float = 5.0, pass_on_s: float = 0.0
) -> Held:
    held = Held(KEY, common_pb2.Reservation(sandbox=sandbox, sequence=1), lender, linger_s, pass_on_s)
    lingering.hold(held)
    return held


def hope(lingering: Lingering) -> "asyncio.Task[Held | None]":
    return asyncio.get_running_loop().create_task(lingering.soon(KEY))


async def turn() -> None:
    await asyncio.sleep(0)


async def test_who_comes_between_the_answer_and_the_end_gets_the_sandbox(lender):
    lingering = Lingering()
    held = in_use(lingering, lender, "a")
    lingering.ends(held)
    hoping = hope(lingering)
    await turn()
    lingering.keep(held)
    assert await hoping is held
    assert lingering.take(KEY) is None, "it is in use again"
    lingering.let_go(held)
    assert lender.released == ["a"]


async def test_each_end_is_hoped_for_once_and_nobody_hopes_for_nothing(lender):
    lingering = Lingering()
    assert await lingering.soon(KEY) is None
    first, second = in_use(lingering, lender, "a"), in_use(lingering, lender, "b")
    lingering.ends(first)
    lingering.ends(second)
    hoping = [hope(lingering), hope(lingering)]
    await turn()
    assert await lingering.soon(KEY) is None, "both are spoken for: the manager is asked at once"
    lingering.keep(second)
    lingering.keep(first)
    assert [await one for one in hoping] == [second, first], "the first to end serves who hopes longest"
    lingering.let_go(first)
    lingering.let_go(second)


async def test_an_end_that_is_late_is_not_waited_for_again(lender):
    lingering = Lingering()
    held = in_use(lingering, lender, "a")
    lingering.ends(held)
    assert await lingering.soon(KEY) is None    # after SOON_S
    assert await lingering.soon(KEY) is None    # at once: nothing is about to end
    lingering.keep(held)
    assert lingering.take(KEY) is held
    lingering.let_go(held)


async def test_what_is_recalled_before_its_end_serves_nobody_here(lender):
    lingering = Lingering()
    held = in_use(lingering, lender, "a")
    lingering.ends(held)
    hoping = hope(lingering)
    await turn()
    lingering.recall("a", 1)
    lingering.keep(held)
    assert await hoping is None
    assert lender.released == ["a"]


async def test_who_gives_up_in_the_turn_of_the_end_leaves_the_sandbox_to_the_next(lender):
    lingering = Lingering()
    held = in_use(lingering, lender, "a")
    lingering.ends(held)
    hoping = hope(lingering)
    await turn()
    lingering.keep(held)
    hoping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await hoping
    assert lingering.take(KEY) is held
    lingering.let_go(held)
    assert lender.released == ["a"]


async def test_a_reservation_is_passed_on_to_who_asks_longest_then_goes_back(lender):
    lingering = Lingering()
    held = in_use(lingering, lender, "a", linger_s=0.0, pass_on_s=5.0)
    with lingering.asking(KEY) as first, lingering.asking(KEY) as second:
        lingering.keep(held)
        assert first.result() is held
        assert not second.done()
        lingering.keep(held)
        assert second.result() is held
        assert lender.released == []
    lingering.keep(held)
    assert lender.released == ["a"]


@pytest.mark.parametrize("why", ["its time is up", "recalled", "another function"])
async def test_a_reservation_that_may_not_be_passed_on_goes_back(lender, why):
    lingering = Lingering()
    held = in_use(lingering, lender, "a", linger_s=0.0, pass_on_s=0.0 if why == "its time is up" else 5.0)
    if why == "recalled":
        lingering.recall("a", 1)
    other = ("000000000000", "g", "$LATEST", 1)
    with lingering.asking(other if why == "another function" else KEY) as asking:
        lingering.keep(held)
        assert not asking.done()
    assert lender.released == ["a"]


async def test_who_is_cancelled_as_it_is_passed_on_leaves_it_to_the_next(lender):
    lingering = Lingering()
    held = in_use(lingering, lender, "a", linger_s=0.0, pass_on_s=5.0)
    got: list[Held] = []

    async def ask() -> None:
        with lingering.asking(KEY) as future:
            got.append(await future)

    first, second = (asyncio.get_running_loop().create_task(ask()) for _ in range(2))
    await turn()
    lingering.keep(held)
    first.cancel()
    await asyncio.wait([first, second])
    assert first.cancelled()
    assert got == [held]
    assert lender.released == []


async def test_who_comes_later_does_not_hope_before_those_who_ask(lender):
    lingering = Lingering()
    held = in_use(lingering, lender, "a", pass_on_s=5.0)
    lingering.ends(held)
    with lingering.asking(KEY) as asking:
        assert await lingering.soon(KEY) is None
        lingering.keep(held)
        assert asking.result() is held
