"""Options and facts that all tests share."""

import asyncio
import gc
import os
from collections.abc import AsyncIterator, Iterator, Sequence

import pytest
import structlog
from hypothesis import Phase, settings

# Random walks (tests/walking.py). ``ci``: the same ones in every run, and a failure prints itself as code at once.
# pytest tests/walks --hypothesis-profile=deep: fifty times as many, others each time, and a failure is made small.
settings.register_profile(
    "ci", max_examples=100, derandomize=True, print_blob=True, deadline=None,
    phases=[Phase.explicit, Phase.generate],
)
settings.register_profile("deep", max_examples=5000, derandomize=False, print_blob=True, deadline=None)
settings.load_profile("ci")

pytest_plugins = ["tests.stories"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rewrite", action="store_true", help="rewrite the golden files of stories; read the diff")
    parser.addoption("--plans", type=int, default=300, help="how many fault plans tests/simulation runs")
    parser.addoption("--seeds", type=int, default=1, help="with how many seeds each story of tests/simulation is told")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes a ``seed`` and doesn't say which gets 1 to ``--seeds``."""
    chosen = {name for mark in metafunc.definition.iter_markers("parametrize") for name in _names(mark.args[0])}
    if "seed" in metafunc.fixturenames and "seed" not in chosen:
        metafunc.parametrize("seed", range(1, metafunc.config.getoption("--seeds") + 1))


def _names(written: str | Sequence[str]) -> list[str]:
    """Of parameters, as ``parametrize`` takes them."""
    return [name.strip() for name in written.split(",")] if isinstance(written, str) else list(written)


@pytest.fixture
def needs_root() -> None:
    """Skips, naming what is missing, where a test builds real sandboxes."""
    if os.geteuid() != 0:
        pytest.skip("needs root: namespaces, mounts and cgroups are made here")


@pytest.fixture(autouse=True)
def _logs_begin_anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a command that runs in the tests' own process makes of logging ends with its test: a logger that was cached
    would keep a later test from seeing what it logs."""
    configure = structlog.configure

    def uncached(**settings: object) -> None:
        configure(**{**settings, "cache_logger_on_first_use": False})  # type: ignore[arg-type]  # as it was called

    monkeypatch.setattr(structlog, "configure", uncached)
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session", autouse=True)
async def servers_go_before_the_loop() -> AsyncIterator[None]:
    """grpc.aio's servers schedule their end on the loop when they are collected: that has to be while it lives."""
    yield
    gc.collect()
    await asyncio.sleep(0)
