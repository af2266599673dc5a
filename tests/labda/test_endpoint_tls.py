"""An embedded cluster's endpoint beyond loopback: its certificate, and the command's own client by HTTPS."""

import dataclasses

import pytest

from chassis.certificates import Authority
from chassis.credentials import Credentials
from labda import endpoint, launch
from labda.api import Api
from labda.launch import Plan
from labda.refusal import Refusal
from labda.state import Credentials as RootKey
from labda.state import State
from labda.topology import Topology
from tests.frontend_api.world import ACCOUNT, REGION, served


def test_a_wildcard_is_called_by_every_name_of_this_host():
    hosts = endpoint.hosts("0.0.0.0:9000")
    assert {"localhost", "127.0.0.1", "::1"} < set(hosts)
    assert endpoint.hosts("[::]:9000") == hosts
    assert endpoint.hosts("10.1.2.3:9000") == ["10.1.2.3"]
    assert endpoint.hosts("example.org:443") == ["example.org"]


@pytest.mark.parametrize(("listen", "secured"), [("127.0.0.1:9000", False), ("0.0.0.0:9000", True)])
def test_frontends_are_given_a_certificate_where_others_can_reach_them(tmp_path, listen, secured):
    state = State(tmp_path)
    state.prepare()
    topology = Topology(azs=1)
    seeds = launch.find_seeds(state, topology)
    plan = Plan(state=state, topology=topology, listen=listen, seeds=seeds, runtimes=tmp_path)
    launch.write(plan)
    member = next(member for member in topology.members() if member.service == "frontend")
    settings = launch.settings(plan, member)
    assert (settings.http_tls is not None) == secured == state.key(launch.ENDPOINT).exists()
    elsewhere = dataclasses.replace(plan, changes={"frontend": {"notice_s": 0.5}})
    assert launch.settings(elsewhere, member).http_tls == settings.http_tls


def test_the_command_verifies_the_endpoint_that_it_talks_to(tmp_path):
    root, other = tmp_path / "root.pem", tmp_path / "other.pem"
    authority = Authority.create()
    root.write_bytes(authority.pem)
    other.write_bytes(Authority.create().pem)
    (tmp_path / "empty.pem").touch()
    with served(Credentials(authority.issue_plain("endpoint", hosts=["127.0.0.1"]))) as running:
        key = running.world.key()
        credentials = RootKey(ACCOUNT, key.key_id, key.secret)
        api = Api(running.url, credentials, REGION, authority=str(root))
        assert list(api.functions()) == []
        api.close()
        with pytest.raises(Refusal, match="CERTIFICATE_VERIFY_FAILED"):
            list(Api(running.url, credentials, REGION, authority=str(other)).functions())
        with pytest.raises(Refusal, match="is to hold the PEM"):
            Api(running.url, credentials, REGION, authority=str(tmp_path / "empty.pem"))
