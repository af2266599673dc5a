"""Digests by which two records of one content are known to be the same, without the content."""

import hashlib

DIGITS = 16     # 64 bits: of a history's payloads no two differ and agree in these


def digest(data: bytes) -> str:
    """Of any bytes, hexadecimal."""
    return hashlib.sha256(data).hexdigest()[:DIGITS]
