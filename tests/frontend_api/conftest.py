"""One served API for the whole run of these tests: tests use function names of their own."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from tests.frontend_api.world import OTHER_ACCOUNT, ROLE, Served, archive, served


@pytest.fixture(scope="session")
def api() -> Iterator[Served]:
    with served() as running:
        yield running


@pytest.fixture(autouse=True)
def _closed(request: pytest.FixtureRequest) -> Iterator[None]:
    """Close the clients of each test that made any."""
    yield
    if "api" in request.fixturenames:
        request.getfixturevalue("api").close_clients()


@pytest.fixture
def client(api: Served) -> Any:
    return api.client()


@pytest.fixture
def other(api: Served) -> Any:
    return api.client(OTHER_ACCOUNT)


@pytest.fixture
def make(client: Any) -> Any:
    """Creates a function and waits until it is active; deletes it afterwards."""
    made = []

    def create(name: str, **changes: Any) -> Any:
        arguments: dict[str, Any] = {
            "FunctionName": name,
            "Runtime": "python3.11",
            "Role": ROLE,
            "Handler": "handler.main",
            "Code": {"ZipFile": archive()},
            **changes,
        }
        created = client.create_function(**arguments)
        made.append(name)
        client.get_waiter("function_active_v2").wait(
            FunctionName=name, WaiterConfig={"Delay": 0.02, "MaxAttempts": 500}
        )
        return created

    yield create
    for name in made:
        with contextlib.suppress(client.exceptions.ResourceNotFoundException):
            client.delete_function(FunctionName=name)
