"""How a process comes by its certificate and by the next one: ``credentials_of``.

Owns the order of things: a token that was never used goes first, else what is kept, renewed before anything else if it
has expired; from then on a new certificate, with a new key, when half to two thirds of the time is over. Whoever serves
enrolment is asked in turn until one answers. A placement gives itself what it needs. Refuses to know who decides
(``placement.enrolment``) and who shows the certificate (``chassis.credentials``).
"""

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import structlog

from chassis import open_network, proofs
from chassis.certificates import Authority, Tls, key_pem, new_key
from chassis.clock import Clock
from chassis.config import EnrolmentConfig, IssuerConfig, NodeConfig
from chassis.credentials import Credentials
from chassis.faults import Fault, FaultCode
from chassis.keeping import Keep, Kept
from chassis.process import Tasks
from chassis.rpc import Caller
from chassis.tokens import Token
from protos import enrolment_pb2, enrolment_rpc
from protos.rpc import Method

ASK_S = 5.0                         # one question to one placement
RENEW_FROM, RENEW_TO = 0.5, 0.66    # of the lifetime: somewhere between, so that a region's renewals spread
PAUSE_S, RETRY_S_MAX = 0.5, 30.0    # between two questions: twice as long each time, up to this
REPLACED_S = 2.0                    # while the root is replaced: until another that is of the new one
LOOK_S = 30.0                       # a host may have slept: the wall clock is looked at so often

_log = structlog.get_logger(__name__)

Ask = enrolment_pb2.EnrolRequest | enrolment_pb2.RenewRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What somebody read for a process that can't read it itself: a worker's spawner does for its agent."""

    authority: bytes
    token: str = ""         # empty: none


async def credentials_of(
    node: NodeConfig, clock: Clock, rng: random.Random, *, given: Given | None = None
) -> Credentials:
    """What this process shows from now on; renewed for as long as it lives. Waits until there is a certificate.

    Raises Fault when there never will be one: refused, or nothing to ask with.
    """
    config = node.enrolment
    try:
        if config is None:
            assert node.tls is not None, "NodeConfig has one of the two"
            return Credentials.fixed(Tls.read(node.tls))
        if config.issuer is not None:
            return OwnIssuer(node.identity, authority_of(config, config.issuer), config.issuer, clock, rng).start()
        given = given or read_given(config)
    except (OSError, ValueError) as error:
        raise Fault(f"the certificate files can't be used: {error}", code=FaultCode.INVALID, definite=True) from error
    return await Enrolment(node.identity, config, given, clock, rng).start()


def authority_of(config: EnrolmentConfig, issuer: IssuerConfig) -> Authority:
    """A placement's intermediate. Raises Fault (invalid)."""
    try:
        return Authority.read(Path(issuer.certificate), Path(issuer.key), root=Path(config.authority))
    except (OSError, ValueError) as error:
        raise Fault(f"the intermediate can't be used: {error}", code=FaultCode.INVALID, definite=True) from error


def read_given(config: EnrolmentConfig) -> Given:
    """Raises OSError. A token that isn't there (any more) is no fault: only a new node needs one."""
    token = ""
    if config.token_file:
        try:
            token = Path(config.token_file).read_text()
        except FileNotFoundError:
            _log.info("no token", file=config.token_file)
    return Given(authority=Path(config.authority).read_bytes(), token=token)


