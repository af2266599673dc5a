"""Load by wrk, a compiled generator, replaying one signed request: what the measuring itself costs stays small.

Owns the call of wrk and the reading of what it says. A signature lasts five minutes, so that one request can be sent
again and again; the server verifies it each time.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

# wrk runs `done` once, after all threads: latencies in microseconds, the duration too.
_SCRIPT = """
local request = {request}
wrk.method = request.method
wrk.body = request.body
for name, value in pairs(request.headers) do wrk.headers[name] = value end
done = function(summary, latency, requests)
  io.write(string.format(
    '{{"requests": %d, "duration_us": %d, "p50_us": %d, "p99_us": %d, "errors": %d, "refused": %d}}\\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout,
    summary.errors.status))
end
"""


class NoLoad(Exception):
    """wrk is not here, or the requests failed; the text says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    url: str
    headers: Mapping[str, str]
    body: bytes = b"{}"
    method: str = "POST"

    def raw(self) -> bytes:
        """As ``OpenLoop`` sends it."""
        head = "".join(f"{name}: {value}\r\n" for name, value in self.headers.items())
        head += f"content-length: {len(self.body)}\r\n"
        return f"{self.method} {urlsplit(self.url).path} HTTP/1.1\r\n{head}\r\n".encode() + self.body


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """``rate`` in requests per second; latencies in milliseconds. ``refused``: answers of 400 and above."""

    requests: int
    rate: float
    p50_ms: float
    p99_ms: float
    refused: int


def wrk(request: Request, *, clients: int, seconds: float) -> Measured:
    """A closed loop: each client sends its next request when it has the answer to the one before. Raises NoLoad."""
    program = generator()
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(_SCRIPT.format(request=_lua(request)))
        script.flush()
        found = subprocess.run(
            [program, "--threads", "1", "--connections", str(clients), "--duration", f"{max(1, round(seconds))}s",
             "--timeout", "10s", "--script", script.name, request.url],
            capture_output=True, text=True, check=False, timeout=seconds + 30,
        )
    if found.returncode != 0 or not found.stdout.strip():
        raise NoLoad(f"wrk failed with status {found.returncode}: {found.stderr.strip() or found.stdout.strip()}")
    said = json.loads(found.stdout.strip().splitlines()[-1])
    if said["errors"] or not said["requests"]:
        raise NoLoad(f"{said['errors']} connections failed, {said['requests']} requests were answered")
    return Measured(
        requests=said["requests"], rate=said["requests"] / said["duration_us"] * 1e6, p50_ms=said["p50_us"] / 1e3,
        p99_ms=said["p99_us"] / 1e3, refused=said["refused"],
    )


def generator() -> str:
    """Path of wrk. Raises NoLoad."""
    program = shutil.which("wrk")
    if program is None:
        raise NoLoad("wrk is not installed: deploy/debian-packages.sh --bench --install gets it")
    return program


def _lua(request: Request) -> str:
    headers = ", ".join(f"[{_quoted(name)}] = {_quoted(value)}" for name, value in request.headers.items())
    return f"{{method = {_quoted(request.method)}, body = {_quoted(request.body.decode())}, headers = {{{headers}}}}}"


def _quoted(text: str) -> str:
    """JSON's escapes are Lua's for what a signed request consists of."""
    return json.dumps(text)


if __name__ == "__main__":      # whether load can be made here, before benchmarks are run that take minutes
    try:
        generator()
    except NoLoad as missing:
        sys.exit(str(missing))
