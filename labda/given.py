"""Words of a command line that name something: a name or a path that is empty names nothing.

Owns that refusal. An empty word is mostly a shell variable that isn't set; taken for "left out" it would mean another
account, another function or the current folder.
"""

from collections.abc import Callable
from pathlib import Path

from labda.refusal import Refusal, Status


def name(what: str) -> Callable[[str], str]:
    """For argparse's ``type``; ``what`` is the argument as people know it. The function raises Refusal."""
    def checked(text: str) -> str:
        if not text.strip():
            remedy = "name one, or leave the option out" if what.startswith("-") else "name one"
            raise Refusal(f"{what} is {text!r}: {remedy} (is a variable of the shell not set?)", Status.USAGE)
        return text
    return checked


def path(what: str) -> Callable[[str], Path]:
    """Likewise: an empty path would be the current folder."""
    checked = name(what)
    return lambda text: Path(checked(text))


def file(path: Path, what: str) -> None:
    """Raises Refusal unless a file is there; ``what`` it is to be, in words."""
    try:
        if path.is_file():
            return
        why = "is no file" if path.exists() else "does not exist"
    except OSError as error:    # a folder on the way that isn't ours to search
        why = f"can't be read ({error.strerror})"
    raise Refusal(f"{path} {why}: name {what}", Status.USAGE)
