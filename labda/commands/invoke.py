"""``labda invoke``: runs a function and prints its result; status 1 when the function failed."""

import argparse
import base64
import contextlib
import json
import sys
from pathlib import Path

from labda import given
from labda.commands.deploy import open_api
from labda.phases import describe
from labda.refusal import Refusal, Status


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("name", type=given.name("NAME"), metavar="NAME", help="of the function")
    add("--payload", default="{}", metavar="JSON|@FILE|-",
        help="the event: JSON, @FILE for a file's content, - for standard input (default: {})")
    add("--log", action="store_true", help="show the end of the invocation's log, on standard error")
    add("--explain", action="store_true", help="show where the time went, on standard error")


def run(options: argparse.Namespace) -> int:
    payload = read_payload(options.payload)
    api = open_api(options.state)
    try:
        answer = api.invoke(options.name, payload, explain=options.explain, log=options.log)
    finally:
        api.close()
    sys.stdout.buffer.write(answer.body)
    if answer.body and sys.stdout.isatty():
        sys.stdout.buffer.write(b"\n")
    sys.stdout.buffer.flush()
    if options.log:
        tail = base64.b64decode(answer.headers.get("x-amz-log-result", ""))
        sys.stderr.write(lines_of(tail.decode(errors="replace")))
    if options.explain:
        sys.stderr.write(describe(answer) + "\n")
    return Status.FAILED if "x-amz-function-error" in answer.headers else Status.OK


def lines_of(text: str) -> str:
    """A log's text for people: a runtime joins the lines of one record by carriage returns, which a terminal obeys."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_payload(text: str) -> bytes:
    """Raises Refusal for a file that can't be read and for what isn't JSON."""
    try:
        if text == "-":
            payload = sys.stdin.buffer.read()
        elif text.startswith("@"):
            payload = Path(text[1:]).read_bytes()
        else:
            payload = text.encode()
    except OSError as error:
        raise Refusal(f"can't read the payload from {text[1:]} ({error.strerror}): name a file that exists",
                      Status.USAGE) from error
    try:
        # What is JSON but too much for this reader, as 5,000 digits or 3,000 levels are, is the API's to judge.
        with contextlib.suppress(RecursionError):
            json.loads(payload or b"{}", parse_int=float)
    except ValueError as error:
        raise Refusal(
            f"the payload is not JSON ({error}): give JSON, @FILE or -; a plain text is JSON in double quotes",
            Status.USAGE,
        ) from error
    return payload
