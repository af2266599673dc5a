"""``labda up --record FILE``: what the whole cluster did, as one history that ``labda chaos check`` judges.

Owns the file, and from where on each process's trace belongs to this start of the cluster. What lines of traces mean is
``simulation.history``'s.
"""

from collections.abc import Iterable
from pathlib import Path

from chassis.clock import SystemClock
from labda.refusal import Refusal, Status
from labda.state import State


class Recording:
    """``begin`` before any process starts, ``write`` when all have ended. The file is small beside the traces, and has
    no function's environment and no signed ticket in it."""

    def __init__(self, path: Path, state: State, nodes: Iterable[str], *, time_scale: float) -> None:
        self._path = path
        self._traces = {node: state.node(node) / "trace.ndjson" for node in nodes}
        self._time_scale = time_scale
        self._began = 0.0
        self._since: dict[str, int] = {}

    def begin(self) -> None:
        """Raises Refusal for a file that can't be written: before anything runs, not when it is over."""
        try:
            with self._path.open("w"):
                pass
        except OSError as error:
            raise Refusal(f"--record {self._path}: {error.strerror}", Status.USAGE) from error
        self._began = SystemClock().monotonic()
        self._since = {
            node: path.stat().st_size if path.exists() else 0 for node, path in self._traces.items()
        }

    def write(self, lost: Iterable[str]) -> int:
        """``lost``: who didn't end by itself. Returns how many records there are. Raises OSError."""
        # Slow to import, and most starts record nothing.
        from simulation.history import trace_lines, traces  # noqa: PLC0415
        from simulation.history.records import Closed, Header, Lost, line  # noqa: PLC0415

        lines = [trace_lines(path, self._since[node]) for node, path in self._traces.items() if path.exists()]
        count = 0
        with self._path.open("w") as file:
            file.write(line(Header(at=self._began, time_scale=self._time_scale)) + "\n")
            for record in traces.merged(lines):
                file.write(line(record) + "\n")
                count += 1
            now = SystemClock().monotonic()
            file.writelines(line(Lost(at=now, node=node)) + "\n" for node in lost)
            file.write(line(Closed(at=now)) + "\n")
        return count
