"""Configuration of a frontend: one frozen dataclass, read once in ``__main__``."""

from dataclasses import dataclass

from chassis.config import NodeConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontendConfig:
    """What a frontend is told."""

    node: NodeConfig
    counting: tuple[str, ...]            # seeds: gRPC addresses of the ledger's members
    store: str                           # metadata and blobs, as storage.open understands it
    key_file: str                        # the region's data key: encryption at rest, code tickets, code links
    listen: str = ""                     # HTTP host:port that all frontends of the host share; empty: none
    http: str = "127.0.0.1:0"            # HTTP host:port of this frontend alone; port 0: any free one
    permit_s: float = 3.0                # how long a request waits for a permit, seconds
    waiting_max: int = 2000              # requests that may wait for permits, in all
    waiting_per_account_max: int = 1000  # and of one account
    session_s: float = 2.0               # how long the start waits for a session with the ledger, seconds
    keep_alive_s: int = 75               # HTTP connections without a request are closed after this
    header_bytes_max: int = 65536        # request line and headers of one request

    def __post_init__(self) -> None:
        if not self.counting:
            raise ValueError("counting is empty: name at least one member of the ledger")
        if not 0 < self.waiting_per_account_max <= self.waiting_max:
            raise ValueError(
                f"waiting_per_account_max is {self.waiting_per_account_max}, it has to be above 0 and at most "
                f"waiting_max ({self.waiting_max})"
            )
        if self.permit_s <= 0 or self.header_bytes_max < 8192:
            raise ValueError("permit_s has to be above 0 and header_bytes_max at least 8192")
