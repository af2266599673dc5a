"""What the region knows of one node's right to certificates: a record under ``enrolment/`` in the store.

Owns the record's form and the judgement of tokens and renewals. A record is written by the operator when the region is
founded, and changed by compare-and-swap afterwards. Refuses to know cryptography, the store and who asks.

An *enrolment* is one token's story: its number is in every certificate that came of it. Revoking names a number, so
that a replaced node, which got a new token, is let in while what was taken from the old one stays out.
"""

import enum
import hmac
import json
from dataclasses import asdict, dataclass, replace

from chassis.rpc import Caller

PREFIX = "enrolment/"
TOKEN_S = 86_400.0      # for how long a token can be used
REPEAT_S = 600.0        # for how long a used token answers the key that used it: its certificate may have been lost


class Refused(enum.Enum):
    """Why there is no certificate. The values are what is logged and, to who proved something, said."""

    UNKNOWN = "unknown"             # no such node, or a wrong secret: whoever asks isn't told which
    OTHER_NODE = "for another node"
    EXPIRED = "expired"
    USED = "used already"
    REVOKED = "revoked"
    KEY = "without the first key"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRecord:
    """One node. Times are Unix seconds."""

    node: str
    service: str
    az: str
    host: str
    enrolment: int = 1          # number of the newest token
    token: str = ""             # its digest; empty: none was given out (a placement issues for itself)
    expires: float = 0.0        # of the token
    used_at: float = 0.0        # when the token was used; 0: not yet
    key: str = ""               # fingerprint of the node's first key: what the last token that was used was used for
    revoked: int = 0            # certificates of enrolments up to this number are refused

    @property
    def caller(self) -> Caller:
        """The identity that certificates of this enrolment carry."""
        return Caller(service=self.service, node=self.node, az=self.az, host=self.host, enrolment=self.enrolment)

    def encode(self) -> bytes:
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def decode(cls, value: bytes) -> "NodeRecord":
        return cls(**json.loads(value))


def key_of(node: str) -> str:
    return PREFIX + node


def judge_token(record: NodeRecord | None, *, digest: str, key: str, now: float) -> NodeRecord | Refused:
    """The record as it is once this token was used for this key, or why it can't be.

    A record that comes back unchanged was used for this very key a moment ago: the answer was lost.
    """
    if record is None or not record.token or not hmac.compare_digest(record.token, digest):
        return Refused.UNKNOWN
    if record.revoked >= record.enrolment:
        return Refused.REVOKED
    if record.used_at:
        again = record.key == key and now - record.used_at <= REPEAT_S
        return record if again else Refused.USED
    if now >= record.expires:
        return Refused.EXPIRED
    # A node is replaced, not doubled: what came of its older tokens ends here.
    return replace(record, used_at=now, key=key, revoked=max(record.revoked, record.enrolment - 1))


def judge_renewal(record: NodeRecord | None, shown: Caller, *, key: str) -> Refused | None:
    """None: the node may have another certificate of the same enrolment, whether or not the shown one has expired.

    ``key``: fingerprint of the first key that is behind the request; empty: none is. A certificate alone buys nothing:
    a thief of any placement's intermediate could have made it, and what it buys would outlive that one's revocation.
    """
    if record is None:
        return Refused.UNKNOWN
    if shown != replace(record, enrolment=shown.enrolment).caller or shown.enrolment > record.enrolment:
        return Refused.OTHER_NODE
    if record.revoked >= shown.enrolment:
        return Refused.REVOKED
    bought = record.enrolment if record.used_at else record.enrolment - 1   # nothing came of a token that wasn't used
    if not key or key != record.key or shown.enrolment > bought:
        return Refused.KEY
    return None


def with_token(record: NodeRecord | None, who: Caller, *, digest: str, expires: float) -> NodeRecord:
    """A new token for a node, under the next number: the token before it is worth nothing from here on.

    Certificates of earlier enrolments go on, by the key that they came of, until the new token is used.
    """
    before = record or NodeRecord(node=who.node, service=who.service, az=who.az, host=who.host, enrolment=0)
    return NodeRecord(
        node=who.node, service=who.service, az=who.az, host=who.host, enrolment=before.enrolment + 1, token=digest,
        expires=expires, key=before.key, revoked=before.revoked,
    )


def certified(record: NodeRecord | None, who: Caller, enrolment: int) -> NodeRecord:
    """The root itself signed for the node under this number: certificates of earlier ones are refused from here on."""
    before = record or NodeRecord(node=who.node, service=who.service, az=who.az, host=who.host)
    return replace(
        before, enrolment=max(before.enrolment, enrolment), revoked=max(before.revoked, enrolment - 1)
    )


def revoked(record: NodeRecord) -> NodeRecord:
    """Every certificate of the node, and its token, are worth nothing from here on."""
    return replace(record, revoked=record.enrolment)
