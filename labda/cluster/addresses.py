"""Where this host reaches containers: registered addresses are names that only the cluster's own networks know.

Owns the asking, which never makes its caller wait: an address is what the engine said at most a moment before, and a
thread asks again meanwhile. A container that was started again may have another address.
"""

import threading
import time
from pathlib import Path

from labda.cluster import engine
from labda.refusal import Refusal

FRESH_S = 1.0


class Addresses:
    """From ``NODE:PORT`` to an address of this host's; what isn't a node's is left as it is."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._asking = threading.Lock()
        self._where: dict[str, str] = {}
        self._asked_at = 0.0
        self._ask()

    def __call__(self, address: str) -> str:
        if time.monotonic() - self._asked_at > FRESH_S and self._asking.acquire(blocking=False):
            threading.Thread(target=self._ask_again, name="addresses", daemon=True).start()
        node, _, port = address.rpartition(":")
        where = self._where.get(node, "")
        return f"{where}:{port}" if where else address

    def _ask_again(self) -> None:
        try:
            self._ask()
        except Refusal:
            self._asked_at = time.monotonic()   # the engine doesn't answer: what it said before is the best there is
        finally:
            self._asking.release()

    def _ask(self) -> None:
        self._where = {one.node: one.address for one in engine.of(self._root).containers()}
        self._asked_at = time.monotonic()
