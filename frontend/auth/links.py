"""Links to code that expire: what GetFunction gives as ``Code.Location``.

Owns the form of these links and their signature. Refuses to know blobs and HTTP.
"""

import hmac
from urllib.parse import parse_qs

PREFIX = "/labda/code/"
LIFETIME_S = 600


class CodeLinks:
    """Makes and checks links. All frontends of a region hold the same key, since any of them may serve the download."""

    def __init__(self, key: bytes) -> None:
        if len(key) < 32:
            raise ValueError(f"the key for code links has {len(key)} bytes, it needs at least 32")
        self._key = key

    def make(self, sha256: str, now: float) -> str:
        """Path and query of a link that works until 600 s from ``now`` (Unix seconds)."""
        expires = int(now) + LIFETIME_S
        return f"{PREFIX}{sha256}?expires={expires}&signature={self._sign(sha256, expires)}"

    def check(self, path: str, query: str, now: float) -> str | None:
        """The digest that the link names, or None when the link is forged or over."""
        sha256 = path.removeprefix(PREFIX)
        values = parse_qs(query)
        try:
            expires = int(values["expires"][0])
            signature = values["signature"][0]
        except (KeyError, ValueError):
            return None
        right = hmac.compare_digest(self._sign(sha256, expires).encode(), signature.encode())
        return sha256 if right and now <= expires else None

    def _sign(self, sha256: str, expires: int) -> str:
        return hmac.digest(self._key, f"code\n{sha256}\n{expires}".encode(), "sha256").hex()
