"""Which processes there are and how healthy: one entry per node, by its own word and its silence.

Owns health. Refuses to know what a node is for, except that a broken stream of a service with standbys counts as death
sooner: somebody has to take over.
"""

import enum
from collections.abc import Iterator

from chassis.directory import REPLACED
from chassis.machine import Story, Transitions
from placement.config import FleetConfig
from placement.messages import Capacity, Heartbeat, NodeFacts, Registered, StreamClosed


class Health(enum.Enum):
    SERVING = "serving"
    SUSPECTED = "suspected"
    DEAD = "dead"


class Suspicion:
    """A node has been silent for ``suspect_s``."""


class Death:
    """A node has been silent for ``dead_s``."""


HEALTH: Transitions[Health] = Transitions({
    (Health.SERVING, Registered): Health.SERVING,
    (Health.SUSPECTED, Registered): Health.SERVING,
    (Health.DEAD, Registered): Health.SERVING,
    (Health.SERVING, Heartbeat): Health.SERVING,
    (Health.SUSPECTED, Heartbeat): Health.SERVING,
    (Health.DEAD, Heartbeat): Health.SERVING,
    (Health.SERVING, StreamClosed): Health.SUSPECTED,
    (Health.SUSPECTED, StreamClosed): Health.SUSPECTED,
    (Health.DEAD, StreamClosed): Health.DEAD,
    (Health.SERVING, Suspicion): Health.SUSPECTED,
    (Health.SUSPECTED, Death): Health.DEAD,
})


class Node:
    """One process as placement sees it."""

    __slots__ = ("capacity", "connection", "facts", "health", "heard_at", "leaving", "story")

    def __init__(self, facts: NodeFacts, connection: int, now: float) -> None:
        self.facts = facts
        self.connection = connection     # 0: its stream is broken
        self.capacity = facts.capacity
        self.health = Health.SERVING
        self.heard_at = now
        self.leaving = False
        self.story = Story()

    @property
    def usable(self) -> bool:
        return self.health is Health.SERVING and not self.leaving

    @property
    def sandboxes(self) -> int:
        """By its last word; 0 for what is no worker."""
        return self.capacity.sandboxes if self.capacity is not None else 0

    @property
    def condition(self) -> str:
        """As the view shows it."""
        return "draining" if self.leaving and self.health is Health.SERVING else self.health.value

    def move(self, event: type, now: float) -> bool:
        """Whether the health changed."""
        self.story.tell(now, event.__name__)
        before, self.health = self.health, HEALTH.next(self.health, event, self.story)
        return self.health is not before


class Nodes:
    """The region's processes, by node id. ``own`` is the one that keeps these: it sends itself no heartbeats."""

    def __init__(self, config: FleetConfig, *, own: str) -> None:
        self._config = config
        self._own = own
        self._nodes: dict[str, Node] = {}

    def __iter__(self) -> Iterator[Node]:
        return iter(self._nodes.values())

    def get(self, node: str) -> Node | None:
        return self._nodes.get(node)

    def of_service(self, service: str) -> list[Node]:
        return sorted((node for node in self if node.facts.service == service), key=lambda node: node.facts.node)

    def register(self, event: Registered, now: float) -> bool:
        """Whether anything that the view shows changed."""
        facts = event.facts
        node = self._nodes.get(facts.node)
        if node is None:
            node = self._nodes[facts.node] = Node(facts, event.connection, now)
            changed = True
        else:
            changed = node.move(Registered, now) or node.facts != facts or node.leaving != event.leaving
            node.facts, node.connection, node.heard_at = facts, event.connection, now
        node.leaving = event.leaving
        node.capacity = facts.capacity
        return changed

    def hear(self, node: str, connection: int, load: Capacity | None, now: float) -> bool:
        """Whether the node's health changed. A word on a stream that was replaced says nothing."""
        known = self._nodes.get(node)
        if known is None or known.connection != connection:
            return False
        known.heard_at = now
        if load is not None:
            known.capacity = load
        return known.move(Heartbeat, now) if known.health is not Health.SERVING else False

    def close(self, node: str, connection: int, now: float) -> bool:
        known = self._nodes.get(node)
        if known is None or known.connection != connection:
            return False
        known.connection = 0
        return known.move(StreamClosed, now)

    def age(self, now: float, *, leads: bool) -> bool:
        """Suspects and buries those who are silent, forgets the long dead. Whether anything changed.

        A standby hears most heartbeats rarely (``chassis.directory``): there only a broken stream counts as silence.
        """
        changed = False
        for node in list(self):
            if not leads and node.connection and node.facts.service not in REPLACED:
                continue
            if node.connection and node.facts.node == self._own:
                continue
            silent_s = now - node.heard_at
            if node.health is Health.SERVING and silent_s >= self._config.suspect_s:
                changed |= node.move(Suspicion, now)
            if node.health is Health.SUSPECTED and silent_s >= self._patience_s(node):
                changed |= node.move(Death, now)
            if node.health is Health.DEAD and silent_s >= self._config.forget_s:
                del self._nodes[node.facts.node]
                changed = True
        return changed

    def listen(self, now: float) -> None:
        """From now on this process leads and everybody talks to it: until now few had to."""
        for node in self:
            if node.connection and node.facts.service not in REPLACED:
                node.heard_at = now

    def forgive(self, gap_s: float) -> None:
        """This process stood still for so long: nobody else's silence is to be counted."""
        for node in self:
            node.heard_at += gap_s

    def _patience_s(self, node: Node) -> float:
        if node.facts.service in REPLACED and not node.connection:
            return self._config.takeover_s
        return self._config.dead_s
