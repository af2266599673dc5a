"""Encryption at rest: values are sealed with AES-256-GCM under a key file of the state directory.

Owns the key file and the sealed format (1 byte version, 8 bytes key id, 12 bytes nonce, ciphertext and tag).
Refuses to know what is sealed: the record's key is bound in, so that a sealed value can't be moved to another
record.
"""

import hashlib
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from storage.faults import CipherFault

KEY_BYTES = 32
NONCE_BYTES = 12
ID_BYTES = 8
VERSION = b"\x01"


class Cipher:
    """Seals and opens small values with one key."""

    def __init__(self, key: bytes, *, random_bytes: Callable[[int], bytes] = os.urandom) -> None:
        """`random_bytes` draws nonces: they must never repeat under a key, so only a simulation passes its own.
        """
        if len(key) != KEY_BYTES:
            raise CipherFault(f"the key has {len(key)} bytes instead of {KEY_BYTES}: restore the key file")
        self._aead = AESGCM(key)
        self._header = VERSION + hashlib.sha256(b"labda key id" + key).digest()[:ID_BYTES]
        self._random_bytes = random_bytes

    @property
    def key_id(self) -> str:
        """Tells keys apart and gives none away."""
        return self._header[len(VERSION):].hex()

    @classmethod
    def open(cls, key_file: Path) -> "Cipher":
        """The cipher of a key file, which is made at the first start, once, also by several processes at
        once.

        Raises CipherFault when others may read the file, when it isn't a key, or when it can't be read or
        made.
        """
        try:
            if not key_file.exists():
                _create(key_file)
            return cls(_read(key_file))
        except OSError as error:
            raise CipherFault(f"the key file {key_file} can't be used: {error}") from error

    def encrypt(self, plain: bytes, record: str) -> bytes:
        """Seal `plain` for the record under the key `record`; 37 bytes longer than what it seals."""
        nonce = self._random_bytes(NONCE_BYTES)
        return self._header + nonce + self._aead.encrypt(nonce, plain, self._header + record.encode())

    def decrypt(self, encrypted: bytes, record: str) -> bytes:
        """Open what `encrypt` sealed for the same record. Raises CipherFault saying what doesn't fit."""
        start = len(self._header)
        header, body = encrypted[:start], encrypted[start:]
        nonce, rest = body[:NONCE_BYTES], body[NONCE_BYTES:]
        if header[:1] != VERSION or len(nonce) < NONCE_BYTES:
            raise CipherFault(f"the value in {record} is not sealed in a format that this program knows")
        if header != self._header:
            raise CipherFault(
                f"the value in {record} was sealed with another key ({header[1:].hex()}, this one is "
                f"{self._header[1:].hex()}): restore the key file that belongs to this state directory"
            )
        try:
            return self._aead.decrypt(nonce, rest, header + record.encode())
        except InvalidTag:
            raise CipherFault(
                f"the value in {record} was changed or belongs to another record: write it anew"
            ) from None


def _create(key_file: Path) -> None:
    """Write a fresh key aside, sync it, and link it into place unless another process was first."""
    with tempfile.NamedTemporaryFile(dir=key_file.parent, prefix=".key-") as file:  # made with 0600
        file.write(os.urandom(KEY_BYTES))
        file.flush()
        os.fsync(file.fileno())
        try:
            os.link(file.name, key_file)
        except FileExistsError:
            return
    directory = os.open(key_file.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _read(key_file: Path) -> bytes:
    with key_file.open("rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_mode & 0o077:
            raise CipherFault(
                f"the key file {key_file} has mode {stat.S_IMODE(status.st_mode):04o}, others may use it: "
                f"chmod 600 {key_file}"
            )
        if status.st_uid != os.geteuid():
            raise CipherFault(
                f"the key file {key_file} belongs to user {status.st_uid}, not to {os.geteuid()}: "
                "run as its owner, or change the owner"
            )
        return file.read(KEY_BYTES + 1)
