"""How long an invocation took, and where the time of a cold one went, in words.

The frontend measures; it answers ``x-labda-phases: permit=0,place=1,...`` (milliseconds) to who asks by
``x-labda-explain: 1``. The whole is measured here, at the client.
"""

from labda.api import Answer


def describe(answer: Answer) -> str:
    """``cold 61 ms (permit 0, place 1, ...)`` or ``warm 0.9 ms``."""
    phases = parse(answer.headers.get("x-labda-phases", ""))
    whole_ms = answer.elapsed_s * 1000
    shown = f"{whole_ms:.0f} ms" if whole_ms >= 10 else f"{whole_ms:.1f} ms"
    if not phases:
        return shown
    if "sandbox" not in phases:
        return f"warm {shown}"
    return f"cold {shown} ({', '.join(f'{name} {ms:.0f}' for name, ms in phases.items())})"


def parse(header: str) -> dict[str, float]:
    phases = {}
    for item in header.split(","):
        name, separator, value = item.strip().partition("=")
        if separator:
            phases[name] = float(value)
    return phases
