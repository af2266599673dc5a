"""`labda status`: which functions an operator sees, and what runs of them."""

from labda.commands import status
from labda.overview import overview
from protos import common_pb2, counting_pb2, worker_manager_pb2

ROOT, BILLING = "000000000000", "111122223333"
Pools = counting_pb2.ListPoolsAnswer
Described = worker_manager_pb2.DescribeAnswer


def pool(account, function="", limit=0):
    kind = common_pb2.Pool.RESERVED if function else common_pb2.Pool.UNRESERVED
    return Pools.PoolStatus(pool=common_pb2.Pool(account=account, function=function, kind=kind), limit=limit)


def at_manager(account, function, **sandboxes):
    key = common_pb2.FunctionId(account=account, function=function, version="$LATEST", revision=1)
    return Described.FunctionSandboxes(function=key, sandboxes=sandboxes)


def functions(configurations, *, pools=(), managers=None):
    return status._join(configurations, ROOT, Pools(pools=pools), managers or {})


HELLO = {"FunctionName": "hello", "Runtime": "python3.12", "MemorySize": 128}


def test_a_function_of_the_root_account_with_what_runs_and_what_may():
    [found] = functions(
        [HELLO], pools=[pool(ROOT, limit=998), pool(ROOT, "hello", limit=2)],
        managers={"m1": Described(functions=[at_manager(ROOT, "hello", idle=1)]),
                  "m2": Described(functions=[at_manager(ROOT, "hello", idle=1, reserved=2)])},
    )
    assert found == {
        "account": ROOT, "name": "hello", "runtime": "python3.12", "memory_mb": 128, "running": 2, "limit": 2,
        "limit_kind": "reserved", "sandboxes": {"idle": 2, "reserved": 2},
    }


def test_functions_of_other_accounts_that_have_sandboxes_or_a_reservation_follow():
    found = functions(
        [HELLO], pools=[pool(ROOT, limit=900), pool(BILLING, limit=40), pool(BILLING, "hello", limit=10)],
        managers={"m1": Described(functions=[at_manager(BILLING, "bill", reserved=1)])},
    )
    assert [(one["account"], one["name"], one["runtime"], one["running"], one["limit"]) for one in found] == [
        (ROOT, "hello", "python3.12", 0, 900), (BILLING, "bill", None, 1, 40), (BILLING, "hello", None, 0, 10),
    ]


def test_two_functions_of_one_name_are_told_apart():
    report = {
        "endpoint": "http://127.0.0.1:9000", "region": "us-east-1", "version": "0.1", "processes": [
            {"service": "frontend", "node": "frontend-az1-1", "az": "az1", "role": "", "votes": None,
             "health": "serving"}],
        "workers": [{"node": "worker-az1-1", "az": "az1", "host": "host-az1-1", "sandboxes": {}, "memory_free_mb": 1}],
        "margins": [], "numbers": overview([]), "account": ROOT,
        "functions": functions([HELLO], managers={"m1": Described(functions=[at_manager(BILLING, "hello", idle=1)])}),
    }
    lines = status.render(report).splitlines()
    assert [line.split()[:2] for line in lines[-2:]] == [["hello", "python3.12"], [f"{BILLING}/hello", "0/?"]]
