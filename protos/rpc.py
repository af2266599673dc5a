"""One RPC method as a typed value: its path, its shape and the messages on either side.

Owns nothing but the description. The generated ``*_rpc.py`` modules hold one ``Method`` per RPC of their .proto file;
``chassis.rpc`` calls and serves them over any transport.
"""

from dataclasses import dataclass
from typing import Generic, TypeVar

from google.protobuf.message import Message

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Method(Generic[Request, Response]):
    """``path`` is gRPC's own ("/package.Service/Name"); the flags say which side streams."""

    path: str
    request: type[Request]
    response: type[Response]
    client_streams: bool
    server_streams: bool

    @property
    def name(self) -> str:
        """``Service/Name``, for logs and errors."""
        service, name = self.path.rsplit("/", 1)
        return f"{service.rsplit('.', 1)[-1]}/{name}"
