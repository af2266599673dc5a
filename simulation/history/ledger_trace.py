"""Records from the trace of a member of counting: its log, and while it leads the ledger as each entry leaves it.

Owns the reading of entries: they are applied to a ledger again, as every member does, and what changed is recorded. So
the records say what the ledger did, and the checks whether it might. Refuses to judge.
"""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from chassis.digest import digest
from chassis.replay import decode
from counting import commands as c
from counting.ledger import Ledger
from counting.snapshot import load
from counting.words import Incarnation, Pool, provisioned, reserved, unreserved
from simulation.history import records as r

Message = Mapping[str, Any]
BEAT_S = 0.1            # most often
_STATES = {c.LeaveWorker: "left", c.EvictWorker: "evicted", c.DeclareDead: "declared dead"}


class LedgerReader:
    """One member's, over all its lives."""

    def __init__(self, node: str) -> None:
        self.node = node
        self._log = _Log(node)
        self._view = _View(node)
        self._leads = False
        self._beat = float("-inf")
        self._frontends: dict[int, str] = {}                    # by link
        self._calls: dict[int, tuple[Pool, ...]] = {}           # whose limits a call changes

    def begin(self, at: float, parameters: Message) -> Iterator[r.Record]:
        del parameters
        self._log = _Log(self.node)
        self._view = _View(self.node)
        self._leads = False
        self._frontends.clear()
        self._calls.clear()
        yield r.Life(at=at, node=self.node)

    def note(self, at: float, note: Message) -> Iterator[r.Record]:
        raise ValueError(f"no note of counting is called {note['type']}")

    def event(self, at: float, line: Message) -> Iterator[r.Record]:
        for item in line.get("aside", ()):
            yield from self._aside(at, item)
        event = line["event"]
        match event["type"]:
            case "Led":
                self._leads = True
                yield r.Led(at=at, node=self.node, term=event["term"])
                yield from self._view.whole(at)
            case "Deposed" if self._leads:
                self._leads = False
                yield r.Deposed(at=at, node=self.node, term=event["term"])
            case "Hello":
                self._frontends[event["link"]] = event["frontend"]
            case "LinkLost":
                yield from self._lost(at, self._frontends.pop(event["link"], ""))
        if self._leads:
            yield from self._led_event(at, event)
            for effect in line["effects"]:
                yield from self._effect(at, effect)
            if at - self._beat >= BEAT_S:
                self._beat = at
                yield r.Beat(at=at, node=self.node)

    def _aside(self, at: float, item: Message) -> Iterator[r.Record]:
        if item["type"] == "Restored":
            self._log.restored()
            self._view.ledger.become(load(item["snapshot"].encode()))
            return
        yield from self._log.applied(at, item)
        changes = self._view.apply(at, decode(c.Batch, item["batch"]))
        if self._leads:
            yield from changes
        else:
            for _ in changes:
                pass    # a follower's ledger is the same, and later

    def _led_event(self, at: float, event: Message) -> Iterator[r.Record]:
        match event["type"]:
            case "Committed":
                yield r.Committed(at=at, node=self.node, index=event["index"], digest=_digest(event["batch"]))
                for result in event["results"]:
                    yield from self._stale(at, result.get("stale", ()))
            case "Ask":
                yield from self._ask(at, event)
            case "RecallAnswered":
                yield r.RecallAnswered(
                    at=at, node=self.node, pool=str(_pool(event["pool"])), round=event["round"],
                    frontend=self._frontends.get(event["link"], ""), given_back=event["given_back"],
                    in_use=event["in_use"],
                )
            case "SetReservedCall":
                account = event["account"]
                self._calls[event["call"]] = (reserved(account, event["function"]), unreserved(account))
            case "SetProvisionedCall":
                account, function = event["account"], event["function"]
                pool = provisioned(account, function, event["qualifier"])
                self._calls[event["call"]] = (self._view.ledger.account(account).home(pool), pool)
            case "SetAccountLimitCall":
                self._calls[event["call"]] = (unreserved(event["account"]),)

    def _lost(self, at: float, frontend: str) -> Iterator[r.Record]:
        """Its wishes are known no longer, unless it has a newer stream."""
        if self._leads and frontend and frontend not in self._frontends.values():
            for pool in self._view.ledger.pools():
                yield r.Wanted(at=at, node=self.node, frontend=frontend, pool=str(pool), waiting=())

    def _ask(self, at: float, event: Message) -> Iterator[r.Record]:
        """A wish of a session that isn't live, or under an older generation, is refused and comes again."""
        frontend, pool, ledger = self._frontends.get(event["link"], ""), _pool(event["pool"]), self._view.ledger
        live = any(session.frontend == frontend and ledger.is_live(session) for session in ledger.sessions)
        heard = live and event["generation"] == ledger.generation(pool) and ledger.exists(pool)
        waiting = tuple(event["waiting"]) if heard else ()
        yield r.Wanted(at=at, node=self.node, frontend=frontend, pool=str(pool), waiting=waiting)

    def _stale(self, at: float, wishes: Iterable[Message]) -> Iterator[r.Record]:
        """Of a session that has permits of an older generation yet: it gives them up, and wishes again (rule 9)."""
        for message in wishes:
            wish = decode(c.Wish, message)
            if not self._view.ledger.may_hold(wish):
                yield r.Wanted(
                    at=at, node=self.node, frontend=wish.session.frontend, pool=str(wish.pool), waiting=()
                )

    def _effect(self, at: float, effect: Message) -> Iterator[r.Record]:
        match effect["type"]:
            case "Propose":
                yield r.Proposed(at=at, node=self.node)
            case "SendGrant" if effect["count"]:
                yield r.Granted(
                    at=at, node=self.node, frontend=self._frontends.get(effect["link"], ""),
                    pool=str(_pool(effect["pool"])), count=effect["count"],
                )
            case "SendThrottled":
                yield r.Throttled(
                    at=at, node=self.node, frontend=self._frontends.get(effect["link"], ""),
                    pool=str(_pool(effect["pool"])), waiting=tuple(effect["waiting"]), round=effect["round"],
                    limit=effect["limit"],
                )
            case "SendUnavailable":
                yield r.Unproven(
                    at=at, node=self.node, frontend=self._frontends.get(effect["link"], ""),
                    pool=str(_pool(effect["pool"])), waiting=tuple(effect["waiting"]), reason=effect["reason"],
                )
            case "SendRecall":
                yield r.Recalled(at=at, node=self.node, pool=str(_pool(effect["pool"])), round=effect["round"])
            case "AnswerLimit" if not effect["outstanding"]:
                for pool in self._calls.pop(effect["call"], ()):
                    yield from self._view.bound(at, pool, effect["generation"])


