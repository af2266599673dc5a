"""What befalls a whole availability zone of a simulated region, or everything: lost, cut off, without a store.

Owns which processes and ways go together. How one process ends and begins is ``region.py``'s.
"""

import asyncio

from simulation import members
from simulation.region import Region

STORE_GIVES_UP_S = 2.0     # a client of a store that has no quorum waits so long


async def lose(region: Region, *azs: str) -> None:
    """As with docker kill of every container: all at once, and nothing of it comes back by itself."""
    async with asyncio.TaskGroup() as group:    # each of them is gone before any of them is waited for
        for az in azs:
            for nodes in (region.counting, region.placements, region.managers):
                for node in [node for node in nodes.nodes if node.endswith(f"-{az}")]:
                    group.create_task(nodes.kill(node))
            if not region.frontends[members.AZS.index(az)].killed:
                group.create_task(region.kill_frontend(members.AZS.index(az)))
            for place in [place for place in region.workers if members.az_of(place) == az]:
                group.create_task(region.lose_worker(place))


async def start(region: Region, *azs: str) -> None:
    """Started again together, from their files; returns when each of them serves."""
    async with asyncio.TaskGroup() as group:
        for az in azs:
            for nodes, node in (
                (region.counting, members.counting_node(az)), (region.placements, f"placement-{az}"),
                (region.managers, f"manager-{az}"),
            ):
                if node in nodes.known:
                    group.create_task(nodes.start(node))
            group.create_task(region.restart_frontend(members.AZS.index(az)))
            for place in region.ground.shape.places:
                if members.az_of(place) == az and place not in region.workers:
                    group.create_task(region.start_worker(place))


def cut_off(region: Region, az: str) -> None:
    """As with docker network disconnect: its inside goes on, the others are silent to it, its stores have no quorum."""
    nodes = region.ground.shape.nodes_of(az)
    region.part(nodes)
    for node in nodes:
        if node in region.stores:
            region.stores[node].cut(STORE_GIVES_UP_S)


def stores_away(region: Region) -> None:
    """Metadata, leases and blobs have no quorum, wherever one asks."""
    for way in region.stores.values():
        way.cut(STORE_GIVES_UP_S)


def heal(region: Region) -> None:
    region.link.heal()
    for way in region.stores.values():
        way.heal()
