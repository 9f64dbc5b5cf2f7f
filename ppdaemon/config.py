# SPDX-License-Identifier: BSD-3-Clause
"""The configuration of a node and of a relay, validated once at start.

The docstring under each field is its documentation; ``etc/ppdaemon.yaml`` and
``etc/pprelay.yaml`` show every key. Selection rules are `ppdaemon.selection`'s.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from ppdaemon.errors import ConfigError
from ppdaemon.selection import Rule
from ppdaemon.visit import Name
from ppdaemon.wire import Model
from ppdaemon.yamlfile import load_model

__all__ = (
    "ArrivalsConfig",
    "ButlerConfig",
    "EngineConfig",
    "ExportConfig",
    "LogConfig",
    "MemoryConfig",
    "NodeConfig",
    "NodePart",
    "PipelinesConfig",
    "RelayConfig",
    "RelayInstrument",
    "RelayLink",
    "TimesConfig",
    "WorkersConfig",
    "detector_set",
    "load_node",
    "load_relay",
)

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(B|kB|MB|GB|TB|KiB|MiB|GiB|TiB)")
_UNITS = {"B": 1} | {
    prefix + unit: base**power
    for unit, base in (("B", 1000), ("iB", 1024))
    for power, prefix in enumerate(("k" if unit == "B" else "K", "M", "G", "T"), 1)
}


def _size(value: Any) -> Any:
    """Read ``8GB`` or ``8GiB`` as a number of bytes."""
    if isinstance(value, str):
        match = _SIZE.fullmatch(value.strip())
        if match is None:
            raise ValueError(f"{value!r} is not a size; write for instance 8GB (10^9) or 8GiB (2^30)")
        return round(float(match[1]) * _UNITS[match[2]])
    return value


def _detectors(value: Any) -> Any:
    """Read ``0-8,12`` as a list of detector ids."""
    if isinstance(value, int) and not isinstance(value, bool):
        return (value,)
    if isinstance(value, str):
        ids: list[int] = []
        for part in value.split(","):
            match = re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", part)
            if match is None:
                raise ValueError(f"{value!r} is not a list of detectors; write for instance 0-8,12")
            first, last = int(match[1]), int(match[2] or match[1])
            if last < first or last - first > 10_000:
                raise ValueError(f"{part.strip()!r} is not a range of detectors")
            ids.extend(range(first, last + 1))
        return tuple(ids)
    return value


def _unique(value: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(value)) != len(value):
        raise ValueError("a detector is named twice")
    return value


def detector_set(text: str) -> tuple[int, ...]:
    """Read a list of detectors as people write it.

    Parameters
    ----------
    text : `str`
        For instance ``0-8,12``.

    Returns
    -------
    detectors : `tuple` [`int`]
        The ids in the order written.

    Raises
    ------
    ValueError
        Raised if the text is no such list; says how to write one.
    """
    return _unique(tuple(_detectors(text)))


Size = Annotated[int, pydantic.BeforeValidator(_size), pydantic.Field(ge=0)]
Seconds = Annotated[float, pydantic.Field(gt=0)]
Detectors = Annotated[tuple[int, ...], pydantic.BeforeValidator(_detectors), pydantic.AfterValidator(_unique)]
Address = Annotated[str, pydantic.Field(pattern=r"^(tcp://.+:(\d+|\*)|ipc://.+)$")]


class NodePart(Model):
    """The host and its folders."""

    name: Annotated[Name, pydantic.Field(min_length=1, pattern=r"^[\w.-]+$")]
    """Name of this node, unique among the nodes of a relay."""
    state_dir: Path
    """Journal, spool and logs; on a local disk that outlives a restart."""
    ramdisk: Path
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

    roots: Annotated[tuple[Path, ...], pydantic.Field(min_length=1)]
    """Raw roots: nothing outside of them is ever opened."""
    layout: Literal["lsst", "imsim", "generic"] = "lsst"
    """How paths below the roots are built."""
    inotify: bool = True
    """Watch the roots through the kernel."""
    scan_s: Seconds = 2.0
    """Interval of the look behind the watch at today's folders."""
    subscribe: tuple[Address, ...] = ()
    """Where ZeroMQ publishers of arrival notices listen."""
    remember_s: Seconds = 900.0
    """How long a raw without an announcement is remembered."""
    sidecar_wait_s: Seconds = 1.0
    """How long to wait for a late sidecar before the FITS header is read."""
    image_timeout_s: Seconds = 120.0
    """A visit waits 2 x duration + this, counted from its announcement."""


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
    prepare_s: Seconds = 120.0
    ingest_s: Seconds = 30.0
    run_s: Seconds = 900.0
    export_s: Seconds = 120.0
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
    """Seats that are always filled."""
    spare: Annotated[int, pydantic.Field(ge=0)] = 1
    """Idle workers kept ready while the pool may still grow."""
    max: Annotated[int, pydantic.Field(ge=1, le=5000)] = 16
    """Seats at the most."""
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
    padding_arcsec: Annotated[float, pydantic.Field(ge=0)] = 30.0
    """How far the footprint is widened on each side for preload."""
    local: dict[str, Any] = {}
    """Configuration of the workers' own repos, merged into their
    ``butler.yaml``: formatters and write recipes, for instance."""
    deployment: Name = ""
    """Last part of run names; made of versions, pipelines and configuration
    where it is empty."""


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

    kind: Literal["separable"] = "separable"
    """``separable``: lsst's SeparablePipelineExecutor, in the worker."""
    no_return: tuple[str, ...] = ()
    """Labels of tasks that write what cannot be taken back (alert database,
    alert stream)."""


