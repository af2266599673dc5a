"""Why a command ends without having done its work: one sentence that says what to do, and an exit status.

Owns the meaning of exit statuses. Scripts may rely on them.
"""

import enum


class Status(enum.IntEnum):
    """Exit statuses of the command ``labda``."""

    OK = 0
    FAILED = 1          # the work was tried and failed: a function error, a check that isn't met
    USAGE = 2           # the command line can't be right (argparse uses the same)
    NO_CLUSTER = 3      # no cluster runs on that state directory, or it can't be reached
    REFUSED = 4         # the cluster refused the request: unknown function, invalid value, throttled
    HOST = 5            # this host can't do it: `labda doctor` says what is missing
    INTERRUPTED = 130   # Ctrl-C before the work was done


class Refusal(Exception):
    """Raised anywhere below a command; ``labda.__main__`` prints the sentence and exits with the status."""

    def __init__(self, message: str, status: Status = Status.FAILED) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
