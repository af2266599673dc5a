"""A verdict in numbers and in lines, as ``labda chaos run`` and ``labda chaos check`` print it.

Owns the figures (`--json`) and the words. What is right or wrong is ``judge``'s.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from labda.chaos.faults import HITS, away
from labda.chaos.history import Fault, Ledger, Limit, Opened, Request, of_type
from labda.chaos.judge import Judged, failed, new_workers, warm_share
from labda.chaos.runs import FOREVER
from labda.chaos.steadiness import Span, gap, leaderless, leaders, stepped_down, stranded
from labda.console import LABEL_COLUMNS

SLOW_S = 1.0        # a request that waited longer than this, beyond its run, noticed something


def figures(judged: Judged) -> dict[str, Any]:
    """Seconds; ``at`` and the like are counted from when the load was at its rate (t)."""
    opened, hits = judged.opened, judged.hits
    requests = [one for one in of_type(judged.records, Request) if one.at >= opened.steady_at]
    hit_at = hits[0].at if hits else FOREVER
    before = [one for one in requests if one.at < hit_at - opened.run_s]
    after = [one for one in requests if one.at >= hit_at]
    return {
        "scenario": opened.scenario, "target": opened.target, "seed": opened.seed, "wall": opened.wall,
        "verdict": "pass" if judged.passed else "fail", "violations": list(judged.violations),
        "load": _load(judged, requests),
        "faults": [_fault(one, opened) for one in of_type(judged.records, Fault)],
        "errors": _errors(judged),
        "waited": {"before": _waited(before, opened), "after": _waited(after, opened)},
        "slow_until": _slow_until(requests, opened, hit_at),
        "warm": {
            "before": warm_share(judged.runs, since=opened.steady_at, until=hit_at),
            "after": warm_share(judged.runs, since=hits[-1].done + opened.promise.over_s) if hits else None,
        },
        "cold": _cold(judged),
        "limits": {"runs": len(judged.runs.all), "pools": len({one.function for one in of_type(judged.records, Limit)}),
                   "unknown": judged.runs.unknown},
        "permits": {one.moment: _permits(one, judged) for one in of_type(judged.records, Ledger)},
        "gap": _span(gap(judged.records, judged.runs, since=opened.steady_at), opened),
        "stranded": _stranded(judged),
        "leaders": _leaders(judged),
    }


def _load(judged: Judged, requests: Sequence[Request]) -> dict[str, Any]:
    opened = judged.opened
    limits = {one.function: one.limit for one in of_type(judged.records, Limit)}
    end = max((one.done for one in requests), default=opened.steady_at)
    busy_s = sum(
        min(run.end, end) - max(run.start, opened.steady_at) for run in judged.runs.all
        if run.end > opened.steady_at and run.start < end
    )
    whole_s = sum(limits.values()) * (end - opened.steady_at)
    return {
        "rate": opened.rate, "run_s": opened.run_s, "functions": len(limits),
        "pool": max(limits.values(), default=0), "use": busy_s / whole_s if whole_s > 0 else 0.0,
        "requests": len(requests), "ok": sum(not failed(one) for one in requests),
        "refused": dict(Counter(f"{one.status} {one.error}" for one in requests if failed(one))),
    }


def _fault(fault: Fault, opened: Opened) -> dict[str, Any]:
    return {
        "at": fault.at - opened.steady_at, "took": fault.done - fault.at, "action": fault.action,
        "nodes": list(fault.nodes), "held": list(fault.held), "how": fault.how,
    }


def _errors(judged: Judged) -> dict[str, Any]:
    """``last_after``: from the newest fault before it to when the last failure was known."""
    excuses = Counter(one.excuse for one in judged.failures)
    last = max((one.request.done for one in judged.failures), default=None)
    since = max((hit.at for hit in judged.hits if last is not None and hit.at <= last), default=None)
    return {
        "there": excuses["there"], "notice": excuses["notice"], "refused": excuses["refused"],
        "unexcused": excuses[""],
        "last_at": last - judged.opened.steady_at if last is not None else None,
        "last_after": last - since if last is not None and since is not None else None,
    }


def _waited(requests: Sequence[Request], opened: Opened) -> dict[str, float] | None:
    """Beyond the run, from when a request was due: of those that succeeded."""
    waits = sorted(one.done - one.at - opened.run_s for one in requests if not failed(one))
    if not waits:
        return None
    return {"p50": waits[len(waits) // 2], "p99": waits[int(len(waits) * 0.99)], "max": waits[-1]}


def _slow_until(requests: Sequence[Request], opened: Opened, hit_at: float) -> float | None:
    """From the first hit to the last due time of a request that waited ``SLOW_S`` or failed. None: none did."""
    slow = [
        one.at for one in requests
        if one.done > hit_at and (failed(one) or one.done - one.at - opened.run_s > SLOW_S)
    ]
    return max(0.0, max(slow) - hit_at) if slow else None


def _cold(judged: Judged) -> dict[str, Any]:
    """Sandboxes whose first run began after the first hit, and workers that hadn't been there before."""
    hit_at = judged.hits[0].at if judged.hits else FOREVER
    first: dict[str, float] = {}
    for run in judged.runs.all:
        first.setdefault(run.sandbox, run.start)
    return {
        "sandboxes": sum(at >= hit_at for at in first.values()), "new_workers": new_workers(judged.records),
    }


