# SPDX-License-Identifier: BSD-3-Clause
"""The supervisor and the reader of object stores."""

from typing import Annotated, Any, Literal

import pydantic

from ppdaemon.wire import BY_TYPE, Model

FACT_KEYS = ("GROUPID", "OBSID", "CURINDEX", "MAXINDEX", "expectedSensors", "folders", "files")
"""The keys that the reader returns of a sidecar, a header, a list of detectors, or a folder."""
type ReadKind = Literal["json", "header", "list"]
"""``json``: the whole object. ``header``: the primary header of a FITS file. ``list``: the names of what is
in a folder, which ends in a slash."""


class ReadObject(Model):
    """Order to read the metadata of an exposure from an object store."""

    type: Literal["read_object"] = "read_object"
    number: int
    """Number of the request, repeated in the answer."""
    what: ReadKind
    uri: str
    """Percent-encoded."""


READER_ORDERS = pydantic.TypeAdapter[ReadObject](ReadObject)


class ReaderReady(Model):
    """The reader has imported what it needs."""

    type: Literal["reader_ready"] = "reader_ready"
    pid: int


class ObjectRead(Model):
    """An object was read."""

    type: Literal["object_read"] = "object_read"
    number: int
    content: dict[str, Any]
    """Those of `FACT_KEYS` that it has; the values are not validated."""


class ObjectUnread(Model):
    """An object was not read."""

    type: Literal["object_unread"] = "object_unread"
    number: int
    why: Literal["missing", "bad", "unavailable"]
    """The object does not exist; it is invalid; or the store does not answer now."""
    reason: str


type ReaderFact = Annotated[ReaderReady | ObjectRead | ObjectUnread, BY_TYPE]
READER_FACTS = pydantic.TypeAdapter[ReaderFact](ReaderFact)
