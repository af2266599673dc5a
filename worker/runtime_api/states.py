"""States of one runtime process as its Runtime API sees it, and the one table that changes them."""

import enum

from chassis.machine import Transitions


class ApiState(enum.Enum):
    STARTED = "Started"
    READY = "Ready"                                    # it waits for an event
    RUNNING = "Running"                                # it has one
    RESPONDING = "InvocationResponse"                  # its result is arriving
    FAILING = "InvocationErrorResponse"                # its error is arriving
    RESPONSE_SENT = "ResponseSent"
    INIT_ERROR = "InitError"                           # nothing more is accepted: the process is about to exit


# What happens, as types: the table's second key.
class NextAsked: ...


class NextLost: ...                                    # the connection that waited broke


class EventHandedOut: ...


class ResponseBegun: ...


class ErrorBegun: ...


class BodyDone: ...


class BodyLost: ...                                    # the connection broke in the middle: it may post again


class InitFailed: ...


class Restarted: ...


S = ApiState

TRANSITIONS: Transitions[ApiState] = Transitions(
    {
        (S.STARTED, NextAsked): S.READY,
        (S.STARTED, InitFailed): S.INIT_ERROR,
        (S.READY, NextLost): S.RESPONSE_SENT,
        (S.READY, EventHandedOut): S.RUNNING,
        (S.RUNNING, ResponseBegun): S.RESPONDING,
        (S.RUNNING, ErrorBegun): S.FAILING,
        (S.RESPONDING, BodyDone): S.RESPONSE_SENT,
        (S.RESPONDING, BodyLost): S.RUNNING,
        (S.FAILING, BodyDone): S.RESPONSE_SENT,
        (S.FAILING, BodyLost): S.RUNNING,
        (S.RESPONSE_SENT, NextAsked): S.READY,
        **{(state, Restarted): S.STARTED for state in ApiState},
    }
)
