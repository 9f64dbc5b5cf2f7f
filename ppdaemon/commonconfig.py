# SPDX-License-Identifier: BSD-3-Clause
"""What the configurations of all programs share: security, logs, metrics, traces."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

import pydantic

from ppdaemon.configtypes import (
    SOCKET_PATH_MAX,
    CollectorUrl,
    ConfigPart,
    GroupId,
    HttpAddress,
    LoggerName,
    LogLevel,
    Rate,
    SecretKeyFile,
    UserId,
    is_local,
    valid_values,
)
from ppdaemon.yamlfile import KeyPath

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


def security_conflicts(keys: Any, sockets: Sequence[str], program: str) -> Iterator[tuple[KeyPath, str]]:
    """Find bound sockets without keys that other hosts can reach, and lists of keys that have no effect.

    `sockets` are names of keys, for the address of each and, in ``security``, for the folder of its list.
    """
    values = valid_values(getattr(keys, "security", None), "key", "insecure", *sockets)
    if not values:
        return
    key, insecure, *folders = values
    for name, folder in zip(sockets, folders, strict=True):
        for address in valid_values(keys, name):
            if key is None and not insecure and not is_local(address):
                text = f"other hosts can connect to {address}: it needs security.key, or "
                yield (name,), f"{text}security.insecure: true"
        if key is not None and folder is None:
            yield ("security", name), "missing key, the folder with the public keys that may connect"
        # Otherwise everybody may connect, although the file lists who may.
        if key is None and folder is not None:
            yield ("security", name), f"needs security.key, the key of this {program}"


def control_conflicts(keys: Any, socket_name: str) -> Iterator[tuple[KeyPath, str]]:
    """Find a state directory whose path is too long for the control socket in it."""
    values = valid_values(keys, "control", "state_dir")
    if values and values[0] is None and len(bytes(values[1] / socket_name)) > SOCKET_PATH_MAX:
        yield ("state_dir",), f"too long for {socket_name} in it; set control to a shorter path"


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
