"""The command's client of the API, where nobody answers it."""

import socket

import pytest

from labda import api
from labda.refusal import Refusal
from labda.state import Credentials


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
