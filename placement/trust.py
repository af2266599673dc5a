"""A placement's part in the region's trust: its records, its enrolment, and the listener for who has no certificate.

Owns how these are put together, started and ended. An embedded cluster has none of it.
"""

from pathlib import Path

from chassis.certificates import Authority
from chassis.clock import Clock
from chassis.config import IssuerConfig, NodeConfig
from chassis.credentials import Credentials
from chassis.enrolment import authority_of
from chassis.metrics import Metrics
from chassis.open_network import OpenServer
from chassis.process import Tasks
from chassis.rpc import Handlers
from placement.enrolment import Enrolment
from placement.records import NodeRecords
from placement.records_file import RecordsFile
from protos import enrolment_rpc
from storage.interfaces import MetadataStore


class Trust:
    def __init__(
        self, config: IssuerConfig, *, authority: Authority, credentials: Credentials, metadata: MetadataStore,
        clock: Clock, metrics: Metrics, directory: str = "",
    ) -> None:
        """``directory``: where the node records are kept for a start without the store; empty: nowhere."""
        self.records = NodeRecords(metadata, clock, RecordsFile(Path(directory)) if directory else None)
        self.address = ""       # of the enrolment listener, once it is open
        self._listen = config.listen
        self._enrolment = Enrolment(
            authority=authority, lifetime_s=config.lifetime_s, metadata=metadata, records=self.records, clock=clock,
            metrics=metrics,
        )
        self._server = OpenServer(credentials)
        self._tasks = Tasks()

    async def start(self, handlers: Handlers) -> None:
        """Opens the listener; what operators call goes into ``handlers``. Raises Fault."""
        handlers.unary(enrolment_rpc.ADMIT, self._enrolment.admit)
        handlers.unary(enrolment_rpc.REVOKE, self._enrolment.revoke)
        self._server.unary(enrolment_rpc.ENROL, self._enrolment.enrol)
        self._server.unary(enrolment_rpc.RENEW, self._enrolment.renew)
        self._tasks.start(self.records.follow(), name="node records")
        self.address = await self._server.serve(self._listen)

    async def close(self) -> None:
        await self._tasks.cancel()
        await self._server.close()


def open_trust(
    node: NodeConfig, credentials: Credentials, *, metadata: MetadataStore, clock: Clock, metrics: Metrics
) -> Trust | None:
    """None for a placement whose certificate somebody made for it: it issues none. Raises Fault."""
    if node.enrolment is None or node.enrolment.issuer is None:
        return None
    return Trust(
        node.enrolment.issuer, authority=authority_of(node.enrolment, node.enrolment.issuer), credentials=credentials,
        metadata=metadata, clock=clock, metrics=metrics, directory=node.enrolment.directory,
    )
