# SPDX-License-Identifier: BSD-3-Clause
"""What exceptions of libraries mean here."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy.exc

from ppdaemon.errors import VisitFailed
from ppdaemon.states import Outcome

__all__ = (
    "DATABASE_ERRORS",
    "describe",
    "is_contention",
    "is_link_refusal",
    "is_out_of_space",
    "outcome_of",
    "space_watched",
    "unmasked",
)

DATABASE_ERRORS = (sqlalchemy.exc.SQLAlchemyError, OSError)
"""All that databases and filesystems raise."""

_CONTENTION = frozenset({"40001", "40P01", "55P03"})
"""PostgreSQL's codes of serialization failure, deadlock, and lock not available."""


def describe(error: BaseException) -> str:
    """Return the first line of an exception, with its type.

    Parameters
    ----------
    error : `BaseException`
        What was raised.

    Returns
    -------
    text : `str`
        For instance ``OperationalError: database is locked``.
    """
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def is_out_of_space(error: BaseException | None) -> bool:
    """Tell whether an exception, or one behind it, says that a disk is full.

    Parameters
    ----------
    error : `BaseException` or `None`
        What was raised.

    Returns
    -------
    full : `bool`
        True for ``ENOSPC``, ``EDQUOT`` and SQLite's own words for them.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if isinstance(error, sqlalchemy.exc.OperationalError) and "disk is full" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def is_contention(error: sqlalchemy.exc.DBAPIError) -> bool:
    """Tell whether transactions were in each other's way, so that the next
    try may succeed at once.

    Parameters
    ----------
    error : `sqlalchemy.exc.DBAPIError`
        What a database raised.

    Returns
    -------
    contention : `bool`
        True for PostgreSQL's deadlocks and serialization failures. SQLite
        has waited long enough by itself.
    """
    code = getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None)
    return code in _CONTENTION


def outcome_of(error: BaseException) -> Outcome:
    """Return what an exception makes of a visit.

    Parameters
    ----------
    error : `BaseException`
        What a task has raised.

    Returns
    -------
    outcome : `~ppdaemon.states.Outcome`
        A task that ends its process has crashed.
    """
    if is_out_of_space(error):
        return Outcome.RAMDISK_FULL
    if isinstance(error, MemoryError):
        return Outcome.OUT_OF_MEMORY
    if isinstance(error, SystemExit | KeyboardInterrupt):
        return Outcome.CRASHED
    return Outcome.FAILED


def unmasked(error: BaseException) -> BaseException:
    """Return what a task's constructor has raised, if it was that.

    Parameters
    ----------
    error : `BaseException`
        What came out of lsst's executor.

    Returns
    -------
    error : `BaseException`
        Usually the same.

    Notes
    -----
    `~lsst.pipe.base.single_quantum_executor.SingleQuantumExecutor` asks a
    task for its metadata even if there is none, because its constructor has
    raised: the exception that counts is then behind an `UnboundLocalError`.
    """
    if isinstance(error, UnboundLocalError) and error.__context__ is not None:
        return error.__context__
    return error


def is_link_refusal(error: OSError) -> bool:
    """Tell whether hard links cannot be made between two places.

    Parameters
    ----------
    error : `OSError`
        What `os.link` raised.

    Returns
    -------
    refused : `bool`
        True for another filesystem, one without links, or one with too many
        of them to a file.
    """
    return error.errno in (errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK)


@contextmanager
def space_watched() -> Iterator[None]:
    """End the visit with ``RAMDISK_FULL`` where a disk is full.

    Raises
    ------
    ppdaemon.errors.VisitFailed
        Raised instead of whatever the full disk caused.
    """
    try:
        yield
    except Exception as error:
        if is_out_of_space(error):
            raise VisitFailed(
                Outcome.RAMDISK_FULL, f"no space left: {describe(error)}", retriable=True
            ) from error
        raise
