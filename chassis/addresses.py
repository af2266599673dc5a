"""What an address says about who can reach it."""

import ipaddress


def is_loopback(address: str) -> bool:
    """Whether only this host reaches who listens at ``host:port``. Names but localhost may resolve to anything: no."""
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
