"""The budget of retries: at most a tenth of the requests, so that trouble isn't made worse by trying again.

Owns the bucket. Refuses to know what is tried.
"""

RATIO = 0.1
BURST = 20.0


class RetryBudget:
    """A tenth of a retry is earned by each request; some are there from the start."""

    def __init__(self) -> None:
        self._tokens = BURST

    def earn(self) -> None:
        if self._tokens < BURST:
            self._tokens = min(BURST, self._tokens + RATIO)

    def take(self) -> bool:
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True
