"""Watched copies and settling: several frontends on one store, one of which may die, lag or lose the store."""

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator, Callable

import pytest

from chassis.clock import Clock
from frontend import functions as pure
from frontend import settling
from frontend.api.errors import ApiError
from frontend.api.ports import Unavailable
from frontend.auth.authenticator import KEYS_S, Authenticator
from frontend.auth.keys import (
    LOOK_UPS_MAX,
    AccessKey,
    KeyRing,
    Revoked,
    encode,
    new_key,
    store_key,
)
from frontend.auth.links import CodeLinks
from frontend.auth.well_known import WellKnownSecret, refuse_well_known
from frontend.functions import Phase
from frontend.metadata import WatchedFunctions
from storage.faults import StoreUnavailable
from storage.interfaces import Change, Listing, Record
from tests.frontend_api.test_functions import CODE, NOW, new
from tests.frontend_api.test_sigv4 import Signed
from tests.frontend_api.world import ACCOUNT, StreamCipher, World


async def until(true: Callable[[], bool], within_s: float = 60.0) -> None:
    async with asyncio.timeout(within_s):
        while not true():
            await asyncio.sleep(0.002)


def phase(world: World, name: str = "f") -> Phase | None:
    record = world.functions.cached(ACCOUNT, name)
    return record.phase if record else None


async def test_every_frontend_learns_of_a_creation_and_it_settles() -> None:
    first = World()
    second = World(first.metadata, node="frontend-2")
    await first.start()
    await second.join()
    made = await first.functions.create(ACCOUNT, "f", lambda revision: new(revision=revision))
    assert made is not None
    first.settler.begin(*made)
    await until(lambda: phase(first) is phase(second) is Phase.ACTIVE)
    stored = await first.functions.delete(ACCOUNT, "f")
    assert stored is not None
    await first.settler.deleted(made[0], stored)
    assert phase(first) is None
    assert phase(second) is None
    await first.stop()
    await second.stop()


async def test_a_creation_whose_frontend_died_is_completed_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settling, "ORPHAN_S", 0.05)
    first = World()
    second = World(first.metadata, node="frontend-2")
    await first.start()
    await second.join()
    await first.stop()
    # What the first frontend wrote last, and never completed.
    await first.functions.create(ACCOUNT, "f", lambda revision: new(revision=revision))
    await until(lambda: phase(second) is Phase.ACTIVE)
    await second.stop()


async def test_an_unfinished_phase_found_at_the_start_is_completed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settling, "ORPHAN_S", 0.05)
    world = World()
    await world.functions.create(ACCOUNT, "f", lambda revision: new(revision=revision))
    await world.start()
    await until(lambda: phase(world) is Phase.ACTIVE)
    await world.stop()


async def test_an_update_waits_for_a_frontend_that_lags_but_not_beyond_its_lease() -> None:
    world = World()
    await world.start()
    made = await world.functions.create(ACCOUNT, "f", lambda revision: new(revision=revision))
    assert made is not None
    await world.metadata.acknowledge("laggard", 0, 0.3)
    began = asyncio.get_running_loop().time()
    world.settler.begin(*made)
    await until(lambda: phase(world) is Phase.ACTIVE)
    assert asyncio.get_running_loop().time() - began >= 0.29
    await world.stop()


async def test_a_later_change_is_not_settled_by_the_former_one() -> None:
    world = World()
    await world.start()
    made = await world.functions.create(ACCOUNT, "f", lambda revision: new(revision=revision))
    assert made is not None
    await world.functions.change(ACCOUNT, "f", lambda record: pure.settle(record, revision_id="s"))
    await world.metadata.acknowledge("laggard", 0, 60)
    await world.functions.change(
        ACCOUNT, "f", lambda record: pure.change_code(record, CODE, now=NOW, revision_id="c")
    )
    await world.metadata.acknowledge("laggard", made[1], 60)  # knows the creation, not the update
    world.settler.begin(*made)
    await until(lambda: (ACCOUNT, "f", 1) not in world.settler._tasks)
    assert phase(world) is Phase.UPDATING
    await world.stop()


async def test_a_gap_in_the_watch_is_closed_by_listing_again() -> None:
    world = World()
    await world.start()
    for number in range(5000):  # more than the store's log keeps, while the watch doesn't get a turn
        await world.metadata.put(f"accounts/{ACCOUNT}/other/{number % 10}", b"x", expected=None)
    made = await world.functions.create(ACCOUNT, "f", lambda revision: new(revision=revision))
    assert made is not None
    await until(lambda: phase(world) is not None)
    await world.stop()


