"""Invariant 13, of refusals: a throttle is the proof of a round (rule 4 of docs/counting.md).

The round began after the request had come, asked every live frontend that held permits of the pool, heard all of them,
and none of them had one idle. Who gave up its permits, or isn't live any more, owes it no word.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from simulation.history.invariant import Check, Handler
from simulation.history.leading import Leading
from simulation.history.records import (
    Block,
    Deposed,
    Led,
    Level,
    Life,
    RecallAnswered,
    Recalled,
    Record,
    Session,
    Throttled,
    Wanted,
)


@dataclass(slots=True)
class _Round:
    """``asked``: the sessions that held permits of the pool when it began. ``heard``: by frontend."""

    began: Recalled
    asked: set[str]
    heard: dict[str, RecallAnswered] = field(default_factory=dict)


class ThrottlesAreProved(Check):
    """13."""

    number = 13

    def handlers(self) -> Mapping[type[Record], Handler]:
        self._leading = lead = Leading()
        self._blocks: dict[str, dict[str, Block]] = defaultdict(dict)       # since it holds any, by pool and session
        self._sessions: dict[str, Session] = {}
        self._levels: dict[str, Level] = {}
        self._rounds: dict[str, _Round] = {}                                # the newest, by pool
        # When a request came, by frontend and pool, then by number.
        self._came: dict[tuple[str, str], dict[int, Wanted]] = defaultdict(dict)
        return {
            Led: self._led, Deposed: self._deposed, Block: lead.only(self._block), Session: lead.only(self._session),
            Level: lead.only(self._level), Wanted: lead.only(self._want), Recalled: lead.only(self._recall),
            RecallAnswered: lead.only(self._heard), Throttled: lead.only(self._throttled),
            Life: self._life,
        }

    def _led(self, led: Led) -> None:
        if self._leading.led(led):
            for known in (self._blocks, self._sessions, self._levels, self._rounds, self._came):
                known.clear()

    def _deposed(self, deposed: Deposed) -> None:
        self._leading.deposed(deposed)

    def _block(self, block: Block) -> None:
        if block.size:
            self._blocks[block.pool].setdefault(block.session, block)
        else:
            self._blocks[block.pool].pop(block.session, None)

    def _session(self, session: Session) -> None:
        self._sessions[session.session] = session

    def _level(self, level: Level) -> None:
        self._levels[level.pool] = level

    def _want(self, wanted: Wanted) -> None:
        """The first word counts: a frontend whose stream broke says it again."""
        came = self._came[wanted.frontend, wanted.pool]
        for number in wanted.waiting:
            came.setdefault(number, wanted)

    def _life(self, life: Life) -> None:
        """A frontend's numbers begin anew."""
        for key in [key for key in self._came if key[0] == life.node]:
            del self._came[key]

    def _recall(self, recalled: Recalled) -> None:
        """Told once for each who is asked."""
        known = self._rounds.get(recalled.pool)
        if known is None or known.began.round != recalled.round:
            self._rounds[recalled.pool] = _Round(recalled, set(self._holders(recalled.pool)))

    def _heard(self, answer: RecallAnswered) -> None:
        known = self._rounds.get(answer.pool)
        if known is not None and known.began.round == answer.round:
            known.heard[answer.frontend] = answer

    def _throttled(self, throttled: Throttled) -> None:
        pool, holders = throttled.pool, self._holders(throttled.pool)
        what = f"requests for {pool} were refused in round {throttled.round}"
        turn = self._rounds.get(pool)
        came = self._came[throttled.frontend, pool]
        if turn is None or turn.began.round != throttled.round:
            # When it began is not told: at the earliest when the last of those whom it refuses had come.
            began = max((came[number].at for number in throttled.waiting if number in came), default=throttled.at)
            held = next((block for block in holders.values() if block.at <= began), None)
            if held is not None:
                self.violated(f"{what}, which asked nobody, while {held.session} held permits", held, throttled)
            elif not holders and self._only_others_hold(pool):
                self.violated(f"{what}, which asked nobody whose runs are charged there", self._levels[pool], throttled)
            return
        for session, block in holders.items():
            if session in turn.asked and _frontend(session) not in turn.heard:
                self.violated(f"{what} without the word of {session}, which held permits", turn.began, block, throttled)
        for answer in turn.heard.values():
            if answer.given_back:
                self.violated(f"{what}, in which {answer.frontend} gave {answer.given_back} back", answer, throttled)
        for number in throttled.waiting:
            wanted = came.get(number)
            if wanted is not None and wanted.at > turn.began.at:
                self.violated(
                    f"{what}, which began before request {number} of {throttled.frontend} came", turn.began, wanted,
                    throttled,
                )

    def _holders(self, pool: str) -> dict[str, Block]:
        """What live sessions hold."""
        return {session: block for session, block in self._blocks[pool].items() if self._is_live(session)}

    def _only_others_hold(self, pool: str) -> bool:
        """Whether permits of other pools are charged here, and for certain those of live sessions."""
        account = pool.partition("/")[0]
        of_account = [sizes for name, sizes in self._blocks.items() if name.partition("/")[0] == account]
        level = self._levels.get(pool)
        return level is not None and level.crossing > 0 and all(
            self._is_live(session) for sizes in of_account for session in sizes
        )

    def _is_live(self, session: str) -> bool:
        known = self._sessions.get(session)
        return known is not None and known.state == "live"


def _frontend(session: str) -> str:
    return session.rpartition("#")[0]
