"""Invariants 5, 6 and 15: what becomes of one request, from its client to its run and back."""

from collections.abc import Mapping

from simulation.history.invariant import Check, Handler
from simulation.history.records import Answered, Asked, Record, Refused, Responded, Start

NOTHING_DONE = frozenset({429, 503})        # the platform's word that the request never ran
NAMES_OF_A_LIMIT = frozenset({"limit", "value", "counter", "remedy"})
_FAILED = 400


class StartsOnce(Check):
    """5: a synchronous request starts at most once, and one that was told that nothing was done, never."""

    number = 5

    def handlers(self) -> Mapping[type[Record], Handler]:
        self._starts: dict[str, Start] = {}
        self._refusals: dict[tuple[str, str], Refused] = {}     # by worker and invocation
        self._denied: dict[str, Answered] = {}
        return {Start: self._start, Refused: self._refused, Answered: self._answered}

    def _start(self, start: Start) -> None:
        first = self._starts.setdefault(start.request, start)
        if first is not start:
            self.violated(
                f"request {start.request} of {start.function} was started again: in {first.sandbox} on "
                f"{first.node or 'a worker'} and in {start.sandbox} on {start.node or 'a worker'}", first, start,
            )
        refusal = self._refusals.get((start.node, start.invocation))
        if refusal is not None:
            self.violated(
                f"{start.invocation} was refused for certain ({refusal.reason}) and started later", refusal, start
            )
        denied = self._denied.get(start.request)
        if denied is not None:
            self._told_nothing(denied, start)

    def _refused(self, refused: Refused) -> None:
        self._refusals[refused.node, refused.invocation] = refused

    def _answered(self, answered: Answered) -> None:
        if answered.status not in NOTHING_DONE:
            return
        self._denied[answered.request] = answered
        start = self._starts.get(answered.request)
        if start is not None:
            self._told_nothing(answered, start)

    def _told_nothing(self, answered: Answered, start: Start) -> None:
        self.violated(
            f"request {start.request} of {start.function} was refused ({answered.status} {answered.error}) and ran in "
            f"{start.sandbox}", answered, start,
        )


class AnswersAreOwn(Check):
    """6: every response carries its own request's result."""

    number = 6

    def handlers(self) -> Mapping[type[Record], Handler]:
        self._asked: dict[str, Asked] = {}
        self._responded: dict[str, Responded] = {}
        return {Asked: self._ask, Start: self._start, Responded: self._respond, Answered: self._answer}

    def _ask(self, asked: Asked) -> None:
        self._asked[asked.request] = asked

    def _start(self, start: Start) -> None:
        asked = self._asked.get(start.request)
        if asked is not None and start.digest and asked.digest and start.digest != asked.digest:
            self.violated(
                f"request {start.request} of {start.function} ran with a payload that isn't its own", asked, start
            )

    def _respond(self, responded: Responded) -> None:
        self._responded[responded.invocation.partition("#")[0]] = responded

    def _answer(self, answered: Answered) -> None:
        if answered.status != 200:
            return
        responded = self._responded.get(answered.request)
        whose = _whose(answered)
        if responded is not None and answered.digest and responded.digest != answered.digest:
            self.violated(f"{whose} got an answer that its run didn't give", responded, answered)
        if not answered.echoes or (answered.error and not answered.echo):
            return
        if not answered.echo:
            self.violated(f"{whose} got an answer that is nobody's", answered)
        elif answered.echo != answered.request:
            self.violated(f"{whose} got the answer of {answered.echo}", answered)


class RefusalsExplain(Check):
    """15: every refusal is typed and explains itself. What the client did wrong, AWS's own message explains."""

    number = 15

    def handlers(self) -> Mapping[type[Record], Handler]:
        return {Answered: self._answered}

    def _answered(self, answered: Answered) -> None:
        if answered.status < _FAILED:
            return
        what = f"{_whose(answered)} got {answered.status} {answered.error}".rstrip()
        if not answered.error:
            self.violated(f"{what} without a type", answered)
        elif not answered.explained and (answered.status >= 500 or answered.status == 429):
            self.violated(f"{what} without a Detail that says why", answered)
        elif answered.status == 429 and answered.detail and not NAMES_OF_A_LIMIT.issubset(answered.detail):
            missing = ", ".join(sorted(NAMES_OF_A_LIMIT.difference(answered.detail)))
            self.violated(f"{what} whose Detail doesn't say {missing}", answered)


def _whose(answered: Answered) -> str:
    return f"request {answered.request} of {answered.function}" if answered.function else f"request {answered.request}"
