"""Configuration of a frontend: frozen dataclasses, read once in ``__main__``."""

from dataclasses import dataclass, field

from chassis.certificates import TlsFiles
from chassis.config import NodeConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpLimits:
    """What a client may take of a frontend before it is known who it is: the section [http_limits]."""

    connections_max: int = 4096             # open connections of one frontend; an idle one gives way to a new one
    connections_per_client_max: int = 2048  # of one client address
    url_bytes_max: int = 16_384             # path and query of one request
    header_count_max: int = 128             # headers of one request
    header_bytes_max: int = 65_536          # names and values of one request's headers
    body_bytes_max: int = 134_217_728       # the most that is read of any body; operations have smaller limits
    bodies_bytes_max: int = 536_870_912     # of all bodies that are held at a time
    head_s: float = 20.0                    # a request's line and headers come whole within this, seconds
    body_s: float = 300.0                   # and its body within this
    handshake_s: float = 10.0               # where it is HTTPS, the handshake ends within this
    keep_alive_s: float = 75.0              # connections without a request are closed after this, seconds
    pace_s: float = 10.0                    # a client that sends or takes a body is judged after every so many seconds
    bytes_per_s_min: int = 8192             # by whether it sent or took so many bytes per second

    def __post_init__(self) -> None:
        for name in (
            "head_s", "body_s", "handshake_s", "keep_alive_s", "pace_s", "bytes_per_s_min", "header_count_max",
        ):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}, it has to be above 0")
        if not 0 < self.connections_per_client_max <= self.connections_max:
            raise ValueError(
                f"connections_per_client_max is {self.connections_per_client_max}, it has to be above 0 and at most "
                f"connections_max ({self.connections_max})"
            )
        if self.header_bytes_max < 8192 or self.url_bytes_max < 4096:
            raise ValueError("header_bytes_max has to be at least 8192 and url_bytes_max at least 4096")
        if self.bodies_bytes_max < self.body_bytes_max:
            raise ValueError(
                f"bodies_bytes_max is {self.bodies_bytes_max}, below body_bytes_max ({self.body_bytes_max}): a body "
                "that is allowed has to fit"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpTls:
    """PEM files of the published endpoint's certificate, which go on with whatever vouches for it, and of its key."""

    certificate: str
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontendConfig:
    """What a frontend is told."""

    node: NodeConfig
    counting: dict[str, str]             # seeds: gRPC addresses of the ledger's members, by node id
    store: str                           # metadata (and blobs), as storage.open understands it
    key_file: str                        # the region's data key: encryption at rest, code tickets, code links
    blobs: str = ""                      # blobs, where they are kept elsewhere: nats://host:4222,host:4222
    store_tls: TlsFiles | None = None    # certificate for the stores of a cluster: the section [store_tls]
    listen: str = ""                     # HTTP host:port that all frontends of the host share; empty: none
    http: str = "127.0.0.1:0"            # HTTP host:port of this frontend alone; port 0: any free one
    http_tls: HttpTls | None = None      # ``listen`` is HTTPS with it. Beyond loopback both are HTTPS without it too
    notice_s: float = 0.0                # a draining frontend says so at its health path before it stops listening
    permit_s: float = 30.0               # how long a request waits for a permit, seconds; its deadline comes first
    adrift_s: float = 10.0               # without a leader of the ledger for longer, none waits for one for long
    waiting_max: int = 2000              # requests that may wait for permits, in all
    waiting_per_account_max: int = 1000  # and of one account
    requests_max: int = 3000             # requests under way, in all
    lag_s: float = 0.15                  # the event loop may be late by this; past it fewer requests are let in
    session_s: float = 2.0               # how long the start waits for a session with the ledger, seconds
    keys_s: float = 900.0                # for how long known access keys are taken while the store is away, seconds
    http_limits: HttpLimits = field(default_factory=HttpLimits)
    code_grace_s: float = 3600.0         # code that no function has is removed after this, seconds

    def __post_init__(self) -> None:
        if not self.counting:
            raise ValueError("counting is empty: name at least one member of the ledger")
        if not 0 < self.waiting_per_account_max <= self.waiting_max:
            raise ValueError(
                f"waiting_per_account_max is {self.waiting_per_account_max}, it has to be above 0 and at most "
                f"waiting_max ({self.waiting_max})"
            )
        if self.requests_max < 1 or self.lag_s <= 0:
            raise ValueError("requests_max has to be at least 1 and lag_s above 0")
        if self.code_grace_s < 600:
            raise ValueError(
                f"code_grace_s is {self.code_grace_s}, it must be at least 600: code is stored before its function is"
            )
        if self.permit_s <= 0 or self.adrift_s <= 0:
            raise ValueError("permit_s and adrift_s have to be above 0")
        if self.http_tls is not None and not self.listen:
            raise ValueError("http_tls is the certificate of listen, which is empty: name an address or leave it out")
        if not 0 <= self.notice_s < self.node.drain_s:
            raise ValueError(f"notice_s is {self.notice_s}, it has to be below node.drain_s ({self.node.drain_s})")
