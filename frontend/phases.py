"""Where the time of one invocation went, in milliseconds, by phase.

Owns the stopwatch of one request. The worker and the manager measure their own phases (worker.proto, ColdPhases).
"""

from chassis.clock import Clock
from protos import common_pb2, worker_pb2

_COLD = ("place", "code", "sandbox", "runtime", "init")


class Phases:
    """Marks are set as the request goes on; reading is for the log line and for a caller that asked."""

    __slots__ = ("_begun", "_clock", "_permitted", "_reserved", "cold", "parts", "ran_ms", "sandbox", "worker")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._begun = clock.monotonic()
        self._permitted = self._reserved = 0.0
        self.cold = False
        self.ran_ms = 0.0
        self.worker = self.sandbox = ""     # where it was started last
        self.parts: worker_pb2.ColdPhases | None = None

    def permit(self) -> None:
        self._permitted = self._clock.monotonic()

    def reserved(self, reservation: common_pb2.Reservation) -> None:
        self._reserved = self._clock.monotonic()
        self.worker, self.sandbox = reservation.worker, reservation.sandbox

    def made(self, parts: worker_pb2.ColdPhases) -> None:
        """A sandbox was made for this request."""
        self.cold, self.parts = True, parts

    def answered(self, result: worker_pb2.InvokeFrame.Result) -> None:
        self.ran_ms = result.duration_ms
        self.cold = self.cold or result.cold

    def spent_s(self) -> float:
        """Since the request was authenticated."""
        return self._clock.monotonic() - self._begun

    def queued_ms(self) -> float:
        """Until the start was sent: permit and reservation."""
        until = self._reserved or self._permitted or self._clock.monotonic()
        return round((until - self._begun) * 1000, 3)

    def shown(self) -> dict[str, float]:
        """Phase to milliseconds; the phases of a cold start only where there was one."""
        shown = {"permit": round((self._permitted - self._begun) * 1000, 3) if self._permitted else 0.0}
        if self.cold and self.parts is not None:
            shown.update({name: round(getattr(self.parts, f"{name}_ms"), 3) for name in _COLD})
        elif self._reserved:
            shown["place"] = round((self._reserved - self._permitted) * 1000, 3)
        shown["run"] = round(self.ran_ms, 3)
        return shown
