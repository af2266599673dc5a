"""What a run was good for: how often the rare things happened that the rules are about.

Owns the counting, from the trace and from the members' logs. A batch in which one of these never happened has proved
less than it says.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from counting.raft.member import LogCounts
from simulation.record import Record

ALL = (
    "elections", "compactions", "snapshot installs", "truncations", "fences", "evictions", "recall rounds",
    "false suspicions", "runs reported",
)


def cover(record: Record, logs: Iterable[LogCounts]) -> Counter[str]:
    """By the names of ``ALL``, and some more."""
    seen: Counter[str] = Counter(dict.fromkeys(ALL, 0))
    for log in logs:
        seen["compactions"] += log.compactions
        seen["snapshot installs"] += log.installs
        seen["truncations"] += log.truncations
    evicted: set[str] = set()
    reported: set[str] = set()
    rounds: set[int] = set()
    for line in record.parsed()[:record.lines.until(record.over_at)]:
        event = line.get("event")
        if event is None or not line["node"].startswith("counting-"):
            continue
        if event["type"] == "Led":
            seen["elections"] += 1
        elif event["type"] == "Committed":
            for command in event["batch"]["commands"]:
                if command["type"] == "EvictWorker":
                    evicted.add(repr(command["incarnation"]))
                elif command["type"] == "CountBlocks":      # of a frontend that is gone: what its permits run still
                    reported.update(run["invocation"] for run in command["runs"])
        for effect in line["effects"]:
            _effect(seen, effect)
            if effect["type"] == "SendRecall":      # one to each holder
                rounds.add(effect["round"])
    seen["evictions"], seen["runs reported"], seen["recall rounds"] = len(evicted), len(reported), len(rounds)
    for request in record.requests.values():
        seen[f"answers {request.status}"] += 1
    seen["cold starts"] = len({run.sandbox for run in record.runs})
    return seen


def _effect(seen: Counter[str], effect: Mapping[str, Any]) -> None:
    match effect["type"]:
        case "SendFence":
            seen["fences"] += 1
        case "SendRecall":
            seen["recalls"] += 1
        case "SendThrottled":
            seen["throttles"] += 1
        case "SendFenced":      # a frontend that lives is told that its session is over: it was taken for dead
            seen["false suspicions"] += 1


def missing(seen: Mapping[str, int]) -> list[str]:
    return [name for name in ALL if not seen.get(name)]
