# SPDX-License-Identifier: BSD-3-Clause
"""Connections to the Redis server of a node, without any repetition. The client library is the extra
``redis``; it is imported when a connection is made.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ppdaemon.config import RedisConfig
from ppdaemon.errors import Unavailable

__all__ = ("SOCKET_S", "groups_of", "open_server", "other_groups")

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


async def groups_of(server: Any, stream: str) -> Sequence[Mapping[str, Any]]:
    """Return the consumer groups of a stream; none if it does not exist."""
    if not await server.exists(stream):
        return ()
    found: Sequence[Mapping[str, Any]] = await server.xinfo_groups(stream)
    return found


def other_groups(groups: Sequence[Mapping[str, Any]], group: str) -> list[str]:
    """Return the groups of a stream besides one: their consumers process the same visits."""
    return sorted({each["name"].decode(errors="replace") for each in groups} - {group})
