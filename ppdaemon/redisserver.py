# SPDX-License-Identifier: BSD-3-Clause
"""Connections to the Redis server of a node, without any repetition. The client library is the extra
``redis``; it is imported when a connection is made.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ppdaemon.config import RedisConfig
from ppdaemon.errors import Unavailable

__all__ = ("SOCKET_S", "StreamGroup", "groups_of", "name_mark", "open_server", "rivals", "shadow_mark")

SOCKET_S = 5.0
"""Time limit of an answer."""


def open_server(config: RedisConfig, name: str) -> Any:
    """Return a client (`redis.asyncio.Redis`), which connects with its first command.

    Raises `~ppdaemon.errors.Unavailable` if the password cannot be read.
    """
    from redis.asyncio import Redis
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    options: dict[str, Any] = {}
    try:
        if config.password is not None:
            options["password"] = config.password.read_text().strip()
    except (OSError, ValueError) as error:
        raise Unavailable(f"redis.password: {error}") from error
    if config.user is not None:
        options["username"] = config.user
    if config.ca is not None:
        options["ssl_ca_certs"] = str(config.ca)
    assert config.url is not None
    return Redis.from_url(
        config.url,
        # A command that is repeated after a lost answer hides what the server has delivered already.
        retry=Retry(NoBackoff(), 0),
        protocol=2,  # the same types of answers from all versions of library and server
        socket_timeout=SOCKET_S,
        socket_connect_timeout=SOCKET_S,
        client_name=name,
        **options,
    )


def shadow_mark(stream: str, group: str) -> str:
    """Return the key of Redis that exists if a group belongs to nodes in shadow mode."""
    return f"ppdaemon:shadow-group:{stream}:{group}"


def name_mark(stream: str, group: str, node: str) -> str:
    """Return the key of Redis that says which node has a name in a group."""
    return f"ppdaemon:node:{stream}:{group}:{node}"


@dataclass(frozen=True, slots=True)
class StreamGroup:
    """A consumer group of a stream."""

    name: str
    consumers: int
    pending: int
    """Entries that consumers have, and have not acknowledged."""
    waiting: int
    """Entries that no consumer has taken; 0 if the server does not know."""
    shadow: bool
    """Whether nodes in shadow mode have it."""


async def groups_of(server: Any, stream: str) -> Mapping[str, StreamGroup]:
    """Return the consumer groups of a stream by name; none if it does not exist."""
    if not await server.exists(stream):
        return {}
    found = {each["name"].decode(errors="replace"): each for each in await server.xinfo_groups(stream)}
    return {
        name: StreamGroup(
            name,
            each["consumers"],
            each["pending"],
            each.get("lag") or 0,  # not known after a deletion, nor by older servers
            bool(await server.exists(shadow_mark(stream, name))),
        )
        for name, each in found.items()
    }


def rivals(groups: Iterable[StreamGroup], config: RedisConfig) -> list[str]:
    """Return the other groups of a stream whose consumers process the same visits for good: also those that
    have no consumer now, which get all entries when one comes.
    """
    known = {config.group, *config.watching_groups}
    return sorted(each.name for each in groups if each.name not in known and not each.shadow)
