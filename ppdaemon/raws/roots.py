# SPDX-License-Identifier: BSD-3-Clause
"""The configuration of raw roots: folders, layouts, and markers of complete files."""

import os
import re
import string
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple
from urllib.parse import quote, urlsplit

import pydantic

from ppdaemon.errors import ConfigError
from ppdaemon.raws.layout import CustomLayout, LayoutName, make_layout
from ppdaemon.raws.path import COMPRESSED_ENDINGS, FITS_ENDINGS
from ppdaemon.wire import Model

__all__ = (
    "DoneMarker",
    "LayoutField",
    "RemoteRoot",
    "RootConfig",
    "StoreHost",
    "WatchKind",
    "escaped",
    "unsuitable_roots",
    "without_profile",
)

type WatchKind = Literal["auto", "inotify", "poll"]

REMOTE_SCHEMES = ("s3", "gs", "https", "http", "davs", "dav")
"""Schemes that `lsst.resources` reads."""
MARKER_FIELDS = frozenset({"instrument", "day_obs", "obsid", "exposure", "group"})

_SUFFIX = re.compile(r"\.[\w.-]+")
_PROFILE = re.compile(r"[\w.-]+")


def _layout_branch(value: Any) -> str:
    # Tags in parentheses are omitted from the key in error messages.
    return "(name)" if isinstance(value, str) else "(mapping)"


def _marker(value: str) -> str:
    """Check the configured name of a marker: a suffix, or a format of a file name."""
    if not value.isprintable() or "/" in value:
        raise ValueError("a marker is in the folder of its raw: no slash, no control character")
    if not value or (value.startswith(".") and not _SUFFIX.fullmatch(value)):
        raise ValueError(f"{value!r} is not a suffix; write for example .done")
    if value in (*FITS_ENDINGS, *COMPRESSED_ENDINGS, ".json"):
        raise ValueError(f"{value!r} is the ending of raws and sidecars themselves")
    try:
        fields = _format_fields(value)
        unknown = sorted(fields - MARKER_FIELDS)
        if not unknown:
            value.format_map(dict.fromkeys(fields, 1))
    except ValueError as error:
        raise ValueError(f"{value!r} is not a format: {error}") from None
    if unknown:
        raise ValueError(f"unknown name {unknown[0]!r}; known are {', '.join(sorted(MARKER_FIELDS))}")
    return value


def _format_fields(text: str) -> set[str]:
    return {field for _, field, _, _ in string.Formatter().parse(text) if field is not None}


def _absolute(path: Path) -> Path:
    """Refuse a path that cannot be a root; symbolic links are resolved when the root is used."""
    if not path.is_absolute() or not str(path).isprintable():
        raise ValueError(f"{str(path)!r} is not an absolute path")
    normal = Path(os.path.abspath(path))
    if normal == Path(normal.anchor):
        raise ValueError("/ cannot be a raw root, use a folder")
    return normal


def _remote(uri: str) -> str:
    parts = urlsplit(uri)
    if parts.scheme not in REMOTE_SCHEMES or not parts.netloc:
        raise ValueError(f"{uri!r} is none of {', '.join(f'{name}://...' for name in REMOTE_SCHEMES)}")
    profile, at, _ = parts.netloc.rpartition("@")
    if at and (parts.scheme != "s3" or not _PROFILE.fullmatch(profile)):
        raise ValueError(
            "credentials must not be in a URI; use the settings of the store, in s3:// also the name of "
            "a profile, such as s3://profile@bucket"
        )
    if not uri.isprintable() or set(uri) & set("?#%") or ".." in parts.path.split("/"):
        raise ValueError(f"{uri!r}: no query, fragment, escapes, control characters or '..'")
    # Schemes are without case (RFC 3986, 3.1); notices have them in small letters.
    return f"{parts.scheme}{uri[len(parts.scheme) :]}".rstrip("/")


LayoutField = Annotated[
    Annotated[LayoutName, pydantic.Tag("(name)")] | Annotated[CustomLayout, pydantic.Tag("(mapping)")],
    pydantic.Discriminator(_layout_branch),
]
DoneMarker = Annotated[str, pydantic.AfterValidator(_marker)]
"""``.done`` is appended to the full name of each file; another name, such as
``{obsid}.complete``, is one file in the folder of the raws."""


class RootConfig(Model):
    """A raw root: a path, or a mapping of ``path`` and the settings of this root."""

    path: Annotated[Path, pydantic.AfterValidator(_absolute)]
    """Absolute; may be a symbolic link, and need not exist yet."""
    layout: LayoutField | None = None
    """Layout of this root; null: ``arrivals.layout``."""
    watch: WatchKind | None = None
    """How this root is watched; null: ``arrivals.watch``."""
    done: DoneMarker | None = None
    """Marker file of this root; null: ``arrivals.done``."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _from_path(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str | Path) else value


def without_profile(uri: str) -> str:
    """Return a URI as notices name it: they never have the profile of ``s3://profile@bucket``."""
    scheme, _, rest = uri.partition("://")
    host, slash, key = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{key}"


def escaped(uri: str) -> str:
    """Escape the key of an object for URI parsers: groups contain ``#`` and ``:``."""
    scheme, _, rest = uri.partition("://")
    host, _, key = rest.partition("/")
    return f"{scheme}://{host}/{quote(key, safe='/')}"


class RemoteRoot(Model):
    """A prefix of an object store from which raws may be fetched."""

    uri: Annotated[str, pydantic.AfterValidator(_remote)]
    """Such as ``s3://bucket/prefix``, ``s3://profile@bucket/prefix`` with the name of a
    profile of `lsst.resources`, or ``s3://tenant:bucket/prefix`` of Ceph. Notices are matched
    by the bucket; the tenant in them decides only where two roots fit."""
    layout: LayoutField | None = None
    """Layout below this prefix; null: ``arrivals.layout``."""


class StoreHost(NamedTuple):
    """The host in the URI of a store; of S3, the bucket and its owner."""

    tenant: str | None
    """The owner of the bucket; `None` if it is not named."""
    bucket: str

    @classmethod
    def of(cls, scheme: str, host: str) -> "StoreHost":
        """Split ``tenant:bucket`` of S3; the colon of other schemes separates a port."""
        if scheme != "s3":
            return cls(None, host)
        tenant, colon, bucket = host.rpartition("@")[2].rpartition(":")
        return cls(tenant if colon else None, bucket)


def unsuitable_roots(
    roots: Sequence[RootConfig | RemoteRoot],
    layout: LayoutName | CustomLayout,
    done: str | None,
    instruments: Mapping[str, Collection[int]],
) -> Iterator[tuple[int, str, str]]:
    """Find roots with an unsuitable layout or marker.

    `layout` and `done` apply to roots without these settings. Yields the number of
    the root, ``layout`` or ``done``, and the problem.
    """
    for number, root in enumerate(roots):
        try:
            built = make_layout(root.layout or layout, instruments)
        except ConfigError as error:
            yield number, "layout", str(error)
            continue
        marker = (root.done or done) if isinstance(root, RootConfig) else None
        missing = (_format_fields(marker or "") & {"obsid", "group"}) - built.fields
        if missing:
            yield number, "done", f"{marker!r}: paths of this layout contain no {', '.join(sorted(missing))}"
