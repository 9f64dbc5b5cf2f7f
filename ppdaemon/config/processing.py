# SPDX-License-Identifier: BSD-3-Clause
"""What the workers do: repos, preload, pipelines, and the engine that runs them."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import pydantic

from ppdaemon.configtypes import CollectionTemplate, ConfigPart, IngestKind, Size, VisitGrouping, valid_values
from ppdaemon.selection import Rule
from ppdaemon.visit import Name
from ppdaemon.yamlfile import KeyPath, did_you_mean


class ButlerConfig(ConfigPart):
    """The central repo, and the datasets that are read from it."""

    central: str
    """Root, configuration file or alias of the central repo."""
    read: str | None = None
    """The same of a replica that is read instead, with the same collections; outputs are written to
    `central`. `None`: the central repo is read."""
    instrument_class: dict[Name, str]
    """The `lsst.pipe.base.Instrument` of each instrument, as
    ``package.module.Class``."""
    calibs: tuple[CollectionTemplate, ...] = ("{instrument}/calib",)
    """Collections searched for calibrations, in order."""
    inputs: tuple[CollectionTemplate, ...] = (
        "{instrument}/templates",
        "templates",
        "refcats",
        "skymaps",
        "{instrument}/defaults",
    )
    """Collections searched for all other inputs, in order; missing ones are skipped."""
    skymap: str | None = None
    """Name of the sky map of the templates; `None` means any."""
    ingest: IngestKind | dict[Name, IngestKind] = "builtin"
    """How raws are ingested into the workers' repos, for all instruments or by
    instrument: ``builtin``, or ``obs_base`` for the tasks of lsst.obs.base."""
    visits: dict[Name, VisitGrouping] = {}
    """Definition of a visit, by instrument: ``one-to-one`` (each exposure) or
    ``by-group`` (all snaps of a group). Default: one-to-one, whatever ``visitSystem``
    of the instrument's class is."""
    local: dict[str, Any] = {}
    """Configuration of the workers' repos, merged into their ``butler.yaml``, such as
    formatters and write recipes."""
    deployment: Name = ""
    """Last part of the names of output runs; if empty, computed from versions, pipelines
    and configuration."""

    @classmethod
    def conflicts(cls, keys: Any) -> Iterator[tuple[KeyPath, str]]:
        """Find settings of instruments without a class."""
        for key in ("ingest", "visits"):
            if values := valid_values(keys, "instrument_class", key):
                classes, named = values
                for name in named if isinstance(named, dict) else ():
                    if name not in classes:
                        hint = did_you_mean(name, classes)
                        yield (key, name), f"instrument_class has no entry for {name}{hint}"

    @property
    def source(self) -> str:
        """The repo that is read."""
        return self.read or self.central

    def ingest_of(self, instrument: str) -> IngestKind:
        """Return how raws of an instrument are ingested; ``builtin`` by default."""
        if isinstance(self.ingest, dict):
            return self.ingest.get(instrument, "builtin")
        return self.ingest


class PreloadConfig(ConfigPart):
    """Inputs that are copied to this host before the image arrives."""

    padding_arcsec: Annotated[float, pydantic.Field(ge=0)] = 50.1
    """Margin on each side of a detector's footprint; templates and reference catalogs
    that overlap it are loaded. Never less than the margin of the regions of visits,
    which is 250 pixels for most cameras."""
    cache_max: Annotated[Size, pydantic.Field(gt=0)] = 20_000_000_000
    """Size of the files that the workers of a host share on its RAM disk. Above this the
    least recently used files are deleted that no worker's repo needs."""


class PipelinesConfig(ConfigPart):
    """Selection of pipelines."""

    preprocessing: tuple[Rule, ...] = ()
    """Rules for pipelines that run before the image arrives; the first match is used."""
    main: Annotated[tuple[Rule, ...], pydantic.Field(min_length=1)]
    """Rules for pipelines that run on the image; the first match is used."""
    overrides: dict[Annotated[str, pydantic.Field(pattern=r"^\w+:[\w.]+$")], Any] = {}
    """Configuration of tasks, as ``label:field: value``; applied to all pipelines with a
    task of that label. ``parameters:name: value`` sets a parameter of all pipelines that
    have it. A label, field or parameter that does not exist is an error."""

    @property
    def paths(self) -> tuple[str, ...]:
        """All configured pipelines, each once."""
        rules = (*self.preprocessing, *self.main)
        return tuple(dict.fromkeys(path for rule in rules for path in rule.pipelines))


class EngineConfig(ConfigPart):
    """How pipelines are run."""

    kind: Literal["direct", "separable", "pipetask"] = "direct"
    """``direct``: in memory; everything that needs no pixels is done before the image.
    Pipelines that it cannot run are run by ``separable``. ``separable``: LSST's
    SeparablePipelineExecutor in the worker. ``pipetask``: the command-line program in
    a separate process, which takes seconds more."""
    memory_max: Size | None = None
    """``direct``: memory for datasets passed between the tasks of a visit; larger ones are
    passed as files on the RAM disk. `None`: a quarter of ``workers.memory.hard``."""
    read_ahead_max: Size | None = None
    """``direct``: memory for inputs that are read before the image, and the same amount
    for calibrations that stay in memory for later visits, as do the templates of a field
    as long as visits stay there. `None`: one eighth of ``workers.memory.hard``."""
    processes: Annotated[int, pydantic.Field(ge=1, le=64)] = 1
    """``direct``: number of quanta of a visit that run in parallel if they are
    independent, such as those of two snaps, and number of large outputs that are
    written in parallel; all but one in forked child processes. Tasks in `no_return`
    run in the worker. Database connections other than SQLAlchemy's cannot be used
    after the fork."""
    no_return: tuple[str, ...] = ()
    """Tasks whose results are permanent (alert database, alert stream): labels, or full
    names of classes, which include derived classes. A name that no configured pipeline has
    is an error."""
    apdb: dict[Name, str] = {}
    """Configuration of the alert database (`lsst.dax.apdb`), by instrument. After a
    failure it is queried whether the visit has written anything to it."""
    apdb_tasks: tuple[str, ...] = ()
    """Tasks in ``no_return`` that write nothing permanent except to that database."""

    @classmethod
    def conflicts(cls, keys: Any) -> Iterator[tuple[KeyPath, str]]:
        """Find an alert database that could not be queried."""
        if values := valid_values(keys, "apdb_tasks", "no_return"):
            tasks, permanent = values
            for number, name in enumerate(tasks):
                if name not in permanent:
                    hint = did_you_mean(name, permanent)
                    yield ("apdb_tasks", number), f"{name} must be listed in no_return too{hint}"
        if (values := valid_values(keys, "apdb", "apdb_tasks")) and values[0] and not values[1]:
            yield ("apdb_tasks",), "missing key, list the tasks that write to apdb"


class ExposuresConfig(ConfigPart):
    """Allowed difference between an image of the sky and its announcement."""

    pointing_deg: Annotated[float, pydantic.Field(gt=0)] = 1.0
    """Distance between the boresights on the sky."""
    rotation_deg: Annotated[float, pydantic.Field(gt=0)] = 1.0
    """Difference of the camera's position angle."""
    filter: Literal["exact", "ignore"] = "exact"
    """``exact``: the filter must be an announced one."""
