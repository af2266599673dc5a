"""Random walks of the reservations that a frontend keeps: each goes back once, and a recalled one is not used."""

import asyncio
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from frontend.linger import FunctionKey, Held, Lingering
from protos import common_pb2
from simulation.loop import VirtualLoop
from tests.walking import walk

KEYS = [("a", "f", "$LATEST", 1), ("a", "f", "$LATEST", 2), ("a", "g", "$LATEST", 1)]
LINGER_S = 0.05
PICK = st.integers(0, 7)


@dataclass
class Manager:
    """Who lends: remembers what came back."""

    returned: list[tuple[str, int]] = field(default_factory=list)

    def release(self, sandbox: str, sequence: int) -> None:
        self.returned.append((sandbox, sequence))


class Walk(RuleBasedStateMachine):
    """A sandbox is lent to one request at a time, each time under a higher sequence: the manager sees to that."""

    def __init__(self):
        super().__init__()
        self.loop = VirtualLoop()
        self.lingering = Lingering()
        self.managers = [Manager(), Manager()]
        self.used: list[Held] = []                  # an invocation runs under it
        self.idle: dict[int, tuple[Held, float]] = {}   # lingers, until when
        self.asking: list[tuple[FunctionKey, AbstractContextManager[Any], asyncio.Future[Any]]] = []
        self.lent: dict[str, int] = {}              # sandbox -> sequence
        self.expected: list[list[tuple[str, int]]] = [[], []]

    def run(self, action, seconds=0.0):
        async def there():
            result = action()
            await asyncio.sleep(seconds)
            return result

        return self.loop.run_until_complete(there())

    def goes_back(self, held):
        manager = next(i for i, one in enumerate(self.managers) if one is held.lender)
        self.expected[manager].append((held.reservation.sandbox, held.reservation.sequence))

    @rule(number=st.integers(0, 5), manager=st.integers(0, 1), pass_on_s=st.sampled_from([0.0, 0.04]))
    def is_lent(self, number, manager, pass_on_s):
        sandbox, key = f"s{number}", KEYS[number % 3]
        if any(held.reservation.sandbox == sandbox for held in [*self.used, *(h for h, _ in self.idle.values())]):
            return
        self.lent[sandbox] = self.lent.get(sandbox, 0) + 1
        reservation = common_pb2.Reservation(sandbox=sandbox, sequence=self.lent[sandbox])
        held = self.run(lambda: Held(key, reservation, self.managers[manager], LINGER_S, pass_on_s))
        self.run(lambda: self.lingering.hold(held))
        self.used.append(held)

    @precondition(lambda self: self.used)
    @rule(pick=PICK)
    def invocation_ends(self, pick):
        held = self.used.pop(pick % len(self.used))
        waits = [one for one in self.asking if one[0] == held.key]
        if held.recalled:
            self.goes_back(held)
        elif waits and self.loop.time() < held.pass_on_until:
            self.run(lambda: self.lingering.keep(held))
            assert waits[0][2].result() is held, "not passed on to the oldest"
            self.stops_asking(self.asking.index(waits[0]))
            self.used.append(held)
            return
        else:
            self.idle[id(held)] = (held, self.loop.time() + LINGER_S)
        self.run(lambda: self.lingering.keep(held))

    @rule(key=st.sampled_from(KEYS))
    def asks_the_manager(self, key):
        asking = self.run(lambda: self.lingering.asking(key))
        self.asking.append((key, asking, self.run(asking.__enter__)))

    @precondition(lambda self: self.asking)
    @rule(pick=PICK)
    def stops_asking(self, pick):
        """It has the manager's reply, or what was passed on to it, or its client has gone."""
        _, asking, _ = self.asking.pop(pick % len(self.asking))
        self.run(lambda: asking.__exit__(None, None, None))

    @rule(key=st.sampled_from(KEYS))
    def is_taken(self, key):
        held = self.run(lambda: self.lingering.take(key))
        mine = [one for one, _ in self.idle.values() if one.key == key]
        assert held is (mine[-1] if mine else None), "not the most recently used one"
        if held is not None:
            assert not held.recalled
            del self.idle[id(held)]
            self.used.append(held)

    @rule(number=st.integers(0, 5), older=st.integers(0, 1))
    def is_recalled(self, number, older):
        """A recall of an older sequence comes late: what was lent since stays."""
        sandbox = f"s{number}"
        sequence = self.lent.get(sandbox, 0) - older
        for one, _ in list(self.idle.values()):
            if one.reservation.sandbox == sandbox and one.reservation.sequence <= sequence:
                del self.idle[id(one)]
                self.goes_back(one)
        self.run(lambda: self.lingering.recall(sandbox, sequence))
        for one in self.used:
            if one.reservation.sandbox == sandbox:
                assert one.recalled or one.reservation.sequence > sequence

    @rule(manager=st.integers(0, 1))
    def stream_breaks(self, manager):
        lender = self.managers[manager]
        for one, _ in list(self.idle.values()):
            if one.lender is lender:
                del self.idle[id(one)]
                self.goes_back(one)
        self.run(lambda: self.lingering.drop(lender))
        assert all(one.recalled for one in self.used if one.lender is lender)

    @rule(seconds=st.sampled_from([0.01, 0.03, 0.06]))
    def time_passes(self, seconds):
        end = self.loop.time() + seconds
        for one, until in list(self.idle.values()):
            if until <= end:
                del self.idle[id(one)]
                self.goes_back(one)
        self.run(lambda: None, seconds)

    @invariant()
    def nobody_has_two(self):
        assert not any(future.done() for _, _, future in self.asking)

    @invariant()
    def each_goes_back_once(self):
        for manager, expected in zip(self.managers, self.expected, strict=True):
            assert sorted(manager.returned) == sorted(expected)

    def teardown(self):
        for one, _ in self.idle.values():
            self.goes_back(one)
        self.idle.clear()
        self.run(self.lingering.close)
        self.each_goes_back_once()
        self.loop.close()


TestLingering = Walk.TestCase
TestLingering.settings = walk(examples=60, steps=40)
