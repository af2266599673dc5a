"""The copy of the node records on a placement's own disk: one that starts while its store is away knows whom to renew.

Owns the file and how old it says to be. A damaged or missing file is no copy.
"""

import json
from dataclasses import asdict
from pathlib import Path

import structlog

from chassis.certificates import write_private
from placement.node_record import NodeRecord

_FILE = "node-records.json"

_log = structlog.get_logger(__name__)

Records = dict[str, tuple[NodeRecord, int]]     # by node, with the revision that each came of


class RecordsFile:
    def __init__(self, directory: Path) -> None:
        self._path = directory / _FILE

    def read(self) -> tuple[Records, float] | None:
        """The records and when the store confirmed them, Unix seconds; None: nothing usable."""
        try:
            kept = json.loads(self._path.read_text())
            records = {
                node: (NodeRecord(**fields), int(revision)) for node, (fields, revision) in kept["records"].items()
            }
            return records, float(kept["confirmed"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as error:
            _log.error("the kept node records can't be used", file=str(self._path), error=repr(error))
            return None

    def write(self, records: Records, confirmed: float) -> None:
        """What can't be written is said, and missed at the next start only."""
        kept = {
            "confirmed": confirmed,
            "records": {node: (asdict(record), revision) for node, (record, revision) in sorted(records.items())},
        }
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_private(self._path, json.dumps(kept).encode())
        except OSError as error:
            _log.error("the node records aren't kept", file=str(self._path), error=str(error))
