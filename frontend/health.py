"""Whether a load balancer is to send requests here: one path, asked without a signature and several times a second.

Owns the path and its answer, which comes before the gate: nothing is read, counted or logged. Refuses to know what a
frontend needs to serve (``service.py`` says what is lacking).
"""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

PATH = b"/health"

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Health:
    """``lacking``: what is not there yet, in words; empty: nothing."""

    def __init__(self, lacking: Callable[[], str]) -> None:
        self._lacking = lacking
        self._leaving = False

    @property
    def leaving(self) -> bool:
        return self._leaving

    def leave(self) -> None:
        """This process ends soon: what comes is still served, but may others have it."""
        self._leaving = True

    async def answer(self, send: Send) -> None:
        """200, or 503 with the reason."""
        why_not = "it drains" if self._leaving else self._lacking()
        status, text = (503, f"not serving: {why_not}\n") if why_not else (200, "serving\n")
        body = text.encode()
        await send({"type": "http.response.start", "status": status, "headers": [
            (b"content-type", b"text/plain"), (b"content-length", str(len(body)).encode()),
            (b"cache-control", b"no-store"),
        ]})
        await send({"type": "http.response.body", "body": body})
