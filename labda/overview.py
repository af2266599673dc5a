"""The region's numbers at a glance, from a scrape of every process.

Owns which numbers an operator looks at first, and how they are added up. They are the ones that Prometheus gets:
nothing is counted a second time for people.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from labda.scrape import Scrape, quantile

OUTCOMES = ("ok", "function_error", "throttled", "refused", "failed", "cancelled")
_WORDS = {
    "ok": "ok", "function_error": "function errors", "throttled": "throttled (429)", "refused": "refused (503)",
    "failed": "failed", "cancelled": "gone clients",
}
_LAG = "labda_event_loop_lag_seconds"
_SECONDS = "labda_frontend_invoke_duration_seconds"


def overview(scrapes: Sequence[Scrape]) -> dict[str, Any]:
    """Sums over all processes, since each of them started; durations in seconds, as upper bounds."""
    def total(name: str, **labels: str) -> int:
        return int(sum(one.sum(name, **labels) for one in scrapes))

    worst, lag_s = _worst_lag(scrapes)
    return {
        "invokes": {outcome: total("labda_frontend_invokes_total", outcome=outcome) for outcome in OUTCOMES},
        "cold": total(f"{_SECONDS}_count", start="cold"),
        "waiting": {
            "permits": total("labda_frontend_permits_waiting"), "sandboxes": total("labda_frontend_sandboxes_waiting"),
        },
        "running": total("labda_worker_invocations_running"),
        "creating": total("labda_manager_sandboxes", state="placing")
        + total("labda_manager_sandboxes", state="starting"),
        "warm_p50_s": _finite(quantile(0.50, scrapes, _SECONDS, start="warm")),
        "warm_p99_s": _finite(quantile(0.99, scrapes, _SECONDS, start="warm")),
        "cold_p50_s": _finite(quantile(0.50, scrapes, _SECONDS, start="cold")),
        "ledger": _ledger(scrapes),
        "leader_changes": total("labda_counting_leader_changes_total"),
        "loop_lag_p99_s": lag_s, "loop_lag_worst": worst,
        "memory_mb": total("process_resident_memory_bytes") >> 20,
        "silent": [one.error for one in scrapes if one.error],
    }


def _ledger(scrapes: Sequence[Scrape]) -> dict[str, Any]:
    leaders = [one for one in scrapes if one.sum("labda_counting_leader")]
    leader = max(leaders, key=lambda one: one.sum("labda_counting_term"), default=None)
    if leader is None:
        return {"leader": "", "term": None, "commit_index": None}
    return {
        "leader": leader.node.node, "term": int(leader.sum("labda_counting_term")),
        "commit_index": int(leader.sum("labda_counting_commit_index")),
    }


def _worst_lag(scrapes: Sequence[Scrape]) -> tuple[str, float | None]:
    """The process whose event loop is late the most, by its 99th percentile."""
    found = [(lag, one.node.node) for one in scrapes if (lag := quantile(0.99, [one], _LAG)) is not None]
    lag, node = max(found, default=(None, ""))
    return node, _finite(lag)


def _finite(seconds: float | None) -> float | None:
    return seconds if seconds is None or seconds != float("inf") else None


def rate(before: Mapping[str, Any], after: Mapping[str, Any], spent_s: float) -> float:
    """Invokes per second between two overviews. A frontend that was started anew meanwhile counts from 0."""
    gained: int = sum(after["invokes"].values()) - sum(before["invokes"].values())
    return max(0.0, gained / spent_s)


# ---------------------------------------------------------------- for people


def lines(numbers: Mapping[str, Any]) -> list[str]:
    """Five lines at most."""
    waiting = numbers["waiting"]
    shown = {
        "invokes": _invokes(numbers),
        "took": (
            f"warm p50 {_at_most(numbers['warm_p50_s'])}, p99 {_at_most(numbers['warm_p99_s'])}; "
            f"cold p50 {_at_most(numbers['cold_p50_s'])}"
        ),
        "now": (
            f"{numbers['running']:,} running, {waiting['permits']:,} wait for permits, {waiting['sandboxes']:,} for "
            f"sandboxes, {numbers['creating']:,} sandboxes being made"
        ),
        "ledger": _leader(numbers),
    }
    if numbers["silent"]:
        shown["no numbers"] = "; ".join(numbers["silent"])
    return [f"{title:<16}{text}" for title, text in shown.items()]


def _invokes(numbers: Mapping[str, Any]) -> str:
    always = ("ok", "function_error")
    said = [
        f"{count:,} {_WORDS[outcome]}" for outcome, count in numbers["invokes"].items() if count or outcome in always
    ]
    now = f"{numbers['per_s']:,.1f}/s; " if "per_s" in numbers else ""
    return f"{now}{', '.join(said)}; {numbers['cold']:,} cold"


def _leader(numbers: Mapping[str, Any]) -> str:
    ledger, worst = numbers["ledger"], numbers["loop_lag_worst"]
    said = (
        f"{ledger['leader']} leads in term {ledger['term']}, entry {ledger['commit_index']:,}" if ledger["leader"]
        else "NO LEADER: what frontends hold can be spent, nothing is granted"
    )
    return f"{said}; loop lag p99 {_at_most(numbers['loop_lag_p99_s'])}" + (f" ({worst})" if worst else "")


def _at_most(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"<= {seconds * 1000:g} ms" if seconds < 1 else f"<= {seconds:g} s"
