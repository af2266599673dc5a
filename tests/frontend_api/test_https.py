"""The public API by HTTPS, with the client that people use: it verifies the endpoint against the region's root."""

import json
import ssl
import urllib.error
import urllib.request

import botocore.exceptions
import pytest

from chassis.certificates import Authority
from chassis.credentials import Credentials
from frontend.health import PATH
from tests.frontend_api.world import ROLE, Served, archive, served

ROOT = Authority.create()


@pytest.fixture(scope="module")
def secured():
    endpoint = ROOT.intermediate("placement-az1").issue_plain("endpoint", hosts=["127.0.0.1"])
    with served(Credentials(endpoint)) as running:
        yield running
        running.close_clients()


@pytest.fixture
def root(tmp_path):
    path = tmp_path / "root.pem"
    path.write_bytes(ROOT.pem)
    return str(path)


def test_functions_are_made_invoked_and_read_by_https(secured: Served, root: str):
    client = secured.client(verify=root)
    code = archive({"handler.py": "def main(event, context): return event"})
    client.create_function(
        FunctionName="secured", Runtime="python3.11", Role=ROLE, Handler="handler.main", Code={"ZipFile": code}
    )
    client.get_waiter("function_active_v2").wait(
        FunctionName="secured", WaiterConfig={"Delay": 0.02, "MaxAttempts": 500}
    )
    large = json.dumps("x" * 5_000_000).encode()    # many times what TLS holds of an answer
    for payload in (b"{}", large):
        assert client.invoke(FunctionName="secured", Payload=payload)["StatusCode"] == 200
    location = client.get_function(FunctionName="secured")["Code"]["Location"]
    assert location.startswith(secured.url)
    with urllib.request.urlopen(location, context=ssl.create_default_context(cafile=root)) as found:
        assert found.read() == code


def test_a_client_that_trusts_others_does_not_talk(secured: Served, tmp_path):
    other = tmp_path / "other.pem"
    other.write_bytes(Authority.create().pem)
    with pytest.raises(botocore.exceptions.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
        secured.client(verify=str(other)).list_functions()


def test_a_load_balancer_asks_without_a_signature(secured: Served, root: str):
    trust = ssl.create_default_context(cafile=root)

    def ask() -> tuple[int, str]:
        with urllib.request.urlopen(secured.url + PATH.decode(), context=trust) as answer:
            return answer.status, answer.read().decode()

    assert ask() == (200, "serving\n")
    assert secured.world.gate.running == 0
    secured.world.health.leave()
    with pytest.raises(urllib.error.HTTPError) as caught:
        ask()
    assert (caught.value.code, caught.value.read()) == (503, b"not serving: it drains\n")
    caught.value.close()
    assert secured.client(verify=root).list_functions()     # what comes is served all the same
