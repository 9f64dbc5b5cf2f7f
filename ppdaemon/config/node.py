# SPDX-License-Identifier: BSD-3-Clause
"""The whole configuration of a node: its parts, what contradicts across them, and how it is loaded."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import pydantic

from ppdaemon.commonconfig import LogConfig, MetricsConfig, SecurityConfig, TracesConfig
from ppdaemon.config.arrivals import ArrivalsConfig, keywords_of_roots
from ppdaemon.config.export import ExportConfig, WriterConfig
from ppdaemon.config.processing import (
    ButlerConfig,
    EngineConfig,
    ExposuresConfig,
    PipelinesConfig,
    PreloadConfig,
)
from ppdaemon.config.shadow import NO_CENTRAL, OUTGOING_VARIABLES, ShadowConfig, is_same_place, is_same_topic
from ppdaemon.config.visitsources import RedisConfig, RelayLink
from ppdaemon.config.workers import WorkersConfig
from ppdaemon.configtypes import (
    ConfigPart,
    Detectors,
    FileName,
    Seconds,
    SocketPath,
    WritableFolder,
    is_local,
    is_local_redis,
    valid_values,
)
from ppdaemon.errors import ConfigError
from ppdaemon.publish.config import Publication
from ppdaemon.raws.roots import unsuitable_roots
from ppdaemon.thishost import HostContext
from ppdaemon.yamlfile import KeyPath, did_you_mean, load_model, located


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
        if any(is_same_topic(publication.to, other.to) for other in config.publish):
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
        if "obs_base" in kinds and located and any(keywords_of_roots(arrivals).values()):
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
