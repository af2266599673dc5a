"""The public address: parsed, checked, and kept for this cluster while it runs.

Owns the sentence that says who has a port. All frontends listen on one address (SO_REUSEPORT); this process keeps a
socket bound to it that never listens, so that nobody else gets the port while a frontend is away. Beyond loopback the
endpoint is HTTPS.
"""

import contextlib
import errno
import fcntl
import ipaddress
import os
import shlex
import socket
import struct
from pathlib import Path

from chassis.addresses import is_loopback
from labda.refusal import Refusal, Status

_SIOCGIFADDR = 0x8915       # an interface's IPv4 address
_IFREQ = struct.Struct("16s4x4s8x")


def parse(text: str) -> tuple[str, int]:
    """``host:port``, ``[v6]:port``. Raises Refusal."""
    host, separator, port = text.rpartition(":")
    host = host.strip("[]")
    if not separator or not host or not port.isdigit() or int(port) > 65535:
        raise Refusal(f"--listen is {text!r}, HOST:PORT is needed, such as 127.0.0.1:9000", Status.USAGE)
    return host, int(port)


def render(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def reserve(text: str) -> socket.socket:
    """A bound socket; port 0 picks a free one. Raises Refusal when somebody listens there already."""
    host, port = parse(text)
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise Refusal(f"--listen names {host}, which can't be found ({why}): name an address of this host",
                      Status.USAGE) from error
    with socket.socket(family, kind) as probe:  # without SO_REUSEPORT: an endpoint is not shared by accident
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _bind(probe, address, text)
    held = socket.socket(family, kind)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    _bind(held, address, text)
    return held


def url(listen: str) -> str:
    """Where clients on this host reach it: a wildcard address is reached by loopback."""
    host, port = parse(listen)
    if _is_wildcard(host):
        host = "::1" if ":" in host else "127.0.0.1"
    return f"{'http' if is_loopback(listen) else 'https'}://{render(host, port)}"


def hosts(listen: str) -> list[str]:
    """Names and addresses by which clients may call it: those are what its certificate is for."""
    host, _ = parse(listen)
    if not _is_wildcard(host):
        return [host]
    return ["localhost", socket.gethostname(), "127.0.0.1", "::1", *_addresses()]


def _is_wildcard(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def _addresses() -> list[str]:
    """IPv4 addresses of this host's interfaces, but loopback's."""
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):      # an interface without an address
                answer = fcntl.ioctl(any_socket, _SIOCGIFADDR, _IFREQ.pack(name.encode(), b""))
                found.append(socket.inet_ntoa(_IFREQ.unpack(answer)[1]))
    return [address for address in found if not ipaddress.ip_address(address).is_loopback]


def _bind(holder: socket.socket, address: object, text: str) -> None:
    try:
        holder.bind(address)  # type: ignore[arg-type]  # getaddrinfo's address fits its family
    except PermissionError as error:
        raise Refusal(f"{text} needs root ({error.strerror}): run as root, or choose a port above 1023",
                      Status.HOST) from error
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL:
            host = parse(text)[0]
            raise Refusal(
                f"--listen names {host}, which is no address of this host: name one that `ip address` shows, or "
                "0.0.0.0 for all of them", Status.USAGE,
            ) from error
        user, remedy = user_of(parse(text)[1])
        raise Refusal(
            f"can't listen on {text} ({error.strerror.lower() if error.strerror else error}"
            f"{', by ' + user if user else ''}): {remedy}, or choose another address with --listen"
        ) from error


def user_of(port: int) -> tuple[str, str]:
    """Who listens on a TCP port, as ``name (pid N)``, and what ends it; an empty name where it can't be known."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if int(fields[1].rsplit(":", 1)[1], 16) == port and fields[3] == "0A":  # 0A: listens
                    inodes.add(f"socket:[{fields[9]}]")
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                for descriptor in (entry / "fd").iterdir():
                    with contextlib.suppress(OSError):
                        if os.readlink(descriptor) in inodes:  # noqa: PTH115 - a descriptor's name is no path
                            return _named(entry)
    return "", "end who has it"


def _named(process: Path) -> tuple[str, str]:
    """A frontend of an embedded cluster was told its config's place, which is in the state directory."""
    words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
    config = Path(words[words.index("--config") + 1]) if "--config" in words[:-1] else Path()
    root = config.parent.parent
    if config.parent.name == "config" and (root / "processes.json").exists():
        return f"the cluster in {root}", f"end it with `labda down --state {shlex.quote(str(root))}`"
    return f"{(process / 'comm').read_text().strip()} (pid {process.name})", "end it"
