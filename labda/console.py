"""What a person sees: one line per finished step, and on a terminal one live line below.

Owns the form of the output. Without a terminal there are plain lines only, and nothing is ever rewritten.
"""

import contextlib
import shutil
import sys
from typing import TextIO

LABEL_COLUMNS = 10
ENDS = "SIGTERM ends everything"   # the last line of a start without a terminal


class Console:
    """Writes to standard output. ``mirror``: a second reader until ``release`` (the parent of a detached start)."""

    def __init__(self, stream: TextIO | None = None, mirror: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._mirror = mirror
        self.terminal = self._stream.isatty()
        self._live = False

    def line(self, label: str, text: str, right: str = "") -> None:
        """``label`` in its column, then the text; ``right`` in a column of its own."""
        line = f"{label:<{LABEL_COLUMNS}} {text}"
        if right:
            line = f"{line:<{max(80, len(line) + 2)}}{right}"
        self.plain(line)

    def plain(self, line: str) -> None:
        self._clear()
        self._stream.write(line + "\n")
        self._stream.flush()
        if self._mirror is not None:
            try:
                self._mirror.write(line + "\n")
                self._mirror.flush()
            except BrokenPipeError:     # who started the cluster has gone; the cluster goes on
                self.release()

    def live(self, text: str) -> None:
        """Replaces the live line; nothing without a terminal."""
        if not self.terminal:
            return
        columns = shutil.get_terminal_size().columns
        self._stream.write("\r\x1b[K" + text[: max(1, columns - 1)])
        self._stream.flush()
        self._live = True

    def release(self) -> None:
        """The mirror has seen enough."""
        if self._mirror is not None:
            with contextlib.suppress(BrokenPipeError):  # closing tries to write what couldn't be written
                self._mirror.close()
            self._mirror = None

    def _clear(self) -> None:
        if self._live:
            self._stream.write("\r\x1b[K")
            self._live = False
