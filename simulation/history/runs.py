"""What runs: from each Start to its End, or to when its worker was gone.

Owns when a run is over. Refuses to judge.
"""

from collections import Counter
from dataclasses import dataclass

from simulation.history.records import End, Life, Lost, Member, Record, Start

_OVER = frozenset({"left", "replaced", "evicted", "declared dead", "gone"})     # it runs nothing, or counts as that


@dataclass(slots=True, eq=False)
class Run:
    """``end``: the record by which it is over."""

    start: Start
    end: Record | None = None


class Runs:
    """Told every record. A request that starts twice is one run here, which another check finds wrong."""

    def __init__(self) -> None:
        self.all: list[Run] = []
        self.running: dict[str, Run] = {}           # by request
        self.count: Counter[str] = Counter()        # of what runs, by the pool that it was admitted from
        self.changed: dict[str, Record] = {}        # the newest that changed it, by pool
        self.counted_out: dict[str, Run] = {}       # by request: over by the ledger's word that its worker is out
        self.incarnations: dict[str, str] = {}      # the newest life, by worker
        self._known: set[str] = set()
        self._by_node: dict[str, dict[str, Run]] = {}

    def see(self, record: Record) -> None:
        match record:
            case Start():
                self._start(record)
            case End():
                self._end(record)
            case Life():
                self._clear(record.node, record)
                if record.incarnation:
                    self.incarnations[record.node] = record.incarnation
            case Lost():
                self._clear(record.node, record)
            case Member() if record.state in _OVER:
                for node, incarnation in self.incarnations.items():
                    if incarnation == record.incarnation:
                        self._clear(node, record)
            case _:
                pass

    def on(self, node: str) -> list[Run]:
        return list(self._by_node.get(node, {}).values())

    def _start(self, start: Start) -> None:
        if start.request in self._known:
            return
        self._known.add(start.request)
        run = Run(start)
        self.all.append(run)
        self.running[start.request] = run
        self._by_node.setdefault(start.node, {})[start.request] = run
        self.count[start.pool] += 1
        self.changed[start.pool] = start

    def _end(self, end: End) -> None:
        run = self.running.get(end.invocation.partition("#")[0])
        if run is not None and run.start.sandbox == end.sandbox:
            self._over(run, end)

    def _clear(self, node: str, record: Record) -> None:
        for run in self.on(node):
            self._over(run, record)

    def _over(self, run: Run, record: Record) -> None:
        run.end = record
        if isinstance(record, Member):
            self.counted_out[run.start.request] = run
        del self.running[run.start.request]
        del self._by_node[run.start.node][run.start.request]
        self.count[run.start.pool] -= 1
        self.changed[run.start.pool] = record
