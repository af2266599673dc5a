"""The members of one service as another process follows them: seeds from its config, then whom the region's view shows.

Owns one channel and one task per member. A seed is followed for good; another one for as long as the view shows it at
that address. Refuses to know what is said.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from chassis.directory import Directory
from chassis.process import Tasks
from chassis.rpc import Channel, Network


class Members:
    """``follow`` runs for each of them, with its node id and its channel, until it is cancelled."""

    def __init__(
        self, *, network: Network, service: str, seeds: dict[str, str],
        follow: Callable[[str, Channel], Coroutine[Any, Any, None]],
    ) -> None:
        self.channels: dict[str, Channel] = {}
        self._network = network
        self._service = service
        self._seeds = seeds
        self._follow = follow
        self._found: dict[str, tuple[str, asyncio.Task[None]]] = {}
        self._tasks = Tasks()

    def start(self) -> None:
        for node, address in self._seeds.items():
            self._begin(node, address)

    def see(self, directory: Directory) -> None:
        """The region's view is another one."""
        shown = {
            node.node: node.address for node in directory.of_service(self._service) if node.node not in self._seeds
        }
        for node, (address, task) in list(self._found.items()):
            if shown.get(node) != address:
                task.cancel()
                del self._found[node]
                self._tasks.start(self.channels.pop(node).close(), name=f"leave {node}")
        for node, address in shown.items():
            if node not in self._found:
                self._found[node] = address, self._begin(node, address)

    async def close(self) -> None:
        await self._tasks.cancel()
        for channel in self.channels.values():
            await channel.close()

    def _begin(self, node: str, address: str) -> asyncio.Task[None]:
        channel = self.channels[node] = self._network.connect(address, service=self._service, node=node)
        return self._tasks.start(self._follow(node, channel), name=f"{self._service} {node}")
