# SPDX-License-Identifier: BSD-3-Clause
"""The configuration of a relay, validated once at start.

The docstring under each field is its documentation; ``etc/pprelay.yaml`` shows
every key.
"""

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import pydantic

from ppdaemon.commonconfig import (
    LogConfig,
    MetricsConfig,
    SecurityConfig,
    TracesConfig,
    control_conflicts,
    security_conflicts,
    silence_conflicts,
)
from ppdaemon.configtypes import (
    Address,
    ConfigPart,
    Detectors,
    FileName,
    KeyFolder,
    PasswordFile,
    Rate,
    Seconds,
    SocketPath,
    WritableFolder,
    kafka_conflicts,
    needs_kafka,
    valid_values,
)
from ppdaemon.detectorlist import ranges
from ppdaemon.keyfiles import read_allow_list
from ppdaemon.reports import RELAY_SOCKET
from ppdaemon.thishost import HostContext
from ppdaemon.visit import Name
from ppdaemon.yamlfile import KeyPath, did_you_mean, load_model

__all__ = (
    "KafkaConfig",
    "RelayConfig",
    "RelayInstrument",
    "RelaySecurity",
    "SwitchedOff",
    "load_relay",
    "needs_restart",
)

FIXED_KEYS = (
    "name",
    "submit",
    "nodes",
    "control",
    "state_dir",
    "kafka",
    "shadow",
    "heartbeat_s",
    "silence_s",
    "resend_s",
)
"""Sockets and folder are opened once, at the start, and the times are agreed with the nodes."""


class RelayInstrument(ConfigPart):
    """One instrument that the relay accepts visits of."""

    detectors: Detectors
    """Detectors of each visit; one reservation is made for each of them."""
    sal_indexes: tuple[int, ...] = ()
    """Script queues whose visits are accepted; empty means all."""
    nodes: dict[Name, Detectors] = {}
    """Nodes that get certain detectors first, such as ``node1: 0-62``. If a detector is
    listed for several nodes, the first one is preferred. All other nodes that serve the
    detector are next in line; detectors that are not listed are distributed over all."""

    @classmethod
    def conflicts(cls, keys: Any) -> Iterator[tuple[KeyPath, str]]:
        """Find detectors of nodes that the instrument does not have."""
        if values := valid_values(keys, "detectors", "nodes"):
            detectors, nodes = values
            for node, listed in nodes.items():
                if unknown := set(listed) - set(detectors):
                    yield ("nodes", node), f"{ranges(unknown)} are not in the detectors of the instrument"


class SwitchedOff(ConfigPart):
    """What gets no processing until it is removed from here and the file is reloaded.

    Visits that were accepted before are not affected.
    """

    instruments: tuple[Name, ...] = ()
    """Instruments whose visits are ignored."""
    surveys: tuple[Name, ...] = ()
    """Purposes (``survey`` of the next_visit, such as ``BLOCK-365``) whose visits are
    ignored."""
    detectors: dict[Name, Detectors] = {}
    """Detectors that get no reservation, by instrument, such as ``LSSTCam: 94,120-128``."""


class RelaySecurity(SecurityConfig):
    """Who may connect to this relay, and its key. With a key, both folders must be set."""

    submit: KeyFolder | None = None
    """Folder with the public keys (``NAME.key``) of those who may announce visits."""
    nodes: KeyFolder | None = None
    """Folder with the public keys of the nodes; the name of a file is the name of its node."""
    submit_per_s: Rate = 1000.0
    """Requests per second that one client (a key; without keys, a connection) may send for long, and
    five times as many at once; further ones are answered ``rejected: busy``. A request costs one more
    for each 4 kB."""
    nodes_per_s: Rate = 2000.0
    """Messages per second of one node, counted in the same way; further ones are dropped, and the node
    sends them again."""

    def read_allow_lists(self) -> dict[str, Mapping[str, str]]:
        """Return the names of the admitted keys, by socket; raises `~ppdaemon.keyfiles.UnusableKey`."""
        folders = {"submit": self.submit, "nodes": self.nodes}
        return {name: read_allow_list(folder) for name, folder in folders.items() if folder is not None}


