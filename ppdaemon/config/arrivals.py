# SPDX-License-Identifier: BSD-3-Clause
"""Where raws are written, and how they are found."""

from collections.abc import Iterator
from typing import Any

import pydantic

from ppdaemon.configtypes import ConfigPart, ConnectAddress, PublicKeyFile, Rate, Seconds, valid_values
from ppdaemon.raws.layout import detector_keyword_of
from ppdaemon.raws.roots import (
    DoneMarker,
    LayoutField,
    RemoteRoot,
    RootConfig,
    WatchKind,
    escaped,
    without_profile,
)
from ppdaemon.visit import NextVisit
from ppdaemon.wire import Model
from ppdaemon.yamlfile import KeyPath


class Publisher(Model):
    """A publisher of arrival notices, or a bridge: an address, or a mapping of ``address`` and ``server``."""

    address: ConnectAddress
    """ZeroMQ address of the publisher."""
    server: PublicKeyFile | None = None
    """File with the public key of the publisher; null: it has no key."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _from_address(cls, value: Any) -> Any:
        return {"address": value} if isinstance(value, str) else value


class ArrivalsConfig(ConfigPart):
    """Where raws are written, and how they are found."""

    roots: tuple[RootConfig, ...]
    """Raw roots: files outside of them are never opened. Each is a path, or a mapping of
    ``path`` and the keys that differ for it."""
    layout: LayoutField = "lsst"
    """Layout of paths below the roots: ``lsst``, ``imsim``, ``generic``, or a mapping
    with ``path``."""
    watch: WatchKind = "auto"
    """How the roots are watched; ``auto`` depends on the type of the filesystem."""
    done: DoneMarker | None = None
    """Name of the marker file that must exist before a raw is used; `None` if there is
    none."""
    remote: tuple[RemoteRoot, ...] = ()
    """Prefixes of object stores; other URIs are never read."""
    poll_s: Seconds = 0.4
    """Interval of scanning for raws of open visits where inotify does not report them."""
    scan_s: Seconds = 2.0
    """Interval of scanning today's folders for raws that the watch has missed."""
    subscribe: tuple[Publisher, ...] = ()
    """ZeroMQ publishers of arrival notices. Each is an address, or a mapping of ``address``
    and ``server``, the file with its public key."""
    bridges: tuple[Publisher, ...] = ()
    """Bridges of object stores (``ppbridge``). Each is an address, or a mapping of ``address`` and
    ``server``, the file with its public key."""
    notices_per_s: Rate = 2000.0
    """Notices per second of one publisher that are read for long, and five times as many at once;
    further ones wait, and are lost when 20,000 wait. A notice counts once more for each 4 kB."""
    remember_s: Seconds = 900.0
    """A raw without an announced visit is kept in memory for this long."""
    sidecar_wait_s: Seconds = 1.0
    """How long to wait for a late sidecar before the FITS header is read."""
    quiet_s: Seconds = 10.0
    """A visit with an unknown number of images is complete when no image has arrived
    for this long after the last one."""
    list_s: Seconds | None = 60.0
    """How long after its announcement and its duration a visit waits for raws in object stores until they
    are looked for by listing; null: they never are."""
    image_timeout_s: Seconds = 120.0
    """A visit without an image ends 2 x its duration + this after its announcement."""

    @pydantic.field_validator("roots")
    @classmethod
    def _different(cls, value: tuple[RootConfig, ...]) -> tuple[RootConfig, ...]:
        paths = [root.path for root in value]
        if len(set(paths)) != len(paths):
            raise ValueError("a root is listed twice")
        return value

    @pydantic.field_validator("remote")
    @classmethod
    def _distinct(cls, value: tuple[RemoteRoot, ...]) -> tuple[RemoteRoot, ...]:
        uris = [without_profile(root.uri) for root in value]
        if len(set(uris)) != len(uris):
            raise ValueError("a prefix is listed twice; notices do not name the profile of a store")
        return value

    @classmethod
    def conflicts(cls, keys: Any) -> Iterator[tuple[KeyPath, str]]:
        """Find a node without a place of raws."""
        if valid_values(keys, "roots", "remote") == ((), ()):
            yield (), "roots and remote are both empty: list at least one folder or object store of raws"

    @property
    def detector_keywords(self) -> dict[str, str | None]:
        """For each root, with a slash at its end and as a `~ppdaemon.messages.Raw` has it, the keyword
        that distinguishes the detectors in its files; `None` where a file holds one detector.
        """
        return keywords_of_roots(self)

    def image_deadline_s(self, visit: NextVisit) -> float:
        """Return how long a visit waits for its images, in seconds after its announcement."""
        return 2 * visit.duration_s + self.image_timeout_s


def keywords_of_roots(arrivals: Any) -> dict[str, str | None]:
    """Return `ArrivalsConfig.detector_keywords` of keys that are not all validated yet."""
    roots = [(f"{root.path}/", root.layout) for root in arrivals.roots]
    roots += [(escaped(f"{root.uri}/"), root.layout) for root in arrivals.remote]
    return {path: detector_keyword_of(layout or arrivals.layout) for path, layout in roots}
