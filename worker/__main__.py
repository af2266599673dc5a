"""``python -m worker --config FILE``: the worker of one host.

This process keeps the privileges: it becomes the spawner. The agent, which parses what tenants and peers send, is its
unprivileged child (``worker.agent_process``). Configuration, and either certificates or a token, are read here and
handed over in memory: none of these files needs to be readable for the agent's user. What a token buys, the agent keeps
in a directory of its own. Standard library only: every sandbox is forked from this process.
"""

import json
import os
import sys
import tomllib
from pathlib import Path
from typing import Any

from chassis.machine import open_trace_file
from worker.sandbox import spawner_process
from worker.sandbox.settings import SpawnerConfig

# What the spawner takes from the worker's file as it stands there; what is absent has the same default on both sides.
_SHARED = ("uid_base", "sandboxes_max", "agent_uid", "code_cache_bytes_max", "timeout_cap_s")


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
            trace = open_trace_file(table["node"]["trace"], table["node"]["node"])
            pass_fds.append(trace)
            arguments += ["--trace-fd", str(trace)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        sys.stderr.write(f"worker: {path}: {error!r}\n")
        return 1
    return spawner_process.run(settings, [sys.executable, "-m", "worker.agent_process", *arguments], pass_fds)


def prepare(text: str, table: dict[str, Any], path: Path) -> int:
    """Everything that the agent can't read for itself, in a file without a name; returns its descriptor."""
    content = json.dumps({"path": str(path), "config": text, **credentials(table["node"])}).encode()
    handover = os.memfd_create("handover", os.MFD_CLOEXEC)
    with os.fdopen(os.dup(handover), "wb") as file:
        file.write(content)
    os.lseek(handover, 0, os.SEEK_SET)
    return handover


def credentials(node: dict[str, Any]) -> dict[str, Any]:
    """The files by which the agent shows who it is, or gets what it shows."""
    enrolment = node.get("enrolment")
    if enrolment is None:
        names = ("authority", "certificate", "key")
        return {"tls": {name: Path(node["tls"][name]).read_text() for name in names}}
    token = Path(enrolment.get("token_file") or os.devnull)     # a worker that has its certificate needs none
    return {
        "authority": Path(enrolment["authority"]).read_text(), "token": token.read_text() if token.exists() else "",
    }


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
