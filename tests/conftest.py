"""Options and facts that all tests share."""

import asyncio
import gc
import os
from collections.abc import AsyncIterator

import pytest

pytest_plugins = ["tests.stories"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rewrite", action="store_true", help="rewrite the golden files of stories; read the diff")


@pytest.fixture
def needs_root() -> None:
    """Skips, naming what is missing, where a test builds real sandboxes."""
    if os.geteuid() != 0:
        pytest.skip("needs root: namespaces, mounts and cgroups are made here")


@pytest.fixture(scope="session", autouse=True)
async def servers_go_before_the_loop() -> AsyncIterator[None]:
    """grpc.aio's servers schedule their end on the loop when they are collected: that has to be while it lives."""
    yield
    gc.collect()
    await asyncio.sleep(0)
