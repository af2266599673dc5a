"""The cluster's numbers as every process serves them: one scrape of ``/metrics`` everywhere.

Owns the asking and the reading; what is shown is its callers'. The parser is prometheus_client's.
"""

import asyncio
import http.client
import ssl
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from chassis import tls_contexts
from chassis.certificates import Tls, TlsFiles, dns_names
from labda.region import OPERATOR, Node
from labda.state import State

SCRAPE_S = 2.0
ANSWER_BYTES_MAX = 16 << 20


@dataclass(frozen=True, slots=True)
class Sample:
    name: str
    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True, slots=True)
class Scrape:
    """One process's samples by name, at one moment. ``error``: why there are none."""

    node: Node
    samples: Mapping[str, tuple[Sample, ...]]
    error: str = ""

    def sum(self, name: str, **labels: str) -> float:
        """Of every sample of that name that carries these labels."""
        return sum(
            sample.value for sample in self.samples.get(name, ())
            if all(sample.labels.get(key) == value for key, value in labels.items())
        )

    def by(self, name: str, label: str, **labels: str) -> dict[str, float]:
        """These samples, added up by one of their other labels."""
        sums: dict[str, float] = {}
        for sample in self.samples.get(name, ()):
            if all(sample.labels.get(key) == value for key, value in labels.items()):
                word = sample.labels.get(label, "")
                sums[word] = sums.get(word, 0.0) + sample.value
        return sums


@dataclass(frozen=True, slots=True)
class Way:
    """How this host reaches the numbers: ``context`` None where they are served on loopback, without TLS."""

    resolve: Callable[[str], str] | None = None
    context: ssl.SSLContext | None = None

    @property
    def scheme(self) -> str:
        return "http" if self.context is None else "https"


def way(state: State) -> Way:
    """Under the operator's certificate. Raises OSError."""
    resolve = state.resolver
    if resolve is None:
        return Way()
    tls = Tls.read(TlsFiles(
        authority=str(state.authority), certificate=str(state.certificate(OPERATOR)), key=str(state.key(OPERATOR))
    ))
    return Way(resolve, tls_contexts.dialling(tls))


async def scrape(nodes: Iterable[Node], state: State) -> list[Scrape]:
    """Everybody at once. Who doesn't answer within ``SCRAPE_S`` is there with an error."""
    by = way(state)
    return list(await asyncio.gather(*(_scrape(node, by) for node in nodes)))


async def _scrape(node: Node, by: Way) -> Scrape:
    if not node.metrics:
        return Scrape(node, {}, f"{node.node} serves no metrics: its node.metrics_listen is empty")
    try:
        async with asyncio.timeout(SCRAPE_S):
            text = await fetch(node, by)
        return Scrape(node, read(text))
    except (OSError, ValueError, TimeoutError) as error:
        return Scrape(node, {}, f"{node.node} at {node.metrics}: {str(error) or 'no answer in time'}")


async def fetch(node: Node, by: Way) -> str:
    """The text of one process's ``/metrics``. Raises OSError, ValueError."""
    return await asyncio.to_thread(_get, node, by)


def _get(node: Node, by: Way) -> str:
    host, _, port = (by.resolve(node.metrics) if by.resolve else node.metrics).rpartition(":")
    connection = http.client.HTTPConnection(host.strip("[]"), int(port), timeout=SCRAPE_S)
    try:
        if by.context is not None:      # who is asked is told by its certificate, whatever address it has
            connection.connect()
            connection.sock = by.context.wrap_socket(
                connection.sock, server_hostname=dns_names(node.service, node.node)[1]
            )
        connection.request("GET", "/metrics", headers={"Accept": "text/plain"})
        answer = connection.getresponse()
        if answer.status != 200:
            raise ValueError(f"answered {answer.status}")
        return answer.read(ANSWER_BYTES_MAX).decode()
    except http.client.HTTPException as error:
        raise ValueError(f"answered no HTTP: {error!r}") from error
    finally:
        connection.close()


def read(text: str) -> dict[str, tuple[Sample, ...]]:
    """Samples by name. Raises ValueError for what isn't the format."""
    found: dict[str, list[Sample]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(Sample(sample.name, sample.labels, sample.value))
    return {name: tuple(samples) for name, samples in found.items()}


def quantile(share: float, scrapes: Iterable[Scrape], name: str, **labels: str) -> float | None:
    """The upper bound of the bucket that ``share`` of a histogram's values lie in or below, over all processes.

    None where there is no value yet. The last bucket has no bound: infinity then.
    """
    buckets: dict[float, float] = {}
    for one in scrapes:
        for bound, count in one.by(f"{name}_bucket", "le", **labels).items():
            buckets[float(bound)] = buckets.get(float(bound), 0.0) + count
    total = max(buckets.values(), default=0.0)
    if not total:
        return None
    return next(bound for bound, count in sorted(buckets.items()) if count >= share * total)
