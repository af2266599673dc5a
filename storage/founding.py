"""What the stores of a new cluster are told before anybody uses them: users, roles and streams.

Owns which service may touch what. The operator runs it, as often as he likes: what is there stays, what is missing is
made, and a permission that is no longer meant is taken back. Refuses to know how members are started (``members``).

A client's user is the common name of its certificate: `frontend`, `placement`, `operator`.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from chassis.certificates import Tls
from chassis.faults import Fault, FaultCode
from protos import etcd_pb2
from protos.etcd_rpc import (
    AUTH_ENABLE,
    AUTH_STATUS,
    ROLE_ADD,
    ROLE_GET,
    ROLE_GRANT_PERMISSION,
    ROLE_REVOKE_PERMISSION,
    USER_ADD,
    USER_GRANT_ROLE,
)
from protos.rpc import Method
from storage.etcd import ACKNOWLEDGEMENTS, RECORDS, EtcdSettings, span
from storage.etcd_members import Members, Request, Response, Silence
from storage.faults import StorageFault
from storage.nats_streams import BlobStreams

if TYPE_CHECKING:
    from storage.nats_client import NatsClient

OPERATOR = "operator"
# What records' keys begin with, by the service that reads and writes them.
RECORDS_OF = {
    "frontend": ("accounts/", "keys/", "registry/"),
    "placement": ("leases/", "leadership/", "enrolment/"),
}
ACKNOWLEDGING = "frontend"
# etcd doesn't enable users without this one, who may do everything. Nobody has a certificate of that name.
ROOT = "root"
ANSWER_S = 15.0     # a new cluster elects its first leader
ATTEMPT_S = 2.0
FIRST_ANSWER_S = 30.0
NO_PEERS = 10005    # JetStream's leader hasn't heard yet of members that have just started
PEERS_PAUSE_S = 0.25


async def found_etcd(
    addresses: Sequence[str], tls: Tls, *, root: str | None = None, resolve: Callable[[str], str] | None = None
) -> None:
    """With the operator's certificate. ``root``: what all keys begin with, by default that of `EtcdSettings`.

    Raises StoreUnavailable, StoreDenied.
    """
    members = Members(addresses, tls, answer_s=ANSWER_S, attempt_s=ATTEMPT_S, resolve=resolve)
    try:
        await _Founder(members).found(EtcdSettings().root if root is None else root)
    finally:
        await members.close()


async def found_nats(
    addresses: Sequence[str], tls: Tls, *, streams: BlobStreams | None = None,
    resolve: Callable[[str], str] | None = None,
) -> None:
    """With the operator's certificate. Who may touch what is in the servers' configuration (``members``).

    Raises StoreUnavailable, StoreDenied, StorageFault.
    """
    from storage.nats_client import NatsClient, NatsSettings  # noqa: PLC0415 -- who has no NATS pays nothing for it

    client = NatsClient(addresses, tls, NatsSettings(answer_s=FIRST_ANSWER_S), resolve=resolve)
    try:
        for settings in (streams or BlobStreams()).settings():
            await _found_stream(client, settings)
    finally:
        await client.close()


async def _found_stream(client: "NatsClient", settings: dict[str, Any]) -> None:
    name, until = settings["name"], client.until()
    while True:
        found = await client.api(f"STREAM.INFO.{name}", {}, until=until)
        if "config" in found and settings.items() <= found["config"].items():
            return
        verb = "UPDATE" if "config" in found else "CREATE"
        made = await client.api(f"STREAM.{verb}.{name}", settings, until=until)
        if "error" not in made:
            return
        if made["error"].get("err_code") != NO_PEERS or asyncio.get_running_loop().time() + PEERS_PAUSE_S >= until:
            raise StorageFault(f"JetStream refuses the stream {name}: {made['error']}", definite=True)
        await asyncio.sleep(PEERS_PAUSE_S)


class _Founder:
    def __init__(self, members: Members) -> None:
        self._members = members

    async def found(self, root: str) -> None:
        for user, role in ((ROOT, ROOT), (OPERATOR, ROOT), *((service, service) for service in RECORDS_OF)):
            await self._make(ROLE_ADD, etcd_pb2.RoleAddRequest(name=role))
            options = etcd_pb2.UserAddOptions(no_password=True)  # a certificate is the only way in
            await self._make(USER_ADD, etcd_pb2.UserAddRequest(name=user, options=options))
            await self._make(USER_GRANT_ROLE, etcd_pb2.UserGrantRoleRequest(user=user, role=role))
        for service in RECORDS_OF:
            await self._permit(service, permissions(service, root))
        if not (await self._ask(AUTH_STATUS, etcd_pb2.AuthStatusRequest())).enabled:
            await self._ask(AUTH_ENABLE, etcd_pb2.AuthEnableRequest())

    async def _permit(self, role: str, meant: Sequence[tuple[bytes, bytes]]) -> None:
        found = {(perm.key, perm.range_end) for perm in (
            await self._ask(ROLE_GET, etcd_pb2.RoleGetRequest(role=role))
        ).perm if perm.permType == etcd_pb2.Permission.READWRITE}
        for key, end in meant:
            if (key, end) not in found:
                permission = etcd_pb2.Permission(permType=etcd_pb2.Permission.READWRITE, key=key, range_end=end)
                grant = etcd_pb2.RoleGrantPermissionRequest(name=role, perm=permission)
                await self._ask(ROLE_GRANT_PERMISSION, grant)
        for key, end in found - set(meant):
            revoke = etcd_pb2.RoleRevokePermissionRequest(role=role, key=key, range_end=end)
            await self._make(ROLE_REVOKE_PERMISSION, revoke)

    async def _make(self, method: Method[Request, Response], request: Request) -> None:
        """What is there already (or gone already) is as it should be."""
        try:
            await self._ask(method, request)
        except Fault as fault:
            if fault.code is not FaultCode.CONFLICT:
                raise

    async def _ask(self, method: Method[Request, Response], request: Request) -> Response:
        try:
            answer, _ = await self._members.ask(method, request, until=self._members.until())
        except Silence as silence:
            raise self._members.unavailable(str(silence)) from silence
        return answer


def permissions(service: str, root: str) -> list[tuple[bytes, bytes]]:
    """The ranges of keys that a service may read and write."""
    prefixes = [RECORDS + prefix for prefix in RECORDS_OF[service]]
    if service == ACKNOWLEDGING:
        prefixes.append(ACKNOWLEDGEMENTS)
    return [span((root + prefix).encode()) for prefix in prefixes]
