"""Protobuf messages to the core's values and back.

Owns the translation, so that the core knows no protobuf and the service no field names.
"""

from placement.core import PlacementCore
from placement.messages import Capacity, Grant, NodeFacts
from placement.nodes import Node
from protos import placement_pb2


def capacity_of(message: placement_pb2.WorkerCapacity) -> Capacity:
    return Capacity(
        memory_mb=message.memory_mb, memory_free_mb=message.memory_free_mb, sandboxes=message.sandboxes,
        runtimes=tuple(message.runtimes), memory_idle_mb=message.memory_idle_mb,
    )


def facts_of(message: placement_pb2.Node) -> NodeFacts:
    return NodeFacts(
        node=message.node, service=message.service, az=message.az, host=message.host, address=message.address,
        nonce=message.nonce, http=message.http, pid=message.pid, version=message.version, role=message.role,
        detail=tuple(sorted(message.detail.items())),
        capacity=capacity_of(message.capacity) if message.HasField("capacity") else None, metrics=message.metrics,
    )


def region_view(core: PlacementCore, *, leader: str, whole: bool) -> placement_pb2.RegionView:
    """The core's region; without nodes and owners unless ``whole``."""
    view = placement_pb2.RegionView(
        term=core.leadership.term, version=core.version, active=core.leadership.leads, leader=leader, whole=whole,
        owners_version=core.owners_version, revoked=dict(core.revoked),
    )
    if whole:
        view.nodes.extend(_node(node) for node in sorted(core.nodes, key=lambda node: node.facts.node))
        for margin in core.margins():
            view.margins.add(az=margin.az, margin_mb=margin.margin_mb, manager=margin.manager)
        for manager in core.owners:
            node = core.nodes.get(manager)
            address = node.facts.address if node is not None else ""
            view.owners.append(placement_pb2.RegionView.Owner(manager=manager, address=address))
    return view


def _node(node: Node) -> placement_pb2.Node:
    facts = node.facts
    message = placement_pb2.Node(
        node=facts.node, service=facts.service, az=facts.az, host=facts.host, address=facts.address, http=facts.http,
        nonce=facts.nonce, pid=facts.pid, version=facts.version, role=facts.role, health=node.condition,
        detail=dict(facts.detail), metrics=facts.metrics,
    )
    if node.capacity is not None:
        message.capacity.CopyFrom(placement_pb2.WorkerCapacity(
            memory_mb=node.capacity.memory_mb, memory_free_mb=node.capacity.memory_free_mb,
            sandboxes=node.capacity.sandboxes, runtimes=node.capacity.runtimes,
            memory_idle_mb=node.capacity.memory_idle_mb,
        ))
    return message


def grant_message(grant: Grant) -> placement_pb2.LeaseOrder:
    return placement_pb2.LeaseOrder(granted=placement_pb2.LeaseOrder.Granted(
        worker=grant.worker, address=grant.address, host=grant.host, az=grant.az, lease=grant.lease,
        soft_end_s=grant.soft_end_s, hard_end_s=grant.hard_end_s, drain_s=grant.drain_s,
        az_reserve=grant.az_reserve,
    ))
