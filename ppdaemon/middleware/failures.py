# SPDX-License-Identifier: BSD-3-Clause
"""What exceptions of libraries mean here."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy.exc

from ppdaemon.errors import VisitFailed
from ppdaemon.states import Outcome

__all__ = (
    "AWAY_ERRORS",
    "DATABASE_ERRORS",
    "describe",
    "is_link_refusal",
    "is_out_of_space",
    "space_watched",
)

DATABASE_ERRORS = (sqlalchemy.exc.SQLAlchemyError, OSError)
"""All that databases and filesystems raise."""

AWAY_ERRORS = (
    sqlalchemy.exc.OperationalError,
    sqlalchemy.exc.InterfaceError,
    sqlalchemy.exc.TimeoutError,
    OSError,
)
"""Of these, what they raise when they are away: it concerns all work alike,
and it passes."""


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
