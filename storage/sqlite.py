"""Metadata in one SQLite file that several processes of one host share: the embedded cluster's store.

Owns how the interface maps to tables and how watches notice other processes' changes. Refuses to know
threads' transactions (sqlite_writer) and the file's set-up (sqlite_file). The file must be on a local file
system: SQLite's locks and shared memory don't work over a network.
"""

import asyncio
import contextlib
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from chassis.beat import until_beat
from chassis.clock import Clock
from storage.faults import Conflict, StoreClosed, StoreUnavailable, WatchGap
from storage.interfaces import (
    Acknowledgement,
    Change,
    Listing,
    Record,
    check_delete,
    check_key,
    check_prefix,
    check_value,
)
from storage.sqlite_file import connect, prepare
from storage.sqlite_writer import Writer

T = TypeVar("T")

WATCH_PAGE_CHANGES = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class SqliteSettings:
    poll_s: float = 0.04          # how often a watch looks for other processes' changes while there are some
    poll_quiet_s: float = 0.25    # the same once nothing has changed for a while
    quiet_polls: int = 4          # polls without a change after which it is quiet
    answer_s: float = 5.0         # a write that takes longer is unavailable or unknown
    log_changes_max: int = 4096   # changes kept for watches; one that is further behind has to list again

    def __post_init__(self) -> None:
        if not 0 < self.poll_s <= self.poll_quiet_s:
            raise ValueError(f"poll_s {self.poll_s} has to be above 0 and at most poll_quiet_s {self.poll_quiet_s}")
        if self.answer_s <= 0 or self.log_changes_max < 1:
            raise ValueError("answer_s and log_changes_max have to be above 0")


