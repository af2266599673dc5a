"""Builds one read-only root directory per runtime, from the interpreters and tools of this host.

    python deploy/make_runtimes.py [--output .runtimes]

Owns what a function finds in its root besides its own code: /var/lang (the interpreter, without its test suite and
site-packages), /var/runtime (awslambdaric and boto3 from the hash-locked list), the shared libraries that these and a
reviewed list of tools need, a minimal /etc. Never the host's root. Files are hard links where that works, so that
several runtimes cost little disk. Idempotent: a stamp names the interpreter's version and the hash of what went in.

Refuses to know how sandboxes are started; worker/sandbox reads the result: OUTPUT/<runtime>/root and
OUTPUT/<runtime>/runtime.json.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
LOCK = HERE / "runtime-requirements.lock"
TOOLS = HERE / "root_tools.txt"
MINORS = range(10, 16)  # the API's enum: python3.10 to python3.15
PROVIDED = ("provided.al2", "provided.al2023")
NOT_COPIED = {"test", "tests", "site-packages", "dist-packages", "idlelib", "tkinter", "turtledemo", "ensurepip",
              "__phello__", "lib2to3"}
MOUNT_POINTS = ("var/task", "opt", "tmp", "proc", "dev", "usr/bin", "usr/lib", "usr/lib64", "var/runtime", "var/lang",
                "etc", "var/empty", "sys", "usr/local/bin")
DEVICES = ("null", "zero", "full", "random", "urandom")
ETC = {
    "passwd": "root:x:0:0:root:/root:/sbin/nologin\nsbx_user1051:x:993:993::/home/sbx_user1051:/sbin/nologin\n"
              "nobody:x:65534:65534:nobody:/:/sbin/nologin\n",
    "group": "root:x:0:\nsbx_user1051:x:993:\nnobody:x:65534:\n",
    "hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "hostname": "localhost\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
    "resolv.conf": "",
    "os-release": 'NAME="labda"\nID=labda\nPRETTY_NAME="labda sandbox"\n',
}
BOOTSTRAP = '''"""Starts awslambdaric: the function's own modules come first, then its layers, then /var/runtime."""

import os
import socket
import sys

from awslambdaric.__main__ import main  # from /var/runtime, before anything of the function can stand in for it

_here = "/var/runtime"
_layers = [f"/opt/python/lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages", "/opt/python"]
sys.path[:1] = ["/var/task", *_layers]
if _here not in sys.path:
    sys.path.insert(1 + len(_layers), _here)
# Says that the runtime is loaded: from here until it asks for an event is the function's own init. No answer is needed.
try:
    _host, _, _port = os.environ["AWS_LAMBDA_RUNTIME_API"].partition(":")
    with socket.create_connection((_host, int(_port)), 1.0) as _api:
        _api.sendall(b"GET /2018-06-01/ping HTTP/1.1\\r\\nHost: runtime\\r\\nConnection: close\\r\\n\\r\\n")
except OSError:
    pass  # only a figure is lost
