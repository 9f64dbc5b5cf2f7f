# SPDX-License-Identifier: BSD-3-Clause
"""Objects in stores, by `lsst.resources`: raws are fetched, their headers are read."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lsst.resources import ResourcePath

from ppdaemon.errors import BadMessage
from ppdaemon.middleware.butler.failures import describe
from ppdaemon.raws.fitsblocks import read_primary
from ppdaemon.wire import parse_json

__all__ = ("StoreError", "fetch", "read_header", "read_json")

JSON_LIMIT = 1_000_000
"""Bytes; sidecars have 3 to 4 kB."""
HEADER_CHUNK = 64 * 1024
"""Primary headers of LSST cameras take 15 to 30 kB."""
HEADER_LIMIT = 4_000_000
"""No header is longer; a store that reads no ranges sends more anyway."""


class StoreError(OSError):
    """A store does not serve an object now; nothing is said of the object."""


def fetch(uri: str, copy: Path) -> None:
    """Fetch an object.

    Parameters
    ----------
    uri : `str`
        What `lsst.resources.ResourcePath` takes, escaped.
    copy : `pathlib.Path`
        The file that it becomes; its folder exists.

    Raises
    ------
    FileNotFoundError
        Raised if there is no such object.
    OSError
        Raised if it cannot be had, or not be written.
    """
    with _store_errors(uri):
        ResourcePath(copy.as_uri()).transfer_from(ResourcePath(uri), transfer="copy", overwrite=True)


def read_json(uri: str) -> dict[str, Any]:
    """Read a sidecar, or a list of detectors.

    Parameters
    ----------
    uri : `str`
        As for `fetch`.

    Returns
    -------
    content : `dict`
        The JSON object.

    Raises
    ------
    OSError
        Raised as by `fetch`.
    ppdaemon.errors.BadMessage
        Raised if it is no JSON object.
    """
    with _store_errors(uri):
        data = ResourcePath(uri).read(JSON_LIMIT + 1)
    content = parse_json(data, limit=JSON_LIMIT)
    if not isinstance(content, dict):
        raise BadMessage("no JSON object", "json")
    return content


def read_header(uri: str) -> dict[str, Any]:
    """Read the primary header of a FITS file, and little more where the store
    reads ranges.

    Parameters
    ----------
    uri : `str`
        As for `fetch`.

    Returns
    -------
    header : `dict`
        Values by keyword.

    Raises
    ------
    OSError
        Raised as by `fetch`.
    ppdaemon.errors.BadMessage
        Raised if it does not begin with a header.
    """
    data = b""
    with _store_errors(uri), ResourcePath(uri).open("rb") as stream:
        while True:
            more = stream.read(HEADER_CHUNK)
            data += more
            try:
                return read_primary(io.BytesIO(data))
            except ValueError as error:
                if not more or len(data) > HEADER_LIMIT:
                    raise BadMessage(str(error), "header") from None


@contextmanager
def _store_errors(uri: str) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, BadMessage):
        raise
    except OSError as error:
        if error.errno is None:  # a store's; those of this host have a number
            raise StoreError(f"{uri}: {describe(error)}") from error
        raise
    except Exception as error:  # each scheme has a library of its own, with its own exceptions
        raise StoreError(f"{uri}: {describe(error)}") from error
