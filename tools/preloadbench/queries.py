# SPDX-License-Identifier: BSD-3-Clause
"""Counts what the central repo gets from a process."""

import mmap
from pathlib import Path

import sqlalchemy


class QueryCounts:
    """Counts the statements that the central repo gets from this process, and the connections to a server.

    Made before a fork, it counts what the child does, too, and can be read in the parent.
    """

    def __init__(self, central: Path):
        # Shared with children.
        self._counts = counts = memoryview(mmap.mmap(-1, 16)).cast("q")

        def count(connection: sqlalchemy.Connection, *_: object) -> None:
            url = connection.engine.url
            is_server = url.get_backend_name() != "sqlite"
            counts[0] += is_server or central in Path(url.database or "").parents

        def connected(connection: object, _: object) -> None:
            counts[1] += hasattr(connection, "dsn")  # of a server

        sqlalchemy.event.listen(sqlalchemy.Engine, "before_cursor_execute", count)
        sqlalchemy.event.listen(sqlalchemy.Engine, "connect", connected)

    def values(self) -> dict[str, int]:
        """Return the counts by the names of the results."""
        queries, connections = self._counts
        return {"queries": queries, "connections": connections}
