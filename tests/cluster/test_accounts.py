"""Accounts and keys: one never sees another's functions; whoever can't prove a key gets nothing."""

import asyncio
import random
import time

import pytest
from botocore.exceptions import ClientError

from chassis.clock import SystemClock
from frontend.auth.keys import new_key, store_key
from storage.cipher import Cipher
from storage.open import open_store
from tests.cluster.cluster import ROLE, RUNTIME, archive, call, until

SOURCE = "def handler(event, context):\n    return context.invoked_function_arn\n"


@pytest.fixture(scope="module")
def other(cluster):
    """A client of a second account, whose key is put into the store as an operator would."""
    key = new_key("111122223333", random.SystemRandom(), time.time())

    async def put():
        stores = open_store(f"sqlite://{cluster.root / 'store'}", SystemClock())
        await store_key(stores.metadata, Cipher.open(cluster.root / "data.key"), key)
        await stores.close()

    asyncio.run(put())
    made = cluster.client(key=(key.key_id, key.secret))
    yield made
    made.close()


def test_accounts_do_not_see_each_other(functions, client, other):
    name = functions.make(SOURCE)
    with pytest.raises(other.exceptions.ResourceNotFoundException):
        other.get_function(FunctionName=name)
    with pytest.raises(other.exceptions.ResourceNotFoundException):
        call(other, name)
    assert name not in [found["FunctionName"] for found in other.list_functions()["Functions"]]
    other.create_function(
        FunctionName=name, Runtime=RUNTIME, Handler="app.handler", Code={"ZipFile": archive({"app.py": SOURCE})},
        Role=ROLE.replace("000000000000", "111122223333"),
    )
    try:
        until(lambda: other.get_function_configuration(FunctionName=name)["State"] == "Active", "it serves")
        assert call(other, name).payload == f"arn:aws:lambda:us-east-1:111122223333:function:{name}"
        assert call(client, name).payload == f"arn:aws:lambda:us-east-1:000000000000:function:{name}"
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