async def test_beyond_the_lease_the_copy_is_served_and_not_sure() -> None:
    world = World()
    await world.start()
    await world.functions.create(ACCOUNT, "f", lambda revision: new(revision=revision))
    await until(lambda: phase(world) is not None)
    copy = world.functions
    await until(lambda: copy.sure)
    fresh = WatchedFunctions(world.metadata, world.cipher, world.clock)
    with pytest.raises(Unavailable):
        fresh.cached(ACCOUNT, "f")
    copy._valid_until = world.clock.monotonic() - 0.001
    assert not copy.sure
    assert copy.cached(ACCOUNT, "f") is not None
    await world.stop()


async def test_a_store_that_comes_back_is_followed_again() -> None:
    world = World()

    attempts = 0

    async def away(_prefix: str) -> None:
        nonlocal attempts
        attempts += 1
        raise StoreUnavailable("the store is away")

    listed = world.metadata.list
    world.metadata.list = away  # type: ignore[method-assign, assignment]
    following = asyncio.create_task(world.follower.run())
    await until(lambda: attempts >= 3)
    assert not world.follower.ready.is_set()
    world.metadata.list = listed  # type: ignore[method-assign]
    await until(world.follower.ready.is_set)
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


async def test_keys_are_learnt_forgotten_and_kept_encrypted() -> None:
    world = World()
    await world.start()
    key = world.key()
    await until(lambda: world.ring.known(key.key_id) == key)
    record = await world.metadata.get(f"keys/{key.key_id}")
    assert record is not None
    assert key.secret.encode() not in record.value
    assert key.secret not in repr(key)
    await world.metadata.delete(f"keys/{key.key_id}", expected=None)
    await until(lambda: world.ring.known(key.key_id) is None)
    await world.stop()


def revoked(world: World) -> bytes:
    return encode(Revoked(key_id=world.key().key_id, account=ACCOUNT, at=NOW), world.cipher)


async def test_a_revoked_key_is_forgotten_also_where_the_watch_says_nothing() -> None:
    world = World()

    async def deaf(_prefix: str, *, after: int) -> AsyncIterator[Change]:
        assert after >= 0
        await asyncio.Event().wait()
        yield Change(key="keys/never", value=None, revision=0)

    world.metadata.watch = deaf  # type: ignore[method-assign, assignment]
    await world.start()
    key = world.key()
    await until(lambda: world.ring.known(key.key_id) == key)
    await world.metadata.put(f"keys/{key.key_id}", revoked(world), expected=None)
    await until(lambda: world.ring.known(key.key_id) is None)
    await world.stop()


async def test_an_answer_that_was_on_its_way_does_not_bring_a_revoked_key_back() -> None:
    world = World()
    ring = KeyRing(world.metadata, world.cipher)
    key = world.key()
    await store_key(world.metadata, world.cipher, key)
    get = world.metadata.get

    async def slow(name: str) -> Record | None:
        record = await get(name)
        await world.metadata.put(name, revoked(world), expected=None)
        later = await get(name)
        assert later is not None
        ring.apply(later.key, later.value, later.revision)
        return record

    world.metadata.get = slow  # type: ignore[method-assign, assignment]
    assert await ring.find(key.key_id, 0.0) is None
    assert ring.known(key.key_id) is None


def authenticator(world: World, clock: Clock) -> Authenticator:
    return Authenticator(world.ring, "us-east-1", clock)


class LaterClock:
    """The world's clock, some seconds on: this process stood still."""

    def __init__(self, clock: Clock, later_s: float) -> None:
        self._clock = clock
        self._later_s = later_s

    def monotonic(self) -> float:
        return self._clock.monotonic() + self._later_s

    def wall(self) -> float:
        return self._clock.wall()


async def claimed(world: World, clock: Clock) -> str:
    """The code of the refusal of a request that claims the root account's key; empty: none."""
    signed = Signed("GET", "/x", key=world.key().key_id, secret=world.key().secret)
    try:
        await authenticator(world, clock).claim(signed.headers, b"")
    except ApiError as error:
        return error.code
    return ""


async def test_a_frontend_that_stood_still_asks_the_store_before_it_takes_a_key() -> None:
    world = World()
    await store_key(world.metadata, world.cipher, world.key())
    await world.ring.relist(world.clock)
    assert await claimed(world, world.clock) == ""
    await world.metadata.put(f"keys/{world.key().key_id}", revoked(world), expected=None)
    assert await claimed(world, LaterClock(world.clock, 1.0)) == "", "nothing said so, and it is fresh"
    assert await claimed(world, LaterClock(world.clock, 2.1)) == "UnrecognizedClientException"