class Enrolment:
    """One process's certificate from placement."""

    def __init__(
        self, identity: Caller, config: EnrolmentConfig, given: Given, clock: Clock, rng: random.Random
    ) -> None:
        self._identity = identity
        self._seeds = config.seeds
        self._roots = given.authority
        self._token = Token.parse(given.token) if given.token.strip() else None
        self._keep = Keep(Path(config.directory))
        self._clock = clock
        self._rng = rng
        self._tasks = Tasks()
        self._hurry = asyncio.Event()       # a new certificate is due now
        self._credentials: Credentials | None = None
        self._shown: proofs.Shown           # what the newest certificate says

    async def start(self) -> Credentials:
        """Waits for the first certificate. Raises Fault when it is refused."""
        kept = await self._first()
        self._credentials = Credentials(self._tls(kept))
        self._credentials.revoked.observe(self._look)
        self._tasks.start(self._renew_for_ever(kept, self._credentials), name="certificate")
        return self._credentials

    async def close(self) -> None:
        """Renews no more."""
        await self._tasks.cancel()

    async def _first(self) -> Kept:
        kept, token = self._keep.read(), self._token
        if kept is None:
            if token is None:
                raise Fault(
                    f"{self._identity.node} has neither a certificate nor a token: put the output of `labda cluster "
                    f"token {self._identity.node}` into its token file", code=FaultCode.INVALID, definite=True,
                )
            return await self._until_answered(lambda: self._enrolled(token), pause_s=PAUSE_S)
        if token is not None and token.digest != kept.token:
            try:
                return await self._enrolled(token)
            except Fault as fault:
                _log.warning("the token is of no use now, the kept certificate is", fault=fault.message)
        shown, now = self._checked(kept), self._clock.wall()
        if now >= shown.ends_at:
            _log.warning("the kept certificate has expired, asking for another")
            return await self._until_answered(lambda: self._another(kept), pause_s=PAUSE_S)
        if now >= shown.issued_at + (shown.ends_at - shown.issued_at) * RENEW_TO:
            try:
                return await self._another(kept)
            except Fault as fault:
                _log.warning("starting with an old certificate", fault=fault.message)
        # Whoever issued it may have been revoked meanwhile: then nobody would take it, and nobody would say so.
        self._hurry.set()
        return kept

    # ------------------------------------------------------------ asking

    async def _enrolled(self, token: Token) -> Kept:
        if token.node != self._identity.node:
            raise Fault(
                f"the token is {token.node}'s, this process is {self._identity.node}: it isn't shown to anybody",
                code=FaultCode.DENIED, definite=True,
            )
        token.check_root(self._roots)
        key = self._keep.first_key(token.digest)
        kept = await self._ask(
            enrolment_rpc.ENROL,
            enrolment_pb2.EnrolRequest(
                node=self._identity.node, secret=token.secret, request=proofs.request(key)
            ),
            lambda chain: Kept(token=token.digest, first=key, key=key, chain=chain),
        )
        self._keep.write(kept)      # the token is used up: a certificate that isn't kept would be the last one
        _log.info("enrolled")
        return kept

    async def _another(self, kept: Kept) -> Kept:
        """For the certificate that there is; where that is refused, for a token that was never used."""
        try:
            return await self._renewed(kept)
        except Fault as fault:
            if self._token is None or self._token.digest == kept.token or not _is_refusal(fault):
                raise
            _log.warning("the certificate isn't renewed, trying the token", fault=fault.message)
            return await self._enrolled(self._token)

    async def _renewed(self, kept: Kept) -> Kept:
        key = new_key()
        content = proofs.request(key)
        ask = enrolment_pb2.RenewRequest(
            certificate=kept.chain, request=content, proof=proofs.prove(kept.key, content),
            first_key=proofs.spelled(kept.first.public_key()), first_proof=proofs.prove(kept.first, content),
        )
        new = await self._ask(
            enrolment_rpc.RENEW, ask, lambda chain: replace(kept, key=key, chain=chain)
        )
        try:
            self._keep.write(new)
        except Fault as fault:      # after a restart the old one, expired or not, is good for another
            _log.error("the new certificate isn't kept", fault=fault.message)
        return new

    def _checked(self, kept: Kept) -> proofs.Shown:
        """What it says. Raises Fault for a certificate that isn't this process's, or that nobody would take."""
        said = proofs.read(kept.chain, self._roots, self._clock.wall())
        wanted = proofs.fingerprint(kept.key.public_key())
        if proofs.fingerprint(said.key) != wanted or replace(said.caller, enrolment=0) != self._identity:
            raise Fault(
                f"the certificate is {said.caller}'s, this process is {self._identity}: its configuration and the "
                "node's record differ, or its directory is another node's", code=FaultCode.DENIED, definite=True,
            )
        if self._credentials is not None:
            self._credentials.revoked.admit(said.caller, said.issuer)
        self._shown = said
        return said

    async def _ask(
        self, method: Method[Any, enrolment_pb2.Certificate], ask: Ask, accept: Callable[[bytes], Kept]
    ) -> Kept:
        """Each seed once, in any order. A renewal that one refuses another may grant: copies of records are behind."""
        faults: list[Fault] = []
        for seed in self._rng.sample(self._seeds, len(self._seeds)):
            try:
                answer = await open_network.call(
                    seed, "placement", method, ask, roots=self._roots, timeout_s=ASK_S
                )
                new = accept(answer.chain)
                self._checked(new)
                return new
            except Fault as fault:
                _log.debug("enrolment", seed=seed, fault=fault.message)
                if method is enrolment_rpc.ENROL and _is_refusal(fault):
                    raise
                faults.append(fault)
        raise next((fault for fault in faults if _is_refusal(fault)), faults[0])

    async def _until_answered(self, once: Callable[[], Awaitable[Kept]], *, pause_s: float) -> Kept:
        """Asks again and again while nobody answers. Raises Fault when the answer is no."""
        said = ""
        while True:
            try:
                return await once()
            except Fault as fault:
                if _is_refusal(fault):
                    raise
                if fault.message != said:
                    _log.warning("no certificate yet, asking again", fault=fault.message)
                said = fault.message
            await asyncio.sleep(pause_s * self._rng.uniform(0.5, 1.0))
            pause_s = min(RETRY_S_MAX, pause_s * 2)

    # ------------------------------------------------------------ renewing

    async def _renew_for_ever(self, kept: Kept, credentials: Credentials) -> None:
        while True:
            issued_at, ends_at = self._shown.issued_at, self._shown.ends_at
            # The next restart may be one into a region without the old root: a certificate of it would open nothing.
            soon = self._clock.wall() + REPLACED_S * self._rng.uniform(0.5, 1.0)
            due = renew_at(issued_at, ends_at, self._rng) if self._shown.stays else soon
            await wait_until(due, self._clock, self._hurry)
            self._hurry.clear()
            kept = await self._renewed_in_time(kept, ends_at - issued_at)
            credentials.replace(self._tls(kept))
            _log.info("certificate renewed", ends_in_s=round(self._shown.ends_at - self._clock.wall()))

    async def _renewed_in_time(self, kept: Kept, lifetime_s: float) -> Kept:
        """Goes on asking after a refusal too, slowly: a node may be refused by a placement that is behind."""
        pause_s = min(1.0, lifetime_s / 50)
        while True:
            try:
                return await self._until_answered(lambda: self._another(kept), pause_s=pause_s)
            except Fault as fault:
                _log.error("the certificate isn't renewed", fault=fault.message)
            await asyncio.sleep(min(RETRY_S_MAX, lifetime_s / 10))

    def _look(self, _news: Mapping[str, int]) -> None:
        """Somebody was revoked: this process, or who issued its certificate, which another placement can replace."""
        assert self._credentials is not None, "they tell"
        try:
            self._credentials.revoked.admit(self._shown.caller, self._shown.issuer)
        except Fault as fault:
            _log.warning("this certificate is refused from now on", fault=fault.message)
            self._hurry.set()

    def _tls(self, kept: Kept) -> Tls:
        return Tls(authority=self._roots, certificate=kept.chain, key=key_pem(kept.key))


