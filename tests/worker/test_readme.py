"""The diagrams in the worker's README are printed from the tables: they can't go stale."""

from pathlib import Path

from worker.runtime_api.states import TRANSITIONS as API
from worker.slots import TRANSITIONS as SLOTS


def test_diagrams_are_the_tables():
    readme = (Path(__file__).resolve().parents[2] / "worker" / "README.md").read_text()
    assert SLOTS.mermaid() in readme
    assert API.mermaid() in readme
