# SPDX-License-Identifier: BSD-3-Clause
"""One durable SQLite file, and a thread that writes it beside an event loop.

WAL with ``synchronous=FULL``: what a transaction has committed survives a
crash of process and host. A node's journal and a relay's ledger are such files.
"""

import asyncio
import logging
import os
import sqlite3
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ppdaemon.clock import Clock, tai_iso
from ppdaemon.errors import Refused, StateUnusable
from ppdaemon.journalfile import SHADOW_ID, is_shadow
from ppdaemon.privatefiles import open_private

__all__ = ("BatchWriter", "Commit", "SqliteFile", "SchemaStep")

_LOG = logging.getLogger(__name__)

DAMAGE_CODES = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
"""Primary result codes; extended ones add the place. A locked, full or read-only file has other
codes: it is not corrupt."""

MAX_CHECKED_BYTES = 2 << 30
"""Bytes: ``quick_check`` reads the whole file, 1 GB per second, and delays the start by 2 s at most."""

BATCH = 200
"""Commits in one transaction; for LSSTCam some 40,000 rows of a ledger."""

ROOM = 1000
"""Queued commits above which `BatchWriter.wait_for_room` waits."""

RETRY_S = 0.5
"""Pause after a failed write: a lock of another program is usually short."""

type SchemaStep = Callable[[sqlite3.Connection], object]
"""Upgrades the schema of a file to the next version, inside a transaction."""


class _Corrupt(Exception):
    """The file is damaged: a retry does not help."""


