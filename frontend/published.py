"""The published endpoint's certificate, from files that somebody else renews.

Owns reading them, again when they change. Refuses to know who renews them and what is served with them.
"""

import asyncio
import ssl
from pathlib import Path

import structlog

from chassis import tls_contexts
from chassis.certificates import Tls
from chassis.credentials import Credentials
from chassis.faults import Fault, FaultCode
from frontend.config import HttpTls

LOOK_S = 30.0

_log = structlog.get_logger(__name__)


class Published:
    """``credentials`` hold what the files said when they last made sense."""

    def __init__(self, files: HttpTls) -> None:
        """Raises Fault for files that can't be used."""
        self._files = files
        self._seen = self._stamp()
        self.credentials = Credentials(self._read())

    async def follow(self) -> None:
        """Looks at the files for as long as the process lives."""
        while True:
            await asyncio.sleep(LOOK_S)
            self.look()

    def look(self) -> None:
        """Takes over what changed. A certificate whose key hasn't been written yet makes sense at the next look."""
        stamp = self._stamp()
        if stamp == self._seen:
            return
        try:
            self.credentials.replace(self._read())
        except Fault as fault:
            _log.error("the endpoint's new certificate isn't used", fault=fault.message)
            return
        self._seen = stamp
        _log.info("the endpoint's certificate changed", file=self._files.certificate)

    def _stamp(self) -> tuple[int, ...]:
        try:
            return tuple(Path(file).stat().st_mtime_ns for file in (self._files.certificate, self._files.key))
        except OSError:
            return ()

    def _read(self) -> Tls:
        files = self._files
        try:
            found = Tls(
                authority=b"", certificate=Path(files.certificate).read_bytes(), key=Path(files.key).read_bytes()
            )
            tls_contexts.public(Credentials(found), speaks="http/1.1")
        except (OSError, ssl.SSLError) as error:
            raise Fault(
                f"http_tls can't be used ({error}): certificate ({files.certificate}) and key ({files.key}) are PEM "
                "files that belong together and that this process may read", code=FaultCode.INVALID, definite=True,
            ) from error
        return found
