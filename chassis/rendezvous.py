"""Rendezvous hashing: which of several nodes owns a function, by everybody's own arithmetic.

Owns the hash. When a node joins or leaves, only the functions that it gains or had move; who is in the list is
placement's word.
"""

from collections.abc import Iterable
from hashlib import blake2b


def owner_of(nodes: Iterable[str], account: str, function: str) -> str:
    """The node with the highest hash; an empty string when there is none."""
    return max(nodes, key=lambda node: (_weight(node, account, function), node), default="")


def _weight(node: str, account: str, function: str) -> int:
    return int.from_bytes(blake2b(f"{node}|{account}|{function}".encode(), digest_size=8).digest(), "big")
