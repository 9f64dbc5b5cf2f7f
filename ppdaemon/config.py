# SPDX-License-Identifier: BSD-3-Clause
"""The configuration of a node, validated once at start.

The docstring under each field is its documentation; ``etc/ppdaemon.yaml`` shows
every key. Selection rules are `ppdaemon.selection`'s, raw roots
`ppdaemon.raws.roots`'s.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic_core import InitErrorDetails, PydanticCustomError

from ppdaemon.configtypes import Address, Detectors, IngestKind, Seconds, Size, VisitGrouping, WritableFolder
from ppdaemon.raws.roots import DoneMarker, LayoutField, RemoteRoot, RootConfig, WatchKind, unsuited
from ppdaemon.selection import Rule, never_reached
from ppdaemon.thishost import ThisHost
from ppdaemon.visit import Name, NextVisit
from ppdaemon.wire import Model
from ppdaemon.yamlfile import load_model, read_yaml


class NodePart(Model):
    """The host and its folders."""

    name: Annotated[Name, pydantic.Field(min_length=1, pattern=r"^[\w.-]+$")]
    """Name of this node, unique among the nodes of a relay."""
    state_dir: WritableFolder
    """Journal, spool and logs; on a local disk that outlives a restart."""
    ramdisk: WritableFolder
    """Where workers have their repos; a tmpfs. Everything below
    ``<ramdisk>/ppdaemon-<name>`` belongs to this daemon."""
    control: Path
    """The unix socket on which ``ppctl`` asks."""
    instruments: Annotated[dict[Name, Detectors], pydantic.Field(min_length=1)]
    """Detectors that this node may serve, such as ``LSSTCam: 0-59``."""
    expiry_s: Seconds = 3600.0
    """Announcements older than this are not worth starting."""


class RelayLink(Model):
    """The connection to the relay."""

    address: Address | None = None
    """Where the relay's node socket listens; none to run without a relay."""
    heartbeat_s: Seconds = 1.0
    """Interval of heartbeats."""
    silence_s: Seconds = 4.0
    """A relay silent for so long is gone: connect anew."""


class ArrivalsConfig(Model):
    """Where raws land and how that is noticed."""

    roots: tuple[RootConfig, ...]
    """Raw roots: nothing outside of them is ever opened. A path, or a mapping
    with what is special there."""
    layout: LayoutField = "lsst"
    """How paths below the roots are built; a name, or a mapping with
    ``path``."""
    watch: WatchKind = "auto"
    """How the roots are watched; ``auto`` goes by the filesystem."""
    done: DoneMarker | None = None
    """The file without which a raw is not complete."""
    remote: tuple[RemoteRoot, ...] = ()
    """Prefixes of object stores: no other URI is ever fetched."""
    poll_s: Seconds = 0.4
    """Interval of the look for raws of open visits, where the kernel has no
    news."""
    scan_s: Seconds = 2.0
    """Interval of the look behind the watch at today's folders."""
    subscribe: tuple[Address, ...] = ()
    """Where ZeroMQ publishers of arrival notices listen."""
    remember_s: Seconds = 900.0
    """How long a raw without an announcement is remembered."""
    sidecar_wait_s: Seconds = 1.0
    """How long to wait for a late sidecar before the FITS header is read."""
    quiet_s: Seconds = 10.0
    """A visit of an unknown number of images is over when none came for so
    long after the last."""
    image_timeout_s: Seconds = 120.0
    """A visit waits 2 x duration + this, counted from its announcement."""

    @pydantic.field_validator("roots")
    @classmethod
    def _different(cls, value: tuple[RootConfig, ...]) -> tuple[RootConfig, ...]:
        paths = [root.path for root in value]
        if len(set(paths)) != len(paths):
            raise ValueError("a root is named twice")
        return value

    @pydantic.model_validator(mode="after")
    def _somewhere(self) -> "ArrivalsConfig":
        if not self.roots and not self.remote:
            raise ValueError("neither roots nor remote: there is nowhere to look for raws")
        return self

    def image_deadline_s(self, visit: NextVisit) -> float:
        """Return how long the images of a visit are waited for.

        Parameters
        ----------
        visit : `~ppdaemon.visit.NextVisit`
            The announcement.

        Returns
        -------
        patience_s : `float`
            Seconds since the announcement.
        """
        return 2 * visit.duration_s + self.image_timeout_s


