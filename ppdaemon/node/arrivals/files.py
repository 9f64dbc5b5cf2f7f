# SPDX-License-Identifier: BSD-3-Clause
"""Looking at raws and sidecars. Blocking: to be called in `ppdaemon.node.arrivals.pool`.

A file is opened only where its real path lies below its raw root. What is no
regular file is refused like a symbolic link out of the root.
"""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

from ppdaemon.errors import BadMessage
from ppdaemon.node.arrivals.patience import Look, Patience
from ppdaemon.node.arrivals.tree import Place
from ppdaemon.raws import fitsblocks
from ppdaemon.raws.files import open_raw, raw_descriptor
from ppdaemon.raws.path import EXPECTED_SENSORS, sidecar_path
from ppdaemon.wire import parse_json

__all__ = (
    "ExposureFacts",
    "are_regular",
    "expected_sensors",
    "facts_in",
    "facts_of_image",
    "facts_of_sidecar",
    "is_regular",
    "look_at",
    "sensors_in",
    "sidecars_beside",
)

MAX_SIDECAR = 1_000_000
"""Bytes; real ones have 3 to 4 kB."""
MAX_CARD = 80
"""Characters; a longer value is in no header."""
MOST_SIDECARS = 5
"""Read to learn the group of an exposure that its own files do not tell."""


@dataclass(frozen=True, slots=True)
class ExposureFacts:
    """What every detector's header of an exposure says alike."""

    group: str
    snap: int | None = None
    """``CURINDEX``, from 1."""
    snaps: int | None = None
    """``MAXINDEX``."""
    obsid: str | None = None


def look_at(
    places: Sequence[Place], patience: Patience, confirmed: bool, news: bool, *, same_clock: bool = False
) -> Look:
    """Look whether a raw is complete.

    Parameters
    ----------
    places : `~collections.abc.Sequence` [`Place`]
        Where the file may be; the first that exists is looked at.
    patience : `~ppdaemon.node.arrivals.patience.Patience`
        Knows the former looks, and whether time stamps are enough.
    confirmed, news : `bool`
        See `~ppdaemon.node.arrivals.patience.Patience.recall`.
    same_clock : `bool`, optional
        Whether time stamps are by the clock of this host.

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
                stamps = _stamps(place, os.fstat(file.fileno()))
                if same_clock:
                    age_s = time.time() - max(stamps.modified_ns, stamps.changed_ns) / 1e9
                    stamps = replace(stamps, age_s=max(0.0, age_s))
                look = patience.recall(stamps, confirmed, news)
                return look if look is not None else _read(stamps, file)
        except FileNotFoundError:
            continue
        except OSError as error:
            return Look(place, problem=f"cannot be read: {error.strerror}")
    return Look(None, problem="no such file")


def _stamps(place: Place, status: os.stat_result) -> Look:
    marked = place.marker is None or os.path.lexists(place.marker)
    return Look(
        place,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
        marked=marked,
        read=False,
    )


def _read(stamps: Look, file: BinaryIO) -> Look:
    # The stamps are from before the reading: a write during it shows later.
    found = fitsblocks.structure(file)
    whole = found.whole and found.data_bytes > 0
    return replace(stamps, read=True, whole=whole, problem="" if whole else found.problem or "no data")


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
    return facts_in(_json_object(place))


def expected_sensors(place: Place) -> frozenset[str]:
    """Read which detectors of an exposure will come.

    Parameters
    ----------
    place : `Place`
        A file ``<obsid>_expectedSensors.json``.

    Returns
    -------
    names : `frozenset` [`str`]
        Such as ``R22_S11``: the keys, or the items, of ``expectedSensors``.

    Raises
    ------
    OSError
        Raised if it cannot be read.
    ppdaemon.errors.BadMessage
        Raised if it is no such list, or not to be opened.
    """
    return sensors_in(_json_object(place))


def sensors_in(content: Mapping[str, Any]) -> frozenset[str]:
    """Understand the list of an exposure's detectors; see `expected_sensors`."""
    names = content.get("expectedSensors")
    if not isinstance(names, dict | list) or not all(isinstance(name, str) for name in names):
        raise BadMessage("expectedSensors: neither an object nor a list of names", "field")
    return frozenset(names)


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
            return facts_in(fitsblocks.read_primary(file))
    except ValueError as error:
        raise BadMessage(str(error), "header") from None


def sidecars_beside(image: Place) -> tuple[Place, ...]:
    """List the sidecars in the folder of an image, whosever they are.

    Parameters
    ----------
    image : `Place`
        The image.

    Returns
    -------
    sidecars : `tuple` [`Place`]
        Not more than `MOST_SIDECARS`.

    Raises
    ------
    OSError
        Raised if the folder cannot be listed.
    """
    folder, own = os.path.dirname(image.path), os.path.basename(sidecar_path(image.path))
    with os.scandir(folder) as entries:
        names = [
            entry.name
            for entry in entries
            if entry.name.endswith(".json")
            and not entry.name.endswith(EXPECTED_SENSORS)
            and not entry.name.startswith(".")
            and entry.name != own
        ]
    return tuple(Place(image.root, f"{folder}/{name}") for name in sorted(names)[:MOST_SIDECARS])


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
        os.close(raw_descriptor(place.path, place.root))
    except (OSError, BadMessage):
        return False
    return True


def are_regular(places: Sequence[Place]) -> list[bool]:
    """Tell of several places whether there is a file; see `is_regular`."""
    return [is_regular(place) for place in places]


def _open(place: Place) -> BinaryIO:
    return open_raw(place.path, place.root)


def _json_object(place: Place) -> dict[str, Any]:
    with _open(place) as file:
        content = parse_json(file.read(MAX_SIDECAR + 1), limit=MAX_SIDECAR)
    if not isinstance(content, dict):
        raise BadMessage("no JSON object", "sidecar")
    return content


def facts_in(header: Mapping[str, Any]) -> ExposureFacts:
    """Understand a sidecar or a primary header.

    Parameters
    ----------
    header : `~collections.abc.Mapping`
        Values by keyword.

    Returns
    -------
    facts : `ExposureFacts`
        What it says.

    Raises
    ------
    ppdaemon.errors.BadMessage
        Raised if it names no group.
    """
    group = header.get("GROUPID")
    if not isinstance(group, str) or not group.strip():
        raise BadMessage("GROUPID: missing or blank", "group")
    obsid = header.get("OBSID")
    return ExposureFacts(
        group.strip(),
        _index(header.get("CURINDEX")),
        _index(header.get("MAXINDEX")),
        obsid.strip() if isinstance(obsid, str) and obsid.strip() else None,
    )


def _index(value: Any) -> int | None:
    """Return a count from 1; anything else, such as null, counts as unsaid."""
    if isinstance(value, str) and len(value) <= MAX_CARD and value.strip().isdecimal():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 1 else None
