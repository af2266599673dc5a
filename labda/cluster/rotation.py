"""An authority of a cluster replaced by another, in three steps with a rolling restart after each.

Owns the order, in which everybody trusts the new one before anything shows it, and nothing shows the old one any more
before it is dropped. The state is in the authority's own files: ``NAME.pem`` holds what is trusted, first what signs;
``NAME-next.key`` is there between the first and the second step. A step that was cut off is done again.
"""

import enum
import re
from collections.abc import Mapping
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import NameOID

from chassis.certificates import Authority, write_private
from labda.cluster import trust
from labda.refusal import Refusal, Status


class Step(enum.Enum):
    """What was done; the value says what has to happen before the next."""

    ANNOUNCED = "the new one is trusted too: restart every container, then again"
    SWITCHED = "the new one signs: restart every container, then again"
    DROPPED = "the old one is not trusted any more: restart every container"


def rotate(root: Path, name: str, started: Mapping[str, float]) -> Step:
    """The next step for one of ``trust.AUTHORITIES``. ``started``: when each node that runs was started, Unix seconds.

    Raises Refusal, also while one runs that was started before the step before: it would trust nobody after this one,
    or nobody it.
    """
    folder = root / "ca"
    if name not in trust.AUTHORITIES or not (folder / f"{name}.pem").exists():
        raise Refusal(
            f"{name!r} is no authority of {root}: there are {', '.join(trust.AUTHORITIES)}", Status.USAGE
        )
    if not (folder / f"{name}.key").exists():
        raise Refusal(f"{folder / name}.key is missing: bring it for as long as something is issued", Status.HOST)
    older = sorted(node for node, at in started.items() if at < _stepped(folder, name))
    if older:
        raise Refusal(
            f"{', '.join(older)} run with what was trusted before the last step: `labda cluster roll` first, until it "
            "ends well", Status.REFUSED,
        )
    step = _step(folder, name)
    trust.refresh(root)
    return step


def _stepped(folder: Path, name: str) -> float:
    """When the last step of a replacement that goes on was done. 0.0: none goes on, or its last step was cut off."""
    pem, following = folder / f"{name}.pem", folder / f"{name}-next.key"
    trusted = x509.load_pem_x509_certificates(pem.read_bytes())
    cut_off = following.exists() and _belongs(following, trusted[0])
    return 0.0 if len(trusted) == 1 or cut_off else pem.stat().st_mtime


def _step(folder: Path, name: str) -> Step:
    trusted = x509.load_pem_x509_certificates((folder / f"{name}.pem").read_bytes())
    current, following = folder / f"{name}.key", folder / f"{name}-next.key"
    if len(trusted) == 1:
        new = Authority.create(_next_name(trusted[0], trust.AUTHORITIES[name]))
        new.save(folder, f"{name}-next")
        _trust(folder, name, [trusted[0], new.certificate])
        (folder / f"{name}-next.pem").unlink()
        return Step.ANNOUNCED
    if following.exists():
        first, second = trusted
        if not _belongs(following, first):      # or this step was cut off before its end
            first, second = second, first
            _trust(folder, name, [first, second])
        following.rename(current)
        return Step.SWITCHED
    _trust(folder, name, trusted[:1])
    return Step.DROPPED


def _trust(folder: Path, name: str, certificates: list[x509.Certificate]) -> None:
    path = folder / f"{name}.pem"
    mode = path.stat().st_mode
    write_private(path, b"".join(one.public_bytes(serialization.Encoding.PEM) for one in certificates))
    path.chmod(mode)


def _belongs(key: Path, certificate: x509.Certificate) -> bool:
    found = serialization.load_pem_private_key(key.read_bytes(), password=None)
    return found.public_key() == certificate.public_key()


def _next_name(certificate: x509.Certificate, title: str) -> str:
    """Another name than the old one's: TLS libraries look issuers up by name."""
    name = str(certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)
    number = re.search(r" ([0-9]+)$", name)
    return f"{title} {int(number[1]) + 1 if number else 2}"
