"""What an archive may contain, and that a refusal keeps nothing."""

import hashlib
import io
import os
import stat
import struct
import zipfile
from pathlib import Path

import pytest

from chassis.archive import Refused, plan
from tests.sandbox.conftest import Ground, start_ground, zipped
from worker.sandbox.codecache import CodeCache
from worker.sandbox.driver import BadArchive


def entry(name: str, mode: int = 0o100644, content: bytes = b"x") -> bytes:
    return several([(name, mode, content)])


def several(entries: list[tuple[str, int, bytes]]) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as made:
        for name, mode, content in entries:
            info = zipfile.ZipInfo(name)
            info.create_system = 3
            info.external_attr = mode << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            made.writestr(info, content)
    return data.getvalue()


def encrypted() -> bytes:
    data = bytearray(entry("secret"))
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + offset] |= 1
    return bytes(data)


def overlapping() -> bytes:
    """Two directory entries for the same bytes."""
    data = entry("one", content=b"y" * 1000)
    start = data.index(b"PK\x01\x02")
    end = data.index(b"PK\x05\x06")
    directory = data[start:end]
    tail = bytearray(data[end:])
    struct.pack_into("<HHI", tail, 8, 2, 2, len(directory) * 2)
    return data[:start] + directory + directory.replace(b"one", b"two") + bytes(tail)


def lying() -> bytes:
    """Says that its entry unpacks to less than it does."""
    data = bytearray(several([("big", 0o100644, bytes(1 << 20))]))
    struct.pack_into("<I", data, data.index(b"PK\x01\x02") + 24, 10)
    return bytes(data)


REFUSED: list[tuple[str, bytes, str, str]] = [
    ("parent", entry("a/../../evil"), "a/../../evil", "leads out"),
    ("absolute", entry("/etc/evil"), "/etc/evil", "absolute"),
    ("link out", entry("l", 0o120777, b"../../etc/passwd"), "l", "leads out"),
    ("absolute link", entry("l", 0o120777, b"/etc/passwd"), "l", "leads out"),
    ("write through link", several([("d", 0o120777, b"."), ("d/x", 0o100644, b"x")]), "d/x", "no directory"),
    ("below a file", several([("d", 0o100644, b"."), ("d/x", 0o100644, b"x")]), "d/x", "no directory"),
    ("device", entry("dev", 0o020666), "dev", "device"),
    ("pipe", entry("pipe", 0o010666), "pipe", "device"),
    ("setuid", entry("su", 0o104755), "su", "setuid"),
    ("setgid", entry("sg", 0o102755), "sg", "setuid"),
    ("encrypted", encrypted(), "secret", "encrypted"),
    ("overlapping", overlapping(), "one", "overlaps"),
    ("bomb", several([("a", 0o100644, bytes(200 << 20)), ("b", 0o100644, bytes(100 << 20))]), "b", "limit"),
    ("liar", lying(), "big", "can't be read"),
    ("no zip", b"not an archive", "", "readable zip"),
    ("long name", entry("n" * 300), "n" * 80, "too long"),
]


@pytest.mark.parametrize(("data", "name", "reason"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
async def test_refused_naming_the_entry(ground: Ground, data: bytes, name: str, reason: str) -> None:
    with pytest.raises(BadArchive) as caught:
        await ground.unpack(data)
    assert caught.value.definite
    assert reason in caught.value.message
    if name != "one":
        assert caught.value.entry == name
    else:
        assert caught.value.entry in {"one", "two"}
    code = Path(ground.config.state_dir) / "code"
    assert not await ground.driver.has_code(hashlib.sha256(data).hexdigest())
    assert [path.name for path in code.iterdir() if len(path.name) == 64] == []


async def test_wrong_hash_is_refused(ground: Ground) -> None:
    with pytest.raises(BadArchive, match="SHA-256"):
        await ground.unpack(zipped({"a": "b"}), "0" * 64)


async def test_modes_links_and_the_last_duplicate_are_kept(ground: Ground) -> None:
    with pytest.warns(UserWarning, match="Duplicate"):      # zipfile's, while the test makes the archive
        data = several([("run", 0o100755, b"first"), ("run", 0o100751, b"second"), ("sub/", 0o040750, b""),
                        ("sub/file", 0o100600, b"1"), ("link", 0o120777, b"sub/file"),
                        ("deep/er/file", 0o100644, b"2")])
    sha256 = await ground.unpack(data)
    task = Path(ground.config.state_dir) / "code" / sha256 / "task"
    assert (task / "run").read_bytes() == b"second"
    assert stat.S_IMODE((task / "run").stat().st_mode) == 0o751
    assert stat.S_IMODE((task / "sub").stat().st_mode) == 0o750
    assert stat.S_IMODE((task / "sub/file").stat().st_mode) == 0o600
    assert (task / "link").readlink() == Path("sub/file")
    assert stat.S_IMODE((task / "deep/er").stat().st_mode) == 0o755
    assert stat.S_IMODE(task.stat().st_mode) == 0o755


async def test_code_in_use_stays_and_the_oldest_unused_goes(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("sandboxes need root")
    ground = await start_ground(tmp_path / "state", name="test-evict", code_cache_bytes_max=2500)
    try:
        used = await ground.create({"used.py": b"u" * 1000})
        second = await ground.unpack(zipped({"b": b"b" * 1000}))
        third = await ground.unpack(zipped({"c": b"c" * 1000}))
        assert await ground.driver.has_code(used.sandbox.spec.code)
        assert not await ground.driver.has_code(second)
        assert await ground.driver.has_code(third)
        await used.sandbox.destroy()
    finally:
        await ground.driver.close()
        ground.process.wait(10)


def test_a_crash_leaves_no_half_entry(tmp_path: Path) -> None:
    cache = CodeCache(str(tmp_path / "code"), 1 << 30)
    cache.open("boot-one")
    path = cache.begin(os.getuid())
    assert cache.commit(path, "a" * 64, 10) == []
    half = cache.begin(os.getuid())
    again = CodeCache(str(tmp_path / "code"), 1 << 30)
    again.open("boot-one")
    assert not Path(half).exists()
    assert again.size_of("a" * 64) == 10
    rebooted = CodeCache(str(tmp_path / "code"), 1 << 30)
    rebooted.open("boot-two")
    assert rebooted.size_of("a" * 64) is None


def test_too_many_entries() -> None:
    data = several([(f"f{n}", 0o100644, b"") for n in range(11)])
    with zipfile.ZipFile(io.BytesIO(data)) as opened, pytest.raises(Refused, match="11 entries"):
        plan(opened, root="/var/task", size_bytes_max=1 << 20, entries_max=10)
