"""What a function is, and how each request changes it.

Owns the function record, its phases with their one table of transitions, RevisionId and revision rules (reference
sections 8.1, 8.3, 8.5). Every change is a pure function of the record: time and new ids are passed in. Refuses to know
where records are kept, what a request looks like, and the public output.
"""

import enum
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from frontend.identifiers import LATEST

TAGS_MAX = 50


class Phase(enum.Enum):
    """Where a function stands between its metadata being written and every frontend knowing it."""

    CREATING = "creating"
    ACTIVE = "active"
    UPDATING = "updating"


class Step(enum.Enum):
    """What may happen to a function."""

    CHANGED = "changed"  # code or configuration was replaced
    SETTLED = "settled"  # every live frontend knows the newest revision
    TOUCHED = "touched"  # tags or limits: nothing that a sandbox sees


TRANSITIONS: Mapping[tuple[Phase, Step], Phase] = MappingProxyType({
    (Phase.CREATING, Step.SETTLED): Phase.ACTIVE,
    (Phase.CREATING, Step.TOUCHED): Phase.CREATING,
    (Phase.ACTIVE, Step.CHANGED): Phase.UPDATING,
    (Phase.ACTIVE, Step.TOUCHED): Phase.ACTIVE,
    (Phase.UPDATING, Step.SETTLED): Phase.ACTIVE,
    (Phase.UPDATING, Step.TOUCHED): Phase.UPDATING,
})


class WrongPhase(Exception):
    """The step isn't possible now: the function is still being created or updated."""

    def __init__(self, phase: Phase, step: Step) -> None:
        super().__init__(f"a function that is {phase.value} can't be {step.value}")
        self.phase = phase


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """What the customer configures and sandboxes see. ``environment`` None: none was ever given."""

    role: str
    runtime: str
    handler: str
    description: str = ""
    timeout_s: int = 3
    memory_mb: int = 128
    tmp_mb: int = 512
    environment: Mapping[str, str] | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """The archive: SHA-256 as 64 hexadecimal digits, and its size."""

    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionRecord:
    """One function. A sandbox is (account, name, version, revision) for life (invariant 8).

    ``revision`` grows by each change of code or configuration, over deletion and re-creation too. ``revision_id`` is
    the API's RevisionId, rotated by every change. ``changed_at`` (Unix seconds) is when the phase began.
    """

    account: str
    name: str
    version: str = LATEST
    revision: int
    revision_id: str
    phase: Phase
    configuration: Configuration
    code: Code
    last_modified: str
    tags: Mapping[str, str] = field(default_factory=dict)
    changed_at: float


def create(
    account: str,
    name: str,
    configuration: Configuration,
    code: Code,
    *,
    tags: Mapping[str, str],
    revision: int,
    now: float,
    revision_id: str,
) -> FunctionRecord:
    """A new function. ``revision`` has to be above that of any function that had the name before."""
    return FunctionRecord(
        account=account,
        name=name,
        revision=revision,
        revision_id=revision_id,
        phase=Phase.CREATING,
        configuration=configuration,
        code=code,
        last_modified=timestamp(now),
        tags=dict(tags),
        changed_at=now,
    )


def change_code(
    record: FunctionRecord, code: Code, *, now: float, revision_id: str
) -> FunctionRecord:
    """New code, also when its bytes are the same: any accepted update is a change. Raises WrongPhase."""
    return _changed(record, {"code": code}, now, revision_id)


def change_configuration(
    record: FunctionRecord, changes: Mapping[str, Any], *, now: float, revision_id: str
) -> FunctionRecord:
    """Replace the fields of the configuration that ``changes`` names; the others stay. Raises WrongPhase."""
    configuration = replace(record.configuration, **changes)
    return _changed(record, {"configuration": configuration}, now, revision_id)


def _changed(
    record: FunctionRecord, parts: Mapping[str, Any], now: float, revision_id: str
) -> FunctionRecord:
    return replace(
        record,
        **parts,
        phase=after(record.phase, Step.CHANGED),
        revision=record.revision + 1,
        revision_id=revision_id,
        last_modified=timestamp(float(int(now))),
        changed_at=now,
    )


def settle(record: FunctionRecord, *, revision_id: str) -> FunctionRecord:
    """Creation or update is complete. Rotates RevisionId; the revision stays. Raises WrongPhase."""
    return replace(record, phase=after(record.phase, Step.SETTLED), revision_id=revision_id)


def touch(record: FunctionRecord, *, revision_id: str) -> FunctionRecord:
    """A limit of the function changed: RevisionId rotates, LastModified doesn't."""
    return replace(record, phase=after(record.phase, Step.TOUCHED), revision_id=revision_id)


def tag(record: FunctionRecord, tags: Mapping[str, str], *, revision_id: str) -> FunctionRecord:
    """Merge tags. RevisionId rotates even when nothing changes. Raises ValueError above 50 tags."""
    merged = {**record.tags, **tags}
    if len(merged) > TAGS_MAX:
        raise ValueError("Number of tags exceeds resource tag limit.")
    return replace(touch(record, revision_id=revision_id), tags=merged)


def untag(record: FunctionRecord, names: list[str], *, revision_id: str) -> FunctionRecord:
    """Remove tags; absent ones are no error."""
    left = {name: value for name, value in record.tags.items() if name not in names}
    return replace(touch(record, revision_id=revision_id), tags=left)


def after(phase: Phase, step: Step) -> Phase:
    """The phase that follows. Raises WrongPhase for what the table doesn't have."""
    following = TRANSITIONS.get((phase, step))
    if following is None:
        raise WrongPhase(phase, step)
    return following


def timestamp(seconds: float) -> str:
    """Unix seconds as LastModified has them: ``2026-09-13T14:10:42.251+0000``."""
    millis = int(seconds * 1000) % 1000
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{millis:03d}+0000"
