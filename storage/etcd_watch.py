"""One watch on etcd that outlives the members it goes through.

Owns the stream, its renewal at another member, and the bound on how far its consumer may fall behind. Refuses to know
what the values hold.
"""

import asyncio
from collections import deque

from chassis.faults import Fault
from chassis.rpc import Channel
from protos import etcd_pb2
from protos.etcd_rpc import RANGE, WATCH
from storage.etcd_members import Members, Silence, refusal
from storage.faults import StorageFault, StoreClosed, WatchGap

AGAIN_S = 0.1   # between a stream that broke and the next one


class EtcdWatch:
    """Follows a range of keys. ``run`` it as a task; ``next`` hands over events in order."""

    def __init__(self, members: Members, begin: bytes, end: bytes, *, after: int, behind_max: int) -> None:
        self._members = members
        self._begin = begin
        self._end = end
        self._position = after          # everything up to this revision was received
        self._delivered = after
        self._behind_max = behind_max
        self._waiting: deque[etcd_pb2.Event] = deque()
        self._news = asyncio.Event()
        self._fault: StorageFault | None = None

    async def next(self) -> etcd_pb2.Event:
        """Raises WatchGap, StoreUnavailable, StoreDenied, StoreClosed."""
        while not self._waiting:
            if self._fault is not None:
                raise self._fault
            self._news.clear()
            await self._news.wait()
        event = self._waiting.popleft()
        self._delivered = event.kv.mod_revision
        return event

    def close(self) -> None:
        self._end_with(StoreClosed())

    async def run(self) -> None:
        """Until something makes it impossible to go on."""
        while self._fault is None:
            channel = self._members.nearest
            try:
                newest = await self._newest()
                if self._position > newest:
                    self._end_with(WatchGap(self._position, 0, newest))
                    return
                await self._follow(channel, newest)
            except StorageFault as fault:
                self._end_with(fault)
            except Fault as fault:
                denied = refusal(fault, "a watch")
                if isinstance(denied, StorageFault):
                    self._end_with(denied)
                    return
                self._members.avoid(channel)
                await asyncio.sleep(AGAIN_S)

    async def _newest(self) -> int:
        """The cluster's revision now. Raises StoreUnavailable, StoreDenied."""
        request = etcd_pb2.RangeRequest(key=self._begin, range_end=self._end, limit=1, keys_only=True)
        try:
            answer, _ = await self._members.ask(RANGE, request, until=self._members.until())
        except Silence as silence:
            raise self._members.unavailable(str(silence)) from silence
        return answer.header.revision

    async def _follow(self, channel: Channel, newest: int) -> None:
        """Raises Fault when the stream broke."""
        create = etcd_pb2.WatchCreateRequest(
            key=self._begin, range_end=self._end, start_revision=self._position + 1, progress_notify=True
        )
        stream = channel.stream(WATCH)
        try:
            await stream.send(etcd_pb2.WatchRequest(create_request=create))
            while (answer := await stream.receive()) is not None:
                if answer.compact_revision:
                    self._end_with(WatchGap(self._position, answer.compact_revision, newest))
                    return
                if answer.canceled:
                    raise Fault(f"etcd ended the watch: {answer.cancel_reason or 'without a word'}")
                self._take(answer)
        finally:
            stream.cancel()
        raise Fault("etcd ended the stream of the watch")

    def _take(self, answer: etcd_pb2.WatchResponse) -> None:
        if not answer.events:
            if not answer.created:  # a report of progress: nothing up to there is still to come
                self._position = max(self._position, answer.header.revision)
            return
        self._waiting.extend(answer.events)
        self._position = answer.events[-1].kv.mod_revision
        if len(self._waiting) > self._behind_max:
            self._waiting.clear()
            self._end_with(WatchGap(self._delivered, self._position, self._position))
        self._news.set()

    def _end_with(self, fault: StorageFault) -> None:
        if self._fault is None:
            self._fault = fault
        self._news.set()
