"""What a new cluster's stores are told before any service uses them, by the operator from this host.

Owns the order: users and streams of the stores, the nodes' token records, the first account and its key. Refuses to
know what each of them is (``storage.founding``, ``trust``, ``labda.launch``).
"""

import asyncio
import time
from collections.abc import Callable

from chassis.certificates import Tls, TlsFiles
from chassis.clock import SystemClock
from labda import launch
from labda.cluster import trust
from labda.cluster.shape import ETCD, NATS, Shape
from labda.refusal import Refusal
from labda.state import State
from storage.faults import StorageFault
from storage.founding import found_etcd, found_nats
from storage.open import Stores, open_store

RETRY_S = 0.5


def store_tls(state: State) -> TlsFiles:
    """The operator's, who may read and write everything."""
    return TlsFiles(
        authority=str(state.root / "ca" / "stores.pem"), certificate=str(state.root / "tls" / "stores-operator.pem"),
        key=str(state.root / "tls" / "stores-operator.key"),
    )


def open_stores(state: State, form: Shape) -> Stores:
    """As the operator, from this host."""
    return open_store(
        form.metadata_url(), SystemClock(), blobs=form.blobs_url(), tls=store_tls(state), resolve=state.resolver
    )


async def found(state: State, form: Shape, ready_s: float, live: Callable[[float], None]) -> tuple[str, ...]:
    """Idempotent; returns the nodes whose token is new. Raises Refusal when the stores don't answer in time."""
    began = time.monotonic()
    while True:
        try:
            return await _found(state, form)
        except StorageFault as fault:
            spent_s = time.monotonic() - began
            if spent_s > ready_s:
                raise Refusal(f"the stores don't answer within {ready_s:.0f} s: {fault.message}") from fault
            live(spent_s)
            await asyncio.sleep(RETRY_S)


async def _found(state: State, form: Shape) -> tuple[str, ...]:
    tls = Tls.read(store_tls(state))
    await asyncio.gather(
        found_etcd([f"{name}:{ETCD}" for name in form.stores("etcd")], tls, resolve=state.resolver),
        found_nats([f"{name}:{NATS}" for name in form.stores("nats")], tls, resolve=state.resolver),
    )
    stores = open_stores(state, form)
    try:
        new = await trust.found(state.root, stores.metadata)
        await launch.keep_root(state, stores.metadata)
    finally:
        await stores.close()
    return new
