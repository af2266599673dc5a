"""Options and facts that all tests share."""

import os

import pytest

pytest_plugins = ["tests.stories"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rewrite", action="store_true", help="rewrite the golden files of stories; read the diff")


@pytest.fixture
def needs_root() -> None:
    """Skips, naming what is missing, where a test builds real sandboxes."""
    if os.geteuid() != 0:
        pytest.skip("needs root: namespaces, mounts and cgroups are made here")
