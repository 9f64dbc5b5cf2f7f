# SPDX-License-Identifier: BSD-3-Clause
"""Blocking reads of raws and sidecars, to be called in `ppdaemon.node.arrivals.threads`.

They return facts; the event loop decides. A file is opened only if it is a
regular file whose real path is below its raw root.
"""

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, BinaryIO

from ppdaemon.errors import BadMessage
from ppdaemon.node.arrivals.pending import ExposureFacts, FileState
from ppdaemon.node.arrivals.roots import RawPath
from ppdaemon.raws import fitsblocks
from ppdaemon.raws.files import (
    OpenFolders,
    is_open_for_writing,
    is_regular,
    open_raw,
    open_with_status,
    read_raw,
)
from ppdaemon.raws.path import EXPECTED_SENSORS, sidecar_path
from ppdaemon.wire import parse_json

__all__ = (
    "ExposureFacts",
    "expected_sensors",
    "facts_in",
    "facts_of_image",
    "facts_of_sidecar",
    "read_sidecars",
    "read_state",
    "read_states",
    "sensors_in",
    "sidecar_of",
    "sidecars_beside",
)

_SHARED = ("GROUPID", "CURINDEX", "MAXINDEX", "OBSID")
"""Keywords that all detectors of an exposure share."""
MAX_SIDECAR = 1_000_000
"""Bytes; real sidecars have 3 to 4 kB."""
MAX_CARD = 80
"""Characters of a FITS card; no header has a longer value."""
MAX_SIDECARS = 5
"""Other detectors' sidecars that are read to find the group of an exposure."""


def read_states(orders: Sequence[tuple[Sequence[RawPath], bool, bool]]) -> list[FileState | BadMessage]:
    """Check several raws, given by the arguments of `read_state`; return in their order what that returns
    or raises.
    """
    states: list[FileState | BadMessage] = []
    with OpenFolders() as folders:
        for files, structure, writers in orders:
            try:
                states.append(read_state(files, folders=folders, structure=structure, writers=writers))
            except BadMessage as error:
                states.append(error)
    return states


def read_state(
    files: Sequence[RawPath], *, folders: OpenFolders, structure: bool, writers: bool = False
) -> FileState:
    """Check the first existing one of several paths of one raw.

    The FITS structure and the existence of the sidecar are read only if requested, or if `writers` are
    to be found and there is none; not while the raw's marker is missing. Raises BadMessage for a link
    out of the root or no regular file.
    """
    for path in files:
        try:
            file, status = open_with_status(path.path, path.root, folders)
            with file:
                # The time stamps were read first: a write during the read is then detected later.
                state = _stamped(path, status)
                if path.marker is not None and not os.path.lexists(path.marker):
                    return state(marked=False, read=False)
                written = is_open_for_writing(file.fileno()) if writers else None
                if structure or written is False:
                    return state(written=written, **_structure_of(path, file, folders))
                return state(written=written, read=False)
        except FileNotFoundError:
            continue
        except OSError as error:
            return FileState(path, problem=f"cannot be read: {error.strerror}")
    return FileState(None, problem="no such file")


def _stamped(path: RawPath, status: os.stat_result) -> Callable[..., FileState]:
    """Return `FileState` for the remaining fields: to copy one for each would take longer than a read."""
    stamps = status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
    return partial(FileState, path, *stamps, device=status.st_dev)


def _structure_of(path: RawPath, file: BinaryIO, folders: OpenFolders) -> dict[str, Any]:
    """Return the fields that follow from the content of a file and from its sidecar."""
    found = fitsblocks.structure(file, _SHARED)
    intact = found.whole and found.data_bytes > 0
    facts = _optional_facts(found.header)
    has_sidecar, of_sidecar = _read_sidecar(sidecar_of(path), folders, needed=facts is None)
    return {
        "intact": intact,
        "problem": "" if intact else found.problem or "no data",
        "unusual": bool(found.warning),
        "has_sidecar": has_sidecar,
        "facts": facts or of_sidecar,
    }


