"""Init: the runtime process starts, loads the function and asks for its first event. Or it doesn't.

Owns the outcomes of that. Refuses to know whether it happens before an invocation or inside of one.
"""

import enum
from dataclasses import dataclass

from worker import failures
from worker.runtime_process import AskedNext, Doomed, Ended, Gone, InitFailed, RuntimeProcess, TimeUp
from worker.sandbox.driver import InvalidEntrypoint, ProcessExit, SandboxGone


class InitOutcome(enum.Enum):
    READY = "ready"
    ERROR = "error"                 # the runtime posted an init error
    EXITED = "exited"
    TIMEOUT = "timeout"
    NO_ENTRYPOINT = "no entrypoint"


@dataclass(frozen=True, slots=True, kw_only=True)
class Init:
    outcome: InitOutcome
    runtime_ms: float               # process start until the runtime is about to load the function, where it says so
    init_ms: float                  # the rest, until it asked for its first event
    error_type: str = ""
    failure_body: bytes | None = None   # what the runtime posted: the result of the invocation that caused this init
    ending: ProcessExit | None = None
    message: str = ""

    @property
    def duration_ms(self) -> float:
        return self.runtime_ms + self.init_ms

    @property
    def status(self) -> str:
        """As INIT_REPORT names it."""
        if self.outcome is InitOutcome.READY:
            return "success"
        return "timeout" if self.outcome is InitOutcome.TIMEOUT else "error"


async def initialise(process: RuntimeProcess, limit_s: float) -> Init | None:
    """Boosts the CPU, starts a process and waits for its first ``next``; what fails is killed.

    None: the sandbox is doomed and nobody cares any more. Raises SandboxFault when the driver fails.
    """
    await process.sandbox.limit_cpu(boosted=True)
    try:
        await process.start()
    except InvalidEntrypoint as fault:
        return _init(process, InitOutcome.NO_ENTRYPOINT, error_type="Runtime.InvalidEntrypoint", message=fault.message)
    match await process.hear(limit_s):
        case AskedNext():
            process.up = True
            return _init(process, InitOutcome.READY)
        case InitFailed(error_type=error_type, body=body):
            init = _init(process, InitOutcome.ERROR, error_type=error_type, body=body)
        case Ended(ending=ending):
            init = _init(process, InitOutcome.EXITED, error_type=failures.exit_type(ending), ending=ending)
        case TimeUp():
            init = _init(process, InitOutcome.TIMEOUT)
        case Gone(message=message):
            raise SandboxGone(message)
        case Doomed():
            return None
        case signal:
            raise AssertionError(f"{signal} during init: the Runtime API refuses that")
    await process.kill()
    return init


def _init(
    process: RuntimeProcess, outcome: InitOutcome, *, error_type: str = "", body: bytes | None = None,
    ending: ProcessExit | None = None, message: str = "",
) -> Init:
    now, loaded = process.now(), process.loaded_at
    started = process.started_at
    split = loaded if loaded is not None else started
    return Init(
        outcome=outcome, runtime_ms=(split - started) * 1000, init_ms=(now - split) * 1000, error_type=error_type,
        failure_body=body, ending=ending, message=message,
    )
