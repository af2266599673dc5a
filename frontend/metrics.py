"""What a frontend counts: invokes, requests, permits, who waits for what.

Owns names and help texts. The numbers are the core's and the edges', read when somebody asks, and what passes the
core's driver. Functions are never told apart: they have no bound. Pools are, up to a bound.
"""

from collections.abc import Callable

from chassis.metrics import Metrics, Numbers, Tally, bounded
from frontend import messages as m
from frontend.api.body import BodyBudget
from frontend.core import FrontendCore, Session
from frontend.counts import HttpCounts, InvokeCounts
from frontend.gate import Gate
from frontend.http_server import HttpServer
from frontend.linger import Lingering
from frontend.peers.managers import Managers
from frontend.peers.workers import Workers
from frontend.retries import RetryBudget
from frontend.stock import Stock

_POOL = ("account", "function", "kind")


def measure(metrics: Metrics, core: FrontendCore) -> Tally:
    """Names what the core knows; what it returns has to see all that passes the core's driver."""
    tally = Tally()

    def by_pool(read: Callable[[Stock], float]) -> Callable[[], Numbers]:
        def numbers() -> Numbers:
            return bounded({
                (pool.account, pool.function, pool.kind.name.lower()): read(stock)
                for pool, stock in core.stocks.items()
            })
        return numbers

    metrics.gauge("labda_frontend_permits_held", "Permits in this frontend's blocks, in use or not; function \"\": "
                  "what no function has reserved.", by_pool(lambda stock: stock.held), _POOL)
    metrics.gauge("labda_frontend_permits_in_use", "Of these, what is admitted and has not ended.",
                  by_pool(lambda stock: stock.in_use), _POOL)
    metrics.gauge("labda_frontend_permits_waiting", "Requests that wait for a permit.", lambda: core.waiting)
    metrics.counter("labda_frontend_permit_refusals_total", "Requests that got no permit, by why.",
                    tally.by(m.Refuse, lambda refuse: refuse.refusal.name.lower(),
                             (refusal.name.lower() for refusal in m.Refusal)),
                    ("reason",))
    metrics.counter("labda_frontend_recalls_total", "Recalls by the ledger that were answered.",
                    tally.of(m.AnswerRecall))
    metrics.gauge("labda_frontend_session_live", "1: the ledger's leader knows this frontend's session.",
                  lambda: float(core.state is Session.LIVE))
    metrics.gauge("labda_frontend_session_epoch", "Epoch of that session; 0: none.", lambda: core.epoch)
    metrics.counter("labda_frontend_sessions_fenced_total", "Times that the ledger ended this frontend's session.",
                    tally.of(m.Fenced))
    return tally


def measure_invokes(metrics: Metrics, counts: InvokeCounts, budget: RetryBudget) -> None:
    metrics.counter("labda_frontend_invokes_total", "Synchronous invokes by outcome. Throttled is a 429; refused: "
                    "nothing was started (503; 404 for a function that was deleted meanwhile); failed: what became of "
                    "it is not known, or a fault of ours.",
                    counts.outcomes, ("outcome", "reason"))
    metrics.histogram("labda_frontend_invoke_duration_seconds", "Of invokes that their function answered, from the "
                      "authenticated request to the answer.", counts.seconds, ("start",))
    metrics.histogram("labda_frontend_cold_start_seconds", "Of invokes for which a sandbox was made: where their time "
                      "went.", counts.cold, ("phase",))
    metrics.counter("labda_frontend_retries_total", "Starts that were refused for certain, by whether the budget let "
                    "them be tried again.", lambda: {("yes",): budget.taken, ("no",): budget.denied}, ("granted",))
    metrics.gauge("labda_frontend_retry_budget", "Retries that may be made now.", lambda: budget.tokens)


def measure_peers(metrics: Metrics, managers: Managers, workers: Workers, lingering: Lingering) -> None:
    metrics.gauge("labda_frontend_sandboxes_waiting", "Requests that have a permit and wait for a sandbox.",
                  lambda: managers.waiting)
    metrics.gauge("labda_frontend_invocations_in_flight", "Invocations at workers that have not ended.",
                  lambda: workers.in_flight)
    metrics.gauge("labda_frontend_reservations", "Reservations of sandboxes in this frontend's hands, in use or "
                  "lingering.", lambda: len(lingering))


def measure_api(metrics: Metrics, counts: HttpCounts, gate: Gate, bodies: BodyBudget) -> None:
    metrics.gauge("labda_frontend_requests_running", "Requests that the gate let in and that are not answered yet.",
                  lambda: gate.running)
    metrics.counter("labda_frontend_requests_shed_total", "Requests that the gate refused before any work was done: "
                    "too many (crowded), or the event loop too late (lag).",
                    lambda: {(why,): float(count) for why, count in gate.shed.items()}, ("reason",))
    metrics.gauge("labda_frontend_bodies_bytes", "Memory that the bodies of requests take.", lambda: bodies.held)
    metrics.counter("labda_frontend_http_requests_total", "Requests answered, by operation of the API and status.",
                    counts.answers, ("operation", "status"))
    metrics.counter("labda_frontend_authentication_failures_total", "Requests whose sender was not proved, by error.",
                    counts.unproved, ("error",))


def measure_http(metrics: Metrics, http: HttpServer) -> None:
    metrics.gauge("labda_frontend_http_connections", "Open connections of clients.", lambda: http.connections)
    metrics.counter("labda_frontend_http_connections_refused_total", "Connections that were ended with a refusal "
                    "before a request was complete: too many, too large, too slow, or no HTTP.", lambda: http.refused)