main(["/var/runtime/bootstrap", *sys.argv[1:]])
'''


def say(text: str) -> None:
    print(text, flush=True)

# What a runtime must be able to import from its copy.
PROBE = ("import sys; sys.path.insert(0, '/var/runtime'); "
         "import awslambdaric.bootstrap, runtime_client, boto3, ssl, sqlite3, ctypes")


class Unusable(Exception):
    """This interpreter can't become a runtime; the text says why."""


def find_interpreters() -> dict[str, Path]:
    """Runtime name -> interpreter: the newest patch release of each minor version found on this host."""
    places = [*os.environ.get("PATH", "").split(":"), "/usr/bin", "/usr/local/bin"]
    candidates = [Path(place) / f"python3.{minor}" for place in places for minor in MINORS]
    versions = Path("~/.pyenv/versions").expanduser()
    candidates += [path for path in versions.glob("*/bin/python3.*") if re.fullmatch(r"python3\.\d+", path.name)]
    found: dict[str, tuple[tuple[int, ...], Path]] = {}
    seen = set[Path]()
    for candidate in candidates:
        # pyenv's shims are scripts and stand for interpreters that are found in its versions directory anyway.
        if "shims" in candidate.parts or not candidate.exists():
            continue
        path = candidate.resolve()
        if path in seen:
            continue
        seen.add(path)
        code = "import sys; print(*sys.version_info[:3], sys.prefix == sys.base_prefix)"
        answer = subprocess.run([str(path), "-S", "-E", "-c", code], capture_output=True, text=True, check=False)
        parts = answer.stdout.split()
        if answer.returncode != 0 or len(parts) != 4 or parts[3] != "True" or int(parts[1]) not in MINORS:
            continue
        version = tuple(int(part) for part in parts[:3])
        name = f"python{version[0]}.{version[1]}"
        if name not in found or version > found[name][0]:
            found[name] = (version, path)
    return {name: path for name, (_, path) in sorted(found.items())}


def place(source: Path, target: Path) -> None:
    """Puts a regular file there, following links, as a hard link if possible; keeps times (bytecode needs them)."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    real = source.resolve()
    try:
        os.link(real, target)
    except OSError:
        shutil.copy2(real, target)


def place_tree(source: Path, target: Path) -> None:
    for directory, folders, files in os.walk(source, followlinks=True):
        folders[:] = [f for f in folders if f not in NOT_COPIED and not f.startswith("config-3")]
        below = target / Path(directory).relative_to(source)
        below.mkdir(parents=True, exist_ok=True)
        for name in files:
            path = Path(directory) / name
            if path.exists() and not name.endswith((".a", ".pyo")):
                place(path, below / name)


def place_libraries(root: Path, files: list[Path], own: Path | None) -> None:
    """Adds the shared libraries that `files` need: at their own path, or in /usr/lib if that is no usual one."""
    if not files:
        return
    output = subprocess.run(["ldd", *map(str, files)], capture_output=True, text=True, check=False).stdout
    for path in sorted(set(re.findall(r"(?:=> |^\s+)(/\S+) \(0x", output, re.MULTILINE))):
        library = Path(path)
        if own is not None and own in library.parents:
            place(library, root / "usr/lib" / library.name)
        elif path.startswith(("/lib", "/usr/lib")):
            place(library, root / (path[1:] if path.startswith("/usr") else "usr" + path))
        else:
            place(library, root / "usr/lib" / library.name)


def make_base(root: Path) -> None:
    """Everything that all runtimes share: skeleton, /etc, certificates, time zones, tools."""
    for directory in MOUNT_POINTS:
        (root / directory).mkdir(parents=True, exist_ok=True)
    for name, target in (("bin", "usr/bin"), ("sbin", "usr/bin"), ("lib", "usr/lib"), ("lib64", "usr/lib64")):
        (root / name).symlink_to(target)
    for name in DEVICES:
        (root / "dev" / name).touch()
    for name, target in (("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        (root / "dev" / name).symlink_to(target)
    make_etc(root)
    placed = []
    for line in TOOLS.read_text().splitlines():
        tool = shutil.which(line) if line and not line.startswith("#") else None
        if tool:
            place(Path(tool), root / "usr/bin" / line)
            placed.append(Path(tool).resolve())
    place_libraries(root, placed, None)


def make_etc(root: Path) -> None:
    """/etc, and what its files point to: certificates, time zones, locales."""
    for name, text in ETC.items():
        (root / "etc" / name).write_text(text)
    (root / "etc/localtime").symlink_to("/usr/share/zoneinfo/UTC")
    certificates = Path("/etc/ssl/certs/ca-certificates.crt")
    if certificates.exists():
        for target in ("etc/ssl/certs/ca-certificates.crt", "etc/ssl/cert.pem", "etc/pki/tls/certs/ca-bundle.crt",
                       "usr/lib/ssl/cert.pem"):
            place(certificates, root / target)
    zones = Path("/usr/share/zoneinfo")
    if zones.exists():
        for directory, folders, files in os.walk(zones):
            folders[:] = [f for f in folders if f not in {"right", "posix"}]
            for name in files:
                path = Path(directory) / name
                place(path, root / path.relative_to("/"))
    locale = Path("/usr/lib/locale/C.utf8")
    if locale.exists():  # LANG=en_US.UTF-8 is documented; C.UTF-8 under its name gives what programs want of it
        place_tree(locale, root / "usr/lib/locale/C.utf8")
        place_tree(locale, root / "usr/lib/locale/en_US.utf8")


def make_interpreter(root: Path, interpreter: Path, name: str) -> None:
    prefix = interpreter.parent.parent
    lang = root / "var/lang"
    place(interpreter, lang / "bin" / name)
    for alias in ("python3", "python"):
        (lang / "bin" / alias).symlink_to(name)
    code = "import sysconfig; print(sysconfig.get_path('stdlib')); print(sysconfig.get_path('platstdlib'))"
    answer = subprocess.run([str(interpreter), "-S", "-E", "-c", code], capture_output=True, text=True, check=True)
    for directory in dict.fromkeys(answer.stdout.split()):
        place_tree(Path(directory), lang / "lib" / name)
    extensions = [path.resolve() for path in (lang / "lib" / name).rglob("*.so")]
    place_libraries(root, [interpreter, *extensions], prefix if prefix != Path("/usr") else None)


def install_packages(name: str, target: Path) -> None:
    """Installs the locked packages for that version; needs no pip in the interpreter itself."""
    machine = os.uname().machine
    platforms = [f"manylinux{tag}_{machine}" for tag in ("2014", "_2_17", "_2_5", "_2_28")]
    command = [
        sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes",
        "--no-deps", "--only-binary", ":all:", "--no-compile", "--target", str(target),
        "--python-version", name.removeprefix("python"), "--implementation", "cp",
        *[word for p in platforms for word in ("--platform", p)], "-r", str(LOCK),
    ]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        reason = [line for line in answer.stderr.splitlines() if line.strip()] or ["pip failed without a word"]
        raise Unusable(f"pip found no usable package for it: {reason[-1]}")
    shutil.rmtree(target / "bin", ignore_errors=True)


def make_runtime(output: Path, name: str, interpreter: Path | None, stamp: str) -> None:
    """Builds into a temporary directory and renames, so that a half-built runtime never counts."""
    final, work = output / name, output / f".{name}.new"
    shutil.rmtree(work, ignore_errors=True)
    root = work / "root"
    make_base(root)
    command: list[str] = []
    if interpreter is not None:
        make_interpreter(root, interpreter, name)
        runtime = root / "var/runtime"
        install_packages(name, runtime)
        place_libraries(root, list(runtime.rglob("*.so")), None)
        (runtime / "bootstrap.py").write_text(BOOTSTRAP)
        # Compiled by that interpreter: /var/runtime is read-only later, so no sandbox could keep bytecode.
        compiled = subprocess.run(
            [str(interpreter), "-m", "compileall", "-q", "-j", "2", "-s", str(root), str(runtime),
             str(root / "var/lang/lib")],
            capture_output=True, text=True, check=False,
        )
        if compiled.returncode not in {0, 1}:  # 1: some file of the standard library is bad on purpose
            raise Unusable(f"compileall failed: {compiled.stderr.strip()[-200:]}")
        probe = subprocess.run(
            [shutil.which("chroot", path="/usr/sbin:/sbin:/usr/bin:/bin") or "chroot", str(root),
             f"/var/lang/bin/{name}", "-I", "-c", PROBE],
            capture_output=True, text=True, check=False, env={"PATH": "/usr/bin"},
        )
        if probe.returncode != 0:
            raise Unusable("it does not run from its copy: " + (probe.stderr.strip().splitlines() or ["?"])[-1])
        command = [f"/var/lang/bin/{name}", "/var/runtime/bootstrap.py"]
    (work / "runtime.json").write_text(json.dumps({"name": name, "command": command, "stamp": stamp}) + "\n")
    shutil.rmtree(final, ignore_errors=True)
    work.rename(final)


def stamp_of(interpreter: Path | None) -> str:
    """Changes whenever what would be built changes."""
    digest = hashlib.sha256()
    for path in (LOCK, TOOLS, Path(__file__)):
        digest.update(path.read_bytes())
    if interpreter is not None:
        status = interpreter.stat()
        digest.update(f"{interpreter} {status.st_size} {status.st_mtime_ns}".encode())
    return digest.hexdigest()


def is_current(output: Path, name: str, stamp: str) -> bool:
    try:
        return bool(json.loads((output / name / "runtime.json").read_text())["stamp"] == stamp)
    except (OSError, ValueError, KeyError):
        return False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--output", type=Path, default=HERE.parent / ".runtimes")
    output: Path = parser.parse_args().output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    wanted: dict[str, Path | None] = {**find_interpreters(), **dict.fromkeys(PROVIDED)}
    usable = 0
    for name, interpreter in wanted.items():
        began = time.monotonic()
        stamp = stamp_of(interpreter)
        if is_current(output, name, stamp):
            say(f"runtime    {name:16} up to date")
            usable += 1
            continue
        try:
            make_runtime(output, name, interpreter, stamp)
        except (Unusable, OSError, subprocess.SubprocessError) as reason:
            shutil.rmtree(output / f".{name}.new", ignore_errors=True)
            say(f"runtime    {name:16} left out: {reason}")
            continue
        usable += 1
        source = interpreter or "the tools of this host"
        say(f"runtime    {name:16} built in {time.monotonic() - began:.1f} s from {source}")
    return 0 if usable else 1


if __name__ == "__main__":
    sys.exit(main())
