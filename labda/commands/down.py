"""``labda down``: ends the cluster of a state directory and returns when nothing of it is left."""

import argparse
import os
import signal
import sys
import time

from labda import children, leftovers
from labda.refusal import Refusal, Status
from labda.state import State

TIMEOUT_S = 60.0
LEFTOVER_S = 8.0
POLL_S = 0.05


def arguments(parser: argparse.ArgumentParser) -> None:
    del parser  # nothing but --state


def run(options: argparse.Namespace) -> int:
    state: State = options.state
    began = time.monotonic()
    recorded = state.read("processes.json") or []
    holder = state.holder()
    if holder is None:
        left = children.end_leftovers(recorded, grace_s=LEFTOVER_S) + leftovers.sweep(state)
        if not left:
            sys.stdout.write(f"no cluster runs in {state.root}\n")
            return Status.OK
        sys.stdout.write(f"ended      what a killed cluster left: {', '.join(left)}\n")
        return Status.OK
    try:
        os.kill(holder, signal.SIGTERM)
    except PermissionError as error:
        raise Refusal(f"the cluster (pid {holder}) belongs to another user: run labda as its owner",
                      Status.HOST) from error
    while state.holder() is not None or children.start_ticks(holder) is not None:
        if time.monotonic() - began > TIMEOUT_S:
            raise Refusal(f"the cluster (pid {holder}) still ends after {TIMEOUT_S:.0f} s: `kill -9 {holder}` ends it")
        time.sleep(POLL_S)
    left = children.end_leftovers(recorded, grace_s=0.0)
    leftovers.sweep(state)
    if left:
        raise Refusal(f"these processes had to be killed: {', '.join(left)}; their logs are in {state.root / 'logs'}")
    sys.stdout.write(f"{'ended':<10} everything in {time.monotonic() - began:.1f} s\n")
    return Status.OK