class SqliteMetadata:
    """A MetadataStore in a SQLite file (write-ahead log, synced before a write is acknowledged)."""

    def __init__(self, path: Path, clock: Clock, settings: SqliteSettings | None = None) -> None:
        """Open or create; blocks for milliseconds, so call it at start. Raises NewerSchema, StoreUnavailable.
        """
        self._settings = settings or SqliteSettings()
        self._clock = clock
        self._path = path
        prepare(path, busy_s=self._settings.answer_s)
        self._writer = Writer(path, answer_s=self._settings.answer_s)
        self._reading = connect(path, busy_s=self._settings.answer_s)
        self._readers = ThreadPoolExecutor(max_workers=1, thread_name_prefix="storage-reader")
        self._news = _News(connect(path, busy_s=0.0), self._settings)
        self._closed = False

    async def get(self, key: str) -> Record | None:
        check_key(key)
        return await self._read(lambda db: _record(db, key))

    async def list(self, prefix: str) -> Listing:
        check_prefix(prefix)
        return await self._read(lambda db: _listing(db, prefix))

    async def put(self, key: str, value: bytes, *, expected: int | None) -> int:
        check_key(key)
        check_value(key, value)
        kept = bytes(value)
        keep = self._settings.log_changes_max
        return await self._write(key, lambda db: _put(db, key, kept, expected, keep))

    async def delete(self, key: str, *, expected: int | None) -> int:
        check_key(key)
        check_delete(expected)
        keep = self._settings.log_changes_max
        return await self._write(key, lambda db: _delete(db, key, expected, keep))

    async def watch(self, prefix: str, *, after: int) -> AsyncIterator[Change]:
        check_prefix(prefix)
        position = after
        with self._news.watched(prefix):
            while True:
                # Taken before reading: a change after the reading sets this very event.
                news = self._news.next
                begin = position
                page, position = await self._read(lambda db: _changes(db, prefix, begin))  # noqa: B023 -- read at once
                for change in page:
                    yield change
                if position == begin:
                    await news.wait()

    async def acknowledge(self, watcher: str, revision: int, lease_s: float) -> None:
        check_key(watcher)
        now = self._clock.wall()
        expires_at = now + lease_s
        await self._write(watcher, lambda db: _acknowledge(db, watcher, revision, now, expires_at))

    async def acknowledgements(self) -> tuple[Acknowledgement, ...]:
        now = self._clock.wall()
        return await self._read(lambda db: _acknowledgements(db, now))

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        await self._writer.close()
        self._news.close()
        await asyncio.to_thread(self._readers.shutdown)
        self._reading.close()

    async def _write(self, key: str, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return await self._writer.order(key, work)
        finally:
            self._news.look()

    async def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` on one snapshot, on the reader's thread: a cold page must not stall the event loop."""
        if self._closed:
            raise StoreClosed
        try:
            return await asyncio.get_running_loop().run_in_executor(self._readers, _snapshot, self._reading, work)
        except sqlite3.Error as error:
            raise StoreUnavailable(f"{self._path} can't be read: {error}") from error


class _News:
    """Notices changes that somebody watches for: this process's at once, those of others by polling.

    The poll runs on the event loop itself: `PRAGMA data_version` reads shared memory only (microseconds), a
    hop to a thread at every poll would cost more than everything else that an idle process does. So does the
    look at what a commit changed, at the end of the log: most are renewals that nobody watches for.
    """

    def __init__(self, connection: sqlite3.Connection, settings: SqliteSettings) -> None:
        self.next = asyncio.Event()
        self._connection = connection
        self._settings = settings
        self._watched: Counter[str] = Counter()     # prefixes
        self._version: int | None = None
        self._looked = 0        # revision up to which every change was looked at
        self._nudged = 0        # and up to which every watch will have read
        self._unchanged = 0
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    @contextlib.contextmanager
    def watched(self, prefix: str) -> Iterator[None]:
        """Counts one watch for as long as it runs."""
        self._watched[prefix] += 1
        # A watch reads before it waits: what was committed before now needs no notice.
        if self._timer is None and not self._closed:
            self._poll()
        try:
            yield
        finally:
            self._watched[prefix] -= 1
            self._watched += Counter()      # drops those that nobody watches any more
            if not self._watched and self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def close(self) -> None:
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._nudge()
        self._connection.close()

    def look(self) -> bool:
        """Whether there was something new; the watches are told."""
        if self._closed or not self._changed():
            return False
        self._nudge()
        return True

    def _nudge(self) -> None:
        self._nudged = self._looked
        self.next.set()
        self.next = asyncio.Event()

    def _poll(self) -> None:
        self._unchanged = 0 if self.look() else self._unchanged + 1
        quiet = self._unchanged >= self._settings.quiet_polls
        loop = asyncio.get_running_loop()
        pause_s = until_beat(loop.time(), self._settings.poll_quiet_s) if quiet else self._settings.poll_s
        self._timer = loop.call_later(pause_s, self._poll)

    def _changed(self) -> bool:
        try:
            # SQLite's number that changes when another connection committed.
            (version,) = self._connection.execute("PRAGMA data_version").fetchone()
            if version == self._version:
                return False
            after = self._looked
            (self._looked,) = self._connection.execute("SELECT revision FROM store").fetchone()
            self._version = version
            # A watch that nothing wakes would fall behind the log's end.
            return self._looked - self._nudged > self._settings.log_changes_max // 2 or any(
                _is_changed(self._connection, prefix, after) for prefix in self._watched
            )
        except sqlite3.Error:
            # The watches look for themselves then, and report what is wrong with the file.
            return True


def _snapshot(db: sqlite3.Connection, work: Callable[[sqlite3.Connection], T]) -> T:
    db.execute("BEGIN")
    try:
        return work(db)
    finally:
        db.execute("COMMIT")


def _record(db: sqlite3.Connection, key: str) -> Record | None:
    row = db.execute("SELECT value, revision FROM records WHERE key = ?", (key,)).fetchone()
    return Record(key=key, value=row[0], revision=row[1]) if row else None


def _range(prefix: str) -> tuple[str, str]:
    """The keys with a prefix as a half-open range. Keys are ASCII below 0x7f, so that 0x7f is above them all.
    """
    return prefix, prefix + "\x7f"


def _listing(db: sqlite3.Connection, prefix: str) -> Listing:
    (revision,) = db.execute("SELECT revision FROM store").fetchone()
    rows = db.execute(
        "SELECT key, value, revision FROM records WHERE key >= ? AND key < ? ORDER BY key", _range(prefix)
    )
    return Listing(
        records=tuple(Record(key=key, value=value, revision=changed) for key, value, changed in rows),
        revision=revision,
    )


def _changes(db: sqlite3.Connection, prefix: str, after: int) -> tuple[tuple[Change, ...], int]:
    """A page of the changes after a revision, and the revision up to which nothing was left out."""
    revision, trimmed = db.execute("SELECT revision, trimmed FROM store").fetchone()
    if not trimmed <= after <= revision:
        raise WatchGap(after, trimmed, revision)
    rows = db.execute(
        "SELECT key, value, revision FROM changes WHERE revision > ? AND key >= ? AND key < ? "
        "ORDER BY revision LIMIT ?",
        (after, *_range(prefix), WATCH_PAGE_CHANGES),
    ).fetchall()
    page = tuple(Change(key=key, value=value, revision=changed) for key, value, changed in rows)
    return page, page[-1].revision if len(page) == WATCH_PAGE_CHANGES else revision


def _is_changed(db: sqlite3.Connection, prefix: str, after: int) -> bool:
    return db.execute(
        "SELECT 1 FROM changes WHERE revision > ? AND key >= ? AND key < ? LIMIT 1", (after, *_range(prefix))
    ).fetchone() is not None


def _put(db: sqlite3.Connection, key: str, value: bytes, expected: int | None, keep: int) -> int:
    _compare(db, key, expected)
    revision = _append(db, key, value, keep)
    db.execute(
        "INSERT INTO records VALUES (?, ?, ?) "
        "ON CONFLICT (key) DO UPDATE SET value = excluded.value, revision = excluded.revision",
        (key, value, revision),
    )
    return revision


def _delete(db: sqlite3.Connection, key: str, expected: int | None, keep: int) -> int:
    if not _compare(db, key, expected):
        (revision,) = db.execute("SELECT revision FROM store").fetchone()
        return int(revision)
    db.execute("DELETE FROM records WHERE key = ?", (key,))
    return _append(db, key, None, keep)


def _compare(db: sqlite3.Connection, key: str, expected: int | None) -> int:
    row = db.execute("SELECT revision FROM records WHERE key = ?", (key,)).fetchone()
    found = int(row[0]) if row else 0
    if expected is not None and found != expected:
        raise Conflict(key, expected, found)
    return found


def _append(db: sqlite3.Connection, key: str, value: bytes | None, keep: int) -> int:
    """Log a change under the next revision; trim the log to its last `keep` changes, an eighth of them at a time.
    """
    revision, trimmed = db.execute(
        "UPDATE store SET revision = revision + 1 RETURNING revision, trimmed"
    ).fetchone()
    db.execute("INSERT INTO changes VALUES (?, ?, ?)", (revision, key, value))
    if revision - trimmed > keep + keep // 8:
        db.execute("DELETE FROM changes WHERE revision <= ?", (revision - keep,))
        db.execute("UPDATE store SET trimmed = ?", (revision - keep,))
    return int(revision)


def _acknowledge(db: sqlite3.Connection, watcher: str, revision: int, now: float, expires_at: float) -> None:
    db.execute("DELETE FROM acknowledgements WHERE expires_at <= ?", (now,))
    db.execute(
        "INSERT INTO acknowledgements VALUES (?, ?, ?) ON CONFLICT (watcher) DO UPDATE SET "
        "revision = max(revision, excluded.revision), expires_at = excluded.expires_at",
        (watcher, revision, expires_at),
    )


def _acknowledgements(db: sqlite3.Connection, now: float) -> tuple[Acknowledgement, ...]:
    rows = db.execute(
        "SELECT watcher, revision, expires_at FROM acknowledgements WHERE expires_at > ? ORDER BY watcher", (now,)
    )
    return tuple(
        Acknowledgement(watcher=watcher, revision=revision, expires_at=expires_at)
        for watcher, revision, expires_at in rows
    )
