"""``labda deploy``: a folder or an archive becomes a function, or updates one."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from labda import given, package
from labda.api import Answer, Api, Code
from labda.console import Console
from labda.phases import describe
from labda.refusal import Refusal, Status
from labda.state import State


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("path", type=given.path("DIR|ZIP"), metavar="DIR|ZIP", help="the function's code")
    add("--name", type=given.name("--name"), help="of the function (default: the folder's or the archive's name)")
    add("--handler", type=given.name("--handler"), metavar="MODULE.FUNCTION",
        help="(of a new function: lambda_function.lambda_handler, app.handler or main.handler, whichever is there)")
    add("--runtime", type=given.name("--runtime"),
        help="(of a new function: this Python's, or a provided one for code with a bootstrap)")
    add("--memory", type=int, metavar="MB", help="(of a new function: 128)")
    add("--timeout", type=int, metavar="S", help="seconds (of a new function: 3)")
    parser.epilog = "A function that is there keeps every setting that is not given."


def run(options: argparse.Namespace) -> int:
    console = Console()
    api = open_api(options.state)
    try:
        _, line = deploy(options.state, api, options, console)
    finally:
        api.close()
    console.line("deployed", line)
    return Status.OK


def open_api(state: State) -> Api:
    cluster = state.cluster()
    return Api(
        cluster["endpoint"], state.credentials(), cluster["region"], authority=cluster.get("authority", "")
    )


def deploy(state: State, api: Api, options: argparse.Namespace, console: Console) -> tuple[str, str]:
    """Returns the function's name, and what was deployed in words."""
    found = package.read(options.path)
    name, runtime, handler = options.name or found.name, options.runtime, options.handler
    if api.function(name) is None:  # what there is keeps what nobody asked to change
        own = f"python3.{sys.version_info.minor}"
        runtime = runtime or package.choose_runtime(found, state.cluster()["runtimes"], own)
        handler = handler or package.choose_handler(found)
    code = Code(
        name=name, runtime=runtime, handler=handler, memory_mb=options.memory, timeout_s=options.timeout,
        archive=found.archive,
    )
    settled = api.deploy(code, lambda text: console.live(f"deploying  {text}"))
    return code.name, f"{code.name} ({settled['Runtime']}, {settled['MemorySize']} MB)"


def demonstrate(state: State, path: Path, console: Console) -> None:
    """For ``labda up --deploy``: deploys, invokes cold and warm, and says how long each phase took."""
    api = open_api(state)
    try:
        options = argparse.Namespace(path=path, name=None, handler=None, runtime=None, memory=None, timeout=None)
        name, line = deploy(state, api, options, console)
        console.line("deployed", line)
        for _ in range(2):
            answer = api.invoke(name, b"{}", explain=True)
            console.line("invoked", f"{name} -> {_shown(answer)}   {describe(answer)}")
            if "x-amz-function-error" in answer.headers:
                raise Refusal(f"{name} failed: `labda logs {name}{state.words}` shows what it logged")
    finally:
        api.close()


def _shown(answer: Answer) -> str:
    """The payload on one line, short."""
    try:
        value: Any = json.loads(answer.body)
    except ValueError:
        return repr(answer.body[:60])
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
