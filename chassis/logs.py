"""Logs: structlog, JSON lines unless a person reads them on a terminal.

Owns the set-up of one process's logs. One canonical line per invocation is the frontend's, and says where it ran; the
request id (``cause``) joins the lines of all services. A line that can't be written (the disk is full) is lost and
counted: no request fails for want of its log line.
"""

import json
import logging
import os
import sys
import time
from collections.abc import MutableMapping
from typing import IO, Any, TextIO, cast

import orjson
import structlog

_LEVELS = {"exception": "error", "warn": "warning", "fatal": "critical"}     # methods that are named otherwise


class LogLines:
    """A text stream for whole lines that never raises OSError: what couldn't be written is counted, and told with the
    next line that can."""

    def __init__(self, file: IO[str]) -> None:
        self._descriptor = file.fileno()
        self.lost = 0

    def write(self, text: str) -> int:
        data = text.encode("utf-8", "backslashreplace")
        if self.lost:
            note = json.dumps({"event": "log lines lost", "lines": self.lost, "level": "warning"})
            data = f"\n{note}\n".encode() + data      # begins anew: the last one may have been cut short
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
        except OSError:
            self.lost += 1
        else:
            self.lost = 0
        return len(text)

    def flush(self) -> None:
        """Nothing is kept back."""


class _Finish:
    """Adds who logs, the level and the time, and renders an exception: one step instead of structlog's four.

    Each invocation logs a line. Level names are structlog's, times its ISO form in UTC.
    """

    def __init__(self, service: str, node: str) -> None:
        self._service = service
        self._node = node
        self._second = -1
        self._prefix = ""

    def __call__(self, logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event["service"], event["node"] = self._service, self._node
        event["level"] = _LEVELS.get(method, method)
        second, micros = divmod(time.time_ns() // 1000, 1_000_000)
        if second != self._second:
            self._second = second
            self._prefix = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        event["timestamp"] = f"{self._prefix}.{micros:06}Z"
        if "exc_info" in event:
            event = structlog.processors.format_exc_info(logger, method, event)
        return event


def configure(*, service: str, node: str, level: str = "info") -> None:
    """Logs to standard error from here on, each line with the service and the node."""
    number = logging.getLevelNamesMapping()[level.upper()]
    terminal = sys.stderr.isatty()
    lines = cast("TextIO", LogLines(sys.stderr))
    finish = _Finish(service, node)
    renderer: structlog.typing.Processor = structlog.dev.ConsoleRenderer() if terminal else _as_json
    structlog.configure(
        processors=[finish, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(file=lines),
        cache_logger_on_first_use=True,
    )
    # What libraries log through the standard module goes the same way.
    handler = logging.StreamHandler(lines)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[finish],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    logging.basicConfig(handlers=[handler], level=max(number, logging.WARNING), force=True)


def _as_json(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> str:
    """What JSON doesn't know is shown as in a debugger."""
    try:
        return orjson.dumps(event, default=repr).decode()
    except TypeError:   # half a surrogate pair, an integer of more than 64 bits, a key that is no text
        return json.dumps(event, default=repr)
