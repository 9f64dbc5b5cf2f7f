# SPDX-License-Identifier: BSD-3-Clause
"""Read-only connections to a journal or a ledger, beside the program that writes it, or without one."""

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from ppdaemon.errors import Unavailable, Unreadable

__all__ = ("reading",)

LONGEST_S = 4.0
"""How long a query may take: less than ``ppctl`` waits for its answer."""
BUSY_S = 2.0
"""How long a query waits for a lock; a program that starts holds one while it upgrades the file."""
_DENIED = "{path}: permission denied; its group may read it"


@contextmanager
def reading(path: Path, *, longest_s: float = LONGEST_S) -> Iterator[sqlite3.Connection]:
    """Open a file for some queries; it is closed after them, so that it delays no write.

    They may take `longest_s` together. Raises `~ppdaemon.errors.Unavailable` if the file cannot be read,
    `~ppdaemon.errors.Unreadable` if this user may not.
    """
    try:
        # Without a WAL no program has the file open. Then reading needs no permission to create
        # the shared memory beside it, which an operator may not have.
        mode = "mode=ro" if path.with_name(f"{path.name}-wal").exists() else "mode=ro&immutable=1"
        uri = f"{path.absolute().as_uri()}?{mode}"
        with closing(sqlite3.connect(uri, uri=True, timeout=BUSY_S, autocommit=True)) as db:
            db.execute("BEGIN")  # all queries see the same rows
            deadline = time.monotonic() + longest_s
            db.set_progress_handler(lambda: time.monotonic() > deadline, 100_000)
            try:
                yield db
            except sqlite3.OperationalError as error:
                if not str(error).startswith("no such "):  # table or column
                    raise
                raise Unavailable(_of_other_version(path, db, error)) from None
    except PermissionError:
        raise Unreadable(_DENIED.format(path=path)) from None
    except sqlite3.Error as error:
        if error.args == ("interrupted",):
            text = f"{path}: the query took more than {longest_s:g} s; select less, such as --since 1h"
            raise Unavailable(text) from None
        if not path.exists():
            raise Unavailable(
                f"{path} does not exist: has its program run yet, and with this state directory?"
            ) from None
        if not os.access(path, os.R_OK):
            raise Unreadable(_DENIED.format(path=path)) from None
        raise Unavailable(f"{path} cannot be read: {error}") from None


def _of_other_version(path: Path, db: sqlite3.Connection, error: sqlite3.Error) -> str:
    """Return why a file lacks a table or column."""
    db.set_progress_handler(None, 0)
    if not db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
        return f"{path} is empty: the program whose file it is has never written to it"
    (version,) = db.execute("PRAGMA user_version").fetchone()
    return (
        f"{path} cannot be read: {error}; its schema version is {version}:"
        " use the ppctl of the ppdaemon that wrote it"
    )
