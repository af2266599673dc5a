"""Which service may call what: one table, checked on every RPC.

Owns the table. A certificate names service, node, AZ and host (``chassis.certificates``); a method that is not in the
table is open to nobody. What a caller may do *within* a method (a worker: only its own host's stream) is checked by the
handler, which gets the caller.
"""

from urllib.parse import quote, unquote, urlsplit

from chassis.faults import Fault, FaultCode
from chassis.rpc import Caller

SERVICES = frozenset({"frontend", "counting", "worker_manager", "placement", "worker", "operator", "prometheus"})

_EVERYONE = SERVICES - {"prometheus"}   # which reads metrics, and opens nothing here
ALLOWED: dict[str, frozenset[str]] = {
    "/grpc.health.v1.Health/Check": _EVERYONE,
    "/grpc.health.v1.Health/Watch": _EVERYONE,
    "/labda.counting.v1.Counting/Frontend": frozenset({"frontend"}),
    "/labda.counting.v1.Counting/Worker": frozenset({"worker"}),
    "/labda.counting.v1.Counting/SetReserved": frozenset({"frontend"}),
    "/labda.counting.v1.Counting/SetProvisioned": frozenset({"frontend"}),
    "/labda.counting.v1.Counting/SetAccountLimit": frozenset({"operator"}),
    "/labda.counting.v1.Counting/GetLimits": frozenset({"frontend", "operator"}),
    "/labda.counting.v1.Counting/ListPools": frozenset({"operator"}),
    "/labda.counting.v1.Counting/ListHosts": frozenset({"operator"}),
    "/labda.counting.v1.Counting/DeclareDead": frozenset({"operator"}),
    "/labda.counting.v1.Counting/ListMembers": frozenset({"operator"}),
    "/labda.counting.v1.Counting/AddMember": frozenset({"operator"}),
    "/labda.counting.v1.Counting/RemoveMember": frozenset({"operator"}),
    "/labda.raft.v1.Raft/Exchange": frozenset({"counting"}),
    "/labda.worker.v1.Worker/Manage": frozenset({"worker_manager"}),
    "/labda.worker.v1.Worker/Invoke": frozenset({"frontend"}),
    "/labda.worker.v1.Worker/Logs": frozenset({"operator"}),
    "/labda.worker_manager.v1.WorkerManager/Reserve": frozenset({"frontend"}),
    "/labda.worker_manager.v1.WorkerManager/Describe": frozenset({"operator"}),
    "/labda.placement.v1.Placement/Register": _EVERYONE,
    "/labda.placement.v1.Placement/Lease": frozenset({"worker_manager"}),
    "/labda.placement.v1.Placement/Place": frozenset({"worker_manager"}),
    "/labda.enrolment.v1.Nodes/Admit": frozenset({"operator"}),
    "/labda.enrolment.v1.Nodes/Revoke": frozenset({"operator"}),
    "/labda.frontend.v1.Code/Fetch": frozenset({"worker"}),
    "/labda.frontend.v1.Accounts/CreateAccount": frozenset({"operator"}),
    "/labda.frontend.v1.Accounts/ListAccounts": frozenset({"operator"}),
    "/labda.frontend.v1.Accounts/CreateKey": frozenset({"operator"}),
    "/labda.frontend.v1.Accounts/ListKeys": frozenset({"operator"}),
    "/labda.frontend.v1.Accounts/RevokeKey": frozenset({"operator"}),
    "/labda.frontend.v1.Accounts/HasKey": frozenset({"operator"}),
}


def authorise(path: str, caller: Caller) -> None:
    """Raises Fault (denied, definite) unless the caller's service may call ``path``."""
    if caller.service not in ALLOWED.get(path, frozenset()):
        raise Fault(
            f"a certificate of {caller.service} ({caller.node}) doesn't open {path}",
            code=FaultCode.DENIED,
            definite=True,
        )


def identity_uri(caller: Caller) -> str:
    """The caller as the URI that its certificate carries as a subject alternative name."""
    parts = (caller.az, caller.host, caller.service, caller.node)
    uri = "labda://" + "/".join(quote(part, safe="") for part in parts)
    return f"{uri}?enrolment={caller.enrolment}" if caller.enrolment else uri


def caller_of(uri: str) -> Caller:
    """The inverse of ``identity_uri``. Raises Fault (denied) for anything else."""
    parts = urlsplit(uri)
    path = [unquote(part) for part in parts.path.lstrip("/").split("/")]
    key, _, number = parts.query.partition("=")
    known = parts.scheme == "labda" and parts.netloc and len(path) == 3 and path[1] in SERVICES
    if not known or (parts.query and (key != "enrolment" or not (number.isascii() and number.isdigit()))):
        raise Fault(f"certificate of an unknown identity: {uri!r}", code=FaultCode.DENIED, definite=True)
    return Caller(
        az=unquote(parts.netloc), host=path[0], service=path[1], node=path[2], enrolment=int(number or 0)
    )
