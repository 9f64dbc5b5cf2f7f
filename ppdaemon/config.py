# SPDX-License-Identifier: BSD-3-Clause
"""The configuration of a node, validated once at the start.

The docstring under each field is its documentation; ``etc/ppdaemon.yaml`` has
all keys. Rules for pipelines are in `ppdaemon.selection`, raw roots in
`ppdaemon.raws.roots`.
"""

import contextlib
import filecmp
import os.path
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from ppdaemon.configtypes import (
    CollectionTemplate,
    CollectorUrl,
    ConfigPart,
    ConnectAddress,
    Detectors,
    FileName,
    GroupId,
    HttpAddress,
    IngestKind,
    LoggerName,
    LogLevel,
    PublicKeyFile,
    Rate,
    RedisName,
    RedisUrl,
    Seconds,
    SecretKeyFile,
    Size,
    SocketPath,
    UserId,
    VisitGrouping,
    WritableFolder,
    is_local,
    is_local_redis,
    kafka_conflicts,
    needs_kafka,
    needs_redis,
    regular_expressions,
    valid_values,
)
from ppdaemon.environment import CHILD_ENVIRONMENT, THREAD_VARIABLES
from ppdaemon.errors import ConfigError
from ppdaemon.publish.config import KafkaAddress, Publication, split_kafka
from ppdaemon.raws.layout import detector_keyword_of
from ppdaemon.raws.roots import (
    DoneMarker,
    LayoutField,
    RemoteRoot,
    RootConfig,
    WatchKind,
    escaped,
    unsuitable_roots,
    without_profile,
)
from ppdaemon.selection import Rule
from ppdaemon.thishost import HostContext
from ppdaemon.visit import Name, NextVisit
from ppdaemon.wire import Model
from ppdaemon.yamlfile import KeyPath, did_you_mean, load_model, located

HEARTBEATS = 2
"""Heartbeats within the time limit of a connection: a single late one must not end it."""


def silence_conflicts(keys: Any) -> Iterator[tuple[KeyPath, str]]:
    """Find a ``silence_s`` that is too short for ``heartbeat_s``."""
    if values := valid_values(keys, "silence_s", "heartbeat_s"):
        silence_s, heartbeat_s = values
        if silence_s < HEARTBEATS * heartbeat_s:
            yield (
                ("silence_s",),
                f"{silence_s:g} is less than {HEARTBEATS} x heartbeat_s ({heartbeat_s:g}): a single late "
                "heartbeat would end the connection",
            )


class NodePart(ConfigPart):
    """The host and its folders."""

    name: FileName
    """Name of this node, unique among the nodes of a relay."""
    state_dir: WritableFolder
    """Folder of journal, spool and logs, on a local disk that keeps its files over a
    reboot."""
    ramdisk: WritableFolder
    """Folder on a tmpfs for the workers' repos. Everything below
    ``<ramdisk>/ppdaemon-<name>`` belongs to this daemon and may be deleted by it; in shadow
    mode below ``<ramdisk>/ppdaemon.shadow-<name>``."""
    control: SocketPath
    """Path of the unix socket for ``ppctl``."""
    instruments: Annotated[dict[FileName, Detectors], pydantic.Field(min_length=1)]
    """Detectors that this node may process, such as ``LSSTCam: 0-59``."""
    expiry_s: Seconds = 3600.0
    """Visits announced longer ago are not started; their detectors end as ``expired``."""
    spare: bool = False
    """Whether this node only gets detectors when the nodes that are not spare are full,
    draining or silent."""
    keep_days: Annotated[float, pydantic.Field(ge=1)] = 30.0
    """Days that the journal keeps visit-detectors that have ended, that the relay has the
    outcome of, and whose outputs are exported. At least 1: a relay may send visits again
    for a day."""


class UsersAndGroups(ConfigPart):
    """Users of this host."""

    users: tuple[UserId, ...] = ()
    """Names or numbers of users."""
    groups: tuple[GroupId, ...] = ()
    """Names or numbers of groups, all members of which are included."""


