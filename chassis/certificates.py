"""Certificate authorities and the certificates that they issue.

Owns keys, names and lifetimes. A region has one root, whose key stays with the operator; each placement holds an
intermediate under it, which can make no further authority. A process's certificate carries its identity as a URI
(``chassis.identity``) and as two DNS names, ``<service>.labda`` and ``<node>.<service>.labda``, which the dialling side
verifies. The stores have a root of their own, so that no process's certificate opens one. Refuses to know who may have
a certificate (``placement.enrolment``).
"""

import datetime
import ipaddress
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from chassis.identity import identity_uri
from chassis.rpc import Caller

DAY_S = 86_400.0
ROOT_S = 3650 * DAY_S
INTERMEDIATE_S = 1825 * DAY_S   # `labda cluster init` makes a new one when half of it is over
STORE_S = 1825 * DAY_S          # the same; nobody renews these by himself
YEAR_S = 365 * DAY_S            # the embedded cluster's, issued anew at each start, and the operator's
BACKDATE_S = 300.0              # hosts' clocks differ a little
# "labda root CA 2" is no intermediate: it is a root that replaced another one.
_INTERMEDIATE = re.compile(r"labda (?P<node>(?!root )[a-z0-9-]+) CA (?P<enrolment>[0-9]+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """Paths of PEM files: the authority's certificate, own certificate, own key."""

    authority: str
    certificate: str
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """The files' contents. ``certificate`` goes on with the intermediate, where there is one."""

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

    def __repr__(self) -> str:
        return "Tls(...)"


def dns_names(service: str, node: str) -> tuple[str, str]:
    """DNS labels know no underscore, so that ``worker_manager`` becomes ``worker-manager``."""
    label = service.replace("_", "-")
    return f"{label}.labda", f"{node.replace('_', '-')}.{label}.labda"


def new_key() -> ec.EllipticCurvePrivateKey:
    """What every key here is: on P-256, which all the TLS libraries in use take."""
    return ec.generate_private_key(ec.SECP256R1())


class Authority:
    """A key that signs, its certificate, and the root that those who trust it hold."""

    def __init__(
        self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate, *, root: bytes | None = None
    ) -> None:
        """``root``: PEM, for an intermediate; a root is its own."""
        self._key = key
        self.certificate = certificate
        self.root = root if root is not None else self.pem

    @classmethod
    def create(cls, name: str = "labda cluster CA") -> "Authority":
        """A new root, under which intermediates can be made."""
        key = new_key()
        certificate = _sign(
            key, None, key.public_key(), name=name, lifetime_s=ROOT_S, usage=_key_usage(ca=True),
            constraints=x509.BasicConstraints(ca=True, path_length=1),
        )
        return cls(key, certificate)

    @classmethod
    def load(cls, folder: Path, name: str = "ca", *, root: Path | None = None) -> "Authority":
        """From ``NAME.pem`` and ``NAME.key``; ``root``: file of the root, for an intermediate."""
        return cls.read(folder / f"{name}.pem", folder / f"{name}.key", root=root)

    @classmethod
    def read(cls, certificate: Path, key: Path, *, root: Path | None = None) -> "Authority":
        """Raises OSError, and ValueError for files that are something else."""
        found = serialization.load_pem_private_key(key.read_bytes(), password=None)
        if not isinstance(found, ec.EllipticCurvePrivateKey):
            raise ValueError(f"{key} is no EC key")
        own = x509.load_pem_x509_certificate(certificate.read_bytes())
        return cls(found, own, root=root.read_bytes() if root is not None else None)

    def save(self, folder: Path, name: str = "ca") -> None:
        write_private(folder / f"{name}.key", key_pem(self._key))
        (folder / f"{name}.pem").write_bytes(self.pem)

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def placement(self) -> tuple[str, int] | None:
        """Whose intermediate it is, and of which of its enrolments; None: a root."""
        return issuer_of(self.common_name)

    @property
    def common_name(self) -> str:
        return common_name(self.certificate.subject)

    def issued(self, certificate: x509.Certificate) -> bool:
        """Whether this very authority signed it."""
        try:
            certificate.verify_directly_issued_by(self.certificate)
        except (ValueError, TypeError, InvalidSignature):
            return False
        return True

    def intermediate(self, node: str, enrolment: int = 1) -> "Authority":
        """An authority for a placement, with a new key. Its name stands in all that it issues (``issuer_of``).

        Raises ValueError for a placement whose intermediate would pass for a root.
        """
        key, name = new_key(), f"labda {node} CA {enrolment}"
        if issuer_of(name) is None:
            raise ValueError(f"a placement can't be called {node!r}: {name!r} is a root's name")
        certificate = _sign(
            self._key, self.certificate, key.public_key(), name=name, lifetime_s=INTERMEDIATE_S,
            usage=_key_usage(ca=True), constraints=x509.BasicConstraints(ca=True, path_length=0),
        )
        return Authority(key, certificate, root=self.root)

    def issue(self, caller: Caller, *, lifetime_s: float = YEAR_S, now: float | None = None) -> Tls:
        """A new key and a certificate for one process, good for either side of a connection."""
        key = new_key()
        chain = self.certify(key.public_key(), caller, lifetime_s=lifetime_s, now=now)
        return Tls(authority=self.root, certificate=chain, key=key_pem(key))

    def certify(
        self, key: ec.EllipticCurvePublicKey, caller: Caller, *, lifetime_s: float, now: float | None = None
    ) -> bytes:
        """The certificate of somebody else's key, PEM, followed by this authority's own where it is no root.

        ``now`` in Unix seconds; None: by this host's clock.
        """
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(identity_uri(caller))]
        names += [x509.DNSName(name) for name in dns_names(caller.service, caller.node)]
        return self._leaf(key, caller.node, names, lifetime_s=lifetime_s, now=now)

    def issue_plain(self, name: str, *, hosts: Sequence[str] = (), lifetime_s: float = STORE_S) -> Tls:
        """For programs that don't know our identities: a common name, and where it serves (nowhere: a client)."""
        key = new_key()
        names: list[x509.GeneralName] = [_host_name(host) for host in hosts]
        chain = self._leaf(key.public_key(), name, names, lifetime_s=lifetime_s, now=None)
        return Tls(authority=self.root, certificate=chain, key=key_pem(key))

    def _leaf(
        self, key: ec.EllipticCurvePublicKey, name: str, names: list[x509.GeneralName], *, lifetime_s: float,
        now: float | None,
    ) -> bytes:
        certificate = _sign(
            self._key, self.certificate, key, name=name[:64], lifetime_s=lifetime_s, now=now, names=names,
            usage=_key_usage(ca=False), constraints=x509.BasicConstraints(ca=False, path_length=None),
        )
        pem = certificate.public_bytes(serialization.Encoding.PEM)
        return pem if self.certificate.issuer == self.certificate.subject else pem + self.pem


