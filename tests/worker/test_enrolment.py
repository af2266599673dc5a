"""A worker that has only a token: the spawner reads it, the agent enrols, keeps and renews its certificate."""

import asyncio
import os
import ssl
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509

from chassis.certificates import write_private
from chassis.config import EnrolmentConfig
from tests.placement.trust import Region as Trust
from tests.worker.region import caller
from tests.worker.test_native import ROOT, RUNTIME, ready
from tests.worker.test_process import ProcessRegion
from worker.config import WorkerConfig

pytestmark = pytest.mark.usefixtures("needs_root")

LIFETIME_S = 5.0


class EnrolledRegion(ProcessRegion):
    def __init__(self, trust: Trust) -> None:
        super().__init__()
        self.trust = trust
        self.authority = trust.root
        self.token = ""

    @property
    def kept(self) -> Path:
        return self.state / "worker" / "agent" / "identity"

    def config(self, address: str) -> WorkerConfig:
        config = super().config(address)
        for name in ("certificate", "key"):
            (self.state / f"{name}.pem").unlink()
        (self.state / "authority.pem").chmod(0o600)     # the spawner's, as the token is
        if self.token:
            write_private(self.state / "token", self.token.encode())
        seeds = tuple(placement.trust.address for placement in self.trust.placements)
        node = replace(config.node, tls=None, enrolment=EnrolmentConfig(
            authority=str(self.state / "authority.pem"), directory=str(self.kept),
            token_file=str(self.state / "token"), seeds=seeds,
        ))
        return replace(config, node=node)

    async def shown(self) -> x509.Certificate:
        """What the agent shows at a new handshake."""
        own = self.authority.issue(caller("operator"))
        for name, content in (("own.pem", own.certificate + own.key), ("root.pem", own.authority)):
            write_private(self.state / name, content)
        context = ssl.create_default_context(cafile=str(self.state / "root.pem"))
        context.load_cert_chain(self.state / "own.pem")
        context.set_alpn_protocols(["h2"])
        host, port = self.address.split(":")
        _, writer = await asyncio.open_connection(host, int(port), ssl=context, server_hostname="worker.labda")
        certificate = x509.load_der_x509_certificate(writer.get_extra_info("ssl_object").getpeercert(True))
        writer.transport.abort()
        return certificate


@pytest.fixture
async def trust(tmp_path):
    if not (ROOT / ".runtimes" / RUNTIME).is_dir():
        pytest.skip(f"no runtime {RUNTIME}: make setup builds it")
    async with Trust(tmp_path) as trust:
        await trust.placement(lifetime_s=LIFETIME_S)
        yield trust


async def test_the_agents_certificate_rotates_under_invokes_and_survives_a_restart(trust):
    region = EnrolledRegion(trust)
    region.token = (await trust.add(caller("worker"), lasts_s=100.0)).text
    async with region:
        agent = region.agent
        await ready(region, "count", timeout_s=10)
        shown = {(await region.shown()).serial_number}
        runs = 0
        async with asyncio.timeout(6 * LIFETIME_S):
            while len(shown) < 4:
                runs += 1
                assert (await region.invoke(f"i{runs}")).json["runs"] == runs   # one sandbox, one stream, no gap
                shown.add((await region.shown()).serial_number)
        assert region.agent == agent
        record = await trust.record("worker-1")
        assert trust.read((region.kept / "identity.pem").read_bytes().split(b"KEY-----\n")[-1]).caller == record.caller
        paths = (region.kept, region.kept / "identity.pem")
        modes = {path.name: (path.stat().st_uid, stat.S_IMODE(path.stat().st_mode)) for path in paths}
        assert modes == {"identity": (64000, 0o700), "identity.pem": (64000, 0o600)}
        secret = region.token.split(".")[2].encode()
        assert not any(secret in path.read_bytes() for path in region.kept.iterdir())
        kept = (region.kept / "identity.pem").read_bytes()
        # What it keeps is all that another process of it needs.
        region.process.terminate()
        assert await asyncio.to_thread(region.process.wait, 15) == 0
        again = EnrolledRegion(trust)
        again.kept.mkdir(parents=True)
        write_private(again.kept / "identity.pem", kept)
    async with again:
        assert again.agent != os.getpid()
        names = (await again.shown()).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.DNSName) == ["worker.labda", "worker-1.worker.labda"]
    assert trust.placements[0].outcomes["enrol granted"] == 1

