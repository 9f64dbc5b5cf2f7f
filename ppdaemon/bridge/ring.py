# SPDX-License-Identifier: BSD-3-Clause
"""The ring of a bridge: the newest notices, numbered, on disk.

A `~ppdaemon.sqlitefile.SqliteFile`, so that what a power failure cuts is what was never answered. Blocking
code; a `~ppdaemon.sqlitefile.BatchWriter` runs it in a thread.
"""

import secrets
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ppdaemon.bridge.config import RingConfig
from ppdaemon.sqlitefile import SchemaStep, SqliteFile

__all__ = ("RING_NAME", "Extent", "Ring", "Stored")

RING_NAME = "ring.sqlite"
"""The file in the bridge's state directory."""
LOCK_WAIT_S = 1.0
"""How long a write waits for another program that has locked the file; stores get no answer in this time."""
CACHE_KB = 256
"""Pages in memory: notices are appended, and read from one on; the default of 2 MB would be filled with those
that nobody asks for again."""
PRUNE_BATCH = 1000
"""Notices deleted in one transaction; more of them only after the limits were lowered."""

SCHEMA = """
CREATE TABLE notices (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    received_tai REAL NOT NULL,
    body BLOB NOT NULL
) STRICT;
CREATE INDEX notices_received ON notices (received_tai);
CREATE TABLE ring (epoch TEXT NOT NULL, bytes INTEGER NOT NULL) STRICT;
"""
# AUTOINCREMENT: no number is used twice, also after all notices were deleted.


def _create(db: sqlite3.Connection) -> None:
    db.executescript(SCHEMA)
    db.execute("INSERT INTO ring VALUES (?, 0)", (secrets.token_hex(8),))


STEPS: tuple[SchemaStep, ...] = (_create,)


class Stored(NamedTuple):
    """A notice in the ring."""

    number: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Extent:
    """What the ring has: the notices from `first` to `last`; none if `first` is above `last`."""

    first: int = 1
    last: int = 0
    bytes: int = 0
    newest_tai: float | None = None
    """When the last one was received."""

    @property
    def count(self) -> int:
        """Number of notices."""
        return self.last - self.first + 1


class Ring(SqliteFile):
    """Notices in the order of their numbers. Raises as `SqliteFile` does."""

    def __init__(self, folder: Path, limits: RingConfig):
        self._path = folder / RING_NAME
        super().__init__(self._path, "ppbridge", STEPS, busy_s=LOCK_WAIT_S)
        self._db.execute(f"PRAGMA cache_size = -{CACHE_KB}")
        self._limits = limits
        self._inode = self._path.stat().st_ino
        (self.epoch,) = self._db.execute("SELECT epoch FROM ring").fetchone()
        """Random name of this file: the numbers of another one mean nothing here."""

    def set_limits(self, limits: RingConfig) -> None:
        """Keep so many notices from now on; what is above is deleted with the next ones."""
        self._limits = limits

    def is_in_place(self) -> bool:
        """Return whether the file has its name: what is written to one that was removed is not kept."""
        try:
            return self._path.stat().st_ino == self._inode
        except FileNotFoundError:
            return False

    def extent(self) -> Extent:
        """Return what the ring has."""
        query = (
            "SELECT (SELECT min(number) FROM notices), (SELECT coalesce(max(seq), 0) FROM sqlite_sequence),"
            " bytes, (SELECT received_tai FROM notices ORDER BY number DESC LIMIT 1) FROM ring"
        )
        first, last, size, newest = self._db.execute(query).fetchone()
        return Extent(last + 1 if first is None else first, last, size, newest)

    def add(self, bodies: Sequence[bytes], now_tai: float) -> Extent:
        """Append notices, and delete the oldest ones above the limits; return what the ring has then."""
        # One statement: after each, the thread waits for the event loop, which has the interpreter.
        places = ", ".join(["(?, ?)"] * len(bodies))
        values = [value for body in bodies for value in (now_tai, body)]
        self._db.execute(f"INSERT INTO notices (received_tai, body) VALUES {places}", values)
        self._db.execute("UPDATE ring SET bytes = bytes + ?", (sum(map(len, bodies)),))
        return self.prune(now_tai)

    def prune(self, now_tai: float) -> Extent:
        """Delete the oldest notices above the limits; return what the ring has then."""
        extent = self.extent()
        oldest = "SELECT number, received_tai, length(body) FROM notices ORDER BY number LIMIT ?"
        first, size, limits = extent.first, extent.bytes, self._limits
        for number, received_tai, length in self._db.execute(oldest, (PRUNE_BATCH,)):
            if (
                extent.last - number < limits.max_notices
                and size <= limits.max_bytes
                and now_tai - received_tai <= limits.keep_s
            ):
                break
            first, size = number + 1, size - length
        if first == extent.first:
            return extent
        self._db.execute("DELETE FROM notices WHERE number < ?", (first,))
        self._db.execute("UPDATE ring SET bytes = ?", (size,))
        return self.extent()

    def begin(self, since_tai: float) -> int:
        """Return the number of the first notice that was received at this time or later; that of the next
        one if there is none.
        """
        (found,) = self._db.execute(
            "SELECT min(number) FROM notices WHERE received_tai >= ?", (since_tai,)
        ).fetchone()
        return self.extent().last + 1 if found is None else found

    def read(self, first: int, most: int, most_bytes: int) -> list[Stored]:
        """Return notices from a number on, as many as are allowed, but one at least if there is one."""
        found: list[Stored] = []
        query = "SELECT number, body FROM notices WHERE number >= ? ORDER BY number LIMIT ?"
        for number, body in self._db.execute(query, (first, most)):
            most_bytes -= len(body)
            if found and most_bytes < 0:
                break
            found.append(Stored(number, body))
        return found
