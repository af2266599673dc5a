"""The contract's world on three etcd members: each client has its own connections, which can be held up and cut."""

import contextlib
import itertools
from collections.abc import AsyncIterator, Iterator
from typing import Any

from chassis.certificates import Tls
from protos import etcd_pb2
from protos.etcd_rpc import COMPACT, TXN
from protos.rpc import Method
from storage.etcd import EtcdMetadata, EtcdSettings
from storage.interfaces import MetadataStore
from tests.storage.servers import EtcdTrio, Proxy
from tests.storage.worlds import LOG_CHANGES_MAX, ManualClock

PATIENT_S = 30.0
IMPATIENT_S = 2.0

_numbers = itertools.count()


class ShortLog(EtcdMetadata):
    """Compacts with each change, as the members do with what is an hour old."""

    async def put(self, key: str, value: bytes, *, expected: int | None) -> int:
        revision = await super().put(key, value, expected=expected)
        request = etcd_pb2.CompactionRequest(revision=revision - LOG_CHANGES_MAX)
        await self._members.ask(COMPACT, request, until=self._members.until())
        return revision


class EtcdWorld:
    """Worlds share the members and differ in what their keys begin with."""

    def __init__(self, trio: EtcdTrio, tls: Tls) -> None:
        self.clock = ManualClock()
        self.root = f"world-{next(_numbers)}/"
        self._trio = trio
        self._tls = tls
        self._stores: list[MetadataStore] = []
        self._proxies: dict[MetadataStore, list[Proxy]] = {}

    def metadata(
        self, *, short_log: bool = False, attempt_s: float = PATIENT_S / 3, drift_s: float = 0.0
    ) -> EtcdMetadata:
        """``attempt_s``: after how long another member is asked; short where one is made to be silent."""
        proxies = [Proxy(address) for address in self._trio.addresses]
        settings = EtcdSettings(
            root=self.root, answer_s=PATIENT_S, attempt_s=attempt_s, page_records=3, drift_s=drift_s,
            behind_max=LOG_CHANGES_MAX if short_log else 4096,
        )
        kind = ShortLog if short_log else EtcdMetadata
        store = kind([proxy.address for proxy in proxies], self._tls, self.clock, settings)
        self._stores.append(store)
        self._proxies[store] = proxies
        return store

    @contextlib.contextmanager
    def impatient(self, store: MetadataStore) -> Iterator[None]:
        """While nobody can answer it, that is found out soon. Otherwise members of a busy machine have their time."""
        assert isinstance(store, EtcdMetadata)
        members = store._members
        patient = (members._answer_s, members._attempt_s)
        members._answer_s, members._attempt_s = IMPATIENT_S, IMPATIENT_S / 3
        try:
            yield
        finally:
            members._answer_s, members._attempt_s = patient

    @contextlib.asynccontextmanager
    async def lost_answers(self, store: MetadataStore, *, members: int = 3) -> AsyncIterator[None]:
        """From the moment at which a write is sent, the network hangs on the way back from so many members."""
        assert isinstance(store, EtcdMetadata)
        await store.get("any")
        ask = store._members.ask

        async def lose(method: Method[Any, Any], request: Any, *, until: float) -> tuple[Any, bool]:
            if method is TXN:
                for proxy in self._proxies[store][:members]:
                    proxy.hold_answers()
            return await ask(method, request, until=until)

        store._members.ask = lose  # type: ignore[method-assign]
        try:
            with self.impatient(store) if members == 3 else contextlib.nullcontext():
                yield
        finally:
            store._members.ask = ask  # type: ignore[method-assign]
            self._restore(store)

    @contextlib.asynccontextmanager
    async def out_of_reach(self, store: MetadataStore) -> AsyncIterator[None]:
        for proxy in self._proxies[store]:
            proxy.refuse()
        with self.impatient(store):
            yield
        self._restore(store)

    def _restore(self, store: MetadataStore) -> None:
        for proxy in self._proxies[store]:
            proxy.restore()

    async def close(self) -> None:
        for store in self._stores:
            await store.close()
        for proxies in self._proxies.values():
            for proxy in proxies:
                await proxy.close()
