# SPDX-License-Identifier: BSD-3-Clause
"""One durable SQLite file, and a thread that writes it beside an event loop.

WAL with ``synchronous=FULL``: what a transaction has committed survives a
crash of process and host. A node's journal and a relay's ledger are such files.
"""

import asyncio
import logging
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

__all__ = ("BatchWriter", "Commit", "SqliteFile", "Step")

_LOG = logging.getLogger(__name__)

DAMAGE_CODES = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
"""Primary result codes; the extended ones tell where the damage is. A locked,
full or read-only file has others: it is not corrupt."""

MOST_CHECKED_BYTES = 2 << 30
"""``quick_check`` reads the whole file, 1 GB in a second: a start takes no longer."""

BATCH = 200
"""Commits in one transaction; with LSSTCam some 40,000 rows of a ledger."""

ROOM = 1000
"""Commits that may wait before `BatchWriter.room` has its caller wait."""

RETRY_S = 0.5
"""Pause after the file could not be written."""

type Step = Callable[[sqlite3.Connection], object]
"""Brings the schema of a file to the next version, inside a transaction."""


class _Corrupt(Exception):
    """The file is damaged, which no waiting and no retry mends."""


class SqliteFile:
    """An open file; all calls block. One thread at a time may use it.

    A corrupt file is moved aside with its companions, and an empty one begun.

    Parameters
    ----------
    path : `pathlib.Path`
        Its folder exists and is locked against other processes by the caller.
    program : `str`
        Who writes such files, for messages.
    steps : `~collections.abc.Sequence` [`Step`]
        The first makes a new file, or completes one of version 0; each later
        one brings the version that its index is to the next.
    busy_s : `float`
        How long a lock of another program is waited for.

    Raises
    ------
    ppdaemon.errors.StateUnusable
        Raised if it cannot be opened or was written by a newer program.
    """

    def __init__(self, path: Path, program: str, steps: Sequence[Step], *, busy_s: float):
        self.moved_aside: Path | None = None
        """Where a corrupt file was moved to (`pathlib.Path`)."""
        try:
            try:
                self._db = _open(path, program, steps, busy_s)
            except _Corrupt as error:
                self.moved_aside = _set_aside(path)
                where = {"path": str(path), "moved_to": str(self.moved_aside), "reason": str(error)}
                _LOG.error("%s is corrupt: moved aside, an empty one begins", path.stem, extra=where)
                self._db = _open(path, program, steps, busy_s)
        except (sqlite3.Error, OSError, _Corrupt) as error:
            raise StateUnusable(f"{path}: {error}") from error

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction has begun and not ended (`bool`)."""
        return self._db.in_transaction

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit at the end, or undo everything where an exception comes.

        Inside another transaction it is a part of that one, which can be
        undone alone.
        """
        inner = self._db.in_transaction
        self._db.execute("SAVEPOINT part" if inner else "BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("RELEASE part" if inner else "COMMIT")
        except BaseException:
            if self._db.in_transaction:  # a full disk may have ended it already
                self._db.execute("ROLLBACK TO part" if inner else "ROLLBACK")
                if inner:
                    self._db.execute("RELEASE part")
            raise


def _open(path: Path, program: str, steps: Sequence[Step], busy_s: float) -> sqlite3.Connection:
    # autocommit=True: transactions are begun and ended by `transaction` alone.
    db = sqlite3.connect(path, timeout=busy_s, autocommit=True, check_same_thread=False)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA foreign_keys = ON")
        if path.stat().st_size <= MOST_CHECKED_BYTES:
            (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
            if verdict != "ok":
                raise _Corrupt(verdict)
        _upgrade(db, path, program, steps)
    except BaseException as error:
        # What Python's module raises by itself has no code.
        damage = getattr(error, "sqlite_errorcode", 0) & 0xFF in DAMAGE_CODES
        if damage or isinstance(error, _Corrupt):
            # Closing would otherwise copy the WAL into the file and delete it.
            db.setconfig(sqlite3.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE)
        db.close()
        if damage:
            raise _Corrupt(str(error)) from error
        raise
    return db


def _upgrade(db: sqlite3.Connection, path: Path, program: str, steps: Sequence[Step]) -> None:
    """Bring the schema to the program's version, or leave all as it is."""
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version > len(steps):
        raise StateUnusable(
            f"{path} was written by a newer {program} (schema version {version}, this one has {len(steps)}):"
            " install that one again, or move the file away to begin an empty one"
        )
    if version == len(steps):
        return
    db.execute("BEGIN IMMEDIATE")  # closing the file undoes it
    for step in steps[version:]:
        step(db)
    db.execute(f"PRAGMA user_version = {len(steps)}")
    db.execute("COMMIT")


def _set_aside(path: Path) -> Path:
    """Rename a file and its companions; return the file's new name."""
    stamp = tai_iso(Clock().tai()).replace(":", "").replace("-", "")
    kept = path.with_name(f"{path.stem}.corrupt-{stamp}{path.suffix}")
    # The file goes first: a WAL without its file is deleted by SQLite, a file
    # without its WAL would be taken for an older state.
    for companion in ("", "-wal", "-shm"):
        part = path.with_name(path.name + companion)
        if part.exists():
            part.rename(kept.with_name(kept.name + companion))
    return kept


@dataclass(frozen=True, slots=True)
class Commit[F: SqliteFile]:
    """Something to write, and what follows when it is on disk."""

    work: Callable[[F], Any] | None
    """Called in the thread, in a transaction; `None` where nothing is to be
    written and `done` only follows all that was put before."""
    done: Callable[[Any], None]
    """Called in the event loop with what `work` returned."""
    failed: Callable[[Exception], None] | None = None
    """Called in the event loop with the reason if nothing of `work` was done:
    `~ppdaemon.errors.Refused` if the file cannot be written at present. Without
    it, `work` is tried again until it is done."""
    alone: bool = False
    """Whether `work` is called outside of any transaction, as queries are;
    needs `failed`."""


class BatchWriter[F: SqliteFile]:
    """The queue before a file, and the one thread that uses it.

    A commit waits for the disk, which may take a second on a bad day: what
    gathers meanwhile goes into one transaction. Everything is done, and
    followed by its effects, in the order in which it was put.

    Parameters
    ----------
    file : `SqliteFile`
        Used by nobody else from now on.
    name : `str`
        What the file is called in messages.
    complain : `~collections.abc.Callable`
        Gets the reason each time the file cannot be written; it is called in
        the event loop, the first time while `problem` is still blank.
    retry_s : `float`, optional
        Pause until the next try, seconds.
    gather_s : `float`, optional
        Pause after a transaction, seconds: what comes in a burst goes into
        few transactions, each of which costs a wait for the disk.
    """

    def __init__(
        self,
        file: F,
        name: str,
        complain: Callable[[str], None],
        *,
        retry_s: float = RETRY_S,
        gather_s: float = 0.0,
    ):
        self._file = file
        self._name = name
        self._complain = complain
        self._retry_s = retry_s
        self._gather_s = gather_s
        self._thread = ThreadPoolExecutor(1, name)
        self._waiting: deque[Commit[F]] = deque()
        self._under_way = 0
        self._finishing = False
        self._filled = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self.problem = ""
        """Why the file cannot be written at present, blank if it can (`str`)."""

    @property
    def backlog(self) -> int:
        """Commits whose effects have not been performed (`int`)."""
        return len(self._waiting) + self._under_way

    def put(self, commit: Commit[F]) -> None:
        """Queue a commit; never waits.

        Effects alone are performed at once if nothing is before them.
        """
        if commit.work is None and not self.backlog:
            commit.done(None)
            return
        self._waiting.append(commit)
        self._filled.set()
        if self.backlog >= ROOM:
            self._room.clear()

    async def call[R](self, work: Callable[[F], R]) -> R:
        """Do something by itself, after all that was put before, unless the
        file cannot be written: then before it, because it may be read.

        Returns what `work` returns and raises what it raises.
        """
        answer: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self.put(Commit(work, answer.set_result, answer.set_exception, alone=True))
        return await asyncio.shield(answer)  # it can be set when its caller was cancelled, too

    async def room(self) -> None:
        """Wait until there is room for more."""
        await self._room.wait()

    async def run(self) -> None:
        """Write until `finish` is called and nothing is left.

        Raises what a `Commit` without `failed` raises, unless it is the file
        that cannot be written; then nothing of its transaction was done.
        """
        loop = asyncio.get_running_loop()
        while batch := await self._next_batch():
            try:
                effects = await loop.run_in_executor(self._thread, self._write, batch)
            except sqlite3.Error as error:
                if not _is_of_the_file(error):
                    raise
                self._put_off(batch, error)
                if not self._finishing:
                    await asyncio.sleep(self._retry_s)
            else:
                if not batch[0].alone:
                    self.problem = ""
                self._perform(effects)
                if self._gather_s and not (batch[0].alone or self._finishing):
                    await asyncio.sleep(self._gather_s)

    def finish(self) -> None:
        """Make `run` return when all is written; what cannot be written then
        is not waited for.
        """
        self._finishing = True
        self._filled.set()

    def close(self) -> None:
        """Wait for the thread and close the file; `run` has ended."""
        self._thread.shutdown()
        self._file.close()

    async def _next_batch(self) -> list[Commit[F]]:
        """Wait for something to do; return nothing at the end."""
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
        """Do a batch, in the thread; return its effects."""
        if batch[0].alone:
            return [self._do(batch[0])]
        with self._file.transaction():
            return [self._do(commit) for commit in batch]

    def _do(self, commit: Commit[F]) -> Callable[[], None]:
        if commit.work is None:
            return partial(commit.done, None)
        try:
            with nullcontext() if commit.alone else self._file.transaction():
                return partial(commit.done, commit.work(self._file))
        except Exception as error:
            # One that fails by itself must not fail the others; but the file
            # fails them all, as does the end of the common transaction.
            lost = not commit.alone and (_is_of_the_file(error) or not self._file.in_transaction)
            if commit.failed is None or lost:
                raise
            return partial(commit.failed, error)

    def _put_off(self, batch: list[Commit[F]], error: sqlite3.Error) -> None:
        """Keep what must be done, in its order; fail what may fail."""
        problem = f"the {self._name} cannot be written: {error}"
        self._complain(problem)
        self.problem = problem
        # Not this batch alone: who waits behind it is told as soon, and at the
        # end no effect may be performed that follows what was not written.
        batch = [*batch, *self._waiting]
        self._waiting.clear()

        def may_fail(commit: Commit[F]) -> bool:
            return commit.failed is not None and (self._finishing or not commit.alone)

        kept = [commit for commit in batch if not may_fail(commit)]
        if not self._finishing:
            self._waiting.extend(sorted(kept, key=lambda commit: not commit.alone))  # it may be read
        elif kept:
            _LOG.error("%d changes were not written before the end: %s", len(kept), error)
        reason = Refused(self.problem)
        self._perform(
            [partial(commit.failed, reason) for commit in batch if commit.failed and may_fail(commit)]
        )

    def _perform(self, effects: Sequence[Callable[[], None]]) -> None:
        for effect in effects:
            try:
                effect()
            except Exception:  # an error in the program costs no more than this effect
                _LOG.exception("what follows a commit to the %s has failed", self._name)
        # Only now, so that effects put by these effects queue behind the rest.
        self._under_way = 0
        if self.backlog < ROOM:
            self._room.set()


def _is_of_the_file(error: Exception) -> bool:
    """Return whether the file cannot be written: locked, full, damaged."""
    return isinstance(error, sqlite3.OperationalError) or type(error) is sqlite3.DatabaseError
