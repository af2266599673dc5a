"""Stories: a readable list of events, and the effects that a core gave, compared with a golden file.

    def test_idle_sandbox_is_reused(story):
        core = ManagerCore(...)
        story(core, [(0.0, Reserve(...)), (0.1, SandboxReady(...))])

The golden file lies in ``stories/`` beside the test module, named after the test. ``--rewrite`` writes it anew, so that
a change of behaviour is a diff to read. ``check()`` runs after every event.
"""

import dataclasses
import enum
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from chassis.machine import Core

Tell = Callable[[Core[Any, Any], Iterable[tuple[float, Any]]], None]


@pytest.fixture
def story(request: pytest.FixtureRequest) -> Iterator[Tell]:
    """Feeds ``(now, event)`` pairs to a core and compares the whole story with its golden file.

    May be called several times in one test: the chapters follow each other in one file. An item that is a string is a
    remark for the reader.
    """
    name = request.node.name.replace("[", "-").replace("]", "").removeprefix("test_")
    path = Path(request.path).parent / "stories" / f"{name}.txt"
    chapters: list[str] = []

    def tell(core: Core[Any, Any], events: Iterable[Any]) -> None:
        for item in events:
            if isinstance(item, str):
                chapters.append(f"# {item}")
                continue
            now, event = item
            chapters.append(f"{now:g} {render(event)}")
            effects = core.handle(event, now)
            core.check()
            chapters.extend(f"    -> {render(effect)}" for effect in effects)
        told = "\n".join(chapters) + "\n"
        if request.config.getoption("--rewrite"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(told)
            return
        assert path.exists(), f"no golden file {path.name}: run with --rewrite and read what it says"
        golden = path.read_text()
        assert golden.startswith(told), f"the story changed: run with --rewrite and read the diff of {path.name}"
        request.node.stash[_TOLD] = (told, golden)

    yield tell
    told, golden = request.node.stash.get(_TOLD, ("", ""))
    assert told == golden, f"{path.name} goes on after the test's end: run with --rewrite and read the diff"


_TOLD: pytest.StashKey[tuple[str, str]] = pytest.StashKey()


def render(value: Any) -> str:
    """A message as one short line; fields at their defaults are left out."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        shown = [
            f"{field.name}={render(getattr(value, field.name))}"
            for field in dataclasses.fields(value)
            if not _is_default(field, getattr(value, field.name))
        ]
        return f"{type(value).__name__}({', '.join(shown)})"
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{render(key)}: {render(item)}" for key, item in value.items()) + "}"
    if isinstance(value, set | frozenset):
        return "{" + ", ".join(sorted(render(item) for item in value)) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(render(item) for item in value) + "]"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)


def _is_default(field: "dataclasses.Field[Any]", value: Any) -> bool:
    if field.default is not dataclasses.MISSING:
        return bool(value == field.default)
    if field.default_factory is not dataclasses.MISSING:
        return bool(value == field.default_factory())
    return False
