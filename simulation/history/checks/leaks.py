"""Invariant 2: after quiet, nothing of a pool is granted and nothing runs.

A pool is quiet while nothing that was admitted from it runs, no request waits that could be, and no block of it
changes. A run on a worker that nobody can reach lasts until the ledger counts that worker out: such a pool isn't quiet.
Where a frontend answered that nobody knows whether the function ran, and no worker began it, the start was lost on its
way: the frontend keeps that permit until the worker speaks again or is a member no longer (rule 3). Where one began it,
its END may be lost as well: then the frontend is cut off, and that for no longer than a fault lasts.
A draining session waits for every worker's word; where authority was renewed twice since, the leader has that word.
Only what a leader has had time for is asked of it: from the beginning of its leadership, and from its newest pause.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping

from simulation.history.invariant import Check, Handler
from simulation.history.leading import Leading
from simulation.history.records import (
    Answered,
    Asked,
    Authority,
    Beat,
    Block,
    Closed,
    Committed,
    Deposed,
    FenceAcked,
    Led,
    Life,
    Lost,
    Member,
    Over,
    Proposed,
    Record,
    Rest,
    Session,
    Start,
)

QUIET_S = 5.0
CUT_OFF_S = 5.0     # more, for a frontend that has borne the worker's silence before it answered
_HELD = frozenset({"live", "counted"})      # a draining session waits for the word of workers
_RENEWALS = 2       # of authority, one after the other, that a worker got since its word: the leader has it by then
_UNKNOWN = 500      # the status of an answer that doesn't know whether the function ran


class NothingLeaks(Check):
    """2."""

    number = 2

    def handlers(self) -> Mapping[type[Record], Handler]:
        self._leading = lead = Leading()
        self._blocks: dict[tuple[str, str], Block] = {}     # those of some size, by session and pool
        self._sessions: dict[str, Session] = {}
        self._members: set[str] = set()                     # incarnations
        self._words: dict[str, dict[str, int]] = defaultdict(dict)  # renewals since, by session and incarnation
        self._heard: dict[str, Record] = {}                 # the newest by which the leader has another's word
        self._asked: dict[str, Asked] = {}                  # requests without an answer
        self._begun: set[str] = set()                       # of them, those that a worker began
        self._open: dict[str, Asked] = {}                   # of them, those that wait for something
        self._waiting: Counter[str] = Counter()             # of them, by the pools that they may be of
        self._answered: dict[str, float] = defaultdict(float)
        self._kept: Counter[tuple[str, str]] = Counter()    # permits of unknown runs, by frontend and pool
        self._kept_until: dict[tuple[str, str], float] = defaultdict(float)
        self._told: set[tuple[str, str]] = set()
        return {
            Proposed: lead.proposed, Committed: lead.committed,
            Led: self._led, Deposed: self._deposed, Beat: self._beat, Block: lead.only(self._block),
            Session: lead.only(self._session), Member: lead.only(self._member),
            Asked: self._ask, Start: self._start, Answered: self._answer, Over: self._over, Life: self._gone,
            Lost: self._gone, FenceAcked: self._word, Authority: self._renewed, Rest: self._rest, Closed: self._closed,
        }

    def _led(self, led: Led) -> None:
        if self._leading.led(led):
            self._blocks.clear()
            self._sessions.clear()

    def _deposed(self, deposed: Deposed) -> None:
        self._leading.deposed(deposed)

    def _block(self, block: Block) -> None:
        if block.size:
            self._blocks[block.session, block.pool] = block
        else:
            self._blocks.pop((block.session, block.pool), None)
            self._kept.pop((_frontend(block.session), block.pool), None)

    def _session(self, session: Session) -> None:
        self._sessions[session.session] = session
        if session.state == "gone":
            self._words.pop(session.session, None)
            self._heard.pop(session.session, None)

    def _member(self, member: Member) -> None:
        """One that is no member any more runs nothing: whoever kept a permit for it may give it back."""
        if member.state == "joined":
            self._members.add(member.incarnation)
        else:
            self._members.discard(member.incarnation)
            self._kept_until.update(dict.fromkeys(self._kept, self.ground.clocks.latest(member)))
            self._kept.clear()

    def _word(self, fence: FenceAcked) -> None:
        self._words[fence.session][self.ground.runs.incarnations.get(fence.node, "")] = 0

    def _renewed(self, authority: Authority) -> None:
        incarnation = self.ground.runs.incarnations.get(authority.node, "")
        for session, words in self._words.items():
            if incarnation in words:
                words[incarnation] += 1
                if words[incarnation] == _RENEWALS:
                    self._heard[session] = authority

    def _is_counted(self, session: Session) -> bool:
        """Or could be: every worker has said what runs of it."""
        words = self._words.get(session.session, {})
        return session.state in _HELD or (
            session.state == "draining" and session.session in self._heard
            and all(words.get(member, 0) >= _RENEWALS for member in self._members)
        )

    def _ask(self, asked: Asked) -> None:
        self._asked[asked.request] = self._open[asked.request] = asked
        for pool in _pools(asked):
            self._waiting[pool] += 1

    def _start(self, start: Start) -> None:
        request = start.invocation.partition("#")[0]
        if request in self._asked:
            self._begun.add(request)

    def _answer(self, answered: Answered) -> None:
        self._over(answered)
        asked = self._asked.pop(answered.request, None)
        begun = answered.request in self._begun
        self._begun.discard(answered.request)
        if asked is None or answered.status != _UNKNOWN:
            return
        for key in ((asked.node, pool) for pool in _pools(asked)):
            if begun:
                until = self.ground.clocks.latest(answered) + CUT_OFF_S
                self._kept_until[key] = max(self._kept_until[key], until)
            else:
                self._kept[key] += 1

    def _over(self, record: Answered | Over) -> None:
        asked = self._open.pop(record.request, None)
        if asked is not None:
            self._leave(asked, record)

    def _gone(self, record: Life | Lost) -> None:
        """Nothing waits at a frontend that was killed, or began anew."""
        for request, asked in list(self._open.items()):
            if asked.node == record.node:
                del self._open[request]
                self._leave(asked, record)
        for request in [request for request, asked in self._asked.items() if asked.node == record.node]:
            del self._asked[request]
            self._begun.discard(request)
        for key in [key for key in self._kept if key[0] == record.node]:
            del self._kept[key]

    def _leave(self, asked: Asked, record: Record) -> None:
        for pool in _pools(asked):
            self._waiting[pool] -= 1
            self._answered[pool] = self.ground.clocks.latest(record)

    def _beat(self, beat: Beat) -> None:
        since = self._leading.beat(beat)
        if since is None:
            return
        clocks, runs = self.ground.clocks, self.ground.runs
        since += clocks.latest(beat) - beat.at      # its own clock's
        for (session, pool), block in self._blocks.items():
            state = self._sessions.get(session)
            kept = _frontend(session), pool
            if runs.count[pool] or self._waiting[pool] or (session, pool) in self._told:
                continue
            if block.size <= self._kept[kept]:
                continue
            if state is not None and not self._is_counted(state):
                continue
            heard = self._heard.get(session)
            changes = [record for record in (runs.changed.get(pool), state, block, heard) if record is not None]
            quiet = max(since, self._answered[pool], self._kept_until[kept], *map(clocks.latest, changes))
            if clocks.earliest(beat) - quiet > QUIET_S:
                self._told.add((session, pool))
                self.violated(
                    f"{block.size} permits of {pool} are still {session}'s {clocks.earliest(beat) - quiet:.1f} s after "
                    "the last that ran or waited", *changes, beat,
                )

    def _rest(self, rest: Rest) -> None:
        if rest.out:
            self.violated(
                f"{rest.out} permits of {rest.pool} were out {rest.after_s:.1f} s after the last answer"
                f"{' and everything served again' if rest.whole else ''}", rest,
            )

    def _closed(self, closed: Closed) -> None:
        for run in self.ground.runs.running.values():
            start = run.start
            self.violated(
                f"{start.invocation} of {start.function} began in {start.sandbox} on {start.node} and never ended "
                "there", start, closed,
            )


def _pools(asked: Asked) -> tuple[str, str]:
    return f"{asked.account}/{asked.function}", f"{asked.account}/*"


def _frontend(session: str) -> str:
    return session.rpartition("#")[0]
