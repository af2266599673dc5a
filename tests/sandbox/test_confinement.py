"""What tenants' code can't do, tried from inside."""

import asyncio
import errno
from typing import Any

from tests.sandbox.conftest import DEADLINE_S, Ground

# Tries a call and gives its errno, 0 if it went through.
TRY = """
import ctypes, errno, os, socket
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    ctypes.set_errno(0)
    return 0 if libc.syscall(number, *arguments) >= 0 else ctypes.get_errno()
def attempt(work):
    try:
        work()
    except OSError as error:
        return error.errno
    return 0
"""


async def test_a_memory_bomb_is_told_and_contained(ground: Ground) -> None:
    made = await ground.running(memory_mb=64)
    neighbour = await ground.running(memory_mb=64)
    await made.send({"code": "x = []\nwhile True: x.append(bytearray(1 << 20))"})
    async with asyncio.timeout(DEADLINE_S):
        ending = await made.sandbox.exited()
    assert ending.signal == 9
    assert ending.oom
    assert await made.sandbox.memory_peak_mb() >= 60
    assert await neighbour.probe("out = 'alive'") == "alive"
    assert await neighbour.sandbox.memory_peak_mb() < 60


async def test_a_process_bomb_stops_at_its_limit(ground: Ground) -> None:
    made = await ground.running(memory_mb=3008)
    count, number = await made.probe(
        "import os, time\n"
        "pids, number = [], 0\n"
        "try:\n"
        "    while len(pids) < 5000:\n"
        "        pid = os.fork()\n"
        "        if pid == 0:\n"
        "            time.sleep(100); os._exit(0)\n"
        "        pids.append(pid)\n"
        "except OSError as error:\n"
        "    number = error.errno\n"
        "for pid in pids: os.kill(pid, 9)\n"
        "out = [len(pids), number]", timeout_s=2 * DEADLINE_S,
    )
    assert number == errno.EAGAIN
    assert 700 <= count <= 742


async def test_tmp_has_its_size_and_ends(ground: Ground) -> None:
    made = await ground.running(memory_mb=64, tmp_mb=96)
    written, number, mode = await made.probe(
        "import os\n"
        "written, number = 0, 0\n"
        "with open('/tmp/big', 'wb', buffering=0) as file:\n"
        "    try:\n"
        "        while True: written += file.write(bytes(1 << 20))\n"
        "    except OSError as error: number = error.errno\n"
        "os.unlink('/tmp/big')\n"
        "out = [written, number, oct(os.stat('/tmp').st_mode)]", timeout_s=2 * DEADLINE_S,
    )
    assert number == errno.ENOSPC
    assert 96 << 20 <= written <= (96 << 20) * 1.06
    assert mode == "0o41777"
    assert await made.probe("import os; out = os.listdir('/tmp')") == []


async def test_only_tmp_is_writable(ground: Ground) -> None:
    made = await ground.running()
    places = ["/", "/var/task", "/opt", "/var/runtime", "/etc", "/usr/bin", "/dev", "/proc/sys/kernel", "/var/lang"]
    numbers = await made.probe(TRY + f"out = [attempt(lambda: open(p + '/x', 'w')) for p in {places}]")
    assert set(numbers) <= {errno.EROFS, errno.EACCES, errno.ENOENT, errno.EPERM}
    assert await made.probe(TRY + "out = attempt(lambda: open('/proc/sys/kernel/hostname', 'w'))") in {
        errno.EROFS, errno.EACCES}
    assert await made.probe(TRY + "out = attempt(lambda: open('/tmp/x', 'w'))") == 0
    # Kept code can't be changed for the next sandbox that gets it.
    assert await made.probe(TRY + "out = attempt(lambda: open('/var/task/app.py', 'a'))") in {errno.EROFS, errno.EACCES}


async def test_the_user_is_nobody_special(ground: Ground) -> None:
    made = await ground.running()
    status: dict[str, Any] = await made.probe(
        "import os, pwd, resource\n"
        "status = dict(line.split(':', 1) for line in open('/proc/self/status') if ':' in line)\n"
        "out = {k: status[k].split() for k in "
        "('CapInh', 'CapPrm', 'CapEff', 'CapBnd', 'CapAmb', 'NoNewPrivs', 'Seccomp', 'Uid', 'Gid', 'Groups')}\n"
        "out['user'] = pwd.getpwuid(os.getuid()).pw_name\n"
        "out['cwd'] = os.getcwd()\n"
        "out['nofile'] = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "out['core'] = resource.getrlimit(resource.RLIMIT_CORE)\n"
        "out['fds'] = [os.readlink('/proc/self/fd/' + n) for n in os.listdir('/proc/self/fd')"
        " if os.path.exists('/proc/self/fd/' + n) or int(n) < 3]\n"
        "out['home'] = os.listdir('/')\n"
    )
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[name][0], 16) == 0, name
    assert status["NoNewPrivs"] == ["1"]
    assert status["Seccomp"] == ["2"]
    assert status["Uid"] == ["993"] * 4
    assert status["Groups"] == []
    assert (status["user"], status["cwd"]) == ("sbx_user1051", "/var/task")
    assert (status["nofile"], status["core"]) == ([1024, 1024], [0, 0])
    assert {name.split(":")[0] for name in status["fds"]} <= {"/dev/null", "pipe", "socket", "anon_inode"}
    assert not {"root", "home", "work", "boot", "sys.d"} & set(status["home"])