class OwnIssuer:
    """A placement's certificate, which it makes itself: nothing has to be kept, and nobody asked."""

    def __init__(
        self, identity: Caller, authority: Authority, config: IssuerConfig, clock: Clock, rng: random.Random
    ) -> None:
        """Raises Fault (invalid) for an intermediate of another placement."""
        issuer = authority.placement
        if issuer is None or issuer[0] != identity.node:
            raise Fault(
                f"{config.certificate} is no intermediate of {identity.node}", code=FaultCode.INVALID, definite=True
            )
        self._identity = replace(identity, enrolment=issuer[1])
        self._authority = authority
        self._lifetime_s = config.lifetime_s
        self._clock = clock
        self._rng = rng
        self._tasks = Tasks()

    def start(self) -> Credentials:
        credentials = Credentials(self._issue())
        self._tasks.start(self._renew_for_ever(credentials), name="certificate")
        return credentials

    async def close(self) -> None:
        """Renews no more."""
        await self._tasks.cancel()

    def _issue(self) -> Tls:
        return self._authority.issue(self._identity, lifetime_s=self._lifetime_s, now=self._clock.wall())

    async def _renew_for_ever(self, credentials: Credentials) -> None:
        while True:
            now = self._clock.wall()
            await wait_until(renew_at(now, now + self._lifetime_s, self._rng), self._clock, asyncio.Event())
            credentials.replace(self._issue())


def renew_at(issued_at: float, ends_at: float, rng: random.Random) -> float:
    return issued_at + (ends_at - issued_at) * rng.uniform(RENEW_FROM, RENEW_TO)


async def wait_until(at: float, clock: Clock, hurry: asyncio.Event) -> None:
    """Until that wall clock time, also if the host sleeps in between or its clock is set; or until there is hurry."""
    while (left_s := at - clock.wall()) > 0:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(left_s, LOOK_S)):
                await hurry.wait()
                return


def _is_refusal(fault: Fault) -> bool:
    """A no that asking again won't change."""
    return fault.definite and fault.code in (FaultCode.DENIED, FaultCode.INVALID)
