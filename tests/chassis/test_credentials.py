"""What a process shows and whom it refuses: replaced once, told once, and a revocation is never taken back."""

from collections.abc import Mapping

import pytest

from chassis.certificates import Authority
from chassis.credentials import Credentials
from chassis.faults import Fault, FaultCode
from chassis.rpc import Caller

WORKER = Caller(service="worker", node="worker-az1-1", az="az1", host="h1", enrolment=3)


def test_a_new_certificate_is_told_of_once():
    authority = Authority.create()
    first, second = authority.issue(WORKER), authority.issue(WORKER)
    credentials = Credentials(first)
    told: list[bytes] = []
    credentials.observe(lambda tls: told.append(tls.certificate))
    credentials.replace(first)
    credentials.replace(second)
    assert (credentials.current, told) == (second, [second.certificate])


def test_a_revoked_enrolment_is_refused_and_the_next_one_is_not():
    revoked = Credentials(Authority.create().issue(WORKER)).revoked
    told: list[Mapping[str, int]] = []
    revoked.observe(told.append)
    revoked.add({"worker-az2-1": 9})
    revoked.admit(WORKER)
    revoked.add({"worker-az1-1": 3})
    with pytest.raises(Fault, match="labda cluster token worker-az1-1") as caught:
        revoked.admit(WORKER)
    assert (caught.value.code, caught.value.definite) == (FaultCode.DENIED, True)
    revoked.add({"worker-az1-1": 2})    # an older word
    with pytest.raises(Fault):
        revoked.admit(WORKER)
    assert told == [{"worker-az2-1": 9}, {"worker-az1-1": 3}]
    revoked.admit(Caller(service="worker", node="worker-az1-1", az="az1", host="h1", enrolment=4))


def test_who_never_needed_a_token_is_revoked_with_number_0():
    revoked = Credentials(Authority.create().issue(WORKER)).revoked
    operator = Caller(service="operator", node="operator", az="az1", host="h1")
    revoked.admit(operator)
    revoked.add({"operator": 0})
    with pytest.raises(Fault):
        revoked.admit(operator)


def test_what_a_revoked_placement_signed_is_worth_nothing():
    root = Authority.create()
    issuers = [root.intermediate("placement-az1", number).common_name for number in (1, 2)]
    revoked = Credentials(root.issue(WORKER)).revoked
    revoked.add({"placement-az1": 1})
    with pytest.raises(Fault, match="issued by placement-az1"):
        revoked.admit(WORKER, issuers[0])
    revoked.admit(WORKER, issuers[1])


def test_for_an_operator_no_placement_signs():
    root = Authority.create()
    revoked = Credentials(root.issue(WORKER)).revoked
    operator = Caller(service="operator", node="operator", az="az1", host="operator", enrolment=1)
    for name in ("labda root CA", "labda root CA 2"):      # the second one replaced the first
        revoked.admit(operator, Authority.create(name).common_name)
    with pytest.raises(ValueError, match="a root's name"):
        root.intermediate("root", 2)
    with pytest.raises(Fault, match="the root's own") as caught:
        revoked.admit(operator, root.intermediate("placement-az1").common_name)
    assert (caught.value.code, caught.value.definite) == (FaultCode.DENIED, True)
