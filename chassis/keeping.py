"""A process's key and certificate on its own disk, so that a restart needs neither a token nor a placement.

Owns the files of one directory, which its process alone can read. One file holds key, certificate and which token they
came of, so that a crash never leaves one without the other; what was acknowledged is synced.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

import structlog
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from chassis.certificates import key_pem, new_key, write_private
from chassis.faults import Fault, FaultCode

_IDENTITY = "identity.pem"      # first key, key, certificates
_JOINING = "joining.pem"        # first key, for a token that may have been used already
_HEAD = re.compile(rb"labda enrolment of token ([0-9a-f]*)\n")
_KEY, _CERTIFICATE = b"-----BEGIN PRIVATE KEY-----", b"-----BEGIN CERTIFICATE-----"

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """``first`` is the key that the token was used for: it stays, ``key`` is another one with each certificate."""

    token: str              # digest of the token that all this came of
    first: ec.EllipticCurvePrivateKey
    key: ec.EllipticCurvePrivateKey
    chain: bytes            # PEM


class Keep:
    """One directory. Every method raises Fault when the disk doesn't do its part."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def read(self) -> Kept | None:
        """None when nothing usable is kept; a damaged file counts as none, and is said."""
        path = self._directory / _IDENTITY
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _fault(path, error) from error
        head, keys = _HEAD.match(content), _keys(content)
        if head is None or len(keys) != 2 or _CERTIFICATE not in content:
            _log.error("the kept certificate is damaged", file=str(path))
            return None
        return Kept(
            token=head[1].decode(), first=keys[0], key=keys[1], chain=content[content.index(_CERTIFICATE):]
        )

    def write(self, kept: Kept) -> None:
        """A first key for a newer token stays: that one may have been used, and its answer lost."""
        self._put(_IDENTITY, _head(kept.token) + key_pem(kept.first) + key_pem(kept.key) + kept.chain)
        if self._joining().startswith(_head(kept.token)):
            (self._directory / _JOINING).unlink(missing_ok=True)

    def first_key(self, token: str) -> ec.EllipticCurvePrivateKey:
        """The key to use a token for: the same one until a certificate is kept, so that a lost answer comes again.

        ``token``: its digest. Another token gets another key.
        """
        content = self._joining()
        keys = _keys(content)
        if content.startswith(_head(token)) and keys:
            return keys[0]
        key = new_key()
        self._put(_JOINING, _head(token) + key_pem(key))
        return key

    def _joining(self) -> bytes:
        """Empty where there is none."""
        path = self._directory / _JOINING
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise _fault(path, error) from error

    def _put(self, name: str, content: bytes) -> None:
        path = self._directory / name
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_private(path, content)
            directory = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as error:
            raise _fault(path, error) from error


def _head(token: str) -> bytes:
    return b"labda enrolment of token " + token.encode() + b"\n"


def _keys(content: bytes) -> list[ec.EllipticCurvePrivateKey]:
    """The EC keys of a PEM file up to its certificates; none if one of them can't be read."""
    found = []
    for part in content.split(_CERTIFICATE, 1)[0].split(_KEY)[1:]:
        try:
            key = serialization.load_pem_private_key(_KEY + part, password=None)
        except ValueError:
            return []
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            return []
        found.append(key)
    return found


def _fault(path: Path, error: OSError) -> Fault:
    return Fault(
        f"{path} can't be used ({error.strerror}): key and certificate of this process are kept there",
        code=FaultCode.INVALID, definite=True,
    )