def common_name(name: x509.Name) -> str:
    """Empty where there is none."""
    found = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[0].value) if found else ""


def issuer_of(name: str) -> tuple[str, int] | None:
    """The placement that an issuer's common name names, and the how manieth it was enrolled as; None: a root."""
    found = _INTERMEDIATE.fullmatch(name)
    return (found["node"], int(found["enrolment"])) if found else None


def over_half(certificate: x509.Certificate, now: float) -> bool:
    """Whether more than half of its lifetime is over: whoever renews by hand renews now."""
    began, ends = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
    return now > (began + ends) / 2


def write_private(path: Path, content: bytes) -> None:
    """Writes a file that only its owner can read, whole or not at all."""
    scratch = path.with_name(path.name + ".new")
    scratch.unlink(missing_ok=True)
    with os.fdopen(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    scratch.rename(path)


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _sign(
    issuer_key: ec.EllipticCurvePrivateKey, issuer: x509.Certificate | None, key: ec.EllipticCurvePublicKey, *,
    name: str, lifetime_s: float, usage: x509.KeyUsage, constraints: x509.BasicConstraints,
    names: Sequence[x509.GeneralName] = (), now: float | None = None,
) -> x509.Certificate:
    """``issuer`` None: the certificate is its own. Nothing outlives its issuer."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    began = datetime.datetime.now(datetime.UTC) if now is None else datetime.datetime.fromtimestamp(now, datetime.UTC)
    ends = began + datetime.timedelta(seconds=lifetime_s)
    if issuer is not None:
        ends = min(ends, issuer.not_valid_after_utc)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer.subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(began - datetime.timedelta(seconds=BACKDATE_S))
        .not_valid_after(ends)
        .add_extension(constraints, critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    if not constraints.ca:
        # Whoever serves dials too: a process its peers, an etcd member itself.
        purposes = [*([ExtendedKeyUsageOID.SERVER_AUTH] if names else []), ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


def _host_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True, key_cert_sign=ca, crl_sign=ca, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )
