"""Accounts and keys: one never sees another's functions; whoever can't prove a key gets nothing."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import pytest
from botocore.exceptions import ClientError

from tests.cluster.cluster import ONCE, REGION, ROLE, ROOT, RUNTIME, archive, call, until, until_some

SOURCE = "def handler(event, context):\n    return context.invoked_function_arn\n"
OTHER = "111122223333"


@pytest.fixture(scope="module")
def account(cluster):
    """A second account, made as an operator makes one."""
    made = labda(cluster, "account", "create", "billing", "--id", OTHER, "--concurrency", "300")
    assert (made["id"], made["name"], made["concurrency"]) == (OTHER, "billing", 300)
    return made


@pytest.fixture(scope="module")
def other(cluster, account):
    """A client of the second account."""
    made = client_of(cluster, labda(cluster, "key", "create", "--account", account["name"]))
    yield made
    made.close()


def labda(cluster, *arguments):
    """What the command says with --json."""
    done = cluster.labda(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def client_of(cluster, key, endpoint=""):
    """boto3 with a key as ``labda key create`` gives it."""
    session = boto3.session.Session(
        aws_access_key_id=key["access_key_id"], aws_secret_access_key=key["secret_access_key"],
        aws_session_token=key["session_token"], region_name=REGION,
    )
    known = endpoint or cluster.environment()["AWS_ENDPOINT_URL"]
    return session.client("lambda", endpoint_url=known, config=ONCE)


def unread(address):
    """Whether bytes lie in a connection to this address that the process there has not read."""
    host, port = address.split(":")
    local = f"{int.from_bytes(socket.inet_aton(host), 'little'):08X}:{int(port):04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return any(row[1] == local and row[3] == "01" and int(row[4].split(":")[1], 16) > 0 for row in rows)


def is_alive(cluster, node):
    """To the region: not silent for so long that it counts as dead."""
    return any(process["health"] != "dead" for process in cluster.status()["processes"] if process["node"] == node)


def refusal(client):
    """The code of the error that a client gets now; empty: none."""
    try:
        client.list_functions()
    except ClientError as error:
        return error.response["Error"]["Code"]
    return ""


def reports(cluster, name, *arguments):
    """The last line that the platform wrote of each invocation, as the command shows them."""
    return [line for line in cluster.labda("logs", name, *arguments).stdout.splitlines() if line.startswith("REPORT")]


def test_accounts_do_not_see_each_other(cluster, functions, client, other):
    name = functions.make(SOURCE)
    with pytest.raises(other.exceptions.ResourceNotFoundException):
        other.get_function(FunctionName=name)
    with pytest.raises(other.exceptions.ResourceNotFoundException):
        call(other, name)
    with pytest.raises(ClientError) as denied:
        call(other, f"arn:aws:lambda:us-east-1:000000000000:function:{name}")
    assert denied.value.response["Error"]["Code"] == "AccessDeniedException"
    assert name not in [found["FunctionName"] for found in other.list_functions()["Functions"]]
    other.create_function(
        FunctionName=name, Runtime=RUNTIME, Handler="app.handler", Code={"ZipFile": archive({"app.py": SOURCE})},
        Role=ROLE.replace("000000000000", "111122223333"),
    )
    try:
        until(lambda: other.get_function_configuration(FunctionName=name)["State"] == "Active", "it serves")
        assert call(other, name).payload == f"arn:aws:lambda:us-east-1:111122223333:function:{name}"
        assert call(client, name).payload == f"arn:aws:lambda:us-east-1:000000000000:function:{name}"
        # An operator sees the log of either, and never both in one.
        theirs = until_some(lambda: reports(cluster, name, "--account", "billing"), "the other's log is there")
        ours = until_some(lambda: reports(cluster, name), "the root account's log is there")
        assert len(theirs) == len(ours) == 1
        assert theirs != ours
    finally:
        other.delete_function(FunctionName=name)
    assert call(client, name).error is None


@pytest.mark.parametrize(
    ("key_id", "secret", "code"),
    [
        ("AKIA2222222222222222", "x" * 40, "UnrecognizedClientException"),
        (None, "x" * 40, "InvalidSignatureException"),
    ],
)
def test_a_wrong_key_opens_nothing(cluster, key_id, secret, code):
    known = cluster.environment()["AWS_ACCESS_KEY_ID"]
    stranger = cluster.client(key=(key_id or known, secret))
    try:
        with pytest.raises(ClientError) as refused:
            stranger.list_functions()
    finally:
        stranger.close()
    assert refused.value.response["Error"]["Code"] == code
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403


def test_the_accounts_are_listed_with_their_limits(cluster, account, client, other):
    found = {each["name"]: each for each in cluster.told("account", "list")}
    assert (found["root"]["id"], found["root"]["root"], found["root"]["concurrency"]) == ("000000000000", True, 1000)
    assert (found["billing"]["id"], found["billing"]["concurrency"]) == (account["id"], 300)
    assert found["billing"]["keys"] >= 1
    assert other.get_account_settings()["AccountLimit"]["ConcurrentExecutions"] == 300
    assert client.get_account_settings()["AccountLimit"]["ConcurrentExecutions"] == 1000
    shown = cluster.labda("account", "list").stdout
    assert "billing" in shown
    assert OTHER in shown


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("account", "create", "billing"), 4, "an account with the name billing exists"),
        (("account", "create", "another", "--concurrency", "0"), 2, "must be between 1 and"),
        (("key", "create", "--session", "--duration", "37h"), 4, "1 to 129600 s"),
        (("key", "list", "--account", "nobody"), 4, "there is no account nobody"),
    ],
)
def test_a_refusal_is_one_sentence(cluster, account, arguments, status, words):
    done = cluster.labda(*arguments)
    assert (done.returncode, done.stdout) == (status, "")
    assert words in done.stderr
    assert " at frontend-" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_revoked_key_is_refused_by_every_frontend(cluster, account):
    key = labda(cluster, "key", "create", "--account", account["name"])
    endpoints = [f"http://{frontend['http']}" for frontend in cluster.processes("frontend")]
    assert len(endpoints) == 3
    clients = [client_of(cluster, key, endpoint) for endpoint in endpoints]
    try:
        assert [refusal(client) for client in clients] == ["", "", ""], "a new key works at once, at any frontend"
        done = labda(cluster, "key", "revoke", key["access_key_id"])
        assert done["outstanding"] == []
        print(f"refused everywhere after {done['bound_s']} s")  # noqa: T201
        assert [refusal(client) for client in clients] == ["UnrecognizedClientException"] * 3
    finally:
        for client in clients:
            client.close()
    assert key["access_key_id"] not in [each["access_key_id"] for each in cluster.told("key", "list")]
    again = cluster.labda("key", "revoke", key["access_key_id"])
    assert again.returncode == 4
    assert "it was revoked" in again.stderr


def test_a_frontend_that_stood_still_while_a_key_was_revoked_refuses_it_too(cluster, account):
    """Its first request after that was waiting already: older than what any watch could tell."""
    key = labda(cluster, "key", "create", "--account", account["name"])
    frontend = cluster.processes("frontend")[1]
    client = client_of(cluster, key, f"http://{frontend['http']}")
    try:
        assert refusal(client) == ""
        os.kill(frontend["pid"], signal.SIGSTOP)
        try:
            revoked = cluster.labda("key", "revoke", key["access_key_id"])
            # Who is silent for longer than the command took to start is dead to the region, and not asked.
            if revoked.returncode == 0:
                assert not is_alive(cluster, frontend["node"]), revoked.stdout
            else:
                assert revoked.returncode == 1
                assert f"{frontend['node']} didn't say that the key is refused there" in revoked.stderr
            with ThreadPoolExecutor() as pool:
                waiting = pool.submit(refusal, client)
                until(lambda: unread(frontend["http"]), "the request is in the stopped frontend's socket")
                os.kill(frontend["pid"], signal.SIGCONT)
                assert waiting.result() == "UnrecognizedClientException"
        finally:
            os.kill(frontend["pid"], signal.SIGCONT)
    finally:
        client.close()
    cluster.await_healthy()


def test_the_root_accounts_last_key_stays_and_another_takes_its_place(cluster):
    first = cluster.environment()["AWS_ACCESS_KEY_ID"]
    refused = cluster.labda("key", "revoke", first)
    assert (refused.returncode, "labda key create --root" in refused.stderr) == (4, True)
    made = labda(cluster, "key", "create", "--root")  # others' clients sign with the first one: it stays too
    assert cluster.environment()["AWS_ACCESS_KEY_ID"] == made["access_key_id"]
    refused = cluster.labda("key", "revoke", made["access_key_id"])
    assert (refused.returncode, "the key that labda itself signs with" in refused.stderr) == (4, True)
    until(lambda: cluster.labda("status").returncode == 0, "everything serves, by the command's word")


def test_a_temporary_key_works_with_every_client_until_its_end(cluster, functions):
    name = functions.make(SOURCE)
    key = labda(cluster, "key", "create", "--session", "--duration", "15m")
    assert key["access_key_id"].startswith("ASIA")
    client = client_of(cluster, key)
    short = client_of(cluster, labda(cluster, "key", "create", "--session", "--duration", "1s"))
    try:
        assert call(client, name).payload.endswith(f":{name}")
        url = client.generate_presigned_url("get_function_configuration", Params={"FunctionName": name})
        with urllib.request.urlopen(url, timeout=30) as answer:
            assert json.load(answer)["FunctionName"] == name
        environment = {
            **os.environ, "AWS_ENDPOINT_URL": cluster.environment()["AWS_ENDPOINT_URL"],
            "AWS_REGION": REGION, "AWS_DEFAULT_REGION": REGION,
            "AWS_ACCESS_KEY_ID": key["access_key_id"], "AWS_SECRET_ACCESS_KEY": key["secret_access_key"],
            "AWS_SESSION_TOKEN": key["session_token"], "AWS_EC2_METADATA_DISABLED": "true",
        }
        listed = subprocess.run(
            [sys.executable, "-m", "awscli", "lambda", "list-functions", "--query", "Functions[].FunctionName"],
            env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
        )
        assert listed.returncode == 0, listed.stderr
        assert name in listed.stdout
        until(lambda: refusal(short) == "ExpiredTokenException", "a key for a second is over")
        assert refusal(client) == ""
    finally:
        client.close()
        short.close()


def test_a_key_can_be_put_into_the_environment(cluster):
    lines = cluster.labda("key", "create", "--session", "--env").stdout.splitlines()
    assert [line.split("=")[0] for line in lines] == [
        "export AWS_ACCESS_KEY_ID", "export AWS_SECRET_ACCESS_KEY", "export AWS_SESSION_TOKEN",
    ]
