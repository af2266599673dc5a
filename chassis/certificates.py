"""The cluster's certificate authority and the certificates that it issues.

Owns keys, names and lifetimes. A certificate carries its identity as a URI (``chassis.identity``) and as two DNS names,
``<service>.labda`` and ``<node>.<service>.labda``, which the dialling side verifies.
"""

import datetime
import os
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from chassis.identity import identity_uri
from chassis.rpc import Caller

AUTHORITY_DAYS = 3650
CERTIFICATE_DAYS = 365
_BACKDATE = datetime.timedelta(minutes=5)  # hosts' clocks differ a little


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """Paths of PEM files: the authority's certificate, own certificate, own key."""

    authority: str
    certificate: str
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """The files' contents. Read before a process gives up its privileges."""

    authority: bytes
    certificate: bytes
    key: bytes

    @classmethod
    def read(cls, files: TlsFiles) -> "Tls":
        return cls(
            authority=Path(files.authority).read_bytes(),
            certificate=Path(files.certificate).read_bytes(),
            key=Path(files.key).read_bytes(),
        )


def dns_names(service: str, node: str) -> tuple[str, str]:
    """DNS labels know no underscore, so that ``worker_manager`` becomes ``worker-manager``."""
    label = service.replace("_", "-")
    return f"{label}.labda", f"{node.replace('_', '-')}.{label}.labda"


class Authority:
    """The cluster CA: a key that stays with whoever made the cluster, and its certificate."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        self._key = key
        self.certificate = certificate

    @classmethod
    def create(cls, name: str = "labda cluster CA") -> "Authority":
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = datetime.datetime.now(datetime.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _BACKDATE)
            .not_valid_after(now + datetime.timedelta(days=AUTHORITY_DAYS))
            .add_extension(x509.BasicConstraints(ca=True, path_length=1), critical=True)
            .add_extension(_key_usage(ca=True), critical=True)
            .sign(key, hashes.SHA256())
        )
        return cls(key, certificate)

    @classmethod
    def load(cls, folder: Path) -> "Authority":
        key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), password=None)
        assert isinstance(key, ec.EllipticCurvePrivateKey), "the cluster CA's key is an EC key"
        return cls(key, x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes()))

    def save(self, folder: Path) -> None:
        write_private(folder / "ca.key", _key_pem(self._key))
        (folder / "ca.pem").write_bytes(self.pem)

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def issue(self, caller: Caller, *, days: int = CERTIFICATE_DAYS) -> Tls:
        """A new key and a certificate for one process, good for either side of a connection."""
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.datetime.now(datetime.UTC)
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(identity_uri(caller))]
        names += [x509.DNSName(name) for name in dns_names(caller.service, caller.node)]
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, caller.node[:64])]))
            .issuer_name(self.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _BACKDATE)
            .not_valid_after(now + datetime.timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(ca=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return Tls(
            authority=self.pem,
            certificate=certificate.public_bytes(serialization.Encoding.PEM),
            key=_key_pem(key),
        )


def write_private(path: Path, content: bytes) -> None:
    """Writes a file that only its owner can read, whole or not at all."""
    scratch = path.with_name(path.name + ".new")
    scratch.unlink(missing_ok=True)
    with os.fdopen(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    scratch.rename(path)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True, key_cert_sign=ca, crl_sign=ca, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )
