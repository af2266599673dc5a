"""What one sandbox prints, and what the platform says about it: lines for the log, and the tail for the caller.

Owns the bounds: a line without end is cut, an invocation that floods is cut off with a note. Refuses to know where
lines are kept.
"""

from collections.abc import Callable

LINE_BYTES_MAX = 256 * 1024
TAIL_BYTES = 4096


class FunctionOutput:
    """``emit`` gets each line as text with its line end. ``budget_bytes`` is per invocation."""

    def __init__(self, emit: Callable[[str], None], *, budget_bytes: int, whole_records: bool) -> None:
        self._emit = emit
        self._budget_bytes = budget_bytes
        self._whole_records = whole_records     # JSON: a tail of whole lines only
        self._partial = bytearray()
        self._cutting = False                   # the rest of a line that was too long is thrown away
        self._tail = bytearray()
        self._left_bytes = budget_bytes
        self._dropped_bytes = 0

    @property
    def exhausted(self) -> bool:
        """The invocation's budget is spent: what follows is dropped."""
        return self._left_bytes == 0

    def begin(self, *, keep_tail: bool) -> None:
        """An invocation begins. The first one keeps what init said: cold-start lines belong to its tail."""
        self._left_bytes = self._budget_bytes
        if not keep_tail:
            self._tail.clear()

    def feed(self, data: bytes) -> None:
        """Bytes that the runtime printed."""
        if len(data) > self._left_bytes:
            self._dropped_bytes += len(data) - self._left_bytes
            data = data[: self._left_bytes]
        self._left_bytes -= len(data)
        *lines, rest = data.split(b"\n")
        for line in lines:
            if self._cutting:
                self._cutting = False
            else:
                self._line(bytes(self._partial) + line + b"\n")
            self._partial.clear()
        if not self._cutting:
            self._partial += rest
            if len(self._partial) > LINE_BYTES_MAX:
                self._line(bytes(self._partial[:LINE_BYTES_MAX]))
                self.say(f"[labda] the line above is cut: a log line has at most {LINE_BYTES_MAX} bytes\n")
                self._partial.clear()
                self._cutting = True

    def finish(self) -> None:
        """An invocation or a process ended: what is left without a line end is a line too."""
        self._cutting = False
        if self._partial:
            self._line(bytes(self._partial))
            self._partial.clear()
        if self._dropped_bytes:
            dropped, self._dropped_bytes = self._dropped_bytes, 0
            self.say(
                f"[labda] {dropped} bytes of output dropped: one invocation may log {self._budget_bytes} bytes "
                "(log_bytes_per_invocation of the worker)\n"
            )

    def say(self, text: str) -> None:
        """A line of the platform's own."""
        if text:
            self._keep(text.encode())
            self._emit(text)

    def tail(self) -> bytes:
        """The last 4096 bytes. Text is cut anywhere; then each byte that is no UTF-8 becomes U+FFFD."""
        last = bytes(self._tail[-TAIL_BYTES:])
        if self._whole_records and len(self._tail) > TAIL_BYTES and not self._tail[: -TAIL_BYTES].endswith(b"\n"):
            last = last.partition(b"\n")[2]
        text = last.decode("utf-8", "surrogateescape")
        return "".join("\ufffd" if 0xDC80 <= ord(c) <= 0xDCFF else c for c in text).encode()

    def _line(self, line: bytes) -> None:
        self._keep(line)
        self._emit(line.decode("utf-8", "replace"))

    def _keep(self, line: bytes) -> None:
        self._tail += line
        if len(self._tail) > 8 * TAIL_BYTES:
            # One byte more than a tail stays, so that it shows whether the cut falls on a line's end.
            del self._tail[: -(TAIL_BYTES + 1)]