class MemoryConfig(Model):
    """Memory limits of one worker: private bytes plus its RAM-disk repo."""

    soft: Size = 4_000_000_000
    """Above this a worker is replaced after its visit."""
    hard: Size = 8_000_000_000
    """Above this it is stopped at once."""
    ramdisk: Annotated[Size, pydantic.Field(gt=0)] = 2_000_000_000
    """Above this in its RAM-disk repo it is stopped at once; what it shares
    with other workers does not count."""
    budget: Size | None = None
    """What all workers together may use before no further one is started;
    none for no such limit."""
    sample_s: Seconds = 1.0
    """Interval of the measurement."""

    @pydantic.model_validator(mode="after")
    def _ordered(self) -> "MemoryConfig":
        if self.soft > self.hard:
            raise ValueError("soft is more than hard")
        return self


class TimesConfig(Model):
    """How long each state of a worker may last, in seconds."""

    boot_s: Seconds = 20.0
    """From fork to ready."""
    prepare_s: Seconds = 120.0
    """Preload, preprocessing, and all else that needs no pixels."""
    ingest_s: Seconds = 30.0
    """One raw."""
    run_s: Seconds = 900.0
    """The pipeline."""
    export_s: Seconds = 120.0
    """Writing outputs to the spool, or registering them centrally."""
    cpu_s: Seconds = 3600.0
    """CPU time of one visit, in all its states and threads."""
    grace_s: Seconds = 5.0
    """Between TERM and KILL."""
    kill_s: Seconds = 10.0
    """After KILL; then the worker counts as unkillable and is fenced."""
    stop_s: Seconds = 60.0
    """How long running visits may take to end when the daemon is stopped."""


class WorkersConfig(Model):
    """The pool."""

    min: Annotated[int, pydantic.Field(ge=1)] = 2
    """Slots that are always filled."""
    spare: Annotated[int, pydantic.Field(ge=0)] = 1
    """Idle workers kept ready while the pool may still grow."""
    max: Annotated[int, pydantic.Field(ge=1, le=5000)] = 16
    """Slots at the most."""
    retire_idle_s: Seconds = 600.0
    """Surplus workers idle for so long are retired."""
    recycle_visits: Annotated[int, pydantic.Field(ge=1)] = 200
    """A worker is replaced after this many visits, up to a tenth more or
    less."""
    recycle_age_s: Seconds = 21_600.0
    """An idle worker is replaced at this age, up to a tenth more or less."""
    attempts: Annotated[int, pydantic.Field(ge=1, le=5)] = 2
    """Tries of a visit-detector at the most; the second only while nothing
    permanent was announced."""
    queue: Annotated[int, pydantic.Field(ge=0)] = 20_000
    """Visit-detectors that may wait for a worker."""
    work: Annotated[str, pydantic.Field(pattern=r"^[\w.]+$")] = "ppdaemon.middleware.work"
    """What a worker does: a module as `ppdaemon.work.WorkModule` describes
    it."""
    start: Literal["fork", "spawn"] = "fork"
    """``fork``: from a zygote that has imported everything, in milliseconds.
    ``spawn``: a fresh interpreter each, for stacks that cannot be forked;
    each worker imports for itself and shares no memory."""
    preload: tuple[str, ...] = ()
    """Modules that the zygote imports beside those of the work, such as the
    tasks of the pipelines."""
    environment: dict[str, str] = {}
    """Environment variables of the zygote and its workers."""
    nice: Annotated[int, pydantic.Field(ge=0, le=19)] = 5
    """Niceness of workers, so that the supervisor is never starved."""
    tasks_max: Annotated[int, pydantic.Field(ge=16)] = 1024
    """Processes and threads of one worker at the most; enforced by the kernel
    where a control group is delegated to the daemon."""
    log_max: Annotated[Size, pydantic.Field(gt=0)] = 50_000_000
    """A worker's log is cut above this; its end is kept."""
    times: TimesConfig = TimesConfig()
    memory: MemoryConfig = MemoryConfig()

    @pydantic.model_validator(mode="after")
    def _ordered(self) -> "WorkersConfig":
        if self.min > self.max:
            raise ValueError("min is more than max")
        return self


