# SPDX-License-Identifier: BSD-3-Clause
"""Where visits come from: the relay, or streams of Redis."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from ppdaemon.commonconfig import silence_conflicts
from ppdaemon.configtypes import (
    ConfigPart,
    ConnectAddress,
    PublicKeyFile,
    RedisName,
    RedisUrl,
    Seconds,
    SecretPath,
    needs_redis,
    valid_values,
)
from ppdaemon.yamlfile import KeyPath


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
    password: SecretPath | None = None
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
