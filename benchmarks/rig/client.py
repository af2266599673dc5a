"""The public API for the benchmarks: the command's client, and the operations that a load needs beyond it."""

import base64
from typing import Any
from urllib.parse import quote

from labda.api import FUNCTIONS, Answer, Api
from labda.refusal import Refusal


class Client(Api):
    """One connection, one call at a time: as many clients as calls at once. Raises Refusal, as ``Api`` does."""

    def create(
        self, name: str, *, runtime: str, archive: bytes, memory_mb: int = 128, timeout_s: int = 10
    ) -> dict[str, Any]:
        """Returns once it serves. ``Api.deploy`` asks first whether the function is there."""
        self._checked(self._send("POST", FUNCTIONS, body={
            "FunctionName": name, "Runtime": runtime, "Handler": "app.handler", "MemorySize": memory_mb,
            "Timeout": timeout_s, "Role": "arn:aws:iam::000000000000:role/any",
            "Code": {"ZipFile": base64.b64encode(archive).decode()},
        }))
        return self._settled(name)

    def update(self, name: str, archive: bytes) -> dict[str, Any]:
        """New code. Returns once no request meets the old one."""
        body = {"ZipFile": base64.b64encode(archive).decode()}
        self._checked(self._send("PUT", f"{_place(name)}/code", body=body))
        return self._settled(name)

    def tried(self, name: str, payload: bytes) -> Answer | Refusal:
        """An invoke for load whose refusals are expected."""
        try:
            return self.invoke(name, payload)
        except Refusal as refusal:
            return refusal


def _place(name: str) -> str:
    return f"{FUNCTIONS}/{quote(name, safe='')}"