class ButlerConfig(Model):
    """The central repo and what is taken from it."""

    central: str
    """Root, configuration file or alias of the central repo."""
    instrument_class: dict[Name, str]
    """The `lsst.pipe.base.Instrument` of each instrument, as
    ``package.module.Class``."""
    calibs: tuple[str, ...] = ("{instrument}/calib",)
    """Collections searched for calibrations, in order."""
    inputs: tuple[str, ...] = ("{instrument}/templates", "templates", "refcats", "skymaps")
    """Collections searched for everything else; those that do not exist are
    passed over."""
    skymap: str | None = None
    """Name of the sky map of templates."""
    ingest: IngestKind | dict[Name, IngestKind] = "builtin"
    """Who puts raws into workers' repos, for all instruments or by instrument:
    ``obs_base`` means the tasks of lsst.obs.base."""
    visits: dict[Name, VisitGrouping] = {}
    """What a visit is, by instrument: ``one-to-one`` each exposure,
    ``by-group`` all snaps of a group. Where nothing is said, one-to-one,
    whatever ``visitSystem`` of the instrument's class is."""
    local: dict[str, Any] = {}
    """Configuration of the workers' own repos, merged into their
    ``butler.yaml``: formatters and write recipes, for instance."""
    deployment: Name = ""
    """Last part of run names; made of versions, pipelines and configuration
    where it is empty."""

    @pydantic.model_validator(mode="after")
    def _known(self) -> "ButlerConfig":
        named = {*self.visits, *(self.ingest if isinstance(self.ingest, dict) else ())}
        if unknown := named - set(self.instrument_class):
            raise ValueError(f"instrument_class: no entry for {', '.join(sorted(unknown))}")
        return self

    def ingest_of(self, instrument: str) -> IngestKind:
        """Return who puts an instrument's raws into workers' repos.

        Parameters
        ----------
        instrument : `str`
            Short name.

        Returns
        -------
        kind : `str`
            ``builtin`` where nothing is said.
        """
        if isinstance(self.ingest, dict):
            return self.ingest.get(instrument, "builtin")
        return self.ingest


class PreloadConfig(Model):
    """What is brought to the host before the image."""

    padding_arcsec: Annotated[float, pydantic.Field(ge=0)] = 50.1
    """How far a detector's footprint is widened on each side; never less than
    the regions of visits are, which is 250 pixels for most cameras."""
    cache_max: Annotated[Size, pydantic.Field(gt=0)] = 20_000_000_000
    """Files that the workers of a host share on its RAM disk: above this the
    least recently used ones are dropped, as far as no worker's repo holds
    them."""


class PipelinesConfig(Model):
    """Which pipelines a visit gets."""

    preprocessing: tuple[Rule, ...] = ()
    """Rules for pipelines that run before the image comes."""
    main: Annotated[tuple[Rule, ...], pydantic.Field(min_length=1)]
    """Rules for pipelines that run on the image; the first match wins."""
    overrides: dict[Annotated[str, pydantic.Field(pattern=r"^\w+:[\w.]+$")], Any] = {}
    """Configuration of tasks, as ``label:field: value``; applied in each
    pipeline that has a task of that label."""


class EngineConfig(Model):
    """How pipelines are run."""

    kind: Literal["direct", "separable", "pipetask"] = "direct"
    """``direct``: in memory, all that needs no pixels done before the image;
    what it does not handle is left to ``separable``. ``separable``: lsst's
    SeparablePipelineExecutor, in the worker. ``pipetask``: the command-line
    program, in a process of its own; costs seconds."""
    memory_max: Size | None = None
    """``direct``: memory for what tasks of one visit hand on; what does not
    fit goes through files on the RAM disk. None for a quarter of
    ``workers.memory.hard``."""
    read_ahead_max: Size | None = None
    """``direct``: memory for inputs that are read before the image, and the
    same again for calibrations that are kept for later visits. None for an
    eighth of ``workers.memory.hard``."""
    processes: Annotated[int, pydantic.Field(ge=1, le=64)] = 1
    """``direct``: how many quanta of a visit are run at once where they do not
    need each other, such as those of two snaps, and how many of its large
    outputs are written at once; all but one in forked children. Tasks of
    `no_return` stay in the worker. Database connections
    other than SQLAlchemy's do not outlast a fork."""
    no_return: tuple[str, ...] = ()
    """Tasks that write what cannot be taken back (alert database, alert
    stream): labels, or full names of classes, which stand for derived ones
    too."""
    apdb: dict[Name, str] = {}
    """Configuration of the alert database (`lsst.dax.apdb`) by instrument: it
    is asked whether a failed task has left anything there."""
    apdb_tasks: tuple[str, ...] = ()
    """Those of ``no_return`` that write nothing permanent elsewhere."""

    @pydantic.model_validator(mode="after")
    def _askable(self) -> "EngineConfig":
        if unknown := [name for name in self.apdb_tasks if name not in self.no_return]:
            raise ValueError(f"apdb_tasks: {', '.join(unknown)} must stand in no_return too")
        if self.apdb and not self.apdb_tasks:
            raise ValueError("apdb_tasks: missing key, apdb needs to know which tasks write there")
        return self


