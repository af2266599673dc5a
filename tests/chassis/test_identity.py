"""Who may call what: identities survive the way through a certificate, and the table is closed."""

import pytest
from cryptography import x509

from chassis.certificates import Authority, dns_names
from chassis.faults import Fault, FaultCode
from chassis.identity import ALLOWED, SERVICES, authorise, caller_of, identity_uri
from chassis.rpc import Caller
from protos import (
    counting_rpc,
    enrolment_rpc,
    frontend_rpc,
    placement_rpc,
    raft_rpc,
    worker_manager_rpc,
    worker_rpc,
)
from protos.rpc import Method

ODD = Caller(service="worker_manager", node="manager_az1", az="az 1", host="hôst?/1", enrolment=12)
RPC = (counting_rpc, enrolment_rpc, frontend_rpc, placement_rpc, raft_rpc, worker_manager_rpc, worker_rpc)
OPEN = {enrolment_rpc.ENROL.path, enrolment_rpc.RENEW.path}     # not on this listener: who calls has no certificate
METHODS = [
    value.path for module in RPC for value in vars(module).values()
    if isinstance(value, Method) and value.path not in OPEN
]


def test_an_identity_survives_its_certificate():
    authority = Authority.create()
    certificate = x509.load_pem_x509_certificate(authority.issue(ODD).certificate)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    [uri] = names.get_values_for_type(x509.UniformResourceIdentifier)
    assert caller_of(uri) == ODD
    assert names.get_values_for_type(x509.DNSName) == list(dns_names(ODD.service, ODD.node))


@pytest.mark.parametrize(
    "uri", ["", "https://az/host/worker/n", "labda:///host/worker/n", "labda://az/host/worker", "labda://az/h/nobody/n",
            "labda://az/h/worker/n?enrolment=", "labda://az/h/worker/n?enrolment=-1", "labda://az/h/worker/n?n=1"]
)
def test_other_names_are_nobody(uri):
    with pytest.raises(Fault) as caught:
        caller_of(uri)
    assert caught.value.code is FaultCode.DENIED


def test_every_method_is_in_the_table_and_nothing_else():
    health = {path for path in ALLOWED if path.startswith("/grpc.health.v1.")}
    assert set(METHODS) == set(ALLOWED) - health


def test_a_worker_opens_its_counting_stream_and_nothing_else_there():
    worker = Caller(service="worker", node="w", az="az1", host="h")
    opened = {path for path in METHODS if "/labda.counting.v1." in path and worker.service in ALLOWED[path]}
    assert opened == {counting_rpc.WORKER.path}
    for path in METHODS:
        if worker.service in ALLOWED[path]:
            authorise(path, worker)
        else:
            with pytest.raises(Fault):
                authorise(path, worker)


def test_a_method_that_nobody_listed_is_closed():
    for service in SERVICES:
        with pytest.raises(Fault):
            authorise("/labda.counting.v1.Counting/Unheard", Caller(service=service, node="n", az="a", host="h"))


def test_an_identity_is_one_uri():
    assert identity_uri(ODD).startswith("labda://az%201/")
