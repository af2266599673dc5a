"""A folder or an archive as a deployable function: zip, name, runtime, handler.

Owns the guesses, which are few and said aloud by ``labda deploy``. The same folder gives the same bytes, so that
deploying it twice changes nothing.
"""

import io
import lzma
import re
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from labda.refusal import Refusal, Status

SKIPPED = frozenset({"__pycache__", ".git", ".venv", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".DS_Store"})
_EPOCH = (1980, 1, 1, 0, 0, 0)
# Of one file: encrypted (RuntimeError), of an unknown method, corrupt, gone. What is wrong with it, says the API.
_UNREADABLE = (RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError)
_HANDLERS = (("lambda_function.py", "lambda_handler"), ("app.py", "handler"), ("main.py", "handler"))


@dataclass(frozen=True, slots=True)
class Package:
    """``archive`` is what is sent: of a folder the zip of it, of an archive its bytes, whatever they hold."""

    path: Path
    name: str
    archive: bytes
    needs_bootstrap: bool   # has an executable `bootstrap`: for provided.* runtimes


def read(path: Path) -> Package:
    """Raises Refusal when there is nothing to deploy."""
    try:
        if path.is_dir():
            return _of_folder(path)
        if path.is_file():
            return _of_archive(path, path.read_bytes())
        what = "is neither a folder nor a file" if path.exists() else "does not exist"
    except OSError as error:
        raise Refusal(
            f"{error.filename or path} can't be read ({error.strerror or error}): labda needs the right to read it",
            Status.USAGE,
        ) from error
    raise Refusal(f"{path} {what}: name a folder or a zip archive", Status.USAGE)


def _of_folder(path: Path) -> Package:
    files = dict(_files(path))
    if not files:
        raise Refusal(f"{path} holds no file: name the folder with the function's code", Status.USAGE)
    return Package(path, function_name(path.resolve().name), _zip(files), "bootstrap" in files)


def _of_archive(path: Path, data: bytes) -> Package:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile as error:
        raise Refusal(f"{path} is neither a folder nor a zip archive ({error})", Status.USAGE) from error
    if all(name.endswith("/") for name in names):
        raise Refusal(f"{path} is an archive without any file: name one with the function's code", Status.USAGE)
    return Package(path, function_name(path.stem), data, "bootstrap" in names)


def function_name(text: str) -> str:
    """A legal function name that looks like ``text``."""
    return re.sub(r"[^a-zA-Z0-9_-]+", "-", text).strip("-")[:64] or "function"


def choose_runtime(package: Package, runtimes: Iterable[str], own: str) -> str:
    """Of the cluster's: a provided one for a bootstrap, else ``own`` (this Python's) or the newest Python."""
    offered = sorted(runtimes, key=lambda name: [int(part) for part in re.findall(r"\d+", name)])
    wanted = [name for name in offered if name.startswith("provided." if package.needs_bootstrap else "python")]
    if not wanted:
        raise Refusal(
            f"no runtime of this cluster fits {package.name} (it has: {', '.join(offered) or 'none'}): "
            "name one with --runtime", Status.USAGE,
        )
    return own if own in wanted else wanted[-1]


def choose_handler(package: Package) -> str:
    """Reads the code. Raises Refusal where nothing can be guessed."""
    remedy = "name it with --handler MODULE.FUNCTION"
    try:
        if package.path.is_dir():
            files = dict(_files(package.path))
            found = _handler(files, lambda name: files[name].read_bytes())
        else:
            with zipfile.ZipFile(io.BytesIO(package.archive)) as archive:
                found = _handler(archive.namelist(), archive.read)
    except _UNREADABLE as error:
        raise Refusal(f"can't tell the handler of {package.name} ({error}): {remedy}", Status.USAGE) from error
    if found:
        return found
    if package.needs_bootstrap:
        return "bootstrap"
    raise Refusal(
        f"can't tell the handler of {package.name} (no {', no '.join(f'{m}:{f}' for m, f in _HANDLERS)}): {remedy}",
        Status.USAGE,
    )


def _files(folder: Path) -> Iterable[tuple[str, Path]]:
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if not SKIPPED.intersection(relative.parts) and (path.is_symlink() or path.is_file()):
            yield str(relative), path


def _zip(files: dict[str, Path]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, path in files.items():
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.create_system = 3
            entry.compress_type = zipfile.ZIP_DEFLATED
            if path.is_symlink():
                entry.external_attr = (stat.S_IFLNK | 0o777) << 16
                archive.writestr(entry, str(path.readlink()))
            else:
                executable = path.stat().st_mode & 0o111
                entry.external_attr = (stat.S_IFREG | (0o755 if executable else 0o644)) << 16
                archive.writestr(entry, path.read_bytes())
    return buffer.getvalue()


def _handler(names: Iterable[str], read_file: Callable[[str], bytes]) -> str:
    for name, function in _HANDLERS:
        if name in names and re.search(rb"^(async )?def " + function.encode() + rb"\b", read_file(name), re.MULTILINE):
            return f"{name.removesuffix('.py')}.{function}"
    return ""
