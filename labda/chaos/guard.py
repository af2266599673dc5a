"""Puts back what a command broke, if the command itself dies: a small process of its own that outlives it.

Run: python -m labda.chaos.guard. It reads a JSON object per line, `{"owe": KEY, "argv": [...]}` when something is
about to be broken and `{"paid": KEY}` when it was put back; at the end of its input it runs whatever is still owed, the
newest first. It is in a session of its own, so that neither ^C nor a closed terminal ends it with the command.
"""

import asyncio
import json
import subprocess
import sys
from collections.abc import Sequence

UNDO_S = 60.0


class Guard:
    """The command's side. ``close`` it when nothing is owed, or to have it put back."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def open(cls) -> "Guard":
        return cls(await asyncio.create_subprocess_exec(
            sys.executable, "-m", "labda.chaos.guard", stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
            start_new_session=True,
        ))

    async def owe(self, key: str, argv: Sequence[str]) -> None:
        """Returns when the guard has it, or as good as: a pipe keeps what was written when its writer dies."""
        await self._write({"owe": key, "argv": list(argv)})

    async def paid(self, key: str) -> None:
        await self._write({"paid": key})

    async def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()

    async def _write(self, words: dict[str, object]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(words).encode() + b"\n")
        await self._process.stdin.drain()


def main() -> int:
    owed: dict[str, list[str]] = {}
    for line in sys.stdin:
        words = json.loads(line)
        if "owe" in words:
            owed[words["owe"]] = words["argv"]
        else:
            owed.pop(words["paid"], None)
    status = 0
    for argv in reversed(owed.values()):
        try:
            status |= subprocess.run(argv, stdin=subprocess.DEVNULL, check=False, timeout=UNDO_S).returncode
        except (OSError, subprocess.TimeoutExpired) as error:   # the others are still owed
            sys.stderr.write(f"labda: {' '.join(argv)}: {error}\n")
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
