"""The budget of retries: at most a tenth of the requests, so that trouble isn't made worse by trying again.

Owns the bucket, one per frontend. Refuses to know what is tried.
"""

from collections.abc import Mapping

RATIO = 0.1
BURST = 20.0


class RetryBudget:
    """A tenth of a retry is earned by each request; some are there from the start."""

    def __init__(self) -> None:
        self._tokens = BURST
        self.taken = 0
        self.denied = 0

    @property
    def tokens(self) -> float:
        return self._tokens

    def earn(self) -> None:
        if self._tokens < BURST:
            self._tokens = min(BURST, self._tokens + RATIO)

    def take(self) -> bool:
        if self._tokens < 1.0:
            self.denied += 1
            return False
        self._tokens -= 1.0
        self.taken += 1
        return True


def used_up() -> Mapping[str, object]:
    """What a refusal says that would have been tried again."""
    return {
        "limit": "retries of one frontend", "value": f"{RATIO:.0%} of its requests",
        "counter": "retries of this frontend", "remedy": "let callers back off; nothing was started",
    }
