# SPDX-License-Identifier: BSD-3-Clause
"""The configuration of raw roots: where raws land, how, and what proves them complete."""

import os
import re
import string
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import pydantic

from ppdaemon.errors import ConfigError
from ppdaemon.raws.layout import CustomLayout, LayoutName, make_layout
from ppdaemon.wire import Model

__all__ = ("DoneMarker", "LayoutField", "RemoteRoot", "RootConfig", "WatchKind", "unsuited")

type WatchKind = Literal["auto", "inotify", "poll"]

REMOTE_SCHEMES = ("s3", "gs", "https", "http", "davs", "dav")
"""Of those that `lsst.resources` reads."""
MARKER_FIELDS = frozenset({"instrument", "day_obs", "obsid", "exposure", "group"})

_SUFFIX = re.compile(r"\.[\w.-]+")


def _layout_branch(value: Any) -> str:
    # A branch in round brackets is left out of the key that an error names.
    return "(name)" if isinstance(value, str) else "(mapping)"


def _marker(value: str) -> str:
    """Check the name of a marker: a suffix, or a format of a name."""
    if not value.isprintable() or "/" in value:
        raise ValueError("a marker lies in the folder of its raw: no slash, no control character")
    if not value or (value.startswith(".") and not _SUFFIX.fullmatch(value)):
        raise ValueError(f"{value!r} is no suffix; write for instance .done")
    if value in (".fits", ".fz", ".gz", ".json"):
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
    """Refuse what is no root; leave symbolic links to be resolved when used."""
    if not path.is_absolute() or not str(path).isprintable():
        raise ValueError(f"{str(path)!r} is not an absolute path")
    normal = Path(os.path.abspath(path))
    if normal == Path(normal.anchor):
        raise ValueError("the whole file system is no raw root")
    return normal


def _remote(uri: str) -> str:
    parts = urlsplit(uri)
    if parts.scheme not in REMOTE_SCHEMES or not parts.netloc:
        raise ValueError(f"{uri!r} is none of {', '.join(f'{name}://...' for name in REMOTE_SCHEMES)}")
    if "@" in parts.netloc:
        raise ValueError("credentials do not belong into a URI; use the store's own settings")
    if not uri.isprintable() or set(uri) & set("?#%") or ".." in parts.path.split("/"):
        raise ValueError(f"{uri!r}: no query, fragment, escapes, control characters or '..'")
    return uri.rstrip("/")


LayoutField = Annotated[
    Annotated[LayoutName, pydantic.Tag("(name)")] | Annotated[CustomLayout, pydantic.Tag("(mapping)")],
    pydantic.Discriminator(_layout_branch),
]
DoneMarker = Annotated[str, pydantic.AfterValidator(_marker)]
"""``.done`` stands beside each file, with that behind its whole name; another
name, such as ``{obsid}.complete``, once in the folder of the files."""


class RootConfig(Model):
    """A raw root: a path, or a mapping of ``path`` and what is special there."""

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


class RemoteRoot(Model):
    """A prefix of an object store from which raws may be fetched."""

    uri: Annotated[str, pydantic.AfterValidator(_remote)]
    """Such as ``s3://bucket/prefix``."""
    layout: LayoutField | None = None
    """Layout below this prefix; null: ``arrivals.layout``."""


def unsuited(
    roots: Sequence[RootConfig | RemoteRoot],
    layout: LayoutName | CustomLayout,
    done: str | None,
    instruments: Mapping[str, Collection[int]],
) -> Iterator[tuple[int, str, str]]:
    """Find roots whose layout cannot tell what has to be known.

    Layout and done are those of roots that have none of their own. Yield the
    number of the root, ``layout`` or ``done``, and what is wrong.
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
            yield number, "done", f"{marker!r}: paths of this layout name no {', '.join(sorted(missing))}"
