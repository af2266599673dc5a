"""The runtime process's environment: exactly what the platform promises, then the function's own variables.

Owns the list (Lambda's documented variables). Refuses to know where a process gets it from: a driver adds nothing.
"""

import base64
import random
import time

from worker.messages import FunctionId, FunctionSettings
from worker.sandbox.driver import RUNTIME_API_ADDRESS

_PATH = "/var/lang/bin:/usr/local/bin:/usr/bin/:/bin:/opt/bin"
_LIBRARIES = "/var/lang/lib:/lib64:/usr/lib64:/var/runtime:/var/runtime/lib:/var/task:/var/task/lib:/opt/lib"
_BASE64_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"


def log_group(function: FunctionId, settings: FunctionSettings) -> str:
    return settings.log_group or f"/aws/lambda/{function.function}"


def log_stream(function: FunctionId, settings: FunctionSettings, *, wall: float, rng: random.Random) -> str:
    """One stream per sandbox, dated by the UTC day of its creation."""
    day = time.strftime("%Y/%m/%d", time.gmtime(wall))
    number = f"{rng.getrandbits(128):032x}"
    if settings.log_group and settings.log_group != f"/aws/lambda/{function.function}":
        return f"{day}/{function.function}[{function.version}][{number}]"
    return f"{day}/[{function.version}]{number}"


def environment(
    function: FunctionId, settings: FunctionSettings, *, stream: str, on_demand: bool, rng: random.Random
) -> dict[str, str]:
    """The whole environment of one sandbox. The keys in it open nothing: there is no STS yet, but SDKs want some."""
    task_libraries = dict(_overridable(settings.runtime))
    task_libraries.update(settings.environment)
    return task_libraries | {
        "_HANDLER": settings.handler,
        "AWS_REGION": settings.region,
        "AWS_DEFAULT_REGION": settings.region,
        **_execution_environment(settings.runtime),
        "AWS_LAMBDA_FUNCTION_NAME": function.function,
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(settings.memory_mb),
        "AWS_LAMBDA_FUNCTION_VERSION": function.version,
        "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand" if on_demand else "provisioned-concurrency",
        "AWS_LAMBDA_LOG_GROUP_NAME": log_group(function, settings),
        "AWS_LAMBDA_LOG_STREAM_NAME": stream,
        "AWS_LAMBDA_RUNTIME_API": RUNTIME_API_ADDRESS,
        "LAMBDA_TASK_ROOT": "/var/task",
        "LAMBDA_RUNTIME_DIR": "/var/runtime",
        **_keys(rng),
        **_log_format(settings),
    }


def _overridable(runtime: str) -> dict[str, str]:
    """Defaults that a function's own variables win over."""
    defaults = {
        "LANG": "en_US.UTF-8",
        "TZ": ":UTC",
        "PATH": _PATH,
        "LD_LIBRARY_PATH": _LIBRARIES,
        "AWS_XRAY_CONTEXT_MISSING": "LOG_ERROR",
        "AWS_XRAY_DAEMON_ADDRESS": "169.254.100.1:2000",
        "_AWS_XRAY_DAEMON_ADDRESS": "169.254.100.1",
        "_AWS_XRAY_DAEMON_PORT": "2000",
    }
    if runtime.startswith("python"):
        defaults["PYTHONPATH"] = "/var/runtime"
    return defaults


def _execution_environment(runtime: str) -> dict[str, str]:
    return {} if runtime.startswith("provided") else {"AWS_EXECUTION_ENV": f"AWS_Lambda_{runtime}"}


def _log_format(settings: FunctionSettings) -> dict[str, str]:
    if settings.log_format != "JSON":
        return {}
    return {"AWS_LAMBDA_LOG_FORMAT": "JSON", "AWS_LAMBDA_LOG_LEVEL": "INFO"}


def _keys(rng: random.Random) -> dict[str, str]:
    return {
        "AWS_ACCESS_KEY_ID": "ASIA" + "".join(rng.choices(_BASE64_LETTERS, k=16)),
        "AWS_SECRET_ACCESS_KEY": base64.b64encode(rng.randbytes(30)).decode(),
        "AWS_SESSION_TOKEN": base64.b64encode(rng.randbytes(96)).decode(),
    }