class SecurityConfig(ConfigPart):
    """Who may connect to this daemon, and its key for connections over a network."""

    key: SecretKeyFile | None = None
    """File with the secret key of this daemon, made by ``ppctl keygen``. With it, TCP
    connections are encrypted (CURVE)."""
    insecure: bool = False
    """Allow connections between hosts without keys: every host of the network can then
    announce, end or take over visits."""
    operators: UsersAndGroups = UsersAndGroups()
    """Users who may use all commands of the control socket, in addition to root and the
    user of the daemon."""
    readers: UsersAndGroups = UsersAndGroups()
    """Users who may use the commands that change nothing, such as ``ppctl status``, in
    addition to the members of the daemon's group."""
    control_per_s: Rate = 200.0
    """Requests per second on the control socket that one user may send for long, and
    five times as many at once; further ones wait."""

    @property
    def socket_mode(self) -> int:
        """Mode of the control socket. Users without the daemon's group can connect only if all can; the
        others are refused by their credentials.
        """
        return 0o660 if self.operators == self.readers == UsersAndGroups() else 0o666


class RelayLink(ConfigPart):
    """The connection to the relay."""

    address: ConnectAddress | None = None
    """ZeroMQ address of the relay's node socket; `None` to run without a relay."""
    server: PublicKeyFile | None = None
    """File with the public key of the relay, for encrypted connections; `None` if the
    relay has no key."""
    heartbeat_s: Seconds = 1.0
    """Interval of heartbeats."""
    silence_s: Seconds = 4.0
    """A relay that sends nothing for this long counts as disconnected: the node connects
    again. At least 2 x ``heartbeat_s``, better 4 x that of the relay."""
    alone: Literal["wait", "cross"] = "wait"
    """What happens without a connection to the relay to a visit-detector that would write permanently
    next. ``wait``: it waits for the permit until the time limit of its pipeline. ``cross``: it goes on;
    then the relay gives nothing that it has sent to this node to another one, also if this host is dead."""

    @classmethod
    def conflicts(cls, keys: Any) -> Iterator[tuple[KeyPath, str]]:
        """Find a time limit that a single late heartbeat would exceed."""
        yield from silence_conflicts(keys)


