"""How a process shows that a key is its own, and how that is judged.

Owns certificate requests, renewal proofs, and the reading of a certificate that is shown instead of used: it may have
expired, so that no TLS library judges it. Of a request only the key is taken. Refuses to know who may have one.
"""

import hashlib
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from chassis.certificates import BACKDATE_S
from chassis.faults import Fault, FaultCode
from chassis.identity import caller_of
from chassis.rpc import Caller

REQUEST_BYTES_MAX = 8 * 1024
CHAIN_BYTES_MAX = 16 * 1024
_CHAIN_MAX = 2      # certificate and intermediate
_UNREADABLE = (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature, x509.ExtensionNotFound)


@dataclass(frozen=True, slots=True)
class Shown:
    """What a certificate says that some root vouches for. Times are Unix seconds.

    ``stays``: it is the first root, the one that signs: the others are trusted only until nobody shows theirs any more.
    """

    caller: Caller
    key: ec.EllipticCurvePublicKey
    issuer: str             # common name of what signed it
    issued_at: float
    ends_at: float
    stays: bool


def request(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A request (PKCS #10, DER) that names nobody: who it is for is not its sender's to say."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def key_of(content: bytes) -> ec.EllipticCurvePublicKey:
    """The key of a request, which its sender holds. Raises Fault (invalid, definite)."""
    if len(content) > REQUEST_BYTES_MAX:
        raise _invalid(f"a request of {len(content)} bytes, {REQUEST_BYTES_MAX} are allowed")
    try:
        found = x509.load_der_x509_csr(content)
        signed, key = found.is_signature_valid, found.public_key()
    except _UNREADABLE as error:
        raise _invalid(f"the certificate request can't be read ({error})") from error
    if not signed:
        raise _invalid("the certificate request isn't signed by its own key")
    return _usable(key)


def fingerprint(key: ec.EllipticCurvePublicKey) -> str:
    """SHA-256 of the key as certificates carry it, in hexadecimal digits."""
    return hashlib.sha256(spelled(key)).hexdigest()


def prove(key: ec.EllipticCurvePrivateKey, content: bytes) -> bytes:
    """That the owner of an old key wants this very request: of no use for another one."""
    return key.sign(_renewal(content), ec.ECDSA(hashes.SHA256()))


def proves(key: ec.EllipticCurvePublicKey, content: bytes, proof: bytes) -> bool:
    """Whether the owner of this key wants this request."""
    try:
        key.verify(proof, _renewal(content), ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True


def spelled(key: ec.EllipticCurvePublicKey) -> bytes:
    """As certificates carry it (SubjectPublicKeyInfo, DER)."""
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def parsed(content: bytes) -> ec.EllipticCurvePublicKey:
    """The inverse of ``spelled``. Raises Fault (invalid, definite)."""
    try:
        return _usable(serialization.load_der_public_key(content))
    except _UNREADABLE as error:
        raise _invalid(f"a key can't be read ({error})") from error


def read(chain: bytes, roots: bytes, now: float) -> Shown:
    """What a certificate (PEM, with its intermediate) says; its own dates are not judged, its issuer's are.

    Raises Fault: invalid for what is none of ours, denied for what no root (PEM) vouches for; definite either way.
    """
    if len(chain) > CHAIN_BYTES_MAX:
        raise _invalid(f"a certificate of {len(chain)} bytes, {CHAIN_BYTES_MAX} are allowed")
    try:
        leaf, *above = x509.load_pem_x509_certificates(chain)
        if len(above) >= _CHAIN_MAX or _constraints(leaf).ca:
            raise _invalid("a certificate and at most one intermediate are shown")
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        caller = caller_of(next(iter(names.get_values_for_type(x509.UniformResourceIdentifier)), ""))
        key = _usable(leaf.public_key())
        issuer = leaf.issuer.get_attributes_for_oid(x509.oid.NameOID.COMMON_NAME)[0].value
        trusted = x509.load_pem_x509_certificates(roots)
        vouched = _vouched(leaf, above, trusted, now)
        stays = vouched and _vouched(leaf, above, trusted[:1], now)
    except (*_UNREADABLE, IndexError) as error:
        raise _invalid(f"the certificate can't be read ({error})") from error
    if not vouched:
        raise Fault(
            f"no root of this region vouches for the certificate of {caller.node}", code=FaultCode.DENIED, definite=True
        )
    return Shown(caller, key, str(issuer), leaf.not_valid_before_utc.timestamp() + BACKDATE_S,
                 leaf.not_valid_after_utc.timestamp(), stays)


def _vouched(
    leaf: x509.Certificate, above: list[x509.Certificate], roots: list[x509.Certificate], now: float
) -> bool:
    chain = [leaf, *above]
    for below, issuer in zip(chain, above, strict=False):
        if not _signed(below, issuer) or not _may_sign(issuer, now):
            return False
    return any(_signed(chain[-1], root) and _may_sign(root, now) for root in roots)


def _signed(below: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        below.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _may_sign(issuer: x509.Certificate, now: float) -> bool:
    usage = issuer.extensions.get_extension_for_class(x509.KeyUsage).value
    valid = issuer.not_valid_before_utc.timestamp() <= now <= issuer.not_valid_after_utc.timestamp()
    return valid and _constraints(issuer).ca and usage.key_cert_sign


def _constraints(certificate: x509.Certificate) -> x509.BasicConstraints:
    return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value


def _usable(key: object) -> ec.EllipticCurvePublicKey:
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise _invalid("a key on the curve P-256 is needed")
    return key


def _renewal(content: bytes) -> bytes:
    return b"labda renewal\0" + hashlib.sha256(content).digest()


def _invalid(message: str) -> Fault:
    return Fault(message, code=FaultCode.INVALID, definite=True)
