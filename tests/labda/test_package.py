"""What ``labda deploy`` makes of a folder or an archive."""

import io
import os
import zipfile

import pytest

from labda import package
from labda.refusal import Refusal


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "my function"
    (root / "lib" / "__pycache__").mkdir(parents=True)
    (root / "lib" / "__pycache__" / "x.pyc").write_bytes(b"x")
    (root / "lib" / "x.py").write_text("X = 1\n")
    (root / "app.py").write_text("def handler(event, context):\n    return 1\n")
    (root / "run.sh").write_text("#!/bin/sh\n")
    (root / "run.sh").chmod(0o700)
    (root / "link").symlink_to("lib/x.py")
    return root


def test_a_folder_becomes_the_same_archive_each_time(folder):
    found = package.read(folder)
    assert found.archive == package.read(folder).archive
    with zipfile.ZipFile(io.BytesIO(found.archive)) as archive:
        modes = {entry.filename: entry.external_attr >> 16 for entry in archive.infolist()}
    assert modes == {"app.py": 0o100644, "lib/x.py": 0o100644, "link": 0o120777, "run.sh": 0o100755}
    assert found.name == "my-function"
    assert package.choose_handler(found) == "app.handler"


def test_an_archive_is_sent_as_it_is(folder, tmp_path):
    path = tmp_path / "thing.zip"
    path.write_bytes(package.read(folder).archive)
    found = package.read(path)
    assert found.archive == path.read_bytes()
    assert (found.name, package.choose_handler(found)) == ("thing", "app.handler")


def test_runtime_is_this_pythons_or_the_newest_or_a_provided_one(folder):
    offered = ["python3.9", "python3.12", "python3.11", "provided.al2", "provided.al2023"]
    found = package.read(folder)
    assert package.choose_runtime(found, offered, "python3.11") == "python3.11"
    assert package.choose_runtime(found, offered, "python3.14") == "python3.12"
    (folder / "bootstrap").write_text("#!/bin/sh\n")
    assert package.choose_runtime(package.read(folder), offered, "python3.11") == "provided.al2023"
    with pytest.raises(Refusal, match=r"it has: python3\.9"):
        package.choose_runtime(package.read(folder), ["python3.9"], "python3.11")


def encrypted(path):
    """As `zip -e` makes it, as far as readers look: the flag is set, at the entry and in the directory."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("app.py", "def handler(event, context):\n    return 1\n")
    data = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + offset] |= 1
    path.write_bytes(data)


def unknown_method(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("app.py", "def handler(event, context):\n    return 1\n")
    data = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        data[data.index(signature) + offset] = 99
    path.write_bytes(data)


def corrupt(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("app.py", "def handler(event, context):\n    return 1\n" * 50)
    data = bytearray(path.read_bytes())
    data[40:44] = b"\xff\xff\xff\xff"
    path.write_bytes(data)


@pytest.mark.parametrize("spoil", [encrypted, unknown_method, corrupt])
def test_an_archive_is_read_only_where_its_handler_has_to_be_guessed(tmp_path, spoil):
    """What is wrong with it says the API, by name."""
    path = tmp_path / "thing.zip"
    spoil(path)
    found = package.read(path)
    assert found.archive == path.read_bytes()
    with pytest.raises(Refusal, match=r"can't tell the handler of thing \(.+\): name it with --handler"):
        package.choose_handler(found)


def test_what_cannot_be_deployed_says_why(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(Refusal, match="pipe is neither a folder nor a file: name a folder or a zip archive"):
        package.read(tmp_path / "pipe")
    for name in ("none.zip", "folders.zip"):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            if name == "folders.zip":
                archive.writestr("lib/", "")
        with pytest.raises(Refusal, match="is an archive without any file"):
            package.read(tmp_path / name)
    (tmp_path / "empty").mkdir()
    (tmp_path / "no.zip").write_bytes(b"hello")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "other.py").write_text("def f(): ...\n")
    with pytest.raises(Refusal, match="holds no file"):
        package.read(tmp_path / "empty")
    with pytest.raises(Refusal, match="neither a folder nor a zip"):
        package.read(tmp_path / "no.zip")
    with pytest.raises(Refusal, match="does not exist"):
        package.read(tmp_path / "nothing")
    with pytest.raises(Refusal, match="--handler"):
        package.choose_handler(package.read(tmp_path / "odd"))
