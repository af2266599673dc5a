"""What a frontend's edges count as they go: invokes by outcome, their durations, HTTP answers.

Owns plain integers and the words of their labels. Refuses to know how they are shown (``frontend.metrics``).
"""

from chassis.faults import Fault
from chassis.metrics import Counts, histograms
from frontend.api.body import Disconnected
from frontend.api.ports import Deleted, Throttled, Unavailable
from frontend.phases import Phases

COLD_PHASES = ("permit", "place", "code", "sandbox", "runtime", "init", "handler")
_DURATION_BOUNDS_S = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0,
)
_PHASE_BOUNDS_S = (0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

OK = "ok"
FUNCTION_ERROR = "function_error"
THROTTLED = "throttled"
REFUSED = "refused"
FAILED = "failed"
CANCELLED = "cancelled"
OUTCOMES = (OK, FUNCTION_ERROR, THROTTLED, REFUSED, FAILED, CANCELLED)


class InvokeCounts:
    """Synchronous invokes of one frontend. Each is counted once, when its request is answered or gone."""

    def __init__(self) -> None:
        self.outcomes = Counts([(OK, "")])
        self.seconds = histograms(_DURATION_BOUNDS_S, ("warm", "cold"))
        self.cold = histograms(_PHASE_BOUNDS_S, COLD_PHASES)
        self._warm_seconds, self._cold_seconds = self.seconds["warm",], self.seconds["cold",]

    def answered(self, status: str) -> None:
        """The function answered: ``status`` is the worker's (success, error, timeout, failure)."""
        if status in {"", "success"}:
            self.outcomes[OK, ""] += 1.0
        else:
            self.outcomes.add(FUNCTION_ERROR, status)

    def failed(self, error: BaseException) -> None:
        """The request got no answer of its function."""
        match error:
            case Throttled():
                self.outcomes.add(THROTTLED, error.reason)
            case Unavailable():
                self.outcomes.add(REFUSED, str((error.detail or {}).get("reason", "unavailable")).lower())
            case Deleted():
                self.outcomes.add(REFUSED, "deleted")
            case Disconnected():
                self.outcomes.add(CANCELLED, "")
            case Fault():
                self.outcomes.add(FAILED, error.code.name.lower())
            case Exception():
                self.outcomes.add(FAILED, "bug")
            case _:
                self.outcomes.add(CANCELLED, "")

    def took(self, phases: Phases) -> None:
        """Of an invoke that its function answered."""
        spent_s = phases.spent_s()
        if not phases.cold:
            self._warm_seconds.observe(spent_s)
            return
        self._cold_seconds.observe(spent_s)
        for phase, spent_ms in phases.shown().items():
            self.cold["handler" if phase == "run" else phase,].observe(spent_ms / 1000)


class HttpCounts:
    """Requests to the API of one frontend."""

    def __init__(self) -> None:
        self.answers = Counts()
        self.unproved = Counts()

    def answered(self, operation: str, status: int) -> None:
        self.answers.add(operation, str(status))

    def not_proved(self, code: str) -> None:
        """Who asked could not prove who he is."""
        self.unproved.add(code)
