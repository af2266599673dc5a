"""The agent's requests to the spawner, validated field by field: the agent is not trusted.

Owns patterns and bounds. What passes here is a Request whose strings are harmless in paths and whose numbers are sane.
"""

import re
from dataclasses import dataclass, field
from typing import Any

from worker.sandbox.codecache import SHA256
from worker.sandbox.settings import NAME

_RUNTIME = re.compile(r"[a-z0-9][a-z0-9.]{0,39}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,255}")
MEMORY_MB, TMP_MB = (32, 65_536), (1, 65_536)       # the public API's bounds are inside these
MS = (0, 1 << 53)           # on the boot-time clock; how much is believed is watchdog.py's
SIZE_BYTES, ENTRIES = (1, 1 << 34), (1, 1_000_000)
HANDLER_BYTES_MAX, ENVIRONMENT_BYTES_MAX, VARIABLES_MAX = 4096, 64 * 1024, 1000


class RequestRefused(Exception):
    """The request can't be served; `fault` says to the driver which fault to raise."""

    def __init__(self, fault: str, message: str) -> None:
        super().__init__(message)
        self.fault = fault


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request; only the fields of its op are filled."""

    id: int
    op: str
    sandbox: str = ""
    sha256: str = ""
    runtime: str = ""
    handler: str = ""
    memory_mb: int = 0
    tmp_mb: int = 0
    size_bytes_max: int = 0
    entries_max: int = 0
    until_ms: int = 0
    grace_ms: int = 0
    boosted: bool = False
    environment: dict[str, str] = field(default_factory=dict)


# Fields of each op, and how many descriptors come with it.
_OPS: dict[str, tuple[tuple[str, ...], int]] = {
    "authority": (("until_ms", "grace_ms"), 0),
    "runtimes": ((), 0),
    "has_code": (("sha256",), 0),
    "unpack": (("sha256", "size_bytes_max", "entries_max"), 1),
    "create": (("sandbox", "sha256", "runtime", "memory_mb", "tmp_mb"), 0),
    "start": (("sandbox", "handler", "environment"), 0),
    "limit_cpu": (("sandbox", "boosted"), 0),
    "kill": (("sandbox",), 0),
    "destroy": (("sandbox",), 0),
    "close": ((), 0),
}
_PATTERNS = {"sandbox": NAME, "sha256": SHA256, "runtime": _RUNTIME}
_BOUNDS = {"memory_mb": MEMORY_MB, "tmp_mb": TMP_MB, "size_bytes_max": SIZE_BYTES, "entries_max": ENTRIES,
           "until_ms": MS, "grace_ms": MS}


def parse(message: dict[str, Any], descriptors: int) -> Request:
    """Raises RequestRefused for anything that isn't exactly a known request."""
    op = message.get("op")
    if not isinstance(op, str) or op not in _OPS:
        raise RequestRefused("request", f"unknown op {op!r:.40}")
    names, wanted_descriptors = _OPS[op]
    if descriptors != wanted_descriptors:
        raise RequestRefused("request", f"{op} comes with {wanted_descriptors} descriptors, not {descriptors}")
    if set(message) != {"id", "op", *names}:
        raise RequestRefused("request", f"{op} has the fields {', '.join(names) or 'none'}")
    values = {name: _checked(name, message[name]) for name in names}
    return Request(id=message["id"], op=op, **values)


def _checked(name: str, value: Any) -> Any:
    if name in _PATTERNS:
        if not isinstance(value, str) or not _PATTERNS[name].fullmatch(value):
            raise RequestRefused("request", f"{name} {value!r:.60} does not match {_PATTERNS[name].pattern}")
        return value
    if name in _BOUNDS:
        low, high = _BOUNDS[name]
        if type(value) is not int or not low <= value <= high:
            raise RequestRefused("request", f"{name} {value!r:.40} is not between {low} and {high}")
        return value
    if name == "boosted":
        if type(value) is not bool:
            raise RequestRefused("request", "boosted is true or false")
        return value
    if name == "handler":
        return _checked_text(name, value, HANDLER_BYTES_MAX)
    return _checked_environment(value)


def _checked_text(name: str, value: Any, bytes_max: int) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise RequestRefused("request", f"{name} is no text without NUL")
    if len(value.encode("utf-8", "surrogateescape")) > bytes_max:
        raise RequestRefused("request", f"{name} is longer than {bytes_max} bytes")
    return value


def _checked_environment(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or len(value) > VARIABLES_MAX:
        raise RequestRefused("request", f"environment is an object of at most {VARIABLES_MAX} variables")
    total = 0
    for name, text in value.items():
        if not _VARIABLE.fullmatch(name):
            raise RequestRefused("request", f"environment variable {name!r:.60} has an impossible name")
        total += len(name) + len(_checked_text(f"variable {name}", text, ENVIRONMENT_BYTES_MAX))
    if total > ENVIRONMENT_BYTES_MAX:
        raise RequestRefused("request", f"environment is larger than {ENVIRONMENT_BYTES_MAX} bytes")
    return value
