"""What a trace of admission's core needs beside its events: permits that the hot path takes from blocks and gives back.

Owns the recording of them and how they are redone. Refuses to know why they are taken.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from chassis.machine import Core
from chassis.replay import Recipe, decode
from frontend import messages as m
from frontend.core import FrontendCore, Timing
from frontend.permits import Block, Pool


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """Of one block: what the hot path changes."""

    in_use: int
    peak: int
    runs: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """A pool's blocks as they are now: the one that admits, then the older ones."""

    pool: Pool
    blocks: tuple[Counters, ...]


class BlocksAside:
    """``chassis.machine.Aside`` of a frontend: looks at every block, so that the hot path needn't tell."""

    def __init__(self, core: FrontendCore) -> None:
        self._core = core
        self._known: dict[Pool, tuple[Counters, ...]] = {}

    def changes(self) -> list[Taken]:
        now = self._now()
        return [Taken(pool=pool, blocks=blocks) for pool, blocks in now.items() if blocks != self._known.get(pool)]

    def settled(self) -> None:
        self._known = self._now()

    def _now(self) -> dict[Pool, tuple[Counters, ...]]:
        return {
            pool: tuple(_counters(block) for block in (stock.block, *stock.older))
            for pool, stock in self._core.stocks.items()
        }


def _counters(block: Block) -> Counters:
    return Counters(in_use=block.in_use, peak=block.peak, runs=tuple(block.runs.items()))


def _make(parameters: Mapping[str, Any]) -> FrontendCore:
    return FrontendCore(decode(Timing, parameters["timing"]))


def _redo(core: Core[Any, Any], item: Any) -> None:
    assert isinstance(core, FrontendCore)
    taken: Taken = decode(Taken, item)
    stock = core.stocks[taken.pool]
    for block, counters in zip((stock.block, *stock.older), taken.blocks, strict=True):
        block.in_use, block.peak, block.runs = counters.in_use, counters.peak, dict(counters.runs)


RECIPE = Recipe(make=_make, event=m.Event, aside=_redo)
