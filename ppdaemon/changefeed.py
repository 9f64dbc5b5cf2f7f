# SPDX-License-Identifier: BSD-3-Clause
"""Passes changes of visits to the clients that watch them; without one it costs nothing."""

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from ppdaemon.reports import VisitChange

__all__ = ("ChangeFeed", "Watcher")


@dataclass(slots=True)
class Watcher:
    """What one client has not received yet, the latest of each visit-detector."""

    filled: asyncio.Event = field(default_factory=asyncio.Event)
    _pending: dict[tuple[str, str, int], VisitChange] = field(default_factory=dict)

    def add(self, changes: Iterable[VisitChange]) -> None:
        """Add changes, in the order in which they happened."""
        for change in changes:
            self._pending[change.instrument, change.group, change.detector] = change
            self.filled.set()

    def take(self) -> Sequence[VisitChange]:
        """Remove and return all."""
        changes = tuple(self._pending.values())
        self._pending.clear()
        self.filled.clear()
        return changes


@dataclass(slots=True)
class ChangeFeed:
    """Collects changes for each watcher.

    What a client has not received is bounded by the time that the control server waits for it.
    """

    _watchers: list[Watcher] = field(default_factory=list)

    @contextlib.contextmanager
    def watched(self) -> Iterator[Watcher]:
        """Collect changes from now on, until the block ends."""
        watcher = Watcher()
        self._watchers.append(watcher)
        try:
            yield watcher
        finally:
            self._watchers.remove(watcher)

    def record(self, changes: Callable[[], Iterable[VisitChange]]) -> None:
        """Add changes, which are computed only if a client watches."""
        if self._watchers:
            found = list(changes())
            for watcher in self._watchers:
                watcher.add(found)
