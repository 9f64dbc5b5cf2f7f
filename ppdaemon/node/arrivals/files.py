# SPDX-License-Identifier: BSD-3-Clause
"""Looking at raws and sidecars. Blocking: to be called in `ppdaemon.node.arrivals.pool`.

A file is opened only where its real path lies below its raw root, and never
waited for: a FIFO of that name is refused as a symbolic link out of the root.
"""

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from ppdaemon import fitsblocks
from ppdaemon.errors import BadMessage
from ppdaemon.node.arrivals.patience import Look
from ppdaemon.node.arrivals.tree import Place
from ppdaemon.wire import parse_json

__all__ = ("ExposureFacts", "facts_of_image", "facts_of_sidecar", "is_regular", "look_at")

MAX_SIDECAR = 1_000_000
"""Bytes; real ones have 3 to 4 kB."""


@dataclass(frozen=True, slots=True)
class ExposureFacts:
    """What every detector's header of an exposure says alike."""

    group: str
    snap: int | None = None
    """``CURINDEX``, from 1."""
    snaps: int | None = None
    """``MAXINDEX``."""


def look_at(places: Sequence[Place]) -> Look:
    """Look whether a raw is complete.

    Parameters
    ----------
    places : `~collections.abc.Sequence` [`Place`]
        Where the file may be; the first that exists is looked at.

    Returns
    -------
    look : `~ppdaemon.node.arrivals.patience.Look`
        What was seen; a file that cannot be read is not whole.

    Raises
    ------
    ppdaemon.errors.BadMessage
        Raised if the path leads out of its root or is no regular file.
    """
    for place in places:
        try:
            with _open(place) as file:
                found = fitsblocks.structure(file)
                status = os.fstat(file.fileno())
        except FileNotFoundError:
            continue
        except OSError as error:
            return Look(place, problem=f"cannot be read: {error.strerror}")
        whole = found.whole and found.data_bytes > 0
        problem = "" if whole else found.problem or "no data"
        return Look(
            place, status.st_size, status.st_mtime_ns, status.st_ctime_ns, whole=whole, problem=problem
        )
    return Look(None, problem="no such file")


def facts_of_sidecar(place: Place) -> ExposureFacts:
    """Read the group and the snap from a sidecar.

    Parameters
    ----------
    place : `Place`
        The JSON file.

    Returns
    -------
    facts : `ExposureFacts`
        What it says.

    Raises
    ------
    FileNotFoundError
        Raised if there is none.
    OSError
        Raised if it cannot be read.
    ppdaemon.errors.BadMessage
        Raised if it is no JSON object with a group, or not to be opened.
    """
    with _open(place) as file:
        content = parse_json(file.read(MAX_SIDECAR + 1), limit=MAX_SIDECAR)
    if not isinstance(content, dict):
        raise BadMessage("the sidecar is no JSON object", "sidecar")
    return _facts(content)


def facts_of_image(place: Place) -> ExposureFacts:
    """Read the group and the snap from a primary header.

    Parameters
    ----------
    place : `Place`
        The FITS file.

    Returns
    -------
    facts : `ExposureFacts`
        What it says.

    Raises
    ------
    OSError
        Raised if it cannot be read.
    ppdaemon.errors.BadMessage
        Raised if it is not FITS or names no group, or not to be opened.
    """
    try:
        with _open(place) as file:
            return _facts(fitsblocks.read_primary(file))
    except ValueError as error:
        raise BadMessage(str(error), "header") from None


def is_regular(place: Place) -> bool:
    """Tell whether there is a file that may be opened.

    Parameters
    ----------
    place : `Place`
        Where to look.

    Returns
    -------
    is_regular : `bool`
        `False` also for what leads out of the root.
    """
    try:
        return stat.S_ISREG(os.stat(_real_path(place)).st_mode)
    except (OSError, BadMessage):
        return False


def _real_path(place: Place) -> str:
    real = os.path.realpath(place.path)
    if not real.startswith(os.path.join(os.path.realpath(place.root), "")):
        raise BadMessage(f"{place.path!r} is a link out of the raw root", "symlink")
    return real


def _open(place: Place) -> BinaryIO:
    # Without O_NONBLOCK the opening of a FIFO waits for its writer.
    descriptor = os.open(_real_path(place), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise BadMessage(f"{place.path!r} is not a regular file", "not_a_file")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _facts(header: dict[str, Any]) -> ExposureFacts:
    group = header.get("GROUPID")
    if not isinstance(group, str) or not group.strip():
        raise BadMessage("GROUPID: missing or blank", "group")
    return ExposureFacts(group.strip(), _index(header.get("CURINDEX")), _index(header.get("MAXINDEX")))


def _index(value: Any) -> int | None:
    """Return a count from 1; anything else, such as null, counts as unsaid."""
    if isinstance(value, str) and value.strip().isdecimal():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 1 else None
