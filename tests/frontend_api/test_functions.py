"""Functions as values: every change, the table of phases, and how records are kept."""

import random

import pytest

from chassis.clock import SystemClock
from frontend import functions as pure
from frontend.function_output import Shown, configuration
from frontend.function_records import Contended, FunctionStore, Tombstone, decode, encode, key_of
from frontend.functions import TRANSITIONS, Code, Configuration, FunctionRecord, Phase, Step, WrongPhase
from frontend.identifiers import LATEST, Target, resolve
from frontend.ids import RandomIds
from storage.faults import OutcomeUnknown, StoreUnavailable
from storage.memory import MemoryMetadata
from tests.frontend_api.world import ACCOUNT, REGION, ROLE, StreamCipher

CODE = Code(sha256="ab" * 32, size_bytes=7)
NOW = 1789308642.251


def new(**changes: object) -> FunctionRecord:
    kept = Configuration(role=ROLE, runtime="python3.11", handler="h.m", environment={"A1": "b"})
    arguments: dict[str, object] = {
        "tags": {"t": "1"}, "revision": 1, "now": NOW, "revision_id": "r1", **changes,
    }
    return pure.create(ACCOUNT, "f", kept, CODE, **arguments)  # type: ignore[arg-type]


def test_the_life_of_a_function() -> None:
    created = new()
    assert (created.phase, created.revision, created.last_modified) == (
        Phase.CREATING, 1, "2026-09-13T14:10:42.251+0000",
    )
    active = pure.settle(created, revision_id="r2")
    assert (active.phase, active.revision, active.revision_id) == (Phase.ACTIVE, 1, "r2")
    updating = pure.change_configuration(active, {"timeout_s": 9}, now=NOW + 1, revision_id="r3")
    assert (updating.phase, updating.revision, updating.configuration.timeout_s) == (Phase.UPDATING, 2, 9)
    assert updating.last_modified == "2026-09-13T14:10:43.000+0000"
    touched = pure.tag(updating, {"u": "2"}, revision_id="r4")
    assert (touched.phase, touched.revision, touched.tags) == (Phase.UPDATING, 2, {"t": "1", "u": "2"})
    done = pure.settle(touched, revision_id="r5")
    assert done.last_modified == updating.last_modified
    recoded = pure.change_code(done, CODE, now=NOW + 2, revision_id="r6")
    assert recoded.revision == 3  # the same bytes are a change all the same


@pytest.mark.parametrize("phase", list(Phase))
@pytest.mark.parametrize("step", list(Step))
def test_only_the_table_moves_phases(phase: Phase, step: Step) -> None:
    if (phase, step) in TRANSITIONS:
        assert pure.after(phase, step) is TRANSITIONS[phase, step]
    else:
        with pytest.raises(WrongPhase):
            pure.after(phase, step)


def test_random_walks_keep_revisions_growing() -> None:
    """Any steps in any order: revision never falls, grows exactly by changes, and RevisionIds never repeat."""
    for seed in range(50):
        rng = random.Random(seed)
        ids = RandomIds(rng)
        record, changes, seen = new(revision_id=ids.uuid()), 0, set()
        for _ in range(40):
            step = rng.choice(list(Step))
            try:
                if step is Step.CHANGED:
                    record = pure.change_code(record, CODE, now=NOW, revision_id=ids.uuid())
                    changes += 1
                elif step is Step.SETTLED:
                    record = pure.settle(record, revision_id=ids.uuid())
                else:
                    record = pure.touch(record, revision_id=ids.uuid())
            except WrongPhase:
                continue
            assert record.revision_id not in seen, seed
            seen.add(record.revision_id)
            assert record.revision == 1 + changes, seed


def test_too_many_tags() -> None:
    record = new()
    with pytest.raises(ValueError, match="Number of tags exceeds resource tag limit"):
        pure.tag(record, {f"n{number}": "" for number in range(50)}, revision_id="x")
    assert len(pure.tag(record, {f"n{number}": "" for number in range(49)}, revision_id="x").tags) == 50


def test_lists_show_less_than_single_reads() -> None:
    single, listed = configuration(new(), REGION), configuration(new(), REGION, shown=Shown.LIST)
    assert single.keys() - listed.keys() == {"State", "StateReason", "StateReasonCode", "RuntimeVersionConfig"}


def test_the_environment_is_not_printed() -> None:
    assert "A1" not in repr(new())