class RedisConfig(ConfigPart):
    """Streams of a Redis server that bring visits instead of a relay, one entry for each detector of a visit,
    as the observatory's fan-out writes them. Nodes of the same ``group`` share the entries. Needs the extra
    ``redis``.
    """

    url: RedisUrl | None = None
    """``redis://HOST:PORT/DATABASE``, ``rediss://`` with TLS, or ``unix:///PATH``; `None`: no streams."""
    streams: tuple[RedisName, ...] = ()
    """Names of the streams, such as ``instrument:lsstcam``: all that this node reads, such as one for its
    block of detectors."""
    group: RedisName = "ppdaemon"
    """Consumer group. With the present service's group, the host shares its visits; with one of its own
    everything is processed twice, which needs ``shadow: true``."""
    watching_groups: tuple[RedisName, ...] = ()
    """Other groups of the streams whose consumers process no visits, such as those of a monitor. While there
    is any other one, the node takes no visits, because they would be processed twice."""
    user: str | None = None
    """User of the server; `None`: the default user."""
    password: Path | None = None
    """File with the password, which is read with each connection; `None`: none is needed."""
    ca: Path | None = None
    """File with the certificates that sign the server's (TLS); `None`: those of this host's system."""
    unserved: Literal["leave", "acknowledge"] = "leave"
    """What becomes of detectors that `node.instruments` does not list. ``leave``: another node of the group
    takes them. ``acknowledge``: nobody does, for a host that shadows a few detectors."""
    permit_s: Annotated[Seconds, pydantic.Field(ge=600)] = 86_400.0
    """How long the server keeps which node may write permanently for a visit-detector. At least twice
    `node.expiry_s`: a visit that has begun just before it may run for as long."""
    claim_after_s: Annotated[Seconds, pydantic.Field(ge=1)] = 60.0
    """Another node takes an entry whose node has not renewed it for this long, and has no permit."""
    trim_after_s: Seconds | None = 86_400.0
    """Entries older than this are deleted, for all groups: where the writer does not do that, the server's
    memory grows; none in shadow mode. `None`: none are."""

    @pydantic.field_validator("streams")
    @classmethod
    def _different(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError("a stream is listed twice")
        return value

    @classmethod
    def conflicts(cls, keys: Any) -> Iterator[tuple[KeyPath, str]]:
        """Find streams that cannot be read, and an own group that would process nothing."""
        if values := valid_values(keys, "url", "streams"):
            url, streams = values
            if url is not None and (problem := needs_redis()):
                yield ("url",), problem
            if url is not None and not streams:
                yield ("streams",), "list at least one stream"
        if (values := valid_values(keys, "group", "watching_groups")) and values[0] in values[1]:
            yield ("watching_groups",), f"{values[0]} is redis.group, whose consumers process the visits"


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
        return _detector_keywords(self)

    def image_deadline_s(self, visit: NextVisit) -> float:
        """Return how long a visit waits for its images, in seconds after its announcement."""
        return 2 * visit.duration_s + self.image_timeout_s


def _detector_keywords(arrivals: Any) -> dict[str, str | None]:
    roots = [(f"{root.path}/", root.layout) for root in arrivals.roots]
    roots += [(escaped(f"{root.uri}/"), root.layout) for root in arrivals.remote]
    return {path: detector_keyword_of(layout or arrivals.layout) for path, layout in roots}


class MemoryConfig(ConfigPart):
    """Memory limits of one worker with the processes that it starts.

    Counted are anonymous memory and swap (of pages that are shared with other
    processes the share), files in memory that no other worker has open or maps
    (memfd, ``/dev/shm``), and the repo on the RAM disk; each byte once. Pages of
    files on a disk do not count.
    """

    soft: Size = 4_000_000_000
    """A worker above this is replaced after its visit."""
    hard: Size = 8_000_000_000
    """A worker above this is stopped at once."""
    ramdisk: Annotated[Size, pydantic.Field(gt=0)] = 2_000_000_000
    """A worker whose repo on the RAM disk is larger is stopped at once; files shared with
    other workers do not count."""
    budget: Size | None = None
    """No further worker is started while all workers together use more; `None` for no
    limit."""
    sample_s: Seconds = 1.0
    """Interval of the measurement."""

    @classmethod
    def conflicts(cls, keys: Any) -> Iterator[tuple[KeyPath, str]]:
        """Find limits in the wrong order."""
        if (values := valid_values(keys, "soft", "hard")) and values[0] > values[1]:
            yield (), "soft is more than hard"


class TimesConfig(ConfigPart):
    """How long each state of a worker may last, in seconds."""

    boot_s: Seconds = 20.0
    """From the fork until the worker accepts orders."""
    prepare_s: Seconds = 120.0
    """Preload, preprocessing, and everything else that needs no pixels."""
    ingest_s: Seconds = 30.0
    """Ingest of one raw."""
    run_s: Seconds = 900.0
    """The pipeline."""
    export_s: Seconds = 120.0
    """Writing outputs to the spool, or registering them in the central repo."""
    cpu_s: Seconds = 3600.0
    """CPU time of one visit, over all states and threads."""
    grace_s: Seconds = 5.0
    """From the order or signal to end until SIGKILL."""
    kill_s: Seconds = 10.0
    """After SIGKILL; then the worker counts as unkillable and its slot is not used."""
    probe_s: Seconds = 60.0
    """After this time a quarantined slot starts a worker again, and a pipeline that is set aside
    because it ends its workers gets one visit-detector."""
    stop_s: Seconds = 60.0
    """When the daemon is stopped: until running visits are interrupted."""

    @property
    def after_images_s(self) -> float:
        """How long a visit-detector may take at most when its images have arrived."""
        return self.ingest_s + self.run_s + self.export_s


class WorkersConfig(ConfigPart):
    """The pool of workers."""

    min: Annotated[int, pydantic.Field(ge=1)] = 2
    """Number of slots that always have a worker."""
    spare: Annotated[int, pydantic.Field(ge=0)] = 1
    """Number of idle workers that are kept ready until `max` is reached."""
    max: Annotated[int, pydantic.Field(ge=1, le=5000)] = 16
    """Maximum number of slots."""
    retire_idle_s: Seconds = 600.0
    """Workers above `min` and `spare` end after being idle for this long."""
    recycle_visits: Annotated[int, pydantic.Field(ge=1)] = 200
    """A worker is replaced after this many visits, up to a tenth more or
    less."""
    recycle_age_s: Seconds = 21_600.0
    """An idle worker is replaced at this age, up to a tenth more or less."""
    attempts: Annotated[int, pydantic.Field(ge=1, le=5)] = 2
    """Maximum number of attempts at a visit-detector; there is another attempt only if
    the worker has announced nothing permanent."""
    queue: Annotated[int, pydantic.Field(ge=0)] = 20_000
    """Maximum number of visit-detectors that wait for a worker."""
    work: Annotated[str, pydantic.Field(pattern=r"^[\w.]+$")] = "ppdaemon.middleware.work"
    """The module with the workers' code, an implementation of `ppdaemon.work.WorkModule`."""
    start: Literal["fork", "spawn"] = "fork"
    """``fork``: workers are forked in milliseconds from the zygote, which has imported
    everything. ``spawn``: each worker is a new interpreter, for software that cannot
    be forked; it imports everything itself and shares no memory."""
    preload: tuple[str, ...] = ()
    """Modules that the zygote imports in addition to `work`, such as those of the
    pipelines' tasks."""
    environment: dict[str, str] = {}
    """Environment variables of the zygote and its workers."""
    threads: Annotated[int, pydantic.Field(ge=1, le=1024)] = 1
    """Threads of numerical libraries (BLAS, OpenMP, Arrow, torch) in each worker; set after
    the fork. Increase it only if cores are idle: other detectors use them, too."""
    allowed_threads: tuple[str, ...] = ()
    """Names of Python threads, such as ``downloads-*``, that tasks may leave running
    without costing the worker. Threads that wait for work (a condition, an event, a
    queue) are always allowed."""
    nice: Annotated[int, pydantic.Field(ge=0, le=19)] = 5
    """Niceness of workers; above 0 so that the supervisor always gets CPU time."""
    tasks_max: Annotated[int, pydantic.Field(ge=16)] = 1024
    """Maximum number of processes and threads of one worker; enforced by the kernel if a
    control group is delegated to the daemon."""
    log_max: Annotated[Size, pydantic.Field(gt=0)] = 50_000_000
    """A larger log of a worker is cut at its beginning."""
    times: TimesConfig = TimesConfig()
    memory: MemoryConfig = MemoryConfig()

    @classmethod
    def conflicts(cls, keys: Any) -> Iterator[tuple[KeyPath, str]]:
        """Find numbers in the wrong order, and variables whose values would be lost."""
        if (values := valid_values(keys, "min", "max")) and values[0] > values[1]:
            yield (), "min is more than max"
        yield from _lost_variables(keys)


def _lost_variables(keys: Any) -> Iterator[tuple[KeyPath, str]]:
    """Find variables of ``environment`` that always have another value."""
    for environment in valid_values(keys, "environment"):
        for name, value in environment.items():
            if CHILD_ENVIRONMENT.get(name, value) != value:
                text = f"ppdaemon sets {name}={CHILD_ENVIRONMENT[name]}, this value would be lost"
                threads = "; see workers.threads" if name in THREAD_VARIABLES else ""
                yield ("environment", name), f"{text}{threads}"


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


class WriterConfig(ConfigPart):
    """The observatory's own service that registers outputs (``prompt_processing_butler_writer``)."""

    to: KafkaAddress | None = None
    """``kafka://BROKER:PORT,BROKER:PORT/TOPIC``, from which the service reads events; `None`: the
    exporter registers outputs itself."""
    options: dict[str, str] = {}
    """Options of the Kafka client (librdkafka), such as ``security.protocol``."""
    password: Path | None = None
    """File with ``sasl.password``; it is read again after a refusal."""
    timeout_s: Seconds = 30.0
    """Time limit of the acknowledgments."""

    @classmethod
    def conflicts(cls, keys: Any) -> Iterator[tuple[KeyPath, str]]:
        """Find that Kafka cannot be used here, and a password that would not be used."""
        yield from kafka_conflicts(keys)
        if (to := valid_values(keys, "to")) and to[0] is not None and (problem := needs_kafka()):
            yield ("to",), problem

    @property
    def brokers(self) -> str:
        """The brokers of Kafka."""
        return split_kafka(self.to or "")[0]

    @property
    def topic(self) -> str:
        """The topic of Kafka."""
        return split_kafka(self.to or "")[1]


class ExportConfig(ConfigPart):
    """Outputs that are copied to the central repo."""

    types: Annotated[tuple[str, ...], pydantic.AfterValidator(regular_expressions)] = (
        r".*_metadata",
        r".*_log",
        r".*_config",
        "packages",
        "prompt_deployment",
        "preload_metrics",
        "promptPreload_metrics",
        "prompt_provenance",
    )
    """Regular expressions; a dataset type is exported if its whole name matches one."""
    images: Annotated[tuple[str, ...], pydantic.AfterValidator(regular_expressions)] = (
        "Exposure.*",
        ".*Image.*",
        "Mask.*",
    )
    """Regular expressions; a dataset type whose whole name, or whose storage class, matches one is
    an image: copied and registered after all others, and given up if too much waits."""
    copies: Annotated[int, pydantic.Field(ge=1, le=64)] = 4
    """Files that are copied to the central repo at once."""
    packers: Annotated[int, pydantic.Field(ge=0, le=64)] = 0
    """Processes of the lowest priority that compress images of ``lsst.images`` beside the exporter, as
    `butler.local` has it for them; with the engine ``direct`` workers then spool them uncompressed, which
    takes a fifth of the time and up to seven times the space. 0: workers compress."""
    ramdisk_max: Size = 0
    """Outputs of this size are spooled on the RAM disk first, where writing them takes less time; what
    exceeds it goes to `spill`. So does everything while exports fail. After a power failure, what was on
    the RAM disk is gone, although the relay has its outcomes; the next start names it. 0: all outputs go
    to `spill`."""
    spill: WritableFolder | None = None
    """Folder on a local disk where outputs wait for export, in ``ppdaemon-NAME``; it cannot change while
    the daemon runs. `None`: ``spool`` in `node.state_dir`, beside the journal."""
    spill_max: Annotated[Size, pydantic.Field(gt=0)] | None = None
    """Size of what may wait there. Above it, and if the RAM disk has no room either, the oldest outputs
    there lose their `images`; all other outputs stay. `None`: no limit but that of the disk, where
    visit-detectors end as ``state_full``."""
    gather_s: Annotated[float, pydantic.Field(ge=0, le=60)] = 1.0
    """An export begins when for this time no visit-detector has ended, at the latest after ten times as
    long: the detectors of an exposure share few transactions."""
    retry_s: Seconds = 5.0
    """Pause after a failed export. The next one begins with a small query: while the central repo is
    away it costs no more than that."""
    writer: WriterConfig = WriterConfig()


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
        yield from _lost_variables(keys)
        given = getattr(keys, "model_fields_set", {"enabled"})
        if given and "enabled" not in given:
            yield ("enabled",), "missing key, write true for shadow mode, or false for none"


class LogConfig(ConfigPart):
    """Logs: ``format`` is ``json`` (one object per line) or ``console`` (text)."""

    level: LogLevel = "INFO"
    """Messages below this level are not written."""
    format: Literal["json", "console"] = "json"
    """``json``: one object per line. ``console``: for people."""
    levels: dict[LoggerName, LogLevel] = {}
    """Other levels for parts of the program or libraries, by logger, which is the module in the field
    ``logger`` of a line or what it begins with: ``ppdaemon.node.arrivals: DEBUG``, ``lsst.isr: WARNING``."""


class MetricsConfig(ConfigPart):
    """Metrics for Prometheus."""

    listen: HttpAddress | None = None
    """Address, such as ``127.0.0.1:9464``, at which this daemon serves ``/metrics`` over HTTP; `None`: it
    serves none."""
    insecure: bool = False
    """Allow other hosts to connect to `listen`: they need no key, and nothing is encrypted."""

    @classmethod
    def conflicts(cls, keys: Any) -> Iterator[tuple[KeyPath, str]]:
        """Find an address that other hosts can reach although that is not allowed."""
        if values := valid_values(keys, "listen", "insecure"):
            listen, insecure = values
            if listen is not None and not insecure and not is_local(f"tcp://{listen}"):
                yield ("listen",), f"other hosts can connect to {listen}: it needs metrics.insecure: true"


class TracesConfig(ConfigPart):
    """Traces of visit-detectors for OpenTelemetry."""

    endpoint: CollectorUrl | None = None
    """Where a collector receives OTLP over HTTP, such as ``http://127.0.0.1:4318/v1/traces``; `None`: no
    traces. Needs the extra ``otel``."""
    ratio: Annotated[float, pydantic.Field(ge=0, le=1)] = 1.0
    """Which share of all visit-detectors is traced, 0 to 1: the same in the relay and its nodes, which then
    choose the same ones."""


class NodeConfig(ConfigPart):
    """The whole configuration of ``ppdaemon``."""

    node: NodePart
    relay: RelayLink = RelayLink()
    redis: RedisConfig = RedisConfig()
    security: SecurityConfig = SecurityConfig()
    arrivals: ArrivalsConfig
    workers: WorkersConfig = WorkersConfig()
    butler: ButlerConfig | None = None
    """Required if ``workers.work`` is `ppdaemon.middleware.work`."""
    preload: PreloadConfig = PreloadConfig()
    pipelines: PipelinesConfig
    exposures: ExposuresConfig = ExposuresConfig()
    engine: EngineConfig = EngineConfig()
    export: ExportConfig = ExportConfig()
    publish: tuple[Publication, ...] = ()
    """Metrics and telemetry that are sent to Kafka topics or REST proxies, after the alerts."""
    shadow: ShadowConfig = ShadowConfig()
    metrics: MetricsConfig = MetricsConfig()
    traces: TracesConfig = TracesConfig()
    log: LogConfig = LogConfig()

    @property
    def shares_visits(self) -> bool:
        """Whether other nodes may get the same visits: something permanent needs a permit."""
        return self.relay.address is not None or self.redis.url is not None

    @classmethod
    def conflicts(cls, keys: Any) -> Iterator[tuple[KeyPath, str]]:
        """Find what contradicts the instruments of the node, and a missing central repo."""
        (work,) = valid_values(getattr(keys, "workers", None), "work") or ("",)
        uses_butler = work.startswith("ppdaemon.middleware")
        for instruments in valid_values(getattr(keys, "node", None), "instruments"):
            yield from _of_instruments(keys, instruments, uses_butler=uses_butler)
        if uses_butler and valid_values(keys, "butler") == (None,):
            yield ("butler",), "missing key, the configured work needs it"
        yield from _of_redis(keys)
        if values := valid_values(getattr(keys, "security", None), "key", "insecure"):
            key, insecure = values
            for key_path, address, server in _connections(keys):
                if server is not None and key is None:
                    yield (*key_path, "server"), "needs security.key, the key of this node"
                elif server is None and not insecure and not is_local(address):
                    text = f"{address} is on another host: connections need server and security.key, or "
                    yield key_path, f"{text}security.insecure: true"

    def in_effect(self) -> "NodeConfig":
        """Return the configuration as it is used: in shadow mode with the replacements of `shadow`, and
        nothing else that is written.
        """
        shadow, butler = self.shadow, self.butler
        if not shadow.enabled:
            return self
        if butler is not None:
            butler = butler.model_copy(
                update={"read": butler.source, "central": shadow.central or NO_CENTRAL}
            )
        export = {"writer": WriterConfig()} | ({} if shadow.central else {"types": ()})
        environment = dict.fromkeys(OUTGOING_VARIABLES, "") | shadow.environment  # also inherited ones
        return self.model_copy(
            update={
                "butler": butler,
                "publish": shadow.publish,
                "export": self.export.model_copy(update=export),
                "engine": self.engine.model_copy(
                    update={"apdb": shadow.apdb} | ({} if shadow.apdb else {"apdb_tasks": ()})
                ),
                "pipelines": self.pipelines.model_copy(
                    update={"overrides": {**self.pipelines.overrides, **shadow.overrides}}
                ),
                "workers": self.workers.model_copy(
                    update={"environment": {**self.workers.environment, **environment}}
                ),
            }
        )


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


def _shares_topic(first: str, second: str) -> bool:
    """Return whether two addresses of `publish` lead to the same place, by any of their brokers."""
    (brokers, topic), (others, other_topic) = split_kafka(first), split_kafka(second)
    if topic and other_topic:
        return topic == other_topic and not set(brokers.split(",")).isdisjoint(others.split(","))
    return first.rstrip("/") == second.rstrip("/")


def _not_replaced(config: NodeConfig, inherited: Mapping[str, str]) -> Iterator[tuple[KeyPath, str]]:
    """Find settings of shadow mode with which the host would write where the present service writes;
    `inherited` is the environment of the daemon.
    """
    shadow = config.shadow
    if not shadow.enabled:
        return
    if config.butler is not None and shadow.central is not None:
        for repo in (config.butler.central, config.butler.source):
            if is_same_place(shadow.central, repo):
                text = f"{shadow.central} is the repo of the present service: name another one, or null for"
                yield ("shadow", "central"), f"{text} none"
                break
    for number, publication in enumerate(shadow.publish):
        if any(_shares_topic(publication.to, other.to) for other in config.publish):
            text = f"{publication.to} is where the present service publishes: name another topic, or none"
            yield ("shadow", "publish", number), text
    outgoing = {name: inherited[name] for name in OUTGOING_VARIABLES if inherited.get(name)}
    for part, replaced in (
        ("overrides", config.pipelines.overrides),
        ("environment", outgoing | config.workers.environment),
        ("apdb", config.engine.apdb),
    ):
        for key, value in getattr(shadow, part).items():
            if key in replaced and is_same_place(replaced[key], value):
                yield (
                    ("shadow", part, key),
                    f"has the value of the present service, {value}: nothing is replaced",
                )


def _of_redis(keys: Any) -> Iterator[tuple[KeyPath, str]]:
    """Find what contradicts visits from Redis."""
    redis, relay = getattr(keys, "redis", None), getattr(keys, "relay", None)
    (url,) = valid_values(redis, "url") or (None,)
    if url is None:
        return
    if valid_values(relay, "address") not in ((), (None,)):
        yield ("redis", "url"), "visits come from a relay or from Redis: set relay.address or redis.url"
    if valid_values(relay, "alone") == ("cross",):
        yield ("relay", "alone"), "without an answer of Redis nothing permanent is written: remove this key"
    (insecure,) = valid_values(getattr(keys, "security", None), "insecure") or (True,)
    if not insecure and not is_local_redis(url):
        text = "is on another host: connections need rediss:// (TLS), or security.insecure: true"
        yield ("redis", "url"), f"{url} {text}"
    expiry = valid_values(getattr(keys, "node", None), "expiry_s")
    for name, times, text in (("permit_s", 2, "twice "), ("trim_after_s", 1, "")):
        for value in valid_values(redis, name) if expiry else ():
            if value is not None and value < times * expiry[0]:
                yield ("redis", name), f"{value:g} is less than {text}node.expiry_s ({expiry[0]:g})"


def _connections(keys: Any) -> Iterator[tuple[KeyPath, str, Path | None]]:
    """Yield the key path, the address and the public key's file of each connection to another program."""
    if values := valid_values(getattr(keys, "relay", None), "address", "server"):
        address, server = values
        if address is not None:
            yield ("relay",), address, server
    for name in ("subscribe", "bridges"):
        for publishers in valid_values(getattr(keys, "arrivals", None), name):
            for number, publisher in enumerate(publishers):
                yield ("arrivals", name, number), publisher.address, publisher.server


def _of_instruments(
    keys: Any, instruments: Mapping[str, Sequence[int]], *, uses_butler: bool
) -> Iterator[tuple[KeyPath, str]]:
    """Find keys of other parts that contradict the instruments of the node."""
    arrivals = getattr(keys, "arrivals", None)
    for kind in ("roots", "remote"):
        if values := valid_values(arrivals, kind, "layout", "done"):
            roots, layout, done = values
            for number, key, text in unsuitable_roots(roots, layout, done, instruments):
                yield ("arrivals", kind, number, key), text
    for classes in valid_values(getattr(keys, "butler", None), "instrument_class"):
        for name in sorted(set(instruments) - set(classes)) if uses_butler else ():
            yield ("butler", "instrument_class"), f"no entry for {name}{did_you_mean(name, classes)}"
    for ingest in valid_values(getattr(keys, "butler", None), "ingest") if uses_butler else ():
        kinds = [ingest.get(name) for name in instruments] if isinstance(ingest, dict) else [ingest]
        located = valid_values(arrivals, "roots", "remote", "layout")
        if "obs_base" in kinds and located and any(_detector_keywords(arrivals).values()):
            text = "obs_base cannot ingest files that hold all detectors (detector_keyword)"
            yield ("butler", "ingest"), text
    for databases in valid_values(getattr(keys, "engine", None), "apdb"):
        for name in sorted(set(databases) - set(instruments)):
            hint = did_you_mean(name, instruments)
            yield ("engine", "apdb", name), f"node.instruments has no {name}{hint}"


def read_node(
    path: Path, environment: Mapping[str, str], *, writing: bool = True
) -> tuple[NodeConfig, dict[KeyPath, int]]:
    """Return the configuration that is in effect, and the line number of each key; see `load_node`."""
    config, lines = load_model(path, NodeConfig, environment, HostContext(environment, writing=writing))
    if problems := located(path, lines, _not_replaced(config, environment)):
        raise ConfigError(problems)
    return config.in_effect(), lines


def load_node(path: Path, environment: Mapping[str, str], *, writing: bool = True) -> NodeConfig:
    """Read and check the configuration of a node.

    Parameters
    ----------
    path : `pathlib.Path`
        A YAML file; see ``etc/ppdaemon.yaml``.
    environment : `~collections.abc.Mapping` [`str`, `str`]
        Values of ``${NAME}`` in the file.
    writing : `bool`, optional
        Whether to check that the node's folders are writable; `False` for a program
        that only reads.

    Returns
    -------
    config : `NodeConfig`
        The validated, immutable configuration.

    Raises
    ------
    ppdaemon.errors.ConfigError
        Raised with all errors, each with file, line and key.
    """
    return read_node(path, environment, writing=writing)[0]