def sidecar_of(image: RawPath) -> RawPath:
    """Return the path of the sidecar beside an image."""
    return RawPath(image.root, sidecar_path(image.path))


def facts_of_sidecar(sidecar: RawPath) -> ExposureFacts:
    """Read the group and the snap from a sidecar.

    This and the functions below raise FileNotFoundError if the file does not exist, another OSError
    if it cannot be read, and BadMessage if its content is invalid or it must not be opened.
    """
    with OpenFolders() as folders:
        return facts_in(_json_object(sidecar, folders))


def expected_sensors(path: RawPath) -> frozenset[str]:
    """Read the names of the detectors of an exposure from ``<obsid>_expectedSensors.json``."""
    with OpenFolders() as folders:
        return sensors_in(_json_object(path, folders))


def sensors_in(content: Mapping[str, Any]) -> frozenset[str]:
    """Return the names, such as ``R22_S11``, in the list of an exposure's detectors."""
    names = content.get("expectedSensors")
    if not isinstance(names, dict | list) or not all(isinstance(name, str) for name in names):
        raise BadMessage("expectedSensors: neither an object nor a list of names", "field")
    return frozenset(names)


def facts_of_image(image: RawPath) -> ExposureFacts:
    """Read the group and the snap from a FITS header."""
    try:
        with open_raw(image.path, image.root) as file:
            return facts_in(fitsblocks.read_header(file, until="GROUPID"))
    except ValueError as error:
        raise BadMessage(str(error), "header") from None


def sidecars_beside(image: RawPath) -> tuple[RawPath, ...]:
    """Return at most `MAX_SIDECARS` sidecars of other images in the folder of an image."""
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
    return tuple(RawPath(image.root, f"{folder}/{name}") for name in sorted(names)[:MAX_SIDECARS])


def read_sidecars(orders: Sequence[tuple[RawPath, bool]]) -> list[tuple[bool, ExposureFacts | None]]:
    """Return for each image whether it has a sidecar that may be opened, and the facts in that if they are
    requested; `None` if it cannot be read or has no group.
    """
    with OpenFolders() as folders:
        return [_read_sidecar(sidecar_of(image), folders, needed=needed) for image, needed in orders]


def _read_sidecar(
    sidecar: RawPath, folders: OpenFolders, *, needed: bool
) -> tuple[bool, ExposureFacts | None]:
    if needed:
        with contextlib.suppress(OSError, BadMessage):
            return True, facts_in(_json_object(sidecar, folders))
    return is_regular(sidecar.path, sidecar.root, folders), None


def _json_object(path: RawPath, folders: OpenFolders) -> dict[str, Any]:
    content = parse_json(read_raw(path.path, path.root, MAX_SIDECAR, folders), limit=MAX_SIDECAR)
    if not isinstance(content, dict):
        raise BadMessage("no JSON object", "sidecar")
    return content


def facts_in(header: Mapping[str, Any]) -> ExposureFacts:
    """Return the facts in a sidecar or a FITS header; raises BadMessage if it has no group."""
    group = header.get("GROUPID")
    if isinstance(group, int) and not isinstance(group, bool):
        group = str(group)
    if not isinstance(group, str) or not group.strip():
        raise BadMessage("GROUPID: missing or blank", "group")
    obsid = header.get("OBSID")
    return ExposureFacts(
        group.strip(),
        _index(header.get("CURINDEX")),
        _index(header.get("MAXINDEX")),
        obsid.strip() if isinstance(obsid, str) and obsid.strip() else None,
    )


def _optional_facts(header: Mapping[str, Any]) -> ExposureFacts | None:
    with contextlib.suppress(BadMessage):
        return facts_in(header)
    return None


def _index(value: Any) -> int | None:
    """Return a number of at least 1; anything else, such as null, counts as missing."""
    if isinstance(value, str) and len(value) <= MAX_CARD and value.strip().isdecimal():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 1 else None