class KafkaConfig(ConfigPart):
    """The observatory's Kafka topics of events, which are read beside the submit socket."""

    brokers: str | None = None
    """Brokers of the cluster, such as ``broker1:9092,broker2:9092``; `None`: nothing is read."""
    topics: Annotated[tuple[Name, ...], pydantic.Field(min_length=1)] = (
        "lsst.sal.ScriptQueue.logevent_nextVisit",
        "lsst.sal.ScriptQueue.logevent_nextVisitCanceled",
    )
    """Topics of next_visit events and cancellations, in JSON or in Avro of Confluent's wire format."""
    registry: str | None = None
    """Address of the schema registry, such as ``https://registry:8081``; needed for Avro."""
    registry_user: str | None = None
    """User of the registry (HTTP basic authentication); `None`: none is needed."""
    registry_password: PasswordFile | None = None
    """File with the password of this user, which is read with each request."""
    registry_ca: Path | None = None
    """File with the certificates that sign the registry's, which is read with each request; `None`: those of
    this host's system."""
    options: dict[str, str] = {}
    """Options of the Kafka client (librdkafka), such as ``security.protocol``."""
    password: PasswordFile | None = None
    """File with ``sasl.password``; a new password in it is used without a restart."""

    @classmethod
    def conflicts(cls, keys: Any) -> Iterator[tuple[KeyPath, str]]:
        """Find brokers that cannot be read, a registry that is no web address, and passwords that would not
        be used.
        """
        yield from kafka_conflicts(keys)
        for brokers in valid_values(keys, "brokers"):
            if brokers is not None and (problem := needs_kafka()):
                yield ("brokers",), problem
        for registry in valid_values(keys, "registry"):
            if registry is not None and "@" in registry:  # it is shown and logged
                yield ("registry",), "write no user into the address: use registry_user, registry_password"
            elif registry is not None and not registry.startswith(("http://", "https://")):
                yield ("registry",), f"{registry} is not the address of a registry, such as https://host:8081"
        if values := valid_values(keys, "registry", "registry_user", "registry_password", "registry_ca"):
            registry, user, password, authority = values
            if (user is None) != (password is None):
                yield ("registry_user",), "registry_user and registry_password are needed together"
            if (password or authority) and not (registry or "").startswith("https://"):
                yield ("registry",), "a password is sent, and a certificate is checked, with https:// only"


