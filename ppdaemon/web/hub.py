# SPDX-License-Identifier: BSD-3-Clause
"""Passes the changes of the page to all viewers, as server-sent events."""

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterator

from ppdaemon.web.model import Delta

__all__ = ("Hub", "TooManyViewers", "Viewer")

MAX_VIEWERS = 200
"""Each costs a descriptor and a buffer of the kernel."""
MAX_WAITING = 100
"""Events that wait for one viewer, some 10 s of a busy night; a slower one is disconnected, and its
browser connects again and gets the present state."""


class TooManyViewers(Exception):
    """`MAX_VIEWERS` are connected."""


class Viewer:
    """The events that wait for one viewer."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[bytes] = asyncio.Queue(MAX_WAITING)
        self._is_slow = False

    def put(self, event: bytes) -> None:
        """Add an event, unless the viewer is too slow."""
        try:
            self._queue.put_nowait(event)
        except asyncio.QueueFull:
            self._is_slow = True

    async def take(self) -> bytes | None:
        """Wait for the next event; `None` if one was lost."""
        return None if self._is_slow else await self._queue.get()


class Hub:
    """All viewers. `snapshot` returns the whole page."""

    def __init__(self, snapshot: Callable[[], Delta], utc_ms: Callable[[], int]):
        self._snapshot = snapshot
        self._utc_ms = utc_ms
        self._viewers: set[Viewer] = set()
        self._number = 0
        self._whole: bytes | None = None

    def __len__(self) -> int:
        return len(self._viewers)

    @contextlib.contextmanager
    def viewing(self) -> Iterator[Viewer]:
        """Yield a viewer, which gets the whole page first. Raises `TooManyViewers`."""
        if len(self._viewers) >= MAX_VIEWERS:
            raise TooManyViewers
        viewer = Viewer()
        if self._whole is None:  # 50 browsers that connect again at once share it
            self._whole = self._event(self._snapshot())
        viewer.put(self._whole)
        self._viewers.add(viewer)
        try:
            yield viewer
        finally:
            self._viewers.discard(viewer)

    def publish(self, delta: Delta) -> None:
        """Send a change to all viewers, encoded once."""
        if not delta:
            return
        self._number += 1
        self._whole = None
        if self._viewers:
            event = self._event(delta)
            for viewer in self._viewers:
                viewer.put(event)

    def _event(self, delta: Delta) -> bytes:
        text = json.dumps({"now": self._utc_ms(), **delta}, ensure_ascii=False, separators=(",", ":"))
        return f"id: {self._number}\ndata: {text}\n\n".encode(errors="replace")
