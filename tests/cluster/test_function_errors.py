"""What the client gets when a function fails: 200 with FunctionError, the documented payload, and a next invoke."""

import base64
import re
import struct

import pytest

from tests.cluster.cluster import archive, until

GOOD = "def handler(event, context):\n    return 'good'\n"


def failed(functions, source, event=None, **settings):
    name = functions.make(source, **settings)
    result = functions.call(name, event, LogType="Tail")
    assert result.response["StatusCode"] == 200
    assert result.error == "Unhandled", result.payload
    return name, result


def tail(result) -> str:
    return base64.b64decode(result.response["LogResult"]).decode()


def test_exception(functions):
    name, result = failed(
        functions, "def handler(event, context):\n    raise ValueError('no ' + event['what'])\n", {"what": "way"}
    )
    assert result.payload["errorType"] == "ValueError"
    assert result.payload["errorMessage"] == "no way"
    assert result.payload["requestId"] == result.response["ResponseMetadata"]["RequestId"]
    assert any("app.py" in line for line in result.payload["stackTrace"])
    assert "[ERROR] ValueError: no way" in tail(result).replace("\xa0", " ")
    assert functions.call(name, {"what": "no"}).payload["errorMessage"] == "no no"


@pytest.mark.parametrize(
    ("source", "handler", "kind", "message"),
    [
        ("import nothing_like_it\n" + GOOD, "app.handler", "Runtime.ImportModuleError",
         "Unable to import module 'app': No module named 'nothing_like_it'"),
        (GOOD, "app.other", "Runtime.HandlerNotFound", "Handler 'other' missing on module 'app'"),
        (GOOD, "missing.handler", "Runtime.ImportModuleError", "Unable to import module 'missing': No module named"),
        ("def handler(:\n", "app.handler", "Runtime.UserCodeSyntaxError", "Syntax error in module 'app'"),
        (GOOD, "handler", "Runtime.MalformedHandlerName", "Bad handler 'handler'"),
        ("raise RuntimeError('at import')\n", "app.handler", "RuntimeError", "at import"),
    ],
)
def test_failed_initialisation(functions, source, handler, kind, message):
    _, result = failed(functions, source, handler=handler)
    assert result.payload["errorType"] == kind
    assert message in result.payload["errorMessage"]


def test_timeout(functions):
    source = (
        "import pathlib, time\n"
        "def handler(event, context):\n"
        "    mark = pathlib.Path('/tmp/mark')\n"
        "    if event == 'look':\n"
        "        return mark.exists()\n"
        "    mark.touch()\n"
        "    time.sleep(60)\n"
    )
    name, result = failed(functions, source, Timeout=3)     # the next invoke starts the runtime anew within it
    identity = result.response["ResponseMetadata"]["RequestId"]
    assert result.payload == {
        "errorType": "Sandbox.Timedout",
        "errorMessage": f"RequestId: {identity} Error: Task timed out after 3.00 seconds",
    }
    assert "Status: timeout" in tail(result)
    assert functions.call(name, "look").payload is True  # the reset kept /tmp


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("os._exit(0)", "Runtime exited without providing a reason"),
        ("os._exit(12)", "Runtime exited with error: exit status 12"),
        ("os.kill(os.getpid(), 11)", "Runtime exited with error: signal: segmentation fault"),
    ],
)
def test_exit(functions, code, reason):
    source = f"import os\ndef handler(event, context):\n    if event:\n        {code}\n    return 'good'\n"
    name, result = failed(functions, source, 1)
    identity = result.response["ResponseMetadata"]["RequestId"]
    assert result.payload["errorType"] == "Runtime.ExitError"
    assert result.payload["errorMessage"].startswith(f"RequestId: {identity} Error: {reason}")
    assert functions.call(name, 0).payload == "good"


def test_out_of_memory(functions):
    source = (
        "def handler(event, context):\n    if event:\n        x = [b'x' * 1048576 for _ in range(400)]\n"
        "        return len(x)\n    return 'good'\n"
    )
    name, result = failed(functions, source, 1, MemorySize=128)
    assert result.payload["errorType"] in {"Runtime.OutOfMemory", "Runtime.ExitError"}
    assert "signal: killed" in result.payload["errorMessage"]
    report = next(line for line in tail(result).splitlines() if line.startswith("REPORT"))
    assert "Max Memory Used: 128 MB" in report
    assert "Error Type: Runtime.OutOfMemory" in report
    assert functions.call(name, 0).payload == "good"


def test_result_that_is_no_json(functions):
    _, result = failed(functions, "def handler(event, context):\n    return object()\n")
    assert result.payload["errorType"] == "Runtime.MarshalError"
    assert result.payload["errorMessage"].startswith("Unable to marshal response:")


def test_report_line(cluster, functions):
    name = functions.make(GOOD)
    cold = tail(functions.call(name, LogType="Tail"))
    until(lambda: cluster.function(name)["running"] == 0, "its sandbox is idle")
    warm = tail(functions.call(name, LogType="Tail"))
    shape = (
        r"REPORT RequestId: [0-9a-f-]{36}\tDuration: \d+\.\d\d ms\tBilled Duration: (\d+) ms\tMemory Size: 128 MB"
        r"\tMax Memory Used: \d+ MB\t(?:Init Duration: (\d+\.\d\d) ms\t)?\n"
    )
    first, second = re.search(shape, cold), re.search(shape, warm)
    assert first is not None, cold
    assert second is not None, warm
    assert int(first[1]) >= float(first[2])  # init is billed
    assert second[2] is None


def test_an_archive_that_lies_about_its_size(functions, client):
    """Its directory can't be told from an honest one, so that the upload is taken: who invokes hears of it."""
    data = bytearray(archive({"app.py": "#" * 5000}))
    struct.pack_into("<I", data, data.index(b"PK\x01\x02") + 24, 10)
    name = functions.make(GOOD)
    client.update_function_code(FunctionName=name, ZipFile=bytes(data))
    functions.settle(name)
    result = functions.call(name)
    assert result.error == "Unhandled"
    assert result.payload["errorType"] == "InvalidZipFileException"
    assert "app.py" in result.payload["errorMessage"]
    client.update_function_code(FunctionName=name, ZipFile=archive({"app.py": GOOD}))
    functions.settle(name)
    assert functions.call(name).error is None
