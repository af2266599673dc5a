"""The seccomp profile of a worker's container, in the format that container engines read.

Owns putting the two reviewed lists together: what sandboxes may call (seccomp.toml) and what the spawner and the agent
need beyond that (seccomp-spawner.toml). The reasons go along as comments. Refuses to know which engine reads it.
"""

import json
import os
import tomllib
from typing import Any

from worker.sandbox import seccomp

_HERE = os.path.dirname(__file__)
_ARCHITECTURES = ("SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64")
_EPERM = 1


def render() -> str:
    """As JSON text. Raises BadProfile if a group has no reason."""
    inside = seccomp.load()
    with open(f"{_HERE}/seccomp-spawner.toml", "rb") as file:
        outside = tomllib.load(file)
    seccomp.check_reasons({"check": [], "absent": inside["absent"], **outside})
    unchecked = {name for group in outside["allow"] for name in group["calls"]}
    rules = [_allow(group) for group in [*outside["allow"], *inside["allow"]]]
    for check in inside["check"]:
        if check["call"] not in unchecked:
            rules += [_checked(check, value) for value in check["values"]]
    profile = {
        "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": _EPERM,
        # No further architectures on either: 32-bit and x32 calls end the process.
        "archMap": [{"architecture": name, "subArchitectures": []} for name in _ARCHITECTURES],
        "syscalls": rules,
    }
    return json.dumps(profile, indent=2) + "\n"


def _allow(group: dict[str, Any]) -> dict[str, Any]:
    return {"comment": group["reason"], "names": sorted(group["calls"]), "action": "SCMP_ACT_ALLOW"}


def _checked(check: dict[str, Any], value: int) -> dict[str, Any]:
    if check["test"] != "one of":
        raise seccomp.BadProfile(f"group {check['name']!r}: only the test 'one of' can be rendered for a container")
    argument = {"index": check["argument"], "value": value, "op": "SCMP_CMP_EQ"}
    return {"comment": check["reason"], "names": [check["call"]], "action": "SCMP_ACT_ALLOW", "args": [argument]}
