"""The invariants of docs/invariants.md, a class each; 13 has one for what is free and one for what is refused."""

from simulation.history.checks.events import EventsAreHandled, RetriesAreBounded
from simulation.history.checks.free import FreePermitsAreServed
from simulation.history.checks.leaks import NothingLeaks
from simulation.history.checks.leases import LeasesEnd, LeasesHold, LeasesRule
from simulation.history.checks.limits import LimitsHold
from simulation.history.checks.raft import LogsAgree
from simulation.history.checks.requests import AnswersAreOwn, RefusalsExplain, StartsOnce
from simulation.history.checks.rounds import ThrottlesAreProved
from simulation.history.checks.sandboxes import DrainingIsGentle, RunsDontOverlap, SandboxesServeOne
from simulation.history.invariant import Check

CHECKS: tuple[type[Check], ...] = (
    LimitsHold, NothingLeaks, EventsAreHandled, RetriesAreBounded, StartsOnce, AnswersAreOwn, RunsDontOverlap,
    SandboxesServeOne, LeasesHold, LeasesRule, LeasesEnd, DrainingIsGentle, FreePermitsAreServed, ThrottlesAreProved,
    LogsAgree, RefusalsExplain,
)
"""In the order of their numbers, 1 to 15."""