class ExportConfig(Model):
    """What leaves the worker."""

    types: tuple[str, ...] = (r".*_metadata", r".*_log")
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
    format: Literal["json", "console"] = "json"


class NodeConfig(Model):
    """Everything a ``ppdaemon`` needs to know."""

    node: NodePart
    relay: RelayLink = RelayLink()
    arrivals: ArrivalsConfig
    workers: WorkersConfig = WorkersConfig()
    butler: ButlerConfig | None = None
    """Needed by `ppdaemon.middleware.work`; other work may do without."""
    pipelines: PipelinesConfig
    engine: EngineConfig = EngineConfig()
    export: ExportConfig = ExportConfig()
    log: LogConfig = LogConfig()

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> "NodeConfig":
        if self.workers.work.startswith("ppdaemon.middleware"):
            if self.butler is None:
                raise ValueError("butler: missing key, the configured work needs it")
            missing = set(self.node.instruments) - set(self.butler.instrument_class)
            if missing:
                raise ValueError(f"butler.instrument_class: no entry for {', '.join(sorted(missing))}")
        return self


class RelayInstrument(Model):
    """One instrument that the relay accepts visits of."""

    detectors: Detectors
    """One reservation is made for each of them."""
    sal_indexes: tuple[int, ...] = ()
    """Script queues whose visits are taken; empty means any."""


class RelayConfig(Model):
    """Everything a ``pprelay`` needs to know."""

    name: Annotated[Name, pydantic.Field(min_length=1, pattern=r"^[\w.-]+$")] = "relay"
    submit: Address = "tcp://127.0.0.1:5570"
    """Where next_visit events come in."""
    nodes: Address = "tcp://127.0.0.1:5571"
    """Where nodes connect."""
    state_dir: Path
    """The ledger; on a local disk that outlives a restart."""
    instruments: Annotated[dict[Name, RelayInstrument], pydantic.Field(min_length=1)]
    expiry_s: Seconds = 3600.0
    """Announcements older than this are refused, and unserved ones dropped."""
    heartbeat_s: Seconds = 1.0
    silence_s: Seconds = 4.0
    """A node silent for so long is gone."""
    resend_s: Seconds = 0.5
    """What is unacknowledged for so long is sent again."""
    keep_days: Seconds = 30.0
    """How long the ledger keeps what has ended."""
    log: LogConfig = LogConfig()


def load_node(path: Path, environment: Mapping[str, str]) -> NodeConfig:
    """Read and check the configuration of a node.

    Parameters
    ----------
    path : `pathlib.Path`
        A YAML file.
    environment : `~collections.abc.Mapping` [`str`, `str`]
        For ``${NAME}`` in values.

    Returns
    -------
    config : `NodeConfig`
        The configuration.

    Raises
    ------
    ppdaemon.errors.ConfigError
        Raised with every error, its line and key.
    """
    config = load_model(path, NodeConfig, environment)
    chosen = config.pipelines
    problems = [
        f"{path}: pipelines.{name}: {file}: no such file"
        for name, rules in (("preprocessing", chosen.preprocessing), ("main", chosen.main))
        for rule in rules
        for file in rule.pipelines
        if not Path(file).is_file()
    ]
    for key, folder in (("node.state_dir", config.node.state_dir), ("node.ramdisk", config.node.ramdisk)):
        problem = _unwritable(folder)
        if problem:
            problems.append(f"{path}: {key}: {folder}: {problem}")
    if problems:
        raise ConfigError(problems)
    return config


def _unwritable(folder: Path) -> str | None:
    """Say why files cannot be made below a folder that may not exist yet."""
    nearest = folder
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    if not nearest.is_dir():
        return f"{nearest} is not a folder"
    if not os.access(nearest, os.W_OK | os.X_OK):
        return f"not writable ({nearest})"
    return None


def load_relay(path: Path, environment: Mapping[str, str]) -> RelayConfig:
    """Read and check the configuration of a relay.

    Parameters
    ----------
    path : `pathlib.Path`
        A YAML file.
    environment : `~collections.abc.Mapping` [`str`, `str`]
        For ``${NAME}`` in values.

    Returns
    -------
    config : `RelayConfig`
        The configuration.

    Raises
    ------
    ppdaemon.errors.ConfigError
        Raised with every error, its line and key.
    """
    config = load_model(path, RelayConfig, environment)
    problem = _unwritable(config.state_dir)
    if problem:
        raise ConfigError([f"{path}: state_dir: {config.state_dir}: {problem}"])
    return config
