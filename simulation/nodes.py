"""What befalls one process of a simulated region, whichever service it is of, and the messages between nodes.

Owns who is asked for each node. How a process of each service ends and begins is ``region.py``'s.
"""

import asyncio
from typing import Any

from chassis.memory_network import Pipe
from simulation import members
from simulation.control import Control
from simulation.network import Trouble, silence_s
from simulation.processes import Process
from simulation.region import Frontend, Region

DRAIN_S = 5.0       # a frontend that is drained lets its requests finish for so long
PING_S = 0.5        # how often silence of a stopped process is looked for

_FRONTENDS = {members.frontend_node(az): number for number, az in enumerate(members.AZS)}


def lives(region: Region, node: str) -> bool:
    if node in _FRONTENDS:
        return not region.frontends[_FRONTENDS[node]].killed
    if (place := _place(region, node)) is not None:
        return place in region.workers
    return node in _control(region, node).nodes


async def kill(region: Region, node: str) -> None:
    """kill -9, and nobody starts it again."""
    if node in _FRONTENDS:
        await region.kill_frontend(_FRONTENDS[node])
    elif (place := _place(region, node)) is not None:
        await region.lose_worker(place)
    else:
        await _control(region, node).kill(node)


async def start(region: Region, node: str) -> None:
    """Another process where none lives. Raises Fault for one that refuses."""
    if lives(region, node):
        return
    if node in _FRONTENDS:
        await region.restart_frontend(_FRONTENDS[node])
    elif (place := _place(region, node)) is not None:
        await region.start_worker(place)
    else:
        await _control(region, node).start(node)


async def roll(region: Region, node: str) -> None:
    """Drained and started again, as for another version. Does nothing where nobody lives."""
    if not lives(region, node):
        return
    if node in _FRONTENDS:
        frontend = region.frontends[_FRONTENDS[node]]
        frontend.killed = True  # the endpoint sends it nothing more
        await region.process_of(frontend).do(frontend.service.drain(lambda: _answered(frontend)))
        region.ground.fabric.crash(node)    # its process ends, and its connections with it
        if ending := region.cut_off_clients(frontend):
            await asyncio.wait(ending)      # before another one writes into its trace
    elif (place := _place(region, node)) is not None:
        await region.replace_worker(place)
    else:
        await _control(region, node).drain(node)
    await start(region, node)


async def pause(region: Region, node: str, for_s: float) -> None:
    """SIGSTOP, and SIGCONT later: nothing of it runs, its sandboxes go on, and its peers' pings notice.

    Does nothing to a process that is stopped already.
    """
    process, clock = region.ground.process(node), region.clock
    if process.stopped:
        return
    region.ground.loop.stop_process(process)
    end = clock.monotonic() + for_s
    silent: dict[Pipe, float] = {}      # since when it is known to be
    while _stopped(process) and clock.monotonic() < end:
        for pipe in [pipe for pipe in region.ground.fabric.pipes if node in (pipe.dialler, pipe.peer)]:
            if clock.monotonic() - silent.setdefault(pipe, clock.monotonic()) >= silence_s(pipe.method):
                pipe.break_off()
        await asyncio.sleep(min(PING_S, max(0.0, end - clock.monotonic())))
    region.resume(node)


async def trouble(region: Region, trouble: Trouble, for_s: float) -> None:
    """On the network, for a while. Silence is noticed by pings, also where nothing is sent."""
    region.link.begin(trouble)
    if trouble.silent:
        for pipe in list(region.ground.fabric.pipes):
            for ends in ((pipe.dialler, pipe.peer), (pipe.peer, pipe.dialler)):
                if trouble.ails(*ends):
                    pipe.lose(*ends)
    try:
        await asyncio.sleep(for_s)
    finally:
        region.link.end(trouble)


def resume(region: Region) -> None:
    """Every process that is stopped goes on."""
    for node in region.ground.processes:
        region.resume(node)


def _stopped(process: Process) -> bool:
    """Looked at again: whoever kills it lets it go on."""
    return process.stopped


def _place(region: Region, node: str) -> str | None:
    return next((place for place in region.ground.shape.places if members.worker_node(place) == node), None)


def _control(region: Region, node: str) -> Control[Any]:
    return next(control for control in (region.counting, region.placements, region.managers) if node in control.known)


async def _answered(frontend: Frontend) -> None:
    """What its clients have under way is, or has had its time."""
    if frontend.requests:
        await asyncio.wait(list(frontend.requests), timeout=DRAIN_S)