class SqliteFile:
    """An open file; all calls block. One thread at a time may use it.

    The caller has locked the existing folder against other processes. A corrupt file is renamed with
    its companions, and an empty one is created. The first step creates a new file, whose schema has
    version `first`; each of the others upgrades it to the next version. `busy_s` is the wait for a lock
    of another program, seconds. `program` is its name in messages. Raises StateUnusable if the file
    cannot be opened, or has a version before the first or after the last one.
    """

    def __init__(
        self, path: Path, program: str, steps: Sequence[SchemaStep], *, first: int = 1, busy_s: float
    ):
        self.moved_aside: Path | None = None
        """New path of a corrupt file."""
        try:
            try:
                self._db = _open(path, program, steps, first, busy_s)
            except _Corrupt as error:
                self.moved_aside = _set_aside(path)
                where = {"path": str(path), "moved_to": str(self.moved_aside), "reason": str(error)}
                _LOG.error(
                    "%s is corrupt: it was renamed, and an empty one is created", path.stem, extra=where
                )
                self._db = _open(path, program, steps, first, busy_s)
        except (sqlite3.Error, OSError, _Corrupt) as error:
            raise StateUnusable(f"{path}: {getattr(error, 'strerror', error)}") from error

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def _set_mode(self, path: Path, shadow: bool, table: str, key: str) -> None:
        """Note whether the file is of shadow mode; raise StateUnusable if it has visits of the other mode, in
        a table. `key` is that of the folder in the configuration.
        """
        if is_shadow(self._db) != shadow:
            if self._db.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone():
                modes = "visits of shadow mode", "visits of the present service"
                self.close()
                raise StateUnusable(f"{path} has {modes[shadow]}: use another {key} for this mode")
            self._db.execute(f"PRAGMA application_id = {SHADOW_ID if shadow else 0}")

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open."""
        return self._db.in_transaction

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit at the end, or roll back if an exception is raised.

        Inside another transaction it is a savepoint, which is rolled back alone.
        """
        inner = self._db.in_transaction
        self._db.execute("SAVEPOINT part" if inner else "BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("RELEASE part" if inner else "COMMIT")
        except BaseException:
            if self._db.in_transaction:  # a full disk may have rolled it back already
                self._db.execute("ROLLBACK TO part" if inner else "ROLLBACK")
                if inner:
                    self._db.execute("RELEASE part")
            raise


def _open(
    path: Path, program: str, steps: Sequence[SchemaStep], first: int, busy_s: float
) -> sqlite3.Connection:
    # SQLite itself would create it with a mode by the umask; its companions get the mode of the file.
    os.close(open_private(path, os.O_RDWR | os.O_CREAT))
    # autocommit=True: only `transaction` and `_upgrade` begin and end transactions.
    db = sqlite3.connect(path, timeout=busy_s, autocommit=True, check_same_thread=False)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA foreign_keys = ON")
        if path.stat().st_size <= MAX_CHECKED_BYTES:
            (result,) = db.execute("PRAGMA quick_check(1)").fetchone()
            if result != "ok":
                raise _Corrupt(result)
        _upgrade(db, path, program, steps, first)
    except BaseException as error:
        # Errors of the sqlite3 module itself have no code.
        damage = getattr(error, "sqlite_errorcode", 0) & 0xFF in DAMAGE_CODES
        if damage or isinstance(error, _Corrupt):
            # Otherwise closing would copy the WAL into the damaged file and delete it.
            db.setconfig(sqlite3.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE)
        db.close()
        if damage:
            raise _Corrupt(str(error)) from error
        raise
    return db


def _upgrade(
    db: sqlite3.Connection, path: Path, program: str, steps: Sequence[SchemaStep], first: int
) -> None:
    """Upgrade the schema to the program's version, or change nothing."""
    (version,) = db.execute("PRAGMA user_version").fetchone()
    last = first + len(steps) - 1
    if version > last:
        raise StateUnusable(
            f"{path} was written by a newer {program} (schema version {version}, this one has {last}):"
            " install that version again, or move the file away to start with an empty one"
        )
    if 0 < version < first:
        raise StateUnusable(
            f"{path} was written by an older {program} (schema version {version}, this one reads {first} and"
            " later): install a version that upgrades it, or move the file away to start with an empty one"
        )
    if version == last:
        return
    db.execute("BEGIN IMMEDIATE")  # if a step fails, closing the file rolls back
    for step in steps[version and version - first + 1 :]:
        step(db)
    db.execute(f"PRAGMA user_version = {last}")
    db.execute("COMMIT")


def _set_aside(path: Path) -> Path:
    """Rename a corrupt file and its companions; return the new path of the file."""
    stamp = tai_iso(Clock().tai()).replace(":", "").replace("-", "")
    renamed = path.with_name(f"{path.stem}.corrupt-{stamp}{path.suffix}")
    # The file first, in case of a crash in between: SQLite deletes a WAL without its
    # file, but would read a file without its WAL as an older state.
    for companion in ("", "-wal", "-shm"):
        part = path.with_name(path.name + companion)
        if part.exists():
            part.rename(renamed.with_name(renamed.name + companion))
    return renamed


@dataclass(frozen=True, slots=True)
class Commit[F: SqliteFile]:
    """A change to write, and the effect to perform when it is on disk."""

    work: Callable[[F], Any] | None
    """Called in the thread, in a transaction; `None` if there is nothing to write and
    `done` only has to run after all earlier commits."""
    done: Callable[[Any], None]
    """Called in the event loop with the result of `work`."""
    failed: Callable[[Exception], None] | None = None
    """Called in the event loop with the reason if `work` failed and was rolled back:
    `~ppdaemon.errors.Refused` if the file cannot be written at present. Without
    `failed`, `work` is repeated until it succeeds."""
    alone: bool = False
    """Whether `work` is called outside any transaction, as for queries; requires `failed`."""


class BatchWriter[F: SqliteFile]:
    """Writes a file in one thread, from a queue of commits.

    A transaction waits for the disk, which may take a second: commits queued
    meanwhile share the next one. Commits are written, and their effects
    performed, in the order of `put`. Nothing else may use `file`; `name` is its
    name in messages. `on_problem` is called in the event loop with the reason each
    time the file cannot be written, the first time while `problem` is still
    empty. `retry_s` is the pause before the next attempt, and `batch_s` the pause
    after a transaction, seconds: a burst then needs few transactions.
    """

    def __init__(
        self,
        file: F,
        name: str,
        on_problem: Callable[[str], None],
        *,
        retry_s: float = RETRY_S,
        batch_s: float = 0.0,
    ):
        self._file = file
        self._name = name
        self._on_problem = on_problem
        self._retry_s = retry_s
        self._gather_s = batch_s
        self._thread = ThreadPoolExecutor(1, name)
        self._waiting: deque[Commit[F]] = deque()
        self._under_way = 0
        self._finishing = False
        self._filled = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self.problem = ""
        """Why the file cannot be written at present; empty if it can."""
        self.written = 0
        """How many transactions were committed: not counted is what was written `alone`."""

    @property
    def backlog(self) -> int:
        """Number of commits whose effects have not been performed."""
        return len(self._waiting) + self._under_way

    def put(self, commit: Commit[F]) -> None:
        """Queue a commit; never waits.

        An effect without `work` is performed at once if no commit is queued before it.
        """
        if commit.work is None and not self.backlog:
            commit.done(None)
            return
        self._waiting.append(commit)
        self._filled.set()
        if self.backlog >= ROOM:
            self._room.clear()

    async def call[R](self, work: Callable[[F], R]) -> R:
        """Run `work` outside a transaction, after all earlier commits; before them while the file
        cannot be written, because it may be readable.
        """
        answer: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self.put(Commit(work, answer.set_result, answer.set_exception, alone=True))
        return await asyncio.shield(answer)  # shielded: it must accept a result after the caller was canceled

    async def wait_for_room(self) -> None:
        """Wait until fewer than `ROOM` commits are queued."""
        await self._room.wait()

    async def run(self) -> None:
        """Write until `finish` is called and the queue is empty.

        Raises the error of a `Commit` without `failed`, unless the file cannot be written; its
        transaction is then rolled back.
        """
        loop = asyncio.get_running_loop()
        while batch := await self._next_batch():
            if all(commit.work is None for commit in batch):  # what they follow is on disk
                self._perform([partial(commit.done, None) for commit in batch])
                continue
            try:
                effects = await loop.run_in_executor(self._thread, self._write, batch)
            except sqlite3.Error as error:
                if not _is_of_the_file(error):
                    raise
                self._postpone(batch, error)
                if not self._finishing:
                    await asyncio.sleep(self._retry_s)
            else:
                if not batch[0].alone:
                    self.problem = ""
                    self.written += 1
                self._perform(effects)
                if self._gather_s and not (batch[0].alone or self._finishing):
                    await asyncio.sleep(self._gather_s)

    def finish(self) -> None:
        """Make `run` return when all commits are written, or have failed once."""
        self._finishing = True
        self._filled.set()

    def close(self) -> None:
        """Wait for the thread and close the file, after `run` has ended."""
        self._thread.shutdown()
        self._file.close()

    async def _next_batch(self) -> list[Commit[F]]:
        """Wait for commits; return an empty list at the end."""
        while not (self._waiting or self._finishing):
            self._filled.clear()
            await self._filled.wait()
        batch: list[Commit[F]] = []
        while self._waiting and len(batch) < BATCH:
            if batch and (batch[0].alone or self._waiting[0].alone):
                break
            batch.append(self._waiting.popleft())
        self._under_way = len(batch)
        return batch

    def _write(self, batch: Sequence[Commit[F]]) -> list[Callable[[], None]]:
        """Write a batch, in the thread; return its effects."""
        if batch[0].alone:
            return [self._do(batch[0])]
        with self._file.transaction():
            return [self._do(commit) for commit in batch]

    def _do(self, commit: Commit[F]) -> Callable[[], None]:
        if commit.work is None:
            return partial(commit.done, None)
        try:
            # Without `failed`, an error fails the whole batch: nothing of it is committed.
            with nullcontext() if commit.alone or commit.failed is None else self._file.transaction():
                return partial(commit.done, commit.work(self._file))
        except Exception as error:
            # An error of one commit must not fail the others; an error of the file, or
            # the end of the common transaction, fails them all.
            lost = not commit.alone and (_is_of_the_file(error) or not self._file.in_transaction)
            if commit.failed is None or lost:
                raise
            return partial(commit.failed, error)

    def _postpone(self, batch: list[Commit[F]], error: sqlite3.Error) -> None:
        """Queue again the commits that must be written, in order; fail the others."""
        problem = f"the {self._name} cannot be written: {error}"
        self._on_problem(problem)
        self.problem = problem
        # Not only this batch: commits queued behind it fail at once too, and at the
        # end no effect may be performed that follows an unwritten commit.
        batch = [*batch, *self._waiting]
        self._waiting.clear()

        def may_fail(commit: Commit[F]) -> bool:
            return commit.failed is not None and (self._finishing or not commit.alone)

        retained = [commit for commit in batch if not may_fail(commit)]
        if not self._finishing:
            # Queries first: the file may be readable.
            self._waiting.extend(sorted(retained, key=lambda commit: not commit.alone))
        elif retained:
            _LOG.error(
                "%d changes could not be written before the program ended and are dropped: %s",
                len(retained),
                error,
            )
        reason = Refused(self.problem)
        self._perform(
            [partial(commit.failed, reason) for commit in batch if commit.failed and may_fail(commit)]
        )

    def _perform(self, effects: Sequence[Callable[[], None]]) -> None:
        for effect in effects:
            try:
                effect()
            except Exception:  # an internal error must not prevent the other effects
                _LOG.exception(
                    "internal error in an effect of a commit to the %s; the commit is written", self._name
                )
        # Only now: commits put by these effects must queue behind the other effects.
        self._under_way = 0
        if self.backlog < ROOM:
            self._room.set()


def _is_of_the_file(error: Exception) -> bool:
    """Return whether an error means that the file cannot be written: locked, full or damaged."""
    return isinstance(error, sqlite3.OperationalError) or type(error) is sqlite3.DatabaseError
