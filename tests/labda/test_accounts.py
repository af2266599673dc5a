"""What an operator's calls about accounts say, over real gRPC; and whose logs are asked for."""

import argparse
import types
from typing import Any

import pytest

from chassis.certificates import Authority
from chassis.credentials import Credentials
from chassis.faults import Fault, FaultCode
from chassis.grpc_network import GrpcNetwork
from chassis.rpc import Caller, Handlers
from labda.accounts import Accounts
from labda.commands import logs
from labda.refusal import Refusal, Status
from labda.region import Region
from labda.state import State
from protos import frontend_pb2, frontend_rpc, placement_pb2

TAKEN = "an account with the name bill exists (bill, 111122223333): choose another"


async def test_a_refusal_is_the_frontends_sentence_and_not_the_way_to_it():
    authority = Authority.create()
    frontend = Caller(service="frontend", node="frontend-az1-1", az="az1", host="h1")
    operator = Caller(service="operator", node="operator", az="az1", host="operator")

    async def create(_request, _caller):
        raise Fault(TAKEN, code=FaultCode.CONFLICT, definite=True)

    handlers = Handlers()
    handlers.unary(frontend_rpc.CREATE_ACCOUNT, create)
    server = await GrpcNetwork(Credentials.fixed(authority.issue(frontend))).serve("127.0.0.1:0", handlers)
    node = placement_pb2.Node(node="frontend-az1-1", service="frontend", address=server.address)
    directory: Any = types.SimpleNamespace(of_service=lambda _service: [node])
    region = Region(GrpcNetwork(Credentials.fixed(authority.issue(operator))), directory)
    with pytest.raises(Refusal) as refused:
        await Accounts(region).create("bill", "")
    await server.close(0)
    assert (refused.value.message, refused.value.status) == (TAKEN, Status.REFUSED)


@pytest.mark.parametrize("named", ["bill", "111122223333"])
async def test_an_operator_names_an_account_by_name_or_id(monkeypatch, named):
    async def everybody(_accounts):
        return [
            frontend_pb2.Account(id="000000000000", name="root", root=True),
            frontend_pb2.Account(id="111122223333", name="bill"),
        ]

    monkeypatch.setattr(Accounts, "all", everybody)
    region: Any = None
    assert await logs._id_of(region, named) == "111122223333"
    with pytest.raises(Refusal, match="there is no account nobody: `labda account list` shows root, bill"):
        await logs._id_of(region, "nobody")


@pytest.mark.parametrize(("words", "there", "said"), [
    (["--follow"], False, "there is no function nosuch"), ([], False, "there is no function nosuch and no log of one"),
    (["--account", "bill"], True, "account bill has no log of a function nosuch"),
])
def test_a_function_that_is_not_there_is_told_and_not_waited_for(monkeypatch, tmp_path, words, there, said):
    async def nothing(*_, follow, **__):
        assert not follow, "it would wait for ever"
        return 0

    monkeypatch.setattr(logs, "_exists", lambda *_: there)
    monkeypatch.setattr(logs, "show", nothing)
    state = State(tmp_path)
    with state.stores_to_itself():
        state.write("cluster.json", {"account": "000000000000"})
        parser = argparse.ArgumentParser()
        logs.arguments(parser)
        options = parser.parse_args(["nosuch", *words])
        options.state = state
        with pytest.raises(Refusal, match=said) as refused:
            logs.run(options)
    assert refused.value.status is Status.REFUSED