class RelayConfig(ConfigPart):
    """The whole configuration of ``pprelay``."""

    name: FileName = "relay"
    """Name of this relay in its messages and logs."""
    submit: Address = "tcp://127.0.0.1:5570"
    """ZeroMQ address on which next_visit events are received."""
    nodes: Address = "tcp://127.0.0.1:5571"
    """ZeroMQ address to which nodes connect."""
    control: SocketPath | None = None
    """Path of the unix socket for ``ppctl --relay``; `None` for ``control.sock`` in the
    state directory, which users outside of the group of ``pprelay`` cannot enter."""
    state_dir: WritableFolder
    """Folder of the ledger, on a local disk that keeps its files over a reboot."""
    instruments: Annotated[dict[FileName, RelayInstrument], pydantic.Field(min_length=1)]
    """The instruments whose visits are accepted; others are refused."""
    switched_off: SwitchedOff = SwitchedOff()
    kafka: KafkaConfig = KafkaConfig()
    shadow: bool = False
    """Whether this relay sends visits to nodes in shadow mode, and to no others. The relay of the present
    service refuses such nodes: they would take its visits."""
    expiry_s: Seconds = 3600.0
    """Visits published longer ago are refused; detectors that no node has
    acknowledged by then end as ``expired``."""
    heartbeat_s: Seconds = 1.0
    """Interval of heartbeats to the nodes."""
    silence_s: Seconds = 4.0
    """A node that sends nothing for this long counts as disconnected. At least 2 x
    ``heartbeat_s``."""
    give_up_s: Seconds = 900.0
    """After this time without a message of a node, its detectors end as ``interrupted``, and those that
    it has lost with its journal; a later outcome of the node replaces that. Detectors for which it has
    no permit to write permanently go to another node after ``silence_s`` already. At least
    ``silence_s``."""
    resend_s: Seconds = 0.5
    """A detector that a node has not acknowledged after this time is sent again."""
    keep_days: Annotated[float, pydantic.Field(ge=1)] = 30.0
    """Days that the ledger keeps visits of which all detectors have an outcome. At least 1: a visit
    that is announced again after it was deleted is processed again."""
    security: RelaySecurity = RelaySecurity()
    metrics: MetricsConfig = MetricsConfig()
    traces: TracesConfig = TracesConfig()
    log: LogConfig = LogConfig()

    @classmethod
    def conflicts(cls, keys: Any) -> Iterator[tuple[KeyPath, str]]:
        """Find a time limit that a single late heartbeat would exceed, one address for two sockets,
        sockets without keys that other hosts can reach, and lists of keys that have no effect.
        """
        yield from silence_conflicts(keys)
        if (times := valid_values(keys, "silence_s", "give_up_s")) and times[1] < times[0]:
            yield ("give_up_s",), f"{times[1]:g} is below silence_s, {times[0]:g}"
        yield from security_conflicts(keys, ("submit", "nodes"), "relay")
        values = valid_values(keys, "submit", "nodes")
        # With * or 0 the system chooses two ports.
        if values and values[0] == values[1] and not values[0].endswith((":*", ":0")):
            yield ("nodes",), f"{values[1]} is the address of submit, too"
        yield from control_conflicts(keys, RELAY_SOCKET)
        if values := valid_values(keys, "instruments", "switched_off"):
            yield from _switched_off_conflicts(*values)

    @property
    def control_socket(self) -> Path:
        """The path of the unix socket."""
        return self.control or self.state_dir / RELAY_SOCKET

    @property
    def kafka_group(self) -> str:
        """The name under which it commits offsets; relays of both modes may have the same `name`."""
        return f"ppdaemon{'.shadow' if self.shadow else ''}-{self.name}"

    @cached_property
    def active_detectors(self) -> Mapping[str, tuple[int, ...]]:
        """By instrument: the detectors that are not switched off."""
        off = self.switched_off
        return {
            name: ()
            if name in off.instruments
            else tuple(each for each in part.detectors if each not in off.detectors.get(name, ()))
            for name, part in self.instruments.items()
        }

    @cached_property
    def preferred_nodes(self) -> Mapping[str, Mapping[int, tuple[str, ...]]]:
        """By instrument and detector: the nodes that the file lists, the preferred one first."""
        return {
            name: {
                detector: tuple(node for node, listed in part.nodes.items() if detector in listed)
                for detector in part.detectors
            }
            for name, part in self.instruments.items()
        }


def _switched_off_conflicts(
    instruments: Mapping[str, RelayInstrument], off: Any
) -> Iterator[tuple[KeyPath, str]]:
    """Find instruments and detectors that are switched off but not known; `off` has the valid keys."""
    for key in ("instruments", "detectors"):
        for names in valid_values(off, key):
            for name in names:
                if name not in instruments:
                    text = f"{name} is not one of instruments{did_you_mean(name, instruments)}"
                    yield ("switched_off", key), text
    for detectors in valid_values(off, "detectors"):
        for name, listed in detectors.items():
            known = instruments[name].detectors if name in instruments else listed
            if unknown := set(listed) - set(known):
                text = f"{name} has no detectors {ranges(unknown)}, only {ranges(known)}"
                yield ("switched_off", "detectors", name), text


def needs_restart(old: RelayConfig, new: RelayConfig) -> list[str]:
    """Return the keys that differ and cannot change while the relay runs."""
    keys = [key for key in FIXED_KEYS if getattr(old, key) != getattr(new, key)]
    return keys + ["security.key"] * (old.security.key != new.security.key)


def load_relay(path: Path, environment: Mapping[str, str]) -> RelayConfig:
    """Read and check a YAML file; raise `~ppdaemon.errors.ConfigError` with all errors.

    `environment` gives the values of ``${NAME}``.
    """
    return load_model(path, RelayConfig, environment, HostContext(environment))[0]
