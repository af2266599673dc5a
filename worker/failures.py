"""What a client gets when a function fails in the platform's hands: payloads and error types, word for word.

Owns the texts (Lambda's own, as measured). Refuses to know how a failure was noticed.
"""

import json
from dataclasses import dataclass

from worker.sandbox.driver import ProcessExit

# How Go, in which Lambda's own runtime supervisor is written, names the signals that end a process.
_SIGNALS = {
    1: "hangup", 2: "interrupt", 3: "quit", 4: "illegal instruction", 5: "trace/breakpoint trap", 6: "aborted",
    7: "bus error", 8: "floating point exception", 9: "killed", 10: "user defined signal 1",
    11: "segmentation fault", 12: "user defined signal 2", 13: "broken pipe", 14: "alarm clock", 15: "terminated",
    31: "bad system call",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """``status``: error, timeout or failure (the platform's own)."""

    status: str
    error_type: str
    message: str

    def payload(self) -> bytes:
        return json.dumps(
            {"errorType": self.error_type, "errorMessage": self.message}, separators=(",", ":")
        ).encode()


def timed_out(request_id: str, timeout_s: float) -> Failure:
    return Failure(
        status="timeout", error_type="Sandbox.Timedout",
        message=f"RequestId: {request_id} Error: Task timed out after {timeout_s:.2f} seconds",
    )


def exited(request_id: str, ending: ProcessExit) -> Failure:
    return Failure(
        status="error", error_type=exit_type(ending), message=f"RequestId: {request_id} Error: {_ending(ending)}"
    )


def exit_type(ending: ProcessExit) -> str:
    """A kill by the kernel for want of memory has a type of its own."""
    return "Runtime.OutOfMemory" if ending.oom and ending.signal == 9 else "Runtime.ExitError"


def _ending(ending: ProcessExit) -> str:
    if ending.signal is not None:
        name = _SIGNALS.get(ending.signal, f"signal {ending.signal}")
        return f"Runtime exited with error: signal: {name}"
    if ending.code:
        return f"Runtime exited with error: exit status {ending.code}"
    return "Runtime exited without providing a reason"


def invalid_entrypoint(request_id: str, message: str) -> Failure:
    return Failure(
        status="error", error_type="Runtime.InvalidEntrypoint", message=f"RequestId: {request_id} Error: {message}"
    )


def platform(request_id: str, message: str) -> Failure:
    """Ours, not the function's: the sandbox itself failed."""
    return Failure(status="failure", error_type="Sandbox.Failure", message=f"RequestId: {request_id} Error: {message}")


def truncated(request_id: str) -> Failure:
    return Failure(
        status="error", error_type="Runtime.TruncatedResponse",
        message=f"RequestId: {request_id} Error: Runtime ended its streamed response before it was whole",
    )


# In the order of keys that AWS prints here.
TOO_LARGE_TYPE = "Function.ResponseSizeTooLarge"
TOO_LARGE = (
    b'{"errorMessage":"Response payload size exceeded maximum allowed payload size (6291556 bytes).",'
    b'"errorType":"Function.ResponseSizeTooLarge"}'
)