def _permits(ledger: Ledger, judged: Judged) -> dict[str, Any]:
    lost = away(judged.records, ledger.at)
    return {
        "granted": sum(pool.granted for pool in ledger.pools),
        "stranded": sum(pool.granted - pool.out(away=lost) for pool in ledger.pools),
        "until": max((one.until for one in ledger.hosts), default=ledger.at) - judged.opened.steady_at,
        "hosts": [one.host for one in ledger.hosts],
        "after": ledger.at - ledger.since,
    }


def _span(span: Span | None, opened: Opened) -> dict[str, float] | None:
    return {"at": span.at - opened.steady_at, "lasted": span.lasted_s} if span is not None else None


def _stranded(judged: Judged) -> dict[str, Any]:
    """While the run went on: of frontends that were gone."""
    most, longest = stranded(judged.records)
    return {"most": most, "longest": _span(longest, judged.opened)}


def _leaders(judged: Judged) -> dict[str, Any]:
    """Of counting, as the region saw them."""
    opened = judged.opened
    led = leaders(judged.records, since=opened.steady_at)
    return {
        "changes": [{"at": one.at - opened.steady_at, "node": one.node} for one in led],
        "none": _span(leaderless(judged.records, since=opened.steady_at), opened),
        "stepped_down": [{"node": one.node, "after": one.after_s} for one in stepped_down(judged.records)],
    }


# ---------------------------------------------------------------- for people


def render(judged: Judged, *, live: bool = False) -> str:
    """``live``: the load and the faults were told as they happened."""
    numbers = figures(judged)
    lines = [] if live else [
        ("load", load_told(judged.opened, [one for one in judged.records if isinstance(one, Limit)])),
        *((f"t+{fault['at']:.1f} s", _fault_told(fault)) for fault in numbers["faults"]),
    ]
    lines += [
        ("answered", _answered_told(numbers["load"])),
        ("errors", _errors_told(numbers)),
        ("waited", _waited_told(numbers)),
        ("gap", _gap_told(numbers["gap"])),
        ("cold", _cold_told(numbers)),
        ("limits", _limits_told(numbers)),
        ("permits", _permits_told(numbers)),
        ("leaders", _leaders_told(numbers["leaders"])),
        *(("violated", sentence) for sentence in judged.violations),
    ]
    return "".join(f"{label:<{LABEL_COLUMNS}} {text}\n" for label, text in lines)


def told(fault: Fault, opened: Opened) -> tuple[str, str]:
    """One fault as it happens: its label and its line."""
    numbers = _fault(fault, opened)
    return f"t+{numbers['at']:.1f} s", _fault_told(numbers)


def load_told(opened: Opened, limits: Sequence[Limit]) -> str:
    """What is asked for."""
    return (
        f"{opened.rate:g} requests/s open loop, {_count(len(limits), 'function')}, pools of "
        f"{max((one.limit for one in limits), default=0)} at {opened.use * 100:.0f} %, runs of {opened.run_s:.1f} s, "
        f"seed {opened.seed}"
    )


def _answered_told(load: dict[str, Any]) -> str:
    refused = ", ".join(f"{count} x {what}" for what, count in load["refused"].items())
    return (
        f"{load['ok']:,} of {load['requests']:,} with their result" + (f" ({refused})" if refused else "")
        + f"; pools were used at {load['use'] * 100:.0f} %"
    )


_DONE = {"kill": "killed", "hold": "killed, stays away", "release": "started again", "restart": "restarted",
         "cut": "cut off", "heal": "healed", "stop": "stopped (SIGSTOP)", "continue": "continues",
         "strike": "struck", "mend": "mended", "skew": "has a wrong clock", "reset": "has the right time again",
         "fill": "has a full disk", "empty": "has room again", "surge": "overloaded", "ease": "as before"}


