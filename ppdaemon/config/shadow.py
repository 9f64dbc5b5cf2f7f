# SPDX-License-Identifier: BSD-3-Clause
"""Shadow mode: what replaces the places to which the present service writes."""

import contextlib
import filecmp
import os.path
from collections.abc import Iterator
from typing import Annotated, Any

import pydantic

from ppdaemon.config.workers import lost_variables
from ppdaemon.configtypes import ConfigPart
from ppdaemon.publish.config import Publication, split_kafka
from ppdaemon.visit import Name
from ppdaemon.yamlfile import KeyPath

OUTGOING_VARIABLES = ("AP_KAFKA_SERVER", "DAF_BUTLER_SASQUATCH_REST_PROXY_URL")
"""Environment variables with places to which pipelines of Rubin send: the alert stream of
``lsst.ap.association``, and metrics of ``lsst.analysis.tools``."""

NO_CENTRAL = "none-in-shadow-mode"
"""Instead of the central repo that is written if there is none: whatever would write there fails."""


class ShadowConfig(ConfigPart):
    """Shadow mode: this host processes the same visits as the present service, beside it, and writes only
    where this part says. ``shadow: true`` is short for ``enabled: true``.
    """

    enabled: bool = False
    """Whether this host runs in shadow mode. Then `butler.central` is only read, and `publish`, `engine.apdb`
    and `export.writer` are not used."""
    central: str | None = None
    """The central repo to which outputs are exported, with the instruments and sky maps of `butler.central`;
    `None`: outputs are not exported."""
    publish: tuple[Publication, ...] = ()
    """Instead of `publish`."""
    overrides: dict[Annotated[str, pydantic.Field(pattern=r"^\w+:[\w.]+$")], Any] = {}
    """Replace those of `pipelines.overrides`, or are added to them: each task that writes permanently needs
    one, such as ``parameters:apdb_config`` for an alert database of its own and
    ``associateApdb:alertPackager.doProduceAlerts: false``."""
    environment: dict[str, str] = {}
    """Environment variables that replace those of `workers.environment`, or are added to them."""
    apdb: dict[Name, str] = {}
    """Instead of `engine.apdb`."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _from_switch(cls, value: Any) -> Any:
        return {"enabled": value} if isinstance(value, bool) else value

    @classmethod
    def conflicts(cls, keys: Any) -> Iterator[tuple[KeyPath, str]]:
        """Find that the mode is probably meant, but not enabled, and variables whose values would be lost."""
        yield from lost_variables(keys)
        given = getattr(keys, "model_fields_set", {"enabled"})
        if given and "enabled" not in given:
            yield ("enabled",), "missing key, write true for shadow mode, or false for none"


def is_same_place(first: Any, second: Any) -> bool:
    """Return whether two settings are the same, or the paths of one file, or of a copy of it."""
    if not (isinstance(first, str) and isinstance(second, str)):
        return bool(first == second)
    one, other = (uri.removeprefix("file://").rstrip("/") for uri in (first, second))
    if not (os.path.isabs(one) and os.path.isabs(other)):
        return one == other
    with contextlib.suppress(OSError):  # a folder, or no file yet
        if filecmp.cmp(one, other, shallow=False):
            return True
    return os.path.realpath(one) == os.path.realpath(other)


def is_same_topic(first: str, second: str) -> bool:
    """Return whether two addresses of `publish` lead to the same place, by any of their brokers."""
    (brokers, topic), (others, other_topic) = split_kafka(first), split_kafka(second)
    if topic and other_topic:
        return topic == other_topic and not set(brokers.split(",")).isdisjoint(others.split(","))
    return first.rstrip("/") == second.rstrip("/")
