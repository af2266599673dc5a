"""Asks gRPC health (grpc.health.v1) over a Unix socket: exit status 0 for serving.

    python -I -S chassis/health_probe.py SOCKET

Owns one question in HTTP/2, written by hand: a container's health is asked many times an hour in every container, and
importing gRPC for it would be most of what a region costs at rest. Standard library only, and little of that.
"""

import socket
import sys

TIMEOUT_S = 4.0
_DATA, _HEADERS, _SETTINGS = 0, 1, 4
_END_STREAM, _END_HEADERS = 1, 4
_SERVING = b"\x08\x01"      # HealthCheckResponse(status=SERVING)


def main(arguments: list[str]) -> int:
    if len(arguments) != 2:
        sys.stderr.write("usage: health_probe.py SOCKET\n")
        return 2
    try:
        answer = ask(arguments[1])
    except OSError as error:
        sys.stdout.write(f"{arguments[1]}: {error}\n")
        return 1
    sys.stdout.write("serving\n" if answer == _SERVING else "not serving\n")
    return 0 if answer == _SERVING else 1


def ask(path: str) -> bytes:
    """The answer's message, empty when the call was refused. Raises OSError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(TIMEOUT_S)
        connection.connect(path)
        connection.sendall(
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(_SETTINGS, 0, 0, b"")
            + _frame(_HEADERS, _END_HEADERS, 1, _request()) + _frame(_DATA, _END_STREAM, 1, bytes(5))
        )
        with connection.makefile("rb") as incoming:
            while head := incoming.read(9):
                kind, flags = head[3], head[4]
                stream, body = int.from_bytes(head[5:9], "big"), incoming.read(int.from_bytes(head[:3], "big"))
                if kind == _DATA and stream == 1:
                    return body[5:]     # after gRPC's own prefix
                if kind == _HEADERS and flags & _END_STREAM:
                    return b""
    return b""


def _frame(kind: int, flags: int, stream: int, body: bytes) -> bytes:
    return len(body).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + body


def _request() -> bytes:
    """Headers by HPACK's static table (RFC 7541, appendix A): POST, http, and literals with names from it."""
    literals = (
        (b"\x04", b"/grpc.health.v1.Health/Check"), (b"\x01", b"localhost"), (b"\x0f\x10", b"application/grpc"),
        (b"\x00\x02te", b"trailers"),
    )
    return b"\x83\x86" + b"".join(name + bytes((len(value),)) + value for name, value in literals)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
