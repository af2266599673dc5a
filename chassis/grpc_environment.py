"""What gRPC reads from the environment when it is imported: set here, before anything imports it.

grpcio 1.78.2 with its event engine crashes (a null pointer in the engine's own threads) about once in ten runs of a few
refused TLS handshakes and cut streams; without it, never seen in 103 such runs. A stream's round trip takes the same.
"""

import os

EXPERIMENTS_OFF = (
    "event_engine_client", "event_engine_listener", "event_engine_callback_cq",
    "event_engine_for_all_other_endpoints", "event_engine_fork",
)

os.environ.setdefault("GRPC_EXPERIMENTS", ",".join(f"-{name}" for name in EXPERIMENTS_OFF))
