"""New ids from a source of randomness that is passed in.

Owns their forms. Refuses to know what they name.
"""

import random

_VERSION_4 = (4 << 76) | (0b10 << 62)
_FREE_BITS = ~((0xF << 76) | (0b11 << 62)) & ((1 << 128) - 1)


class RandomIds:
    """Ids from ``rng``: ``random.SystemRandom()`` in a process, a seeded one in the simulation."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def uuid(self) -> str:
        """A random UUID, version 4. Made by hand: the standard library's class costs four times as much."""
        digits = f"{self._rng.getrandbits(128) & _FREE_BITS | _VERSION_4:032x}"
        return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"

    def hexadecimal(self, digits: int) -> str:
        return f"{self._rng.getrandbits(4 * digits):0{digits}x}"
