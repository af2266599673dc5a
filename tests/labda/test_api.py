"""The command's client of the API: where nobody answers it, and what it deploys."""

import argparse
import io
import socket

import pytest

from labda import api
from labda.commands import deploy
from labda.console import Console
from labda.refusal import Refusal
from labda.state import Credentials, State
from tests.frontend_api.world import ACCOUNT, REGION, archive, served


def test_a_frontend_that_accepts_and_says_nothing_is_given_up(monkeypatch):
    """As a stopped one does: its kernel goes on accepting. An invoke may take 15 minutes, a list may not."""
    monkeypatch.setattr(api, "LIST_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"http://127.0.0.1:{mute.getsockname()[1]}"
        client = api.Api(address, Credentials("0" * 12, "AKIA", "x" * 40), "us-east-1")
        try:
            with pytest.raises(Refusal, match="doesn't answer"):
                list(client.functions())
        finally:
            client.close()


@pytest.fixture(scope="module")
def running():
    with served() as world:
        yield world


@pytest.fixture
def client(running):
    key = running.world.key()
    made = api.Api(running.url, Credentials(ACCOUNT, key.key_id, key.secret), REGION)
    yield made
    for function in list(made.functions()):
        made.delete(function["FunctionName"])
    made.close()


@pytest.fixture
def state(tmp_path):
    """Of a cluster that runs, as far as a deployment asks."""
    with State(tmp_path / "state").stores_to_itself():
        made = State(tmp_path / "state")
        made.write("cluster.json", {"runtimes": ["provided.al2023", "python3.11"]})
        yield made


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "fn"
    made.mkdir()
    (made / "app.py").write_text("def handler(event, context):\n    return 1\n")
    return made


def deployed(state, client, path, **changes):
    """`labda deploy` with these options; what the function is then."""
    options = {"name": None, "handler": None, "runtime": None, "memory": None, "timeout": None, **changes}
    name, _ = deploy.deploy(state, client, argparse.Namespace(path=path, **options), Console(io.StringIO()))
    return client.function(name)


def settings(found):
    return found["Runtime"], found["Handler"], found["MemorySize"], found["Timeout"]


def test_a_function_keeps_what_nobody_asked_to_change(state, client, folder):
    (folder / "bootstrap").touch()
    first = deployed(state, client, folder, runtime="python3.11", handler="app.other", memory=256, timeout=9)
    (folder / "app.py").write_text("def handler(event, context):\n    return 2\n")
    again = deployed(state, client, folder)
    assert settings(again) == settings(first) == ("python3.11", "app.other", 256, 9)
    assert again["CodeSha256"] != first["CodeSha256"]
    assert settings(deployed(state, client, folder, timeout=4)) == ("python3.11", "app.other", 256, 4)


@pytest.mark.parametrize(("changes", "spoilt", "said"), [
    ({"memory": 512}, True, "Could not unzip"), ({"memory": 512, "runtime": "python2.7"}, False, "no longer supported"),
    ({"timeout": 8, "handler": "a b"}, False, "'handler' failed to satisfy"),
    ({"timeout": 901}, False, "'timeout' failed to satisfy"),
], ids=["code", "runtime", "handler", "timeout"])
def test_what_is_refused_has_changed_nothing(state, client, folder, tmp_path, changes, spoilt, said):
    before = deployed(state, client, folder)
    path = tmp_path / "fn.zip"
    path.write_bytes(archive({"app.py": "x = 1\n", "/absolute" if spoilt else "more.py": "y = 2\n"}))
    with pytest.raises(Refusal, match=said):
        deployed(state, client, path, **changes)
    assert client.function("fn") == before


def test_new_code_is_there_before_the_handler_that_needs_it(state, client, folder):
    before = deployed(state, client, folder)
    seen = []
    folder.joinpath("main.py").write_text("def handler(event, context):\n    return 2\n")
    send = client._send

    def watched(method, path, *given, body=None, **more):
        if method == "PUT" and not {"DryRun", "RevisionId"} & set(body):
            seen.append(path.rsplit("/", 1)[1])
        return send(method, path, *given, body=body, **more)

    client._send = watched
    after = deployed(state, client, folder, handler="main.handler")
    assert seen == ["code", "configuration"]
    assert (before["Handler"], after["Handler"]) == ("app.handler", "main.handler")
