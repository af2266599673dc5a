"""What Prometheus is given: where the cluster's numbers are, how to ask for them, what to make of them.

Owns its folder below the state directory. It finds processes by their names in the engine's DNS, which follow
containers that are started again; its certificate opens numbers and nothing else. The rules are those of
deploy/prometheus/.
"""

import time
from pathlib import Path

from cryptography import x509

from chassis.certificates import Authority, dns_names, over_half, write_private
from labda.cluster import shape as names
from labda.cluster import trust
from labda.cluster.shape import CONFIG_DIR, DEPLOY, Shape

RULES = DEPLOY.parent / "prometheus" / "rules.yml"
NAME = "prometheus"     # of its folder, and its name to the stores: no user of theirs

_HEAD = """\
# Rendered by labda from the topology.
global:
  scrape_interval: 15s
  scrape_timeout: 5s
  evaluation_interval: 15s

rule_files: [rules.yml]

scrape_configs:
"""

_JOB = """\
  - job_name: {name}
    scheme: https
    tls_config: {{ca_file: {ca}, cert_file: {certificate}.pem, key_file: {certificate}.key, server_name: {server}}}
    dns_sd_configs:
      - {{type: A, port: {port}, refresh_interval: 5s, names: [{nodes}]}}
    relabel_configs:
      # The process, not its address: that changes when its container is started again.
      - {{source_labels: [__meta_dns_name], regex: '([^.]+)\\.?', target_label: node}}
      - {{source_labels: [__meta_dns_name], regex: '([^.]+)\\.?', target_label: instance}}
      - {{source_labels: [__meta_dns_name], regex: '[^.]*-(az\\d+).*', target_label: az}}
      - {{target_label: service, replacement: {service}}}
      - {{target_label: job, replacement: {job}}}
"""


def write(root: Path, form: Shape) -> None:
    """Into the folder that ``trust.init`` made, with a certificate for the services' numbers in it."""
    folder = root / NAME
    stores, path = trust.authority(root, "stores"), folder / "stores.pem"
    (folder / "stores-ca.pem").write_bytes(stores.root)
    if not path.exists() or _is_due(x509.load_pem_x509_certificate(path.read_bytes()), stores):
        tls = stores.issue_plain(NAME)
        write_private(folder / "stores.key", tls.key)
        write_private(path, tls.certificate)
    (folder / "prometheus.yml").write_text(prometheus(form))
    (folder / "rules.yml").write_text(RULES.read_text())
    trust.give(folder, trust.Owners().services)


def _is_due(found: x509.Certificate, issuer: Authority) -> bool:
    return not issuer.issued(found) or over_half(found, time.time())


def prometheus(form: Shape) -> str:
    """Its configuration: a job per service, since each service's certificate has a name of its own."""
    jobs = [
        _job(
            name=f"labda-{service}", job="labda", service=service, port=names.METRICS, ca="root", certificate="client",
            server=dns_names(service, "")[0], nodes=[member.node for member in form.of(service)],
        )
        for service in dict.fromkeys(member.service for member in form.members)
    ]
    # etcd's members answer with their numbers where they answer their clients.
    jobs += [
        _job(
            name=member, job="etcd", service="etcd", port=names.ETCD, ca="stores-ca", certificate="stores",
            server=member, nodes=[member],
        )
        for member in form.stores("etcd")
    ]
    return _HEAD + "".join(jobs)


def _job(
    *, name: str, job: str, service: str, port: int, ca: str, certificate: str, server: str, nodes: list[str]
) -> str:
    return _JOB.format(
        name=name, job=job, service=service, port=port, ca=f"{CONFIG_DIR}/{ca}.pem",
        certificate=f"{CONFIG_DIR}/{certificate}", nodes=", ".join(nodes), server=server,
    )
