"""Which tokens and which certificates buy a certificate: the judgement alone."""

from dataclasses import replace

import pytest

from chassis.rpc import Caller
from placement.node_record import (
    REPEAT_S,
    NodeRecord,
    Refused,
    judge_renewal,
    judge_token,
    revoked,
    with_token,
)

WORKER = Caller(service="worker", node="worker-az1-1", az="az1", host="host-az1-1")
NOW = 1_000_000.0
FRESH = with_token(None, WORKER, digest="d1", expires=NOW + 100)


def used(record=FRESH, *, digest="d1", key="k1", now=NOW):
    judged = judge_token(record, digest=digest, key=key, now=now)
    assert isinstance(judged, NodeRecord), judged
    return judged


def test_a_record_survives_the_store():
    assert NodeRecord.decode(FRESH.encode()) == FRESH


def test_a_token_is_used_once_for_one_key_and_answers_that_key_for_a_while():
    after = used()
    assert (after.used_at, after.key, after.caller) == (NOW, "k1", replace(WORKER, enrolment=1))
    assert judge_token(after, digest="d1", key="k1", now=NOW + REPEAT_S) == after
    assert judge_token(after, digest="d1", key="k2", now=NOW + 1) is Refused.USED
    assert judge_token(after, digest="d1", key="k1", now=NOW + REPEAT_S + 1) is Refused.USED


@pytest.mark.parametrize(
    ("record", "digest", "now", "reason"),
    [
        (None, "d1", NOW, Refused.UNKNOWN),
        (FRESH, "d2", NOW, Refused.UNKNOWN),
        (replace(FRESH, token=""), "", NOW, Refused.UNKNOWN),      # a placement's: no token was given out
        (FRESH, "d1", NOW + 100, Refused.EXPIRED),
        (revoked(FRESH), "d1", NOW, Refused.REVOKED),
        (revoked(FRESH), "d2", NOW, Refused.UNKNOWN),              # who proves nothing isn't told
    ],
)
def test_tokens_that_are_refused(record, digest, now, reason):
    assert judge_token(record, digest=digest, key="k1", now=now) is reason


def test_a_new_token_replaces_the_old_one_and_ends_its_certificates_once_it_is_used():
    first = used().caller
    again = with_token(used(), WORKER, digest="d2", expires=NOW + 200)
    assert judge_token(again, digest="d1", key="k1", now=NOW) is Refused.UNKNOWN
    assert judge_renewal(again, first, key="k1") is None
    assert judge_renewal(again, again.caller, key="k1") is Refused.KEY      # of a token that nobody used
    after = used(again, digest="d2", key="k2")
    assert (after.caller.enrolment, after.revoked) == (2, 1)
    assert judge_renewal(after, first, key="k1") is Refused.REVOKED
    assert judge_renewal(after, after.caller, key="k2") is None


def test_a_revoked_node_is_let_in_by_a_new_token_only():
    gone = revoked(used())
    assert judge_renewal(gone, gone.caller, key="k1") is Refused.REVOKED
    admitted = with_token(gone, WORKER, digest="d2", expires=NOW + 200)
    assert judge_renewal(admitted, gone.caller, key="k1") is Refused.REVOKED
    assert judge_renewal(admitted, admitted.caller, key="k1") is Refused.KEY
    back = used(admitted, digest="d2", key="k2")
    assert judge_renewal(back, back.caller, key="k2") is None
    assert judge_renewal(back, gone.caller, key="k1") is Refused.REVOKED


@pytest.mark.parametrize("key", ["", "k2"])
def test_without_the_first_key_nobody_is_renewed(key):
    assert judge_renewal(used(), used().caller, key=key) is Refused.KEY


@pytest.mark.parametrize("service", ["operator", "placement"])
def test_who_never_had_a_token_is_never_renewed(service):
    record = NodeRecord(node="n", service=service, az="az1", host="h")
    for key in ("", "k1"):
        assert judge_renewal(record, record.caller, key=key) is Refused.KEY


@pytest.mark.parametrize("other", [
    {"node": "worker-az1-2"}, {"service": "operator"}, {"az": "az2"}, {"host": "h"}, {"enrolment": 2},
])
def test_a_certificate_of_somebody_else_is_not_renewed(other):
    assert judge_renewal(used(), replace(used().caller, **other), key="k1") is Refused.OTHER_NODE
    assert judge_renewal(None, used().caller, key="k1") is Refused.UNKNOWN
