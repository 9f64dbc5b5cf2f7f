# SPDX-License-Identifier: BSD-3-Clause
"""Classifies exceptions of libraries."""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy.exc
import yaml

from ppdaemon.errors import VisitFailed
from ppdaemon.states import Outcome

__all__ = (
    "DATABASE_ERRORS",
    "describe",
    "encodable",
    "is_contention",
    "is_link_refusal",
    "is_out_of_space",
    "outcome_of",
    "ramdisk_full_errors",
    "spool_full_errors",
    "unmasked",
)

_ALIASES = re.compile(r" \((given .* and (no )?known aliases|resolved from alias ).*\)$")
"""What the Butler adds to a missing repo about names of repos; the configuration has paths."""

DATABASE_ERRORS = (sqlalchemy.exc.SQLAlchemyError, OSError)
"""The errors of databases and filesystems."""

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_CONTENTION = frozenset({"40001", "40P01", "55P03"})
"""PostgreSQL's codes of serialization failure, deadlock and lock not available
(appendix A of its manual)."""


def encodable(text: str) -> str:
    """Return a text that UTF-8 can encode: halves of surrogate pairs are replaced."""
    return text.encode(errors="replace").decode()


def describe(error: BaseException) -> str:
    """Return type and first line of an exception, such as ``OperationalError: database is locked``, without
    what the Butler adds about names of repos; of invalid YAML all lines, which have file and position. Of a
    group, which has an exception for each file that cannot be copied, the first.
    """
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    text = encodable(str(error)).strip()
    lines = [" ".join(text.split())] if isinstance(error, yaml.YAMLError) else text.splitlines()
    if not lines:
        return type(error).__name__
    return f"{type(error).__name__}: {_ALIASES.sub('', lines[0])}"


def is_out_of_space(error: BaseException | None) -> bool:
    """Return whether an exception, one in its group, or one that caused it, means a full disk or quota."""
    while error is not None:
        if isinstance(error, BaseExceptionGroup) and any(map(is_out_of_space, error.exceptions)):
            return True
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        # Of a copied folder: the texts of all errors, without a cause.
        if isinstance(error, shutil.Error) and any(os.strerror(code) in str(error) for code in _FULL):
            return True
        # SQLite's text for SQLITE_FULL; it has no errno.
        if isinstance(error, sqlalchemy.exc.OperationalError) and "disk is full" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def is_contention(error: sqlalchemy.exc.DBAPIError) -> bool:
    """Return whether concurrent transactions collided in PostgreSQL: a retry may succeed at once."""
    # SQLite has no such code; it has waited for its lock already.
    code = getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None)
    return code in _CONTENTION


def outcome_of(error: BaseException) -> Outcome:
    """Return the outcome of a visit whose task raised an exception; one that exits has crashed."""
    if is_out_of_space(error):
        return Outcome.RAMDISK_FULL
    if isinstance(error, MemoryError):
        return Outcome.OUT_OF_MEMORY
    if isinstance(error, SystemExit | KeyboardInterrupt):
        return Outcome.CRASHED
    return Outcome.FAILED


def unmasked(error: BaseException) -> BaseException:
    """Return the exception of a task's constructor if another one masks it, else the same exception."""
    # SingleQuantumExecutor reads the task's metadata even if its constructor
    # raised and there is no task: the UnboundLocalError masks the real error.
    if isinstance(error, UnboundLocalError) and error.__context__ is not None:
        return error.__context__
    return error


def is_link_refusal(error: OSError) -> bool:
    """Return whether `os.link` failed because links cannot be made: to another
    filesystem, on one without links, or too many to one file.
    """
    # ENOSYS: some kernels return it for a FUSE filesystem without links.
    return error.errno in (errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS)


@contextmanager
def ramdisk_full_errors() -> Iterator[None]:
    """Raise `~ppdaemon.errors.VisitFailed` (``RAMDISK_FULL``, retriable) for any error of a full disk."""
    try:
        yield
    except Exception as error:
        is_state_disk = isinstance(error, VisitFailed) and error.outcome == Outcome.STATE_FULL
        if is_out_of_space(error) and not is_state_disk:
            raise VisitFailed(
                Outcome.RAMDISK_FULL, f"no space left: {describe(error)}", retriable=True
            ) from error
        raise


@contextmanager
def spool_full_errors(ramdisk: Path) -> Iterator[None]:
    """Raise `~ppdaemon.errors.VisitFailed` (``STATE_FULL``, retriable) for an error of the full disk with
    the spool. One that names a file of the RAM disk is raised unchanged.
    """
    try:
        yield
    except Exception as error:
        if is_out_of_space(error) and not _names_file_in(error, ramdisk):
            raise VisitFailed(
                Outcome.STATE_FULL, f"no space left for the spool: {describe(error)}", retriable=True
            ) from error
        raise


def _names_file_in(error: BaseException | None, folder: Path) -> bool:
    while error is not None:
        # Of a copy, the second one is the file that was written.
        if isinstance(error, OSError) and isinstance(name := error.filename2 or error.filename, str):
            return Path(name).is_relative_to(folder)
        error = error.__cause__ or error.__context__
    return False
