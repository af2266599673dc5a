"""Compiles the reviewed list seccomp.toml into one BPF program.

Owns the assembler: a binary search over ranges of call numbers (a sixth of a linear list's cost per call), with the
few argument checks at the leaves. Refuses to know which calls are allowed: that is data. Compiled once by the
spawner and kept in a descriptor that every process 1 reads.
"""

import json
import os
import struct
import tomllib
from typing import Any

Instruction = tuple[int, int, int, int]     # code, jump if true, jump if false, constant
Program = list[Instruction]

_LOAD, _RETURN, _AND = 0x20, 0x06, 0x54
_JUMP, _EQUAL, _AT_LEAST, _ANY_BIT = 0x05, 0x15, 0x35, 0x45
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_EPERM, _ENOSYS = 1, 38
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32_BIT = 0x40000000
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16       # offsets in struct seccomp_data

_HERE = os.path.dirname(__file__)


class BadProfile(ValueError):
    """seccomp.toml says something that can't be meant; the text names the group."""


def load() -> dict[str, Any]:
    """The profile as data. Raises BadProfile if a group has no reason."""
    with open(f"{_HERE}/seccomp.toml", "rb") as file:
        profile = tomllib.load(file)
    check_reasons(profile)
    return profile


def check_reasons(profile: dict[str, Any]) -> None:
    """Every group says in a sentence why it is there. Raises BadProfile naming the one that doesn't."""
    for group in [*profile["allow"], *profile["check"], {"name": "absent", **profile["absent"]}]:
        if len(group.get("reason", "").split()) < 4:
            raise BadProfile(f"group {group.get('name')!r} needs a reason, in a sentence")


def numbers(machine: str) -> dict[str, int]:
    """Call name -> number on this machine; a call that the machine never had is not in it."""
    with open(f"{_HERE}/syscalls.json", encoding="ascii") as file:
        known = json.load(file)
    if machine not in known:
        raise BadProfile(f"no table of system calls for {machine}; known are {', '.join(sorted(known))}")
    return dict(known[machine])


def compile_profile(profile: dict[str, Any], machine: str) -> bytes:
    """The filter for `machine` ("x86_64", "aarch64") as an array of struct sock_filter."""
    table = numbers(machine)
    leaves: dict[int, Program] = {}

    def put(name: str, leaf: Program) -> None:
        number = table.get(name)
        if number is None:
            return
        if number in leaves:
            raise BadProfile(f"call {name!r} is listed twice")
        leaves[number] = leaf

    for group in profile["allow"]:
        for name in group["calls"]:
            put(name, [(_RETURN, 0, 0, _ALLOW)])
    for check in profile["check"]:
        put(check["call"], _check(check))
    for name in profile["absent"]["calls"]:
        put(name, [(_RETURN, 0, 0, _ERRNO | _ENOSYS)])

    program: Program = [
        (_LOAD, 0, 0, _ARCH),
        (_EQUAL, 1, 0, _AUDIT_ARCH[machine]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, 0, 1, _X32_BIT),
        (_RETURN, 0, 0, _KILL),
        *_search(_ranges(leaves)),
    ]
    return b"".join(struct.pack("HBBI", *instruction) for instruction in program)


def _check(check: dict[str, Any]) -> Program:
    """Instructions of one [[check]]: loads the argument's lower half, ends in ALLOW or EPERM."""
    allow, refuse = (_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _ERRNO | _EPERM)
    load = (_LOAD, 0, 0, _ARGUMENTS + 8 * check["argument"])
    values: list[int] = check["values"]
    match check["test"]:
        case "no bits":
            return [load, (_ANY_BIT, 0, 1, values[0]), refuse, allow]
        case "none of":
            return [load, *_equal_to_any(values), allow, refuse]
        case "one of" if "also" in check:
            also = check["also"]
            second = [
                (_LOAD, 0, 0, _ARGUMENTS + 8 * also["argument"]), (_AND, 0, 0, also["mask"]),
                *_equal_to_any(also["values"]), refuse, allow,
            ]
            return [load, *_equal_to_any(values), refuse, *second]
        case "one of":
            return [load, *_equal_to_any(values), refuse, allow]
        case other:
            raise BadProfile(f"group {check['name']!r} has the unknown test {other!r}")


def _equal_to_any(values: list[int]) -> Program:
    """Skips one instruction if the accumulator equals one of `values`."""
    return [(_EQUAL, len(values) - i, 0, value) for i, value in enumerate(values)]


def _ranges(leaves: dict[int, Program]) -> list[tuple[int, Program]]:
    """(first number, what to do from there on) in ascending order, neighbours with equal programs joined."""
    refuse: Program = [(_RETURN, 0, 0, _ERRNO | _EPERM)]
    highest = max(leaves)
    ranges: list[tuple[int, Program]] = []
    for number in range(highest + 1):
        leaf = leaves.get(number, refuse)
        if not ranges or ranges[-1][1] != leaf:
            ranges.append((number, leaf))
    ranges.append((highest + 1, [(_RETURN, 0, 0, _ERRNO | _ENOSYS)]))
    return ranges


def _search(ranges: list[tuple[int, Program]]) -> Program:
    if len(ranges) == 1:
        return ranges[0][1]
    middle = len(ranges) // 2
    below, above = _search(ranges[:middle]), _search(ranges[middle:])
    if len(below) < 256:
        return [(_AT_LEAST, len(below), 0, ranges[middle][0]), *below, *above]
    # A conditional jump reaches 255 instructions: jump over a far jump instead.
    return [(_AT_LEAST, 0, 1, ranges[middle][0]), (_JUMP, 0, 0, len(below)), *below, *above]
