# SPDX-License-Identifier: BSD-3-Clause
"""The configuration of a bridge, validated once at start.

The docstring under each field is its documentation; ``etc/ppbridge.yaml`` shows
every key.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import pydantic

from ppdaemon.commonconfig import (
    LogConfig,
    MetricsConfig,
    SecurityConfig,
    control_conflicts,
    security_conflicts,
)
from ppdaemon.configtypes import (
    Address,
    ConfigPart,
    FileName,
    HttpAddress,
    KeyFolder,
    PasswordFile,
    Seconds,
    SecretPath,
    Size,
    SocketPath,
    WritableFolder,
    is_local,
    kafka_conflicts,
    needs_kafka,
    valid_values,
)
from ppdaemon.keyfiles import read_allow_list
from ppdaemon.reports import BRIDGE_SOCKET
from ppdaemon.thishost import HostContext
from ppdaemon.visit import Name
from ppdaemon.yamlfile import KeyPath, load_model

__all__ = (
    "BridgeConfig",
    "BridgeSecurity",
    "HttpConfig",
    "NoticesConfig",
    "RingConfig",
    "load_bridge",
    "needs_restart",
    "unprotected",
)

FIXED_KEYS = ("name", "nodes", "control", "state_dir", "kafka")
"""Sockets, folder and the consumer are opened once, at the start."""


class HttpConfig(ConfigPart):
    """Where stores send their notices by HTTP POST."""

    listen: HttpAddress | None = "127.0.0.1:8480"
    """Address and port; `None`: no HTTP. A socket that systemd passes is used instead."""
    token: SecretPath | None = None
    """File with a token, which a store must send: as ``Authorization: Bearer TOKEN``, or at the end of the
    path of its endpoint, ``http://host:8480/TOKEN``."""
    certificate: Path | None = None
    """File with the certificate (chain) of this host in PEM; with it, HTTPS is served."""
    certificate_key: Path | None = None
    """File with its private key; `None` if ``certificate`` has it, too."""

    @classmethod
    def conflicts(cls, keys: Any) -> Iterator[tuple[KeyPath, str]]:
        """Find a private key without its certificate."""
        if (values := valid_values(keys, "certificate", "certificate_key")) and values[1] and not values[0]:
            yield ("certificate",), "missing key, the certificate of certificate_key"


class NoticesConfig(ConfigPart):
    """Kafka topics of bucket notifications, which are read beside HTTP, or instead of it."""

    brokers: str | None = None
    """Brokers of the cluster, such as ``broker1:9092,broker2:9092``; `None`: nothing is read."""
    topics: tuple[Name, ...] = ()
    """Topics to which the store sends its notifications."""
    group: str = "ppbridge"
    """Consumer group, which several bridges may share: each notice then comes to one of them, and all
    nodes must be connected to all."""
    options: dict[str, str] = {}
    """Options of the Kafka client (librdkafka), such as ``security.protocol``."""
    password: PasswordFile | None = None
    """File with ``sasl.password``; a new password in it is used without a restart."""

    @classmethod
    def conflicts(cls, keys: Any) -> Iterator[tuple[KeyPath, str]]:
        """Find brokers that cannot be read, none of their topics, and a password that would not be used."""
        yield from kafka_conflicts(keys)
        for brokers in valid_values(keys, "brokers"):
            if brokers is not None and (problem := needs_kafka()):
                yield ("brokers",), problem
        if (values := valid_values(keys, "brokers", "topics")) and values[0] is not None and not values[1]:
            yield ("topics",), "list at least one topic"


class RingConfig(ConfigPart):
    """How many notices are kept on disk; the oldest ones are deleted."""

    max_notices: Annotated[int, pydantic.Field(ge=1)] = 200_000
    """Number of notices. An exposure of LSSTCam has some 400."""
    max_bytes: Size = 500_000_000
    """Bytes of their text; a notice has some 1 kB."""
    keep_s: Seconds = 86_400.0
    """Time for which a notice is kept."""


class BridgeSecurity(SecurityConfig):
    """Who may connect to this bridge, and its key. With a key, the folder must be set."""

    nodes: KeyFolder | None = None
    """Folder with the public keys (``NAME.key``) of the nodes."""

    def read_allow_lists(self) -> dict[str, Mapping[str, str]]:
        """Return the names of the admitted keys, by socket; raises `~ppdaemon.keyfiles.UnusableKey`."""
        return {} if self.nodes is None else {"nodes": read_allow_list(self.nodes)}


class BridgeConfig(ConfigPart):
    """The whole configuration of ``ppbridge``."""

    name: FileName = "bridge"
    """Name of this bridge in its messages and logs."""
    http: HttpConfig = HttpConfig()
    kafka: NoticesConfig = NoticesConfig()
    nodes: Address = "tcp://127.0.0.1:5581"
    """ZeroMQ address to which nodes connect (``arrivals.bridges`` of their configuration)."""
    control: SocketPath | None = None
    """Path of the unix socket for ``ppctl --bridge``; `None` for ``control.sock`` in the state directory."""
    state_dir: WritableFolder
    """Folder of the ring, on a local disk that keeps its files over a reboot."""
    ring: RingConfig = RingConfig()
    security: BridgeSecurity = BridgeSecurity()
    metrics: MetricsConfig = MetricsConfig()
    log: LogConfig = LogConfig()

    @classmethod
    def conflicts(cls, keys: Any) -> Iterator[tuple[KeyPath, str]]:
        """Find a bridge without a source, and sockets that other hosts can reach although nothing keeps
        strangers out.
        """
        listen = valid_values(getattr(keys, "http", None), "listen", "token")
        brokers = valid_values(getattr(keys, "kafka", None), "brokers")
        if listen and brokers and listen[0] is None and brokers[0] is None:
            yield (), "http.listen and kafka.brokers are both null: notices come by one of them"
        for insecure in valid_values(getattr(keys, "security", None), "insecure"):
            if listen and not insecure and (problem := unprotected(*listen)):
                yield ("http", "listen"), problem
        yield from security_conflicts(keys, ("nodes",), "bridge")
        yield from control_conflicts(keys, BRIDGE_SOCKET)

    @property
    def control_socket(self) -> Path:
        """The path of the unix socket."""
        return self.control or self.state_dir / BRIDGE_SOCKET


def unprotected(listen: str | None, token: Path | None) -> str:
    """Return why nobody may serve HTTP at an address; empty if it is allowed."""
    if listen is None or token is not None or is_local(f"tcp://{listen}"):
        return ""
    return f"other hosts can connect to {listen}: it needs http.token, or security.insecure: true"


def needs_restart(old: BridgeConfig, new: BridgeConfig) -> list[str]:
    """Return the keys that differ and cannot change while the bridge runs."""
    keys = [key for key in FIXED_KEYS if getattr(old, key) != getattr(new, key)]
    keys += ["http.listen"] * (old.http.listen != new.http.listen)
    keys += ["http.certificate"] * ((old.http.certificate is None) != (new.http.certificate is None))
    return keys + ["security.key"] * (old.security.key != new.security.key)


def load_bridge(path: Path, environment: Mapping[str, str]) -> BridgeConfig:
    """Read and check a YAML file; raise `~ppdaemon.errors.ConfigError` with all errors.

    `environment` gives the values of ``${NAME}``.
    """
    return load_model(path, BridgeConfig, environment, HostContext(environment))[0]