def test_records_are_read_as_they_were_kept() -> None:
    cipher = StreamCipher()
    for content in (new(), Tombstone(account=ACCOUNT, name="f", revision=9)):
        value = encode(content, cipher)
        assert decode(key_of(ACCOUNT, "f"), value, cipher) == content
        assert b"A1" not in value
    with pytest.raises(ValueError, match="not encrypted for this record"):
        decode(key_of(ACCOUNT, "g"), encode(new(), cipher), cipher)
    with pytest.raises(ValueError, match="this release reads 1"):
        decode(key_of(ACCOUNT, "f"), b'{"format": 2}', cipher)


async def test_a_race_is_run_again_and_unknown_outcomes_are_looked_up() -> None:
    metadata = MemoryMetadata(SystemClock())
    store = FunctionStore(metadata, StreamCipher())
    ids = RandomIds(random.Random(1))
    await store.create(ACCOUNT, "f", lambda revision: new(revision=revision))

    async def lost(_key: str) -> None:
        raise OutcomeUnknown(_key, "the answer was lost")

    metadata.after_write = lost
    done = await store.change(ACCOUNT, "f", lambda record: pure.touch(record, revision_id="mine"))
    assert done is not None
    assert done[0].revision_id == "mine"

    async def calm(_key: str) -> None:
        pass

    metadata.after_write = calm
    raced = 0

    async def race(key: str) -> None:
        """Somebody else writes between our read and our write, twice."""
        nonlocal raced
        if raced < 2:
            raced += 1
            metadata.before_write = calm
            found = await metadata.get(key)
            assert found is not None
            await metadata.put(key, found.value, expected=found.revision)
            metadata.before_write = race

    metadata.before_write = race
    done = await store.change(ACCOUNT, "f", lambda record: pure.touch(record, revision_id=ids.uuid()))
    assert done is not None
    assert raced == 2

    async def always(key: str) -> None:
        metadata.before_write = calm
        found = await metadata.get(key)
        assert found is not None
        await metadata.put(key, found.value, expected=found.revision)
        metadata.before_write = always

    metadata.before_write = always
    with pytest.raises(Contended):
        await store.change(ACCOUNT, "f", lambda record: pure.touch(record, revision_id=ids.uuid()))

    async def away(_key: str) -> None:
        raise StoreUnavailable("the store is away")

    metadata.before_write = away
    with pytest.raises(StoreUnavailable):
        await store.delete(ACCOUNT, "f")


async def test_a_revision_goes_on_over_deletion() -> None:
    store = FunctionStore(MemoryMetadata(SystemClock()), StreamCipher())
    await store.create(ACCOUNT, "f", lambda revision: new(revision=revision))
    await store.change(ACCOUNT, "f", lambda record: pure.settle(record, revision_id="a"))
    await store.change(ACCOUNT, "f", lambda record: pure.change_code(record, CODE, now=NOW, revision_id="b"))
    assert await store.delete(ACCOUNT, "f") is not None
    assert await store.delete(ACCOUNT, "f") is None
    assert await store.get(ACCOUNT, "f") is None
    assert await store.list(ACCOUNT) == []
    again = await store.create(ACCOUNT, "f", lambda revision: new(revision=revision))
    assert again is not None
    assert again[0].revision == 3


@pytest.mark.parametrize(
    ("text", "name", "qualifier"),
    [
        ("f", "f", None),
        ("f:7", "f", "7"),
        ("function:f", "f", None),
        (f"{ACCOUNT}:function:f:{LATEST}", "f", LATEST),
        (f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:f:live", "f", "live"),
        (f"{REGION}:{ACCOUNT}:function:f", "f", None),
    ],
)
def test_names_are_taken_apart(text: str, name: str, qualifier: str | None) -> None:
    target = resolve(text, None, account=ACCOUNT, region=REGION, action="GetFunction")
    assert target == Target(region=REGION, account=ACCOUNT, name=name, qualifier=qualifier)


def test_ids_have_their_forms() -> None:
    ids = RandomIds(random.Random(3))
    for _ in range(200):
        uuid = ids.uuid()
        assert [len(part) for part in uuid.split("-")] == [8, 4, 4, 4, 12]
        assert uuid[14] == "4"
        assert uuid[19] in "89ab"
        assert len(ids.hexadecimal(16)) == 16
