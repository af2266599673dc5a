"""One-time bootstrap tokens: what a process without a certificate shows to get one.

    labda-1.NODE.SECRET.FINGERPRINT

Owns the printed form. The secret is 256 random bits; whoever judges it holds its hash only. The fingerprint is the
region's root's: the process that joins gives the secret to nobody whom that root doesn't vouch for. Refuses to know
until when a token is good (``placement.node_record``).
"""

import base64
import hashlib
import re
import secrets
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from chassis.faults import Fault, FaultCode

SECRET_BYTES = 32
NODE = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
_TOKEN = re.compile(r"labda-1\.(?P<node>[a-z0-9-]+)\.(?P<secret>[A-Za-z0-9_-]{43})\.(?P<fingerprint>[0-9a-f]{64})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """``repr`` keeps the secret to itself."""

    node: str
    secret: str
    fingerprint: str

    @classmethod
    def draw(cls, node: str, root: bytes) -> "Token":
        """A new one for a node of the region with this root (PEM; of several the first)."""
        secret = base64.urlsafe_b64encode(secrets.token_bytes(SECRET_BYTES)).rstrip(b"=").decode()
        return cls(node=node, secret=secret, fingerprint=fingerprints(root)[0])

    @classmethod
    def parse(cls, text: str) -> "Token":
        """Raises Fault (invalid); what was given is not repeated."""
        found = _TOKEN.fullmatch(text.strip())
        if found is None:
            raise Fault(
                "the bootstrap token is malformed: it looks like labda-1.NODE.SECRET.FINGERPRINT, "
                "`labda cluster token NODE` makes a new one", code=FaultCode.INVALID, definite=True,
            )
        return cls(**found.groupdict())

    @property
    def text(self) -> str:
        return f"labda-1.{self.node}.{self.secret}.{self.fingerprint}"

    @property
    def digest(self) -> str:
        return digest(self.secret)

    def check_root(self, root: bytes) -> None:
        """Raises Fault (denied) unless the token's root is among these (PEM)."""
        if self.fingerprint not in fingerprints(root):
            raise Fault(
                f"the token of {self.node} belongs to a region with another root "
                f"(fingerprint {self.fingerprint[:16]}…, the root file's is {fingerprints(root)[0][:16]}…): "
                "the token isn't shown to anybody", code=FaultCode.DENIED, definite=True,
            )

    def __repr__(self) -> str:
        return f"Token(node={self.node!r})"


def digest(secret: str) -> str:
    """What is kept of a secret. It has 256 random bits, so that nothing slow is needed."""
    return hashlib.sha256(b"labda bootstrap token\0" + secret.encode()).hexdigest()


def fingerprints(roots: bytes) -> list[str]:
    """SHA-256 of each certificate of a PEM file, in hexadecimal digits. Raises Fault (invalid)."""
    try:
        return [root.fingerprint(hashes.SHA256()).hex() for root in x509.load_pem_x509_certificates(roots)]
    except ValueError as error:
        raise Fault(f"the root file holds no certificate: {error}", code=FaultCode.INVALID, definite=True) from error
