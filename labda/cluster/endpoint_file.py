"""The regional endpoint's configuration: HAProxy before the frontends of all AZs.

Owns which request may be tried again (only one of which no byte was sent), and how fast a dead frontend is noticed.
Refuses to know who the frontends are beyond their names.
"""

import json

from chassis.addresses import is_loopback
from frontend.health import PATH as HEALTH
from labda.cluster import shape as names
from labda.cluster.shape import CONFIG_DIR, Shape

CERTIFICATE = "endpoint.pem"    # with its key: of an endpoint that is published beyond this host

_TEMPLATE = """\
# The regional endpoint. Rendered by labda from the topology.
global
    log stdout format raw local0 notice
    maxconn 8192

defaults
    mode http
    log global
    option dontlog-normal
    # With its TLS handshake, which takes a while on a busy host. Who is away is known by the checks before it is over.
    timeout connect 1s
    # While everything else on a small host is busy a living frontend may take longer than a check's interval to answer.
    timeout check 1s
    timeout client 75s
    timeout http-request 20s
    timeout queue 5s
    # A function runs 900 s at most, and its frontend says so first.
    timeout server 920s
    # Only a request of which nothing was sent is sent again, and then to another frontend.
    retries 3
    retry-on conn-failure
    option redispatch 1
    http-reuse safe
    balance leastconn
    # A frontend that drains says so in its health: it gets nothing new, and what runs finishes. One that is gone
    # without a word is noticed by its connections within 3 s, and what was in flight fails then: this is for those that
    # wait for an answer, how often what is not acknowledged is sent again is a setting of the container (compose_file).
    option srvtcpka
    srvtcpka-idle 1s
    srvtcpka-intvl 1s
    srvtcpka-cnt 2
    default-server init-addr none resolvers names {tls}
    # What the endpoint itself says has a type and a reason, as whatever a frontend says.
{errors}

# Containers that are started again have other addresses: names are asked for anew.
resolvers names
    nameserver docker 127.0.0.11:53
    resolve_retries 2
    timeout resolve 500ms
    timeout retry 500ms
    hold valid 1s
    hold obsolete 5s
    hold nx 30s
    hold refused 30s
    hold timeout 30s

frontend public
    bind :{port} tcp-ut 60s{shown}
    # With nobody left who answers in time the checks say more about a busy host than about frontends: all are tried.
    use_backend unchecked if {{ nbsrv(frontends) eq 0 }}
    default_backend frontends

backend frontends
    option httpchk
    http-check send meth GET uri {health}
    default-server check inter 200ms fall 2 rise 1
{servers}

backend unchecked
    timeout connect 2s
{servers}

# For the container's own health check, and numbers for Prometheus; never published.
frontend monitor
    bind 127.0.0.1:{monitor}
    monitor-uri /health
"""


# By status: the type, what happened, and what to do. A request that was sent on may have run.
_ERRORS = {
    502: ("ServiceException", "The frontend went away before it answered; whether the function ran is not known.",
          "Look at the state before you try again."),
    503: ("ServiceUnavailableException", "No frontend takes requests now.", "Nothing was done: try again."),
    504: ("ServiceException", "The frontend did not answer in time; whether the function ran is not known.",
          "Look at the state before you try again."),
}


def _errors() -> str:
    lines = []
    for status, (kind, message, remedy) in _ERRORS.items():
        body = json.dumps({"message": message, "Detail": {"reason": "endpoint", "cause": message, "remedy": remedy}})
        lines.append(
            f"    http-error status {status} content-type application/json string '{body}' hdr x-amzn-errortype {kind}"
        )
    return "\n".join(lines)


def haproxy(shape: Shape) -> str:
    tls = (
        f"ssl verify required ca-file {CONFIG_DIR}/root.pem verifyhost frontend.labda sni str(frontend.labda) "
        "check-sni frontend.labda"
    )
    servers = [f"    server {member.node} {member.node}:{names.HTTP}" for member in shape.of("frontend")]
    shown = "" if is_loopback(shape.endpoint) else f" ssl crt {CONFIG_DIR}/{CERTIFICATE} alpn http/1.1"
    return _TEMPLATE.format(
        port=names.ENDPOINT, shown=shown, health=HEALTH.decode(), monitor=names.ENDPOINT_MONITOR, tls=tls,
        servers="\n".join(servers), errors=_errors(),
    )
