"""The SQLite file of the metadata store: how a connection is set up, created once, and checked for its
version.

Owns pragmas, the schema and its version. Refuses to know what is read and written.
"""

import os
import sqlite3
from importlib.resources import files
from pathlib import Path

from storage.faults import NewerSchema, StoreUnavailable

SCHEMA_VERSION = 1
METADATA_FILE = "metadata.sqlite3"


def connect(path: Path, *, busy_s: float) -> sqlite3.Connection:
    """A connection without implicit transactions, usable from whichever single thread owns it.

    `busy_s` is how long a statement waits for another process's transaction before "database is locked".
    """
    connection = sqlite3.connect(path, timeout=busy_s, isolation_level=None, check_same_thread=False)
    try:
        # FULL syncs the write-ahead log at every commit: what was acknowledged outlives a power loss.
        connection.execute("PRAGMA synchronous = FULL")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def prepare(path: Path, *, busy_s: float) -> None:
    """Create the file where it is missing, also when several processes do so at once, and check its version.

    Raises NewerSchema; StoreUnavailable when the file can't be opened or isn't a database.
    """
    try:
        _create_private(path)
        connection = connect(path, busy_s=busy_s)
        try:
            # WAL: readers and the writer don't wait for each other. It is a lasting property of the file.
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("BEGIN IMMEDIATE")
            if not connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'store'").fetchone():
                _create_tables(connection)
            connection.execute("COMMIT")
            check_version(connection, path)
        finally:
            connection.close()
    except (OSError, sqlite3.Error) as error:
        raise StoreUnavailable(f"{path} can't be opened as a metadata store: {error}") from error


def check_version(connection: sqlite3.Connection, path: Path) -> None:
    """Raise NewerSchema when the file is newer than this program."""
    (found,) = connection.execute("SELECT schema_version FROM store").fetchone()
    if found > SCHEMA_VERSION:
        raise NewerSchema(str(path), found, SCHEMA_VERSION)


def _create_private(path: Path) -> None:
    """Make an empty file that only its owner reads; SQLite gives its log the same permissions."""
    os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _create_tables(connection: sqlite3.Connection) -> None:
    # Statement by statement: executescript would commit the transaction that excludes other creators.
    statement = ""
    for line in files("storage").joinpath("schema.sql").read_text().splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            connection.execute(statement)
            statement = ""
    connection.execute("INSERT INTO store VALUES (1, ?, 0, 0)", (SCHEMA_VERSION,))