def _fault_told(fault: dict[str, Any]) -> str:
    nodes = fault["nodes"]
    azs = sorted({_az(node) for node in nodes})
    whole = len(nodes) > 3
    what = f"{' '.join(azs)} {_DONE[fault['action']]} ({len(nodes)} processes" if whole else (
        f"{' '.join(nodes)} {_DONE[fault['action']]}"
    )
    held = f"held {', '.join(fault['held'])}" if fault["held"] and fault["action"] in HITS else ""
    held = "; ".join(filter(None, (fault["how"], held)))
    if whole:
        return what + (f"; {held})" if held else ")")
    return what + (f" ({held})" if held else "")


def _az(node: str) -> str:
    return next((part for part in node.split("-") if part.startswith("az")), node)


def _errors_told(numbers: dict[str, Any]) -> str:
    errors, hits = numbers["errors"], [one for one in numbers["faults"] if one["action"] in HITS]
    if errors["last_at"] is None:
        return "none"
    parts = []
    if errors["there"]:
        parts.append(f"{errors['there']} in flight there")
    if errors["notice"]:
        parts.append(f"{errors['notice']} before it was noticed")
    if errors["refused"]:
        parts.append(f"{errors['refused']} refused with a reason")
    if errors["unexcused"]:
        parts.append(f"{errors['unexcused']} that nothing excuses")
    since = f" ({errors['last_after']:.1f} s after the fault)" if hits and errors["last_after"] is not None else ""
    return f"{', '.join(parts)}; none after t+{errors['last_at']:.1f} s{since}"


def _waited_told(numbers: dict[str, Any]) -> str:
    parts = [
        f"{when} p50 {_ms(waited['p50'])}, p99 {_ms(waited['p99'])}, max {_ms(waited['max'])}"
        for when, waited in numbers["waited"].items() if waited is not None
    ]
    slow = numbers["slow_until"]
    if slow is not None:
        parts.append(f"none over {SLOW_S:g} s since {slow:.1f} s after the fault")
    return "; ".join(parts)


def _cold_told(numbers: dict[str, Any]) -> str:
    cold, warm = numbers["cold"], numbers["warm"]
    new = ", ".join(cold["new_workers"])
    text = f"{_count(cold['sandboxes'], 'sandbox')} started since, " + (f"new workers: {new}" if new else (
        "none needed a new worker"
    ))
    shares = [f"{share:.1%} {when}" for when, share in warm.items() if share is not None]
    return text + (f"; warm {', '.join(shares)}" if shares else "")


def _limits_told(numbers: dict[str, Any]) -> str:
    limits = numbers["limits"]
    exceeded = any(sentence.startswith("1:") for sentence in numbers["violations"])
    unknown = f"; of {limits['unknown']} failed requests nobody knows whether they began" if limits["unknown"] else ""
    return (
        f"{'EXCEEDED' if exceeded else 'never exceeded'} (checked: {limits['runs']:,} runs, "
        f"{_count(limits['pools'], 'pool')}){unknown}"
    )


def _gap_told(span: dict[str, float] | None) -> str:
    if span is None:
        return "nothing was due"
    return f"no run began for {_ms(span['lasted'])} at the longest, from t+{span['at']:.1f} s on"


def _leaders_told(told: dict[str, Any]) -> str:
    changes = told["changes"]
    if not changes:
        return "no change"
    parts = [f"{_count(len(changes), 'change')}, the last to {changes[-1]['node']} at t+{changes[-1]['at']:.1f} s"]
    if told["none"] is not None:
        parts.append(f"none led for {_ms(told['none']['lasted'])} at the longest")
    parts += [f"{one['node']} stepped down {_ms(one['after'])} after the fault" for one in told["stepped_down"]]
    return "; ".join(parts)


def _permits_told(numbers: dict[str, Any]) -> str:
    moments, during = list(_moments(numbers["permits"])), numbers["stranded"]
    if during["longest"] is not None:
        lasted = _ms(during["longest"]["lasted"])
        moments.insert(0, f"up to {during['most']} of frontends that were gone stranded for {lasted}")
    return "; ".join(moments) or "the ledger was not asked"


def _moments(permits: dict[str, Any]) -> Iterator[str]:
    quiet, end = permits.get("quiet"), permits.get("end")
    if quiet is not None and quiet["stranded"]:
        hosts = " ".join(quiet["hosts"])
        yield (
            f"{quiet['stranded']} stranded: free by t+{quiet['until'] / 60:.0f} min, or when {hosts} is back, or after "
            "`labda hosts declare-dead HOST`"
        )
    elif quiet is not None:
        yield f"{quiet['granted']} out {quiet['after']:.1f} s after the last answer"
    if end is not None:
        yield f"{end['granted']} out at the end"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _count(number: int, noun: str) -> str:
    plural = noun + ("es" if noun[-1] in "sx" else "s")
    return f"{number:,} {noun if number == 1 else plural}"
