"""The platform's own lines in a function's log: INIT_START, START, END, REPORT, INIT_REPORT; text or JSON.

Owns their exact shape. Refuses to know where they go and how the figures were measured.
"""

import hashlib
import json
import math
from dataclasses import dataclass
from datetime import UTC, datetime

from worker.messages import FunctionId, FunctionSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One invocation's bill. ``init_ms``: of a cold start whose init succeeded before the invocation, else None."""

    request_id: str
    duration_ms: float
    memory_peak_mb: int
    init_ms: float | None = None
    status: str = "success"         # success, error, timeout, failure
    error_type: str = ""

    @property
    def billed_ms(self) -> int:
        """Init is billed: the sum is rounded up, not the parts."""
        return math.ceil(self.duration_ms + (self.init_ms or 0.0))


class Lines:
    """Renders for one sandbox."""

    def __init__(self, function: FunctionId, settings: FunctionSettings, *, init_type: str) -> None:
        self._function = function
        self._settings = settings
        self._init_type = init_type
        self._json = settings.log_format == "JSON"

    def init_start(self, wall: float) -> str:
        name, version = _runtime_version(self._settings.runtime)
        arn = f"arn:aws:lambda:{self._settings.region}::runtime:{hashlib.sha256(name.encode()).hexdigest()}"
        if self._json:
            return self._record(wall, "platform.initStart", {
                "initializationType": self._init_type, "phase": "init", "runtimeVersion": version,
                "runtimeVersionArn": arn, "functionName": self._function.function,
                "functionVersion": self._function.version,
            })
        return f"INIT_START Runtime Version: {version}\tRuntime Version ARN: {arn}\n"

    def init_report(
        self, wall: float, *, duration_ms: float, phase: str, status: str = "success", error_type: str = ""
    ) -> str:
        """Only for inits that failed, or that ran inside an invocation (``phase`` invoke)."""
        if self._json:
            record = {"initializationType": self._init_type, "phase": phase, "status": status}
            if error_type:
                record["errorType"] = error_type
            return self._record(
                wall, "platform.initReport", record | {"metrics": {"durationMs": round(duration_ms, 3)}}
            )
        line = f"INIT_REPORT Init Duration: {duration_ms:.2f} ms\tPhase: {phase}\tStatus: {status}"
        return line + (f"\tError Type: {error_type}\n" if error_type else "\n")

    def start(self, wall: float, request_id: str) -> str:
        if self._json:
            return self._record(wall, "platform.start", {
                "requestId": request_id, "functionArn": self._settings.arn, "version": self._function.version,
            })
        return f"START RequestId: {request_id} Version: {self._function.version}\n"

    def end(self, request_id: str) -> str:
        """JSON has no such record."""
        return "" if self._json else f"END RequestId: {request_id}\n"

    def report(self, wall: float, report: Report) -> str:
        failed = report.status != "success"
        if self._json:
            return self._report_record(wall, report)
        parts = [
            f"REPORT RequestId: {report.request_id}",
            f"Duration: {report.duration_ms:.2f} ms",
            f"Billed Duration: {report.billed_ms} ms",
            f"Memory Size: {self._settings.memory_mb} MB",
            f"Max Memory Used: {report.memory_peak_mb} MB",
        ]
        if report.init_ms is not None:
            parts.append(f"Init Duration: {report.init_ms:.2f} ms")
        # The line ends with a tab when no status follows.
        parts.append(f"Status: {report.status}" if failed else "")
        if failed and report.error_type and report.status == "error":
            parts.append(f"Error Type: {report.error_type}")
        return "\t".join(parts) + "\n"

    def _report_record(self, wall: float, report: Report) -> str:
        metrics: dict[str, float] = {
            "durationMs": round(report.duration_ms, 3), "billedDurationMs": report.billed_ms,
            "memorySizeMB": self._settings.memory_mb, "maxMemoryUsedMB": report.memory_peak_mb,
        }
        if report.init_ms is not None:
            metrics["initDurationMs"] = round(report.init_ms, 3)
        record: dict[str, object] = {"requestId": report.request_id, "metrics": metrics, "status": report.status}
        if report.error_type:
            record["errorType"] = report.error_type
        return self._record(wall, "platform.report", record)

    def _record(self, wall: float, kind: str, record: dict[str, object]) -> str:
        at = datetime.fromtimestamp(wall, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
        return json.dumps({"time": at, "type": kind, "record": record}, separators=(",", ":")) + "\n"


def _runtime_version(runtime: str) -> tuple[str, str]:
    """Name for the ARN's digest, and the version as it is printed: "python:3.11.v1"."""
    if runtime.startswith("python"):
        return runtime, f"python:{runtime.removeprefix('python')}.v1"
    return runtime, runtime.replace(".", ":", 1) + ".v1"
