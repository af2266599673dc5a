"""Writing invoke frames: many invocations share one stream, and a large body stalls nobody.

Owns the order and the size of batches. Refuses to know what a frame means.
"""

from collections import deque
from typing import Any

from chassis.rpc import Outbox, Stream
from protos import worker_pb2

CHUNK_BYTES = 64 * 1024            # a chunk at most (worker.proto)
# What either side may send of one invocation before the other's first Credit.
CREDIT_BYTES = 256 * 1024
BULK_BYTES = 256 * 1024            # of chunks in one message: small frames never wait behind more


class FrameWriter(Outbox[worker_pb2.InvokeFrames]):
    """Frames of one turn of the event loop go as one message, up to a bound: small ones first, then chunks.

    A Start always goes before the chunks of its payload, since those count as large.
    """

    def __init__(self, stream: Stream[worker_pb2.InvokeFrames, Any], *, limit: int = 10_000) -> None:
        super().__init__(stream, limit=limit)
        self._bulk: deque[worker_pb2.InvokeFrame] = deque()

    def put_chunk(self, frame: worker_pb2.InvokeFrame) -> None:
        self._bulk.append(frame)  # bounded: credit bounds each invocation's share
        self._wake.set()

    def _next(self) -> worker_pb2.InvokeFrames | None:
        batch = self._batch()
        size = 0
        while self._bulk and not self._waiting and size < BULK_BYTES:
            frame = self._bulk.popleft()
            size += len(frame.chunk.data)
            batch.append(frame)
        return worker_pb2.InvokeFrames(frames=batch) if batch else None