async def test_proc_tells_about_the_sandbox_alone(ground: Ground) -> None:
    made = await ground.running(memory_mb=3538)
    out = await made.probe(
        "import os\n"
        "def read(p): return open(p).read()\n"
        "out = {'processes': [p for p in os.listdir('/proc') if p.isdigit()],\n"
        "       'total': read('/proc/meminfo').split()[1], 'cpus': read('/proc/cpuinfo').count('processor'),\n"
        "       'stat': read('/proc/stat').count('cpu'), 'empty': [read('/proc/' + n) for n in "
        "('cmdline', 'modules', 'diskstats', 'partitions', 'interrupts', 'vmstat') if os.path.exists('/proc/' + n)],\n"
        "       'dev': sorted(os.listdir('/dev')), 'sys': os.listdir('/sys'), 'host': os.uname().nodename,\n"
        "       'cgroup': read('/proc/self/cgroup')}\n"
    )
    assert len(out["processes"]) == 1
    assert (out["total"], out["cpus"], out["stat"]) == (str(3538 * 1024), 2, 3)
    assert set(out["empty"]) == {""}
    assert out["dev"] == ["fd", "full", "null", "random", "stderr", "stdin", "stdout", "urandom", "zero"]
    assert out["sys"] == []
    assert out["host"] == "localhost"
    assert "labda" not in out["cgroup"]


async def test_the_network_ends_at_the_runtime_api(ground: Ground) -> None:
    made = await ground.running()
    out = await made.probe(
        TRY + "def connect(address):\n"
        "    s = socket.socket(); s.settimeout(1); return attempt(lambda: s.connect(address))\n"
        "out = [connect(a) for a in (('169.254.169.254', 80), ('10.0.0.1', 80), ('1.1.1.1', 53), ('127.0.0.1', 22))]\n"
        "out.append(open('/proc/net/dev').read().count(':'))\n"
        "out.append(connect(('127.0.0.1', 9001)))"
    )
    assert out == [errno.ENETUNREACH] * 3 + [errno.ECONNREFUSED, 1, 0]


async def test_denied_calls_answer_eperm_or_enosys(ground: Ground) -> None:
    made = await ground.running()
    # x86_64 numbers: what opens the kernel or other processes to a tenant.
    denied = {
        "mount": 165, "umount2": 166, "pivot_root": 155, "chroot": 161, "unshare": 272, "setns": 308, "ptrace": 101,
        "process_vm_readv": 310, "process_vm_writev": 311, "pidfd_getfd": 438, "bpf": 321, "perf_event_open": 298,
        "userfaultfd": 323, "io_uring_setup": 425, "keyctl": 250, "add_key": 248, "kexec_load": 246, "init_module": 175,
        "finit_module": 313, "delete_module": 176, "reboot": 169, "settimeofday": 164, "clock_settime": 227,
        "open_by_handle_at": 304, "name_to_handle_at": 303, "swapon": 167, "acct": 163, "syslog": 103, "quotactl": 179,
        "fsopen": 430, "move_mount": 429, "open_tree": 428, "mount_setattr": 442, "clone3": 435, "sethostname": 170,
        "iopl": 172, "ioperm": 173, "fanotify_init": 300, "lookup_dcookie": 212, "mknod": 133, "vhangup": 153,
    }
    out = await made.probe(TRY + f"out = {{n: call(k, 0, 0, 0, 0, 0) for n, k in {denied}.items()}}")
    assert {name: number for name, number in out.items() if number not in {errno.EPERM, errno.ENOSYS}} == {}
    families = await made.probe(TRY + (
        "out = [attempt(lambda: socket.socket(f, k, 0)) for f, k in "
        "((17, 3), (16, 3), (38, 5), (40, 1), (2, 3), (1, 5), (31, 3), (2, 1), (10, 2), (1, 1))]"))
    assert families == [errno.EPERM] * 7 + [0] * 3
    namespaces = await made.probe(TRY + "out = [call(56, 17 | bit, 0, 0, 0, 0) for bit in "
                                  "(0x10000000, 0x20000, 0x20000000, 0x40000000)]")
    assert namespaces == [errno.EPERM] * 4
    limits = await made.probe(TRY + (
        "import resource\n"
        "out = [attempt(lambda: os.nice(-5)), attempt(lambda: os.setuid(0)), attempt(lambda: os.kill(1, 9)),\n"
        "       attempt(lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)))]"))
    assert set(limits) <= {errno.EPERM, errno.EACCES, errno.ESRCH, errno.EINVAL}


async def test_calls_of_other_architectures_kill(ground: Ground) -> None:
    made = await ground.running()
    await made.send({"code": TRY + "libc.syscall(0x40000000 + 39)"})
    ending = await made.sandbox.exited()
    assert (ending.code, ending.signal) == (None, 31)     # SIGSYS


async def test_one_sandbox_sees_nothing_of_another(ground: Ground) -> None:
    one, other = await asyncio.gather(ground.running(), ground.running())
    await one.probe(
        "import os, socket\n"
        "open('/tmp/secret', 'w').write('x')\n"
        "s = socket.socket(socket.AF_UNIX); s.bind('\\0abstract'); s.listen()\n"
        "import builtins; builtins.kept = s"
    )
    out = await other.probe(
        TRY + "s = socket.socket(socket.AF_UNIX)\n"
        "out = [os.listdir('/tmp'), attempt(lambda: s.connect('\\0abstract')), attempt(lambda: os.kill(-1, 9))]"
    )
    assert out == [[], errno.ECONNREFUSED, errno.ESRCH]
    assert await one.probe("out = 'alive'") == "alive"


async def test_cpu_is_bounded_by_the_memory_size(ground: Ground) -> None:
    made = await ground.running(memory_mb=442)      # a quarter of a vCPU
    spin = ("import time\n"
            "wall, cpu = time.monotonic(), time.process_time()\n"
            "while time.monotonic() - wall < 0.6: pass\n"
            "out = (time.process_time() - cpu) / (time.monotonic() - wall)")
    await made.sandbox.limit_cpu(boosted=False)
    assert await made.probe(spin) < 0.45
