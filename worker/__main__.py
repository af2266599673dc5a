"""``python -m worker --config FILE``: the worker of one host.

This process keeps the privileges: it becomes the spawner. The agent, which parses what tenants and peers send, is its
unprivileged child (``worker.agent_process``). Certificates and configuration are read here and handed over in memory:
no key needs to be readable for the agent's user. Standard library only: every sandbox is forked from this process.
"""

import json
import os
import sys
import tomllib
from pathlib import Path
from typing import Any

from worker.sandbox import spawner
from worker.sandbox.settings import SpawnerConfig

# What the spawner takes from the worker's file as it stands there; what is absent has the same default on both sides.
_SHARED = ("uid_base", "sandboxes_max", "agent_uid", "code_cache_bytes_max")


def main() -> int:
    if len(sys.argv) != 3 or sys.argv[1] != "--config":
        sys.stderr.write("usage: python -m worker --config FILE\n")
        return 2
    path = Path(sys.argv[2])
    try:
        text = path.read_text()
        table = tomllib.loads(text)
        handover = prepare(text, table, path)
        settings = spawner_config(table)
        pass_fds = [handover]
        arguments = ["--channel-fd", "{fd}", "--handover-fd", str(handover)]
        if table["node"].get("trace"):
            trace = os.open(table["node"]["trace"], os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            pass_fds.append(trace)
            arguments += ["--trace-fd", str(trace)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        sys.stderr.write(f"worker: {path}: {error!r}\n")
        return 1
    return spawner.run(settings, [sys.executable, "-m", "worker.agent_process", *arguments], pass_fds)


def prepare(text: str, table: dict[str, Any], path: Path) -> int:
    """Everything that the agent can't read for itself, in a file without a name; returns its descriptor."""
    tls = {name: Path(table["node"]["tls"][name]).read_text() for name in ("authority", "certificate", "key")}
    handover = os.memfd_create("handover", os.MFD_CLOEXEC)
    content = json.dumps({"path": str(path), "config": text, "tls": tls}).encode()
    with os.fdopen(os.dup(handover), "wb") as file:
        file.write(content)
    os.lseek(handover, 0, os.SEEK_SET)
    return handover


def spawner_config(table: dict[str, Any]) -> SpawnerConfig:
    """The spawner's part of a worker's file. Raises ValueError, KeyError, TypeError for an impossible one."""
    state = table["state_dir"]
    return SpawnerConfig(
        name=table.get("name") or table["node"]["node"], state_dir=f"{state}/sandboxes",
        runtimes_dir=table["runtimes_dir"], agent_owned=(f"{state}/agent",),
        **{"uid_base": 200_000} | {name: table[name] for name in _SHARED if name in table},
    )


if __name__ == "__main__":
    sys.exit(main())
