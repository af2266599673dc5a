"""A small fleet for stories and walks: short ways to say who is there."""

from placement.config import FleetConfig
from placement.core import PlacementCore
from placement.messages import (
    Capacity,
    DrawLease,
    LeadershipRead,
    LeadershipWritten,
    LeaseDrawn,
    ManagerJoined,
    NodeFacts,
    RecordsRead,
    RecordWritten,
    Registered,
    Tick,
    WriteRecord,
)

WALL = 1_000_000.0


def facts(node, *, nonce=1, free_mb=4096):
    """A node by its name: worker-az1-1, worker_manager-az1, placement-az1."""
    service, az = node.split("-")[:2]
    room = Capacity(memory_mb=4096, memory_free_mb=free_mb, runtimes=("python3.12",))
    capacity = room if service == "worker" else None
    return NodeFacts(
        node=node, service=service, az=az, host=f"host-{node}", address=f"{node}:1", nonce=nonce, capacity=capacity
    )


def registered(node, connection, *, nonce=1, leaving=False):
    return Registered(facts=facts(node, nonce=nonce), connection=connection, leaving=leaving, cause="register")


def joined(manager, connection, *, nonce=1, held=()):
    return ManagerJoined(manager=manager, nonce=nonce, connection=connection, held=frozenset(held), cause="hello")


def new_core(**settings):
    return PlacementCore(node="placement-az1", config=FleetConfig(**settings))


def first_leader(at=0.0):
    """Events by which a placement leads a region that never had one."""
    return [
        (at, Tick()),
        (at, LeadershipRead(stored=None, cause="leadership")),
        (at, LeadershipWritten(revision=1, cause="leadership")),
        (at, RecordsRead(records=(), wall=WALL + at, cause="leadership")),
        (at, Tick()),
    ]


def feed(core, events):
    """Feeds events quietly; answers draws and record writes at once, as a store without faults would."""
    effects = []
    queue = list(events)
    while queue:
        now, event = queue.pop(0)
        done = core.handle(event, now)
        core.check()
        effects += done
        for effect in done:
            match effect:
                case DrawLease():
                    queue.insert(0, (now, LeaseDrawn(worker=effect.worker, fraction=0.5, wall=WALL + now)))
                case WriteRecord():
                    worker = effect.record.worker
                    queue.insert(0, (now, RecordWritten(worker=worker, revision=effect.expected + 1)))
    return effects
