"""The commands for accounts and keys, as far as they need no cluster."""

import argparse
import json

import pytest

from labda.__main__ import main
from labda.commands import account, key
from labda.refusal import Refusal, Status

MADE = {
    "access_key_id": "ASIAX", "account": "111122223333", "created": 0.0, "expires": 3600.0,
    "secret_access_key": "a/b+c", "session_token": "t/o+k",
}


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("15m", 900), ("1h", 3600), ("0s", 0)])
def test_durations(text, seconds):
    assert key.duration_s(text) == seconds


@pytest.mark.parametrize("text", ["", "1", "h", "1d", "-1h", "1.5h", "1h30m", "\u0661h"])
def test_what_is_no_duration(text):
    with pytest.raises(Refusal) as refused:
        key.duration_s(text)
    assert refused.value.status is Status.USAGE


def test_a_shell_reads_what_env_prints():
    lines = key._environment(MADE).splitlines()
    assert lines == [
        "export AWS_ACCESS_KEY_ID=ASIAX", "export AWS_SECRET_ACCESS_KEY=a/b+c", "export AWS_SESSION_TOKEN=t/o+k",
    ]
    # A token of another account in the environment would spoil the signature.
    assert key._environment(MADE | {"session_token": None}).splitlines()[2] == "export AWS_SESSION_TOKEN=''"


def test_the_lists_for_people():
    shown = key.render([MADE | {"expires": None}, MADE])
    assert ("never" in shown.splitlines()[1], shown.splitlines()[2].endswith("(over)")) == (True, True)
    found = {"id": "111122223333", "name": "billing", "created": 0.0, "root": False, "keys": 2, "concurrency": None}
    assert account.render([found]).splitlines()[1].split()[:4] == ["billing", "111122223333", "?", "2"]


@pytest.mark.parametrize(
    "words",
    [("account", "list"), ("account", "create", "a"), ("key", "list"), ("key", "create"), ("key", "revoke", "A")],
)
def test_without_a_cluster_it_is_one_sentence(words, tmp_path, capsys):
    assert main([*words, "--state", str(tmp_path)]) == Status.NO_CLUSTER
    assert "no cluster runs in" in capsys.readouterr().err


def test_the_state_directory_may_stand_before_or_behind_the_action(tmp_path, capsys):
    assert main(["key", "--state", str(tmp_path), "list"]) == Status.NO_CLUSTER
    assert str(tmp_path) in capsys.readouterr().err


def test_a_root_key_is_for_the_root_account(tmp_path):
    (tmp_path / "cluster.json").write_text(json.dumps({}))
    assert main(["key", "create", "--root", "--session", "--state", str(tmp_path)]) == Status.USAGE


@pytest.mark.parametrize(("words", "seconds"), [
    ([], None), (["--account", "bill"], None), (["--session"], 3600), (["--duration", "15m"], 900),
    (["--session", "--duration", "90s"], 90),
], ids=lambda case: " ".join(case) if isinstance(case, list) else str(case))
def test_a_duration_makes_a_key_temporary(words, seconds):
    parser = argparse.ArgumentParser()
    key.arguments(parser)
    assert key.checked(parser.parse_args(["create", *words])) == seconds


@pytest.mark.parametrize(("words", "said"), [
    (["--account", ""], "--account is ''"), (["--account", " "], "--account is ' '"),
    (["--json", "--env"], "leave one out"), (["--root", "--duration", "15m"], "leave --session, --duration"),
    (["--duration", ""], "--duration is ''"),
], ids=lambda case: " ".join(case) if isinstance(case, list) else str(case))
def test_no_key_is_made_for_words_that_can_not_be_meant(words, said, tmp_path, capsys):
    """An account that is empty is mostly a variable that isn't set: the root account isn't meant."""
    assert main(["key", "create", *words, "--state", str(tmp_path)]) == Status.USAGE
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1


@pytest.mark.parametrize("words", [
    ["account", "create", ""], ["account", "create", "a", "--id", ""], ["key", "list", "--account", ""],
    ["key", "revoke", ""], ["deploy", ""], ["deploy", ".", "--name", ""], ["deploy", ".", "--handler", ""],
    ["deploy", ".", "--runtime", ""], ["invoke", ""], ["logs", ""], ["hosts", "declare-dead", ""],
    ["counting", "add", ""], ["counting", "remove", ""], ["cluster", "revoke", ""], ["cluster", "token", ""],
    ["cluster", "replace", ""], ["chaos", "run", ""], ["chaos", "check", ""], ["backup", ""], ["restore", ""],
    ["up", "--record", ""], ["up", "--deploy", ""], ["up", "--runtimes", ""], ["metrics", "--node", ""],
    ["status", "--state", ""], ["key", "list", "--state", ""], ["cluster", "stop", "--state", ""],
], ids=" ".join)
def test_nothing_is_named_by_an_empty_word(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(words) == Status.USAGE
    told = capsys.readouterr().err
    assert " is '': " in told
    assert told.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_parsers_know_their_actions():
    for module in (account, key):
        parser = argparse.ArgumentParser()
        module.arguments(parser)
        with pytest.raises(SystemExit):
            parser.parse_args([])
