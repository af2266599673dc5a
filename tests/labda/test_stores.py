"""What `labda doctor` says of the stores' programs; `labda backup` and `labda restore` on state directories."""

import asyncio
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from chassis.certificates import Authority
from frontend.auth.keys import PREFIX, AccessKey, Revoked, encode
from labda import host
from labda.__main__ import main
from labda.commands.restore import _join
from labda.launch import keep_root
from labda.refusal import Status
from labda.state import State
from placement.node_record import NodeRecord, judge_renewal, key_of
from storage.cipher import Cipher
from tests.storage.contract import pieces


def test_missing_programs_are_named_with_the_reason(tmp_path: Path) -> None:
    assert host.stores(tmp_path) == []
    (tmp_path / "deploy").mkdir()
    (tmp_path / "deploy" / "stores.sh").touch()
    (tmp_path / ".stores" / "bin").mkdir(parents=True)
    (tmp_path / ".stores" / "bin" / "etcd").touch()
    (check,) = host.stores(tmp_path)
    assert not check.ok
    assert not check.fatal
    assert check.missing == "no nats-server, which the stores' tests start (set-up didn't run yet)"
    (tmp_path / ".stores" / "missing").write_text("nats-server: there is no Go\n")
    assert "nats-server: there is no Go" in host.stores(tmp_path)[0].missing
    (tmp_path / ".stores" / "bin" / "nats-server").touch()
    assert host.stores(tmp_path)[0].ok


@pytest.fixture
def state(tmp_path: Path) -> State:
    """Of a cluster that ran once."""
    state = State(tmp_path / "state")
    state.prepare()
    state.write("root.json", {"account": "000000000001", "access_key_id": "k", "secret_access_key": "s"})
    Cipher.open(state.data_key)
    record = NodeRecord(node="n", service="worker", az="az1", host="h", enrolment=2, used_at=5.0)
    put(state, {"accounts/0/functions/f": b"code", key_of("n"): record.encode()}, blob=b"code")
    return state


def put(state: State, records: dict[str, bytes], *, blob: bytes) -> None:
    async def work() -> None:
        stores = state.stores()
        for key, value in records.items():
            await stores.metadata.put(key, value, expected=None)
        await stores.blobs.put(pieces(blob))
        await stores.close()

    asyncio.run(work())


def keys(state: State) -> list[str]:
    async def work() -> list[str]:
        stores = state.stores()
        found = [record.key for record in (await stores.metadata.list("")).records]
        await stores.close()
        return found

    return asyncio.run(work())


def test_a_state_moves_with_its_data_key(
    state: State, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, other = tmp_path / "backup", State(tmp_path / "other")
    assert main(["backup", str(file), "--state", str(state.root)]) == Status.OK
    assert f"keep       {state.data_key} apart" in capsys.readouterr().out
    assert main(["restore", str(file), "--state", str(other.root)]) == Status.FAILED
    assert "this cluster's is missing" in capsys.readouterr().err
    shutil.copy(state.data_key, other.data_key)
    assert main(["restore", str(file), "--state", str(other.root), "--json"]) == Status.OK
    assert json.loads(capsys.readouterr().out)["blobs"] == 1
    assert keys(other) == ["accounts/0/functions/f"]
    assert main(["restore", str(file), "--state", str(other.root)]) == Status.FAILED
    assert "say --yes" in capsys.readouterr().err
    assert main(["restore", str(file), "--state", str(other.root), "--yes"]) == Status.OK


def test_nothing_is_restored_under_a_cluster_that_runs(
    state: State, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["backup", str(tmp_path / "backup"), "--state", str(state.root)])
    with state.lock():
        assert main(["backup", str(tmp_path / "backup"), "--state", str(state.root)]) == Status.OK
        assert main(["restore", str(tmp_path / "backup"), "--state", str(state.root), "--yes"]) == Status.FAILED
    assert "labda down" in capsys.readouterr().err


def test_a_revocation_since_the_backup_stays(state: State, tmp_path: Path) -> None:
    Authority.create().save(state.authority.parent, state.authority.stem)
    main(["backup", str(tmp_path / "backup"), "--state", str(state.root)])
    newer = NodeRecord(node="n", service="worker", az="az1", host="h", enrolment=2, used_at=5.0, revoked=2)
    put(state, {key_of("n"): newer.encode()}, blob=b"x")
    assert main(["restore", str(tmp_path / "backup"), "--state", str(state.root), "--yes"]) == Status.OK

    async def found() -> NodeRecord:
        stores = state.stores()
        record = await stores.metadata.get(key_of("n"))
        await stores.close()
        assert record is not None
        return NodeRecord.decode(record.value)

    assert asyncio.run(found()) == newer


def test_a_key_that_was_revoked_since_the_backup_stays_revoked(state: State, tmp_path: Path) -> None:
    """Also root.json's own, which the next start puts where nothing is."""
    cipher = Cipher.open(state.data_key)
    root, other = (AccessKey(key_id=name, account="000000000001", secret="s", created=1.0) for name in ("k", "other"))
    put(state, {PREFIX + other.key_id: encode(other, cipher)}, blob=b"x")
    main(["backup", str(tmp_path / "backup"), "--state", str(state.root)])
    marks = {
        PREFIX + key.key_id: encode(Revoked(key_id=key.key_id, account=key.account, at=2.0), cipher)
        for key in (root, other)
    }
    put(state, marks, blob=b"x")
    assert main(["restore", str(tmp_path / "backup"), "--state", str(state.root), "--yes"]) == Status.OK

    async def found() -> dict[str, bytes]:
        stores = state.stores()
        await keep_root(state, stores.metadata)
        records = (await stores.metadata.list(PREFIX)).records
        await stores.close()
        return {record.key: record.value for record in records}

    assert asyncio.run(found()) == marks


def test_a_token_since_the_backup_leaves_the_node_its_renewals() -> None:
    """The store was founded anew: what the operator's record knows of the token, and not of the key before it."""
    archived = NodeRecord(node="n", service="worker", az="az1", host="h", token="d1", used_at=5.0, key="k1")
    stored = NodeRecord(node="n", service="worker", az="az1", host="h", enrolment=2, token="d2", expires=9.0)
    joined = NodeRecord.decode(_join(archived.encode(), stored.encode()))
    assert joined == replace(stored, key="k1")
    assert judge_renewal(joined, archived.caller, key="k1") is None


def test_files_that_can_not_be_used_are_named(
    state: State, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["backup", str(tmp_path / "none" / "backup"), "--state", str(state.root)]) == Status.USAGE
    assert main(["restore", str(tmp_path / "none"), "--state", str(state.root)]) == Status.USAGE
    (tmp_path / "text").write_text("no backup")
    assert main(["restore", str(tmp_path / "text"), "--state", str(state.root)]) == Status.FAILED
    assert main(["backup", str(tmp_path / "b"), "--state", str(tmp_path / "nowhere")]) == Status.NO_CLUSTER
    said = capsys.readouterr().err
    assert "can't be there" in said
    assert "does not exist" in said
    assert "is damaged" in said
