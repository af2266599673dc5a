"""What JetStream answers, as blobs understand it: acknowledgements, messages, refusals.

Owns its error codes and the form of a blob's head. Refuses to know who asked.
"""

import json
from dataclasses import dataclass
from typing import Any

from nats.aio.msg import Msg

from storage.faults import StorageFault, StoreFull
from storage.interfaces import Blob

WRONG_SEQUENCE = {10071, 10164}   # JetStream's codes for a compare-and-swap that said no
NOT_FOUND = 404


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """A blob's head with its own sequence number in the stream."""

    sha256: str
    size_bytes: int
    put_id: str
    chunks: tuple[int, ...]
    sequence: int = 0

    @property
    def blob(self) -> Blob:
        return Blob(sha256=self.sha256, size_bytes=self.size_bytes, put_id=self.put_id)


def acknowledged(message: Msg) -> int:
    """The sequence number under which a message was stored; 0: it was not, try again.

    A server that says 0 without an error has been seen to lose what it acknowledged. Raises StoreFull, StorageFault.
    """
    answer = json.loads(message.data)
    error = answer.get("error")
    if error is None:
        return int(answer.get("seq", 0))
    if error.get("err_code") in WRONG_SEQUENCE or error.get("code") == 503:
        return 0
    raise fault_of(error)


def refused(message: Msg) -> bool:
    """Whether a message that wasn't acknowledged certainly wasn't stored."""
    return "error" in json.loads(message.data)


def checked(answer: dict[str, Any], member: str, *, missing_ok: bool) -> Any:
    """A member of an answer of JetStream's API; None where what was asked for is not there."""
    error = answer.get("error")
    if error is None:
        return answer[member]
    if error.get("code") == NOT_FOUND and missing_ok and "stream" not in error.get("description", ""):
        return None
    raise fault_of(error)


def fault_of(error: dict[str, Any]) -> StorageFault:
    text = f"{error.get('description', error)} ({error.get('err_code', error.get('code'))})"
    if "resource" in text or "maximum" in text:
        return StoreFull("NATS", "a blob", f"raise its limits or free space there: {text}")
    return StorageFault(f"JetStream says {text}: was the cluster founded?", definite=True)


def decode(subject: str, content: bytes, sequence: int) -> Head:
    fields = json.loads(content)
    return Head(
        sha256=subject.rsplit(".", 1)[-1], size_bytes=fields["size_bytes"], put_id=fields["put_id"],
        chunks=tuple(fields["chunks"]), sequence=sequence,
    )
