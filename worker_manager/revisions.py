"""Which revision of each function is the newest, who said so, and who waits until nothing older can start.

Owns that knowledge and the askers. Refuses to know sandboxes (``supply`` retires them) and where revisions are written.

Two kinds of word. *Newest*: somebody has seen a revision, so that older ones are refused to everybody from then on.
*Vouched*: a frontend whose copy of the metadata is certainly current asked for it, or named it, so that a frontend
whose copy may be old can be served it as well. An update turns Successful only after this manager was told of it, so
that what was vouched here stays true until then; a manager that took its functions over anew knows nothing that is
vouched.

So a manager may forget a function as a whole, and does with the one that nobody named for longest when it knows too
many: to know nothing is what every manager begins with.
"""

from dataclasses import replace

from worker_manager.messages import FunctionKey, Reserve, Revised

Name = tuple[str, str]  # account, function


class _Known:
    """One function: revisions by version."""

    __slots__ = ("deleted", "newest", "vouched")

    def __init__(self) -> None:
        self.newest: dict[str, int] = {}
        self.vouched: dict[str, int] = {}
        self.deleted = -1


class Revisions:
    def __init__(self, functions_max: int) -> None:
        self._functions_max = functions_max
        self._known: dict[Name, _Known] = {}                    # named last comes last
        self._askers: dict[tuple[str, str], Revised] = {}       # by frontend and cause

    def outdated(self, function: FunctionKey) -> bool:
        known = self._known.get(_name(function))
        if known is None:
            return False
        return function.revision < known.newest.get(function.version, 0) or function.revision <= known.deleted

    def learn(self, function: FunctionKey) -> bool:
        """Somebody has seen this revision; whether that is news."""
        known = self._named(_name(function))
        if function.revision <= known.newest.get(function.version, 0):
            return False
        known.newest[function.version] = function.revision
        return True

    def forget(self, function: FunctionKey) -> None:
        """The function was deleted at this revision (0: whatever it was)."""
        known = self._named(_name(function))
        known.deleted = max(known.deleted, function.revision or max(known.newest.values(), default=0))

    def objection(self, event: Reserve) -> str:
        """Why the revision that a request asks for can't be served, or nothing."""
        function = event.function
        if self.outdated(function):
            return f"revision {function.revision} of {function.function} is not served any more"
        if not event.unsure:
            self.vouch(function)
        elif self._named(_name(function)).vouched.get(function.version) != function.revision:
            return (
                f"{event.frontend} can't know which revision of {function.function} is current, and nobody who knows "
                f"has named revision {function.revision} to this manager"
            )
        return ""

    def vouch(self, function: FunctionKey) -> None:
        """By a copy that was certainly current when it said so; it may have been overtaken on its way here."""
        if not self.outdated(function):
            self._named(_name(function)).vouched[function.version] = function.revision

    def distrust(self) -> None:
        """Functions came here from another manager: what was said before may have been overtaken there."""
        for known in self._known.values():
            known.vouched.clear()

    def _named(self, name: Name) -> _Known:
        known = self._known.pop(name, None) or _Known()
        self._known[name] = known
        if len(self._known) > self._functions_max:
            del self._known[next(iter(self._known))]
        return known

    # ------------------------------------------------------------ who waits for the end of older revisions

    def ask(self, event: Revised) -> None:
        self._askers[event.frontend, event.cause] = event

    def drop(self, frontend: str, cause: str | None = None) -> None:
        """The asker is gone; ``cause`` None: whatever the frontend asked."""
        for key in [key for key in self._askers if key[0] == frontend and cause in (None, key[1])]:
            del self._askers[key]

    def askers(self) -> list[Revised]:
        return list(self._askers.values())

    @staticmethod
    def concerns(asker: Revised, function: FunctionKey) -> bool:
        """Whether the asker wants nothing to start on sandboxes of ``function`` any more."""
        last = asker.function.revision if asker.deleted else asker.function.revision - 1
        same = replace(function, revision=0) == replace(asker.function, revision=0)
        return same and function.revision <= last


def _name(function: FunctionKey) -> Name:
    return function.account, function.function