async def test_a_frontend_that_stood_still_while_a_body_came_asks_again_before_the_key_is_proved() -> None:
    world = World()
    await store_key(world.metadata, world.cipher, world.key())
    await world.ring.relist(world.clock)
    signed = Signed("GET", "/x", key=world.key().key_id, secret=world.key().secret)
    begun = await authenticator(world, world.clock).claim(signed.headers, b"")
    await world.metadata.put(f"keys/{world.key().key_id}", revoked(world), expected=None)
    later = authenticator(world, LaterClock(world.clock, 600.0))
    with pytest.raises(ApiError) as refused:
        await later.prove(begun, "GET", b"/x", b"", signed.headers, hashlib.sha256().hexdigest())
    assert refused.value.code == "UnrecognizedClientException"


async def test_a_frontend_that_is_cut_off_takes_known_keys_for_so_long_and_waits_once() -> None:
    world = World()
    await store_key(world.metadata, world.cipher, world.key())
    await world.ring.relist(world.clock)
    attempts = 0

    async def silent(_prefix: str) -> Listing:
        nonlocal attempts
        attempts += 1
        await asyncio.Event().wait()
        raise AssertionError

    world.metadata.list = silent  # type: ignore[method-assign, assignment]
    async with asyncio.timeout(60):
        for later_s in (3.0, 4.0, KEYS_S - 1):
            assert await claimed(world, LaterClock(world.clock, later_s)) == ""
        assert await claimed(world, LaterClock(world.clock, KEYS_S + 1)) == "ServiceUnavailableException"
    assert attempts == 1


async def test_unknown_keys_cost_the_store_one_read_per_second() -> None:
    world = World()
    ring = KeyRing(world.metadata, StreamCipher())
    reads = 0
    get = world.metadata.get

    async def counted(key: str) -> object:
        nonlocal reads
        reads += 1
        return await get(key)

    world.metadata.get = counted  # type: ignore[method-assign, assignment]
    for now in (0.0, 0.5, 0.9, 1.1):
        assert await ring.find("AKIANOBODY", now) is None
    assert reads == 2
    assert await ring.find("../accounts", 5.0) is None
    assert reads == 2
    key = new_key(ACCOUNT, random.Random(1), 0.0)
    await store_key(world.metadata, StreamCipher(), key)
    assert await ring.find(key.key_id, 6.0) == key
    reads = 0
    for number in range(1000):
        assert await ring.find(f"AKIAGUESS{number}", 8.0) is None
    assert reads == LOOK_UPS_MAX, "of all that are guessed"
    assert await ring.find("AKIAONEMORE", 9.1) is None
    assert reads == LOOK_UPS_MAX + 1


def test_well_known_secrets_are_refused_where_others_can_reach_them() -> None:
    def key(key_id: str, secret: str) -> AccessKey:
        return AccessKey(key_id=key_id, account=ACCOUNT, secret=secret, created=0.0)

    good = new_key(ACCOUNT, random.Random(5), 0.0)
    known = [
        key("AKIAIOSFODNN7EXAMPLE", good.secret),
        key(good.key_id, "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"),
        key(good.key_id, "test"),
        key(good.key_id, "Test"),
    ]
    for listen in ("0.0.0.0:9000", "[::]:9000", "10.0.0.1:9000", "example.org:9000"):
        refuse_well_known(listen, [good])
        for each in known:
            with pytest.raises(WellKnownSecret, match="make a new one"):
                refuse_well_known(listen, [good, each])
    for listen in ("127.0.0.1:9000", "127.9.9.9:9000", "[::1]:9000", "localhost:9000"):
        refuse_well_known(listen, known)


def test_links_expire_and_can_not_be_changed() -> None:
    links = CodeLinks(b"k" * 32)
    link = links.make("a" * 64, 1000.0)
    path, _, query = link.partition("?")
    assert links.check(path, query, 1600.0) == "a" * 64
    assert links.check(path, query, 1601.0) is None
    assert links.check(path.replace("a", "b"), query, 1000.0) is None
    assert links.check(path, query.replace("1600", "9999"), 1000.0) is None
    assert links.check(path, "", 1000.0) is None
    assert links.check(path, "expires=1600&signature=%C3%BC", 1000.0) is None
    assert CodeLinks(b"x" * 32).check(path, query, 1000.0) is None
    with pytest.raises(ValueError, match="at least 32"):
        CodeLinks(b"short")
