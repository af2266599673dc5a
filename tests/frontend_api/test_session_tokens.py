"""Session tokens: temporary keys as boto3 and presigned URLs send them, and each thing that is wrong with one."""

import random
import time
import urllib.request
from collections.abc import Callable
from typing import Any
from urllib.error import HTTPError

import pytest
from botocore.exceptions import ClientError

from frontend.api.errors import ApiError
from frontend.auth.keys import PREFIX, AccessKey, Revoked, check_token, encode, new_key, new_session, store_key
from tests.frontend_api.world import ACCOUNT, OTHER_ACCOUNT, Served

RNG = random.Random(11)
NOW = 1_789_000_000.0
Session = tuple[AccessKey, str]


@pytest.fixture
def issue(api: Served) -> Callable[..., Session]:
    def issued(duration_s: float = 900.0, account: str = ACCOUNT) -> Session:
        key, token = new_session(account, RNG, time.time(), duration_s)
        api.run(store_key(api.world.metadata, api.world.cipher, key))
        return key, token

    return issued


def connect(api: Served, key: AccessKey, token: str | None) -> Any:
    return api.connect(key.key_id, key.secret, aws_session_token=token)


def refused(client: Any) -> tuple[str, str, int]:
    with pytest.raises(ClientError) as caught:
        client.list_functions()
    answer = caught.value.response
    return answer["Error"]["Code"], answer["Error"]["Message"], answer["ResponseMetadata"]["HTTPStatusCode"]


def test_a_temporary_key_works_with_its_token_in_headers_and_in_urls(
    api: Served, issue: Callable[..., Session]
) -> None:
    key, token = issue()
    assert key.key_id.startswith("ASIA")
    client = connect(api, key, token)
    assert client.list_functions()["ResponseMetadata"]["HTTPStatusCode"] == 200
    url = client.generate_presigned_url("list_functions")
    assert "X-Amz-Security-Token=" in url
    with urllib.request.urlopen(url, timeout=60) as answer:
        assert answer.status == 200
    bare = "&".join(part for part in url.split("&") if not part.startswith("X-Amz-Security-Token"))
    with pytest.raises(HTTPError) as caught:
        urllib.request.urlopen(bare, timeout=60)
    with caught.value as error:
        assert error.headers["x-amzn-ErrorType"] == "UnrecognizedClientException"


def test_it_belongs_to_its_account(api: Served, issue: Callable[..., Session], make: Any) -> None:
    make("of-the-root-account")
    names = [
        [f["FunctionName"] for f in connect(api, *issue(account=account)).list_functions()["Functions"]]
        for account in (ACCOUNT, OTHER_ACCOUNT)
    ]
    assert "of-the-root-account" in names[0]
    assert "of-the-root-account" not in names[1]


def test_a_wrong_a_missing_and_a_needless_token(api: Served, issue: Callable[..., Session]) -> None:
    key, token = issue()
    wrong = ("UnrecognizedClientException", "The security token included in the request is invalid", 403)
    assert refused(connect(api, key, token[:-1] + ("A" if token[-1] != "A" else "B"))) == wrong
    assert refused(connect(api, key, issue()[1])) == wrong
    assert refused(connect(api, key, None)) == wrong
    assert refused(connect(api, api.world.key(), token)) == wrong


def test_an_expired_token(api: Served, issue: Callable[..., Session]) -> None:
    key, token = issue(duration_s=-1.0)
    assert refused(connect(api, key, token)) == (
        "ExpiredTokenException", "The security token included in the request is expired", 403,
    )
    assert refused(connect(api, key, "another"))[0] == "UnrecognizedClientException"


def test_a_revoked_key_is_unknown(api: Served, issue: Callable[..., Session]) -> None:
    key, token = issue()
    client = connect(api, key, token)
    client.list_functions()
    gone = encode(Revoked(key_id=key.key_id, account=ACCOUNT, at=time.time()), api.world.cipher)
    api.run(api.world.metadata.put(PREFIX + key.key_id, gone, expected=None))
    deadline = time.monotonic() + 60
    while api.world.ring.known(key.key_id) is not None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert refused(client)[0] == "UnrecognizedClientException"


def test_who_has_not_the_token_learns_nothing_of_its_end() -> None:
    key, token = new_session(ACCOUNT, RNG, NOW, 60.0)
    check_token(key, token, NOW + 59.9)
    for given, now, code in [
        (token, NOW + 60, "ExpiredTokenException"),
        ("x" + token[1:], NOW + 60, "UnrecognizedClientException"),
        ("", NOW, "UnrecognizedClientException"),
        (None, NOW, "UnrecognizedClientException"),
        ("\u2603", NOW, "UnrecognizedClientException"),
    ]:
        with pytest.raises(ApiError) as caught:
            check_token(key, given, now)
        assert (caught.value.code, caught.value.status) == (code, 403)
    check_token(new_key(ACCOUNT, RNG, NOW), None, NOW)
    with pytest.raises(ApiError):
        check_token(new_key(ACCOUNT, RNG, NOW), "", NOW)


def test_of_a_token_only_its_digest_is_kept(api: Served) -> None:
    key, token = new_session(ACCOUNT, RNG, NOW, 60.0)
    record = encode(key, api.world.cipher)
    assert token.encode() not in record
    assert key.secret.encode() not in record
