# SPDX-License-Identifier: BSD-3-Clause
"""Reads objects in stores by `lsst.resources`: copies raws, reads their headers."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lsst.resources import ResourcePath

from ppdaemon.errors import BadMessage
from ppdaemon.middleware.butler.failures import describe
from ppdaemon.raws.fitsblocks import read_header as read_fits_header
from ppdaemon.wire import parse_json

__all__ = ("StoreError", "fetch", "list_folder", "read_header", "read_json")

JSON_LIMIT = 1_000_000
"""Bytes; sidecars have 3 to 4 kB."""
HEADER_CHUNK = 64 * 1024
"""Primary headers of LSST cameras take 15 to 30 kB."""
GROUP_KEYWORD = "GROUPID"
HEADER_LIMIT = 4_000_000
"""Bytes that are read at most to find the end of a header, or the group."""
MAX_LISTED = 3000
"""Names of folders, and of objects, that are returned of one folder, the last ones: a day has some 1000
exposures, an exposure some 400 objects."""


class StoreError(OSError):
    """A store cannot serve an object now; whether the object exists is not known."""


def fetch(uri: str, copy: Path) -> None:
    """Copy an object (an escaped URI) to a file in an existing folder.

    Raises `FileNotFoundError` if there is no such object, another `OSError` if
    it cannot be read or written.
    """
    with _store_errors(uri):
        ResourcePath(copy.as_uri()).transfer_from(ResourcePath(uri), transfer="copy", overwrite=True)


def read_json(uri: str) -> dict[str, Any]:
    """Read a JSON object, such as a sidecar or a list of detectors.

    Raises `OSError` as `fetch`, and `~ppdaemon.errors.BadMessage` if it is no
    JSON object.
    """
    with _store_errors(uri):
        data = ResourcePath(uri).read(JSON_LIMIT + 1)
    content = parse_json(data, limit=JSON_LIMIT)
    if not isinstance(content, dict):
        raise BadMessage("no JSON object", "json")
    return content


def list_folder(uri: str) -> dict[str, Any]:
    """Return the names of the ``folders`` and ``files`` in a folder, whose URI ends in a slash, the last
    `MAX_LISTED` of each; nothing below its subfolders.

    Raises `OSError` as `fetch`.
    """
    with _store_errors(uri):
        _, folders, files = next(iter(ResourcePath(uri).walk()), (None, [], []))
    return {
        "folders": sorted(name.strip("/") for name in folders)[-MAX_LISTED:],
        "files": sorted(files)[-MAX_LISTED:],
    }


def read_header(uri: str) -> dict[str, Any]:
    """Return the keywords of a FITS file, reading little more where the store supports ranges.

    Extensions are read until one has the group, if the primary header has none.

    Raises `OSError` as `fetch`, and `~ppdaemon.errors.BadMessage` if the file
    does not begin with a header.
    """
    data = b""
    with _store_errors(uri), ResourcePath(uri).open("rb") as stream:
        while True:
            more = stream.read(HEADER_CHUNK)
            data += more
            at_end = not more or len(data) > HEADER_LIMIT
            try:
                header = read_fits_header(io.BytesIO(data), until=GROUP_KEYWORD)
            except ValueError as error:
                if at_end:
                    raise BadMessage(str(error), "header") from None
            else:
                if at_end or header.get(GROUP_KEYWORD) is not None:
                    return dict(header)


@contextmanager
def _store_errors(uri: str) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, BadMessage):
        raise
    except OSError as error:
        if error.errno is None:  # errors of a store have no errno, those of this host have
            raise StoreError(f"{uri}: {describe(error)}") from error
        raise
    except Exception as error:  # each scheme uses another library, with other exceptions
        raise StoreError(f"{uri}: {describe(error)}") from error
