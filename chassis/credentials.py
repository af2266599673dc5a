"""The certificate that this process shows now, and whose certificates it no longer takes.

Owns the newest of both and who is told of a change. Refuses to know where they come from (``chassis.enrolment`` gets
certificates, ``chassis.directory`` hears of revoked nodes) and how a transport follows them. Belongs to the process's
event loop.
"""

from collections.abc import Callable, Mapping

from cryptography import x509

from chassis.certificates import Tls, issuer_of
from chassis.faults import Fault, FaultCode
from chassis.metrics import Metrics
from chassis.rpc import Caller


class Revocations:
    """Nodes whose certificates are refused, each up to the number of an enrolment.

    Numbers only grow: an older word takes nothing back, and a node that was replaced comes back with a higher one.
    """

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}
        self._observers: list[Callable[[Mapping[str, int]], None]] = []

    def add(self, nodes: Mapping[str, int]) -> None:
        """Tells the observers if any of it is new."""
        news = {node: number for node, number in nodes.items() if number > self.numbers.get(node, -1)}
        if news:
            self.numbers |= news
            for observer in self._observers:
                observer(news)

    def observe(self, observer: Callable[[Mapping[str, int]], None]) -> None:
        """Called with each addition: what goes on under such certificates is to be cut."""
        self._observers.append(observer)

    def admit(self, caller: Caller, issuer: str = "") -> None:
        """Raises Fault (denied, definite) for a caller that was revoked.

        ``issuer``: the common name of what signed its certificate. What a revoked placement signed is worth nothing,
        whoever it names. For an operator no placement signs: a thief of an intermediate would admit nodes of his own,
        whom its revocation doesn't reach.
        """
        if caller.service == "operator" and issuer_of(issuer) is not None:
            raise Fault(
                f"the certificate of {caller.node} was issued by {issuer}: an operator's is the root's own",
                code=FaultCode.DENIED, definite=True,
            )
        if not self.numbers:
            return
        if caller.enrolment <= self.numbers.get(caller.node, -1):
            why = f"{caller.node} was revoked (enrolment {caller.enrolment})"
        elif (by := issuer_of(issuer)) is not None and by[1] <= self.numbers.get(by[0], -1):
            why = f"the certificate of {caller.node} was issued by {by[0]} (enrolment {by[1]}), which was revoked"
        else:
            return
        raise Fault(
            f"{why}: to let it in again, give it a new token with `labda cluster token {caller.node}`",
            code=FaultCode.DENIED, definite=True,
        )


class Credentials:
    """One per process. Networks and listeners take it, and observe it for as long as the process lives."""

    def __init__(self, tls: Tls) -> None:
        self.current = tls
        self.revoked = Revocations()
        self._observers: list[Callable[[Tls], None]] = []

    @classmethod
    def fixed(cls, tls: Tls) -> "Credentials":
        """Of a process whose certificate nobody renews: an embedded cluster's, a command's."""
        return cls(tls)

    def replace(self, tls: Tls) -> None:
        """From now on this is shown at every new handshake. What is connected stays connected."""
        if tls != self.current:
            self.current = tls
            for observer in self._observers:
                observer(tls)

    def observe(self, observer: Callable[[Tls], None]) -> None:
        """Called after each replacement."""
        self._observers.append(observer)


def measure(metrics: Metrics, credentials: Credentials) -> None:
    """Says until when this process has a certificate: one that isn't renewed is seen long before it is missed."""

    def ends_at() -> float:
        own = x509.load_pem_x509_certificate(credentials.current.certificate)
        return own.not_valid_after_utc.timestamp()

    metrics.gauge("labda_certificate_ends_timestamp_seconds",
                  "Unix time at which the certificate ends that this process shows.", ends_at)
    metrics.gauge("labda_revoked_nodes", "Nodes whose certificates this process refuses.",
                  lambda: len(credentials.revoked.numbers))