class _Log:
    """Which entries this life applied, one after the other."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._newest = -1       # not known: entries before it came with a snapshot, or with an earlier life

    def restored(self) -> None:
        self._newest = -1

    def applied(self, at: float, item: Message) -> Iterator[r.Record]:
        index = item["index"]
        yield r.Applied(at=at, node=self._node, index=index, digest=_digest(item["batch"]), after=self._newest)
        self._newest = index


class _View:
    """A ledger, and what was last said of it."""

    def __init__(self, node: str) -> None:
        self.ledger = Ledger()
        self._node = node
        self._levels: dict[Pool, tuple[int, int, int, int | None]] = {}
        self._rooms: dict[str, int] = {}
        self._sizes: dict[tuple[str, Pool], int] = {}
        self._states: dict[str, str] = {}
        self._written: dict[tuple[Pool, int], tuple[float, int]] = {}   # (when, limit) by pool and generation

    def whole(self, at: float) -> Iterator[r.Record]:
        """All of it, for who begins to lead: what came between it and the leader before is in no record."""
        self._levels.clear()
        self._rooms.clear()
        self._sizes.clear()
        self._states.clear()
        for host, nonces in self.ledger.gone.items():
            for nonce in sorted(nonces):
                yield self._member(at, Incarnation(host=host, nonce=nonce), "gone")
        yield from self._sessions(at)
        pools = self._pools()
        yield from self._changes(at, pools, "")
        for pool in pools:
            written = self._written.setdefault(
                (pool, self.ledger.generation(pool)), (at, self.ledger.limit(pool))
            )
            if not self.ledger.outstanding(pool) and self.ledger.crossing(pool) == 0:
                yield r.Bound(at=at, node=self._node, pool=str(pool), limit=written[1], since=written[0])

    def apply(self, at: float, batch: c.Batch) -> Iterator[r.Record]:
        """Command by command: within one entry a limit may be raised, used and lowered."""
        self.ledger.apply(dataclasses.replace(batch, commands=()))      # ledger time takes its step
        for command in batch.commands:
            members = {host: member.nonce for host, member in self.ledger.members.items()}
            self.ledger.apply(dataclasses.replace(batch, stamp=self.ledger.time, commands=(command,)))
            yield from self._after(at, command, members)

    def bound(self, at: float, pool: Pool, generation: int) -> Iterator[r.Record]:
        written = self._written.get((pool, generation))
        if written is not None:
            yield r.Bound(at=at, node=self._node, pool=str(pool), limit=written[1], since=written[0])

    # ------------------------------------------------------------ what a command changed

    def _after(self, at: float, command: c.Command, members: Mapping[str, int]) -> Iterator[r.Record]:
        why = type(command).__name__
        if isinstance(command, c.Acquire):
            pools = dict.fromkeys(pool for wish in command.wishes for pool in self._of_function(wish.pool))
            yield from self._changes(at, pools, why)
            return
        if isinstance(command, c.GiveBack):
            yield from self._changes(at, self._charged(command.pool), why)
            return
        if isinstance(command, c.ChangeOfLimit):
            self._remember(at, command)
        yield from self._membership(at, command, members)
        yield from self._sessions(at)
        yield from self._changes(at, self._pools(), why)

    def _remember(self, at: float, command: c.ChangeOfLimit) -> None:
        pools = [unreserved(command.account)]
        if isinstance(command, c.SetReserved | c.SetProvisioned):
            pools.append(reserved(command.account, command.function))
        if isinstance(command, c.SetProvisioned):
            pools.append(provisioned(command.account, command.function, command.qualifier))
        for pool in pools:
            self._written.setdefault((pool, self.ledger.generation(pool)), (at, self.ledger.limit(pool)))

    def _membership(self, at: float, command: c.Command, before: Mapping[str, int]) -> Iterator[r.Record]:
        if isinstance(command, c.JoinWorker):
            host, nonce = command.incarnation.host, command.incarnation.nonce
            old = before.get(host)
            if old not in {None, nonce}:
                yield self._member(at, Incarnation(host=host, nonce=old or 0), "replaced")
            if old != nonce and self.ledger.is_member(command.incarnation):
                yield self._member(at, command.incarnation, "joined")
        elif isinstance(command, c.LeaveWorker | c.EvictWorker | c.DeclareDead):
            yield self._member(at, command.incarnation, _STATES[type(command)])

    def _member(self, at: float, incarnation: Incarnation, state: str) -> r.Member:
        return r.Member(at=at, node=self._node, incarnation=str(incarnation), state=state)

    def _sessions(self, at: float) -> Iterator[r.Record]:
        states = {str(session): record.state.name.lower() for session, record in self.ledger.sessions.items()}
        for session, state in states.items():
            if self._states.get(session) != state:
                yield r.Session(at=at, node=self._node, session=session, state=state)
        for session in self._states:
            if session not in states:
                yield r.Session(at=at, node=self._node, session=session, state="gone")
        self._states = states

    def _charged(self, pool: Pool) -> list[Pool]:
        """Those whose charge may change when permits of this one come back: pools that functions moved to, or from,
        and those that were charged before."""
        account = self.ledger.account(pool.account)
        carved = [reserved(pool.account, function) for function, sessions in account.crossing.items() if sessions]
        before = [other for other, (_, _, crossing, _) in self._levels.items() if crossing]
        return list(dict.fromkeys([*self._of_function(pool), unreserved(pool.account), *carved, *before]))

    def _of_function(self, pool: Pool) -> list[Pool]:
        """Those that share a reservation with this one."""
        account = self.ledger.account(pool.account)
        beside = [other for other in account.provisioned if other.function == pool.function]
        return list(dict.fromkeys([pool, account.home(pool), *beside])) if pool.function else [pool]

    def _pools(self) -> list[Pool]:
        return list(dict.fromkeys([*self.ledger.pools(), *self._levels]))

    def _changes(self, at: float, pools: Iterable[Pool], why: str) -> Iterator[r.Record]:
        """Blocks and rooms first: a level is judged by them."""
        ledger = self.ledger
        pools = list(pools)
        for name in dict.fromkeys(pool.account for pool in pools):
            account = ledger.account(name)
            room = account.limit - account.total()
            if self._rooms.get(name) != room:
                self._rooms[name] = room
                yield r.Room(at=at, node=self._node, account=name, room=room)
        for pool in pools:
            for session, record in ledger.sessions.items():
                block = record.blocks.get(pool)
                yield from self._block(at, str(session), pool, block.size if block is not None else 0, why)
            for gone, _ in [key for key in self._sizes if key[1] == pool and key[0] not in self._states]:
                yield from self._block(at, gone, pool, 0, why)
            yield from self._level(at, pool, why)

    def _level(self, at: float, pool: Pool, why: str) -> Iterator[r.Record]:
        ledger, before = self.ledger, self._levels.get(pool)
        level = (ledger.limit(pool), ledger.granted(pool), ledger.crossing(pool), ledger.room(pool))
        self._levels[pool] = level
        if level == before:
            return
        yield r.Level(
            at=at, node=self._node, pool=str(pool), limit=level[0], granted=level[1], crossing=level[2], room=level[3]
        )
        if before is None and why == c.Acquire.__name__:    # an account that nothing was ever written about
            yield r.Bound(at=at, node=self._node, pool=str(pool), limit=level[0], since=at)

    def _block(self, at: float, session: str, pool: Pool, size: int, why: str) -> Iterator[r.Record]:
        before = self._sizes.get((session, pool), 0)
        if size == before:
            return
        if size:
            self._sizes[session, pool] = size
        else:
            del self._sizes[session, pool]
        yield r.Block(at=at, node=self._node, session=session, pool=str(pool), size=size, why=why)


def _digest(batch: Message) -> str:
    return digest(json.dumps(batch, sort_keys=True).encode())


def _pool(pool: Message) -> Pool:
    found: Pool = decode(Pool, pool)
    return found
