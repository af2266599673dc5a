"""The gate: which requests a frontend lets in, before it reads, proves or parses anything of them.

Owns the bound on requests under way, what is let in while the event loop lags, and each account's share of both. A
refusal here costs a fraction of an invoke, so that a frontend at many times its capacity still spends its time on those
that it let in. Refuses to know what is asked, and whether the key that a request names is its own: that is proved
behind the gate. Who names another's key spends that one's share of a crowded frontend, and who makes keys up shares
with everybody else who does.
"""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from chassis.clock import Clock
from frontend.api.errors import ApiError, unavailable

WINDOW_S = 0.05
CROWDED = 0.75          # of ``requests_max``: from here on an account keeps to its share
KEY_BYTES_MAX = 128

_CREDENTIAL = b"Credential="
_IN_QUERY = b"X-Amz-Credential="


@dataclass(frozen=True, slots=True, kw_only=True)
class GateBounds:
    """``lag_s``: seconds that the event loop may be late. ``window_min``: let in per window however late it is."""

    requests_max: int = 3000
    lag_s: float = 0.15
    window_min: int = 8


class Gate:
    """One per frontend. Every ``enter`` that let a request in is followed by one ``leave`` with the same account.

    Lag is seen by a timer: while it is overdue by more than ``lag_s`` the loop has more to do than it can, and nothing
    more of the accounts that already have their share of this window is let in. ``account_of`` says whose key it is,
    by what this process knows; the empty string is everybody else.
    """

    def __init__(self, bounds: GateBounds, clock: Clock, account_of: Callable[[str], str]) -> None:
        self.running = 0
        self.shed = {"crowded": 0, "lag": 0}
        self.lag_s = 0.0                            # of the last window: how late the event loop was
        self._bounds = bounds
        self._clock = clock
        self._account_of = account_of
        self._running_of: dict[str, int] = {}
        self._let_in = 0                            # in this window
        self._let_in_of: dict[str, int] = {}
        self._accounts_before = 1                   # that came in the window before
        self._timer: asyncio.TimerHandle | None = None
        self._due = float("inf")

    def claimed(self, headers: Iterable[tuple[bytes, bytes]], query: bytes) -> str:
        """The account that a request names by its key, unproved."""
        return self._account_of(_key(headers, query).decode("latin-1"))

    def enter(self, account: str) -> ApiError | None:
        """Lets a request in, or says why not."""
        own = self._running_of.get(account, 0)
        running, most = self.running, self._bounds.requests_max
        if running >= most * CROWDED and (running >= most or own * len(self._running_of) >= most):
            self.shed["crowded"] += 1
            return self._crowded(own)
        lately = self._let_in_of.get(account, 0)
        if self._let_in >= self._bounds.window_min:
            late_s = self._clock.monotonic() - self._due
            if late_s > self._bounds.lag_s and self._had_its_share(account, lately):
                self.shed["lag"] += 1
                return self._lags(late_s)
        self._let_in += 1
        self._let_in_of[account] = lately + 1
        self.running = running + 1
        self._running_of[account] = own + 1
        if self._timer is None:
            self._arm()
        return None

    def leave(self, account: str) -> None:
        self.running -= 1
        left = self._running_of[account] - 1
        if left:
            self._running_of[account] = left
        else:
            del self._running_of[account]

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _had_its_share(self, account: str, lately: int) -> bool:
        self._let_in_of.setdefault(account, 0)
        return lately * max(len(self._let_in_of), self._accounts_before) >= self._let_in

    def _arm(self) -> None:
        """Only while requests come: a frontend at rest sleeps."""
        self._due = self._clock.monotonic() + WINDOW_S
        self._timer = asyncio.get_running_loop().call_later(WINDOW_S, self._window_over)

    def _window_over(self) -> None:
        self._timer = None
        self.lag_s = max(0.0, self._clock.monotonic() - self._due)
        self._accounts_before = max(1, len(self._let_in_of))
        came, self._let_in, self._let_in_of = self._let_in, 0, {}
        if came:
            self._arm()

    # ------------------------------------------------------------ refusals

    def _crowded(self, own: int) -> ApiError:
        return unavailable("Too many requests are under way at this frontend.", detail={
            "limit": "requests under way at one frontend", "value": self._bounds.requests_max,
            "counter": "requests of this frontend", "in_use": self.running, "in_use_of_this_account": own,
            "remedy": "Let callers back off, or start more frontends: nothing was started.",
        })

    def _lags(self, late_s: float) -> ApiError:
        return unavailable("This frontend is overloaded.", detail={
            "limit": "lag of a frontend's event loop", "value": f"{self._bounds.lag_s * 1000:.0f} ms",
            "counter": "lag of this frontend's event loop", "lag_ms": round(late_s * 1000),
            "remedy": "Let callers back off, or start more frontends: nothing was started.",
        })


def _key(headers: Iterable[tuple[bytes, bytes]], query: bytes) -> bytes:
    """The access key that a request names; empty where it names none."""
    for name, value in headers:
        if name == b"authorization":
            begin = value.find(_CREDENTIAL) + len(_CREDENTIAL)
            return value[begin:value.find(b"/", begin)][:KEY_BYTES_MAX]
    begin = query.find(_IN_QUERY) + len(_IN_QUERY)
    return b"" if begin < len(_IN_QUERY) else query[begin:begin + KEY_BYTES_MAX].partition(b"%2F")[0]