class ExposuresConfig(Model):
    """How far an image of the sky may be from its announcement."""

    pointing_deg: Annotated[float, pydantic.Field(gt=0)] = 1.0
    """Distance of the boresight on the sky."""
    rotation_deg: Annotated[float, pydantic.Field(gt=0)] = 1.0
    """Difference of the camera's position angle."""
    filter: Literal["exact", "ignore"] = "exact"
    """``exact``: the filter must be an announced one."""


class ExportConfig(Model):
    """What leaves the worker."""

    types: tuple[str, ...] = (
        r".*_metadata",
        r".*_log",
        r".*_config",
        "packages",
        "prompt_deployment",
        "preload_metrics",
    )
    """Regular expressions on names of dataset types; a whole name must
    match one of them."""
    retry_s: Seconds = 10.0
    """Pause after a failed export, doubled up to 16 times that."""

    @pydantic.field_validator("types")
    @classmethod
    def _compiles(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in value:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
        return value


class LogConfig(Model):
    """Logs."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """Messages below this level are not written."""
    format: Literal["json", "console"] = "json"
    """``json``: one object per line. ``console``: for people."""


class NodeConfig(Model):
    """Everything a ``ppdaemon`` needs to know."""

    node: NodePart
    relay: RelayLink = RelayLink()
    arrivals: ArrivalsConfig
    workers: WorkersConfig = WorkersConfig()
    butler: ButlerConfig | None = None
    """Needed by `ppdaemon.middleware.work`; other work may do without."""
    preload: PreloadConfig = PreloadConfig()
    pipelines: PipelinesConfig
    exposures: ExposuresConfig = ExposuresConfig()
    engine: EngineConfig = EngineConfig()
    export: ExportConfig = ExportConfig()
    log: LogConfig = LogConfig()

    @pydantic.field_validator("arrivals")
    @classmethod
    def _suited(cls, value: ArrivalsConfig, info: pydantic.ValidationInfo) -> ArrivalsConfig:
        node = info.data.get("node")
        if node is None:
            return value
        problems = [
            InitErrorDetails(
                type=PydanticCustomError("unsuited", "{text}", {"text": text}),
                loc=(kind, number, key),
                input=None,
            )
            for kind, roots in (("roots", value.roots), ("remote", value.remote))
            for number, key, text in unsuited(roots, value.layout, value.done, node.instruments)
        ]
        if problems:
            raise pydantic.ValidationError.from_exception_data("arrivals", problems)
        return value

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> "NodeConfig":
        if self.workers.work.startswith("ppdaemon.middleware"):
            if self.butler is None:
                raise ValueError("butler: missing key, the configured work needs it")
            missing = set(self.node.instruments) - set(self.butler.instrument_class)
            if missing:
                raise ValueError(f"butler.instrument_class: no entry for {', '.join(sorted(missing))}")
        return self


def load_node(path: Path, environment: Mapping[str, str], *, writing: bool = True) -> NodeConfig:
    """Read and check the configuration of a node.

    Parameters
    ----------
    path : `pathlib.Path`
        A YAML file.
    environment : `~collections.abc.Mapping` [`str`, `str`]
        For ``${NAME}`` in values.
    writing : `bool`, optional
        Whether the node's folders have to be writable.

    Returns
    -------
    config : `NodeConfig`
        The configuration.

    Raises
    ------
    ppdaemon.errors.ConfigError
        Raised with every error, its line and key.
    """
    return load_model(path, NodeConfig, environment, ThisHost(environment, writing=writing))


def remarks(path: Path, config: NodeConfig) -> list[str]:
    """Find what can be used and is hardly meant.

    Parameters
    ----------
    path : `pathlib.Path`
        The YAML file.
    config : `NodeConfig`
        What it says.

    Returns
    -------
    remarks : `list` [`str`]
        Each with file, line and key.
    """
    _, lines = read_yaml(path)
    lists = {"preprocessing": config.pipelines.preprocessing, "main": config.pipelines.main}
    return [
        f"{path}:{lines['pipelines', name, late]}: pipelines.{name}.{late}: never reached: "
        f"all its visits go to pipelines.{name}.{early}"
        for name, rules in lists.items()
        for late, early in never_reached(rules)
    ]
