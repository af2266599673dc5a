"""``ssl`` contexts of a process's credentials, for what isn't gRPC: frames, metrics, HTTP.

Owns protocol versions, that a listener shows the newest certificate at each handshake, and who showed one. Refuses to
know what is spoken over the connection.
"""

import asyncio
import os
import ssl

from chassis.certificates import Tls
from chassis.credentials import Credentials
from chassis.identity import caller_of
from chassis.rpc import Caller

# A peer that was closed but doesn't say goodbye is cut off after this.
SHUTDOWN_S = 2.0


def dialling(tls: Tls) -> ssl.SSLContext:
    """For connections to peers: shows the certificate, takes only what the authority issued. TLS 1.3."""
    return _context(tls, ssl.PROTOCOL_TLS_CLIENT)


def listening(credentials: Credentials) -> ssl.SSLContext:
    """For a listener for peers: who dials must show a certificate of the authority's. TLS 1.3."""
    return _following(credentials, asks=True)


def public(credentials: Credentials, *, speaks: str) -> ssl.SSLContext:
    """For a listener for everybody: clients are asked for no certificate, and may be older (TLS 1.2).

    ``speaks``: the one protocol behind it, by its ALPN name.
    """
    return _following(credentials, asks=False, speaks=speaks)


def peer(transport: asyncio.BaseTransport) -> tuple[Caller, str]:
    """Who showed a certificate at the other end, and the common name of its issuer. Raises Fault."""
    shown = transport.get_extra_info("peercert") or {}
    names = [value for kind, value in shown.get("subjectAltName", ()) if kind == "URI"]
    issuer = dict(pair for part in shown.get("issuer", ()) for pair in part)
    return caller_of(next((name for name in names if name.startswith("labda://")), "")), issuer.get("commonName", "")


def _following(credentials: Credentials, *, asks: bool, speaks: str = "") -> ssl.SSLContext:
    """A listener keeps the context that it was made with: each handshake is given the newest in its place.

    That one's certificate and authority are used then, whether the client names a server or not.
    """

    def made(tls: Tls) -> ssl.SSLContext:
        context = _context(tls, ssl.PROTOCOL_TLS_SERVER)
        if asks:
            context.num_tickets = 0     # who resumed a session would not have its certificate judged again
        else:
            context.verify_mode = ssl.CERT_NONE
            context.minimum_version = ssl.TLSVersion.TLSv1_2
        if speaks:
            context.set_alpn_protocols([speaks])
        return context

    outer = made(credentials.current)
    newest = outer

    def replace(tls: Tls) -> None:
        nonlocal newest
        newest = made(tls)

    def begin(handshake: ssl.SSLObject | ssl.SSLSocket, _name: str | None, _context: ssl.SSLContext) -> None:
        if handshake.context is not newest:
            handshake.context = newest

    outer.sni_callback = begin
    credentials.observe(replace)
    return outer


def _context(tls: Tls, protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    if tls.authority:   # none: a listener that asks nobody
        context.load_verify_locations(cadata=tls.authority.decode())
    # The library takes a certificate from a file only. This one has no name and goes with its descriptor.
    with os.fdopen(os.memfd_create("tls"), "wb") as file:
        file.write(tls.certificate + tls.key)
        file.flush()
        context.load_cert_chain(f"/proc/self/fd/{file.fileno()}")
    return context
