"""The names and settings of the streams in which blobs lie.

Owns what founding makes and what servers permit. Refuses to know how blobs are read and written (`nats.py`); imports no
client, so that configuration can be written without one.
"""

from dataclasses import dataclass
from typing import Any

CHUNK_BYTES = 512 * 1024        # the leader's own answers are base64 in one message: they have to fit into max_payload
COPIES = 3
MAX_PAYLOAD_BYTES = 1_310_720


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobStreams:
    """Of one cluster; several can share servers under several roots."""

    root: str = "labda"

    @property
    def chunks(self) -> str:
        return f"{self.root}-blob-chunks"

    @property
    def heads(self) -> str:
        return f"{self.root}-blob-heads"

    def chunk(self, put_id: str) -> str:
        return f"{self.root}.chunk.{put_id}"

    def head(self, sha256: str) -> str:
        return f"{self.root}.head.{sha256}"

    def settings(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What JetStream is told of each stream: on disk, three copies, nothing ever dropped for age or size."""
        both = {
            "retention": "limits", "storage": "file", "num_replicas": COPIES, "discard": "new", "max_age": 0,
            "max_bytes": -1, "max_msgs": -1, "allow_direct": True, "compression": "none",
        }
        return (
            {**both, "name": self.chunks, "subjects": [self.chunk("*")], "max_msgs_per_subject": -1},
            # A new head of a blob replaces the old one in the same step.
            {**both, "name": self.heads, "subjects": [self.head("*")], "max_msgs_per_subject": 1, "discard": "old"},
        )

    def subjects_of_frontends(self) -> list[str]:
        """What they publish to: blobs, and of JetStream's API what blobs need."""
        calls = ("STREAM.INFO", "STREAM.MSG.GET", "DIRECT.GET")
        return [
            self.chunk("*"), self.head("*"),
            *(f"$JS.API.{call}.{stream}" for call in calls for stream in (self.chunks, self.heads)),
            f"$JS.API.STREAM.MSG.DELETE.{self.heads}",
            f"$JS.API.STREAM.PURGE.{self.chunks}",
        ]
