# SPDX-License-Identifier: BSD-3-Clause
"""Reading a configuration again while a program runs, because of a signal or a request."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from ppdaemon.clock import Clock
from ppdaemon.errors import ConfigError, PPDaemonError

__all__ = ("Reloader",)

_LOG = logging.getLogger(__name__)


class Reloader:
    """Calls `reload`, which raises `~ppdaemon.errors.PPDaemonError` and changes nothing if it is refused.

    Attributes
    ----------
    reloaded_tai : `float`, optional
        When it succeeded last.
    refused : `str`
        Why the last reload by a signal was refused; empty if it was not.
    """

    def __init__(self, reload: Callable[[], Awaitable[None]], clock: Clock):
        self._reload = reload
        self._clock = clock
        self._requested = asyncio.Event()
        # A file is read in a thread: without it an older one could be used last.
        self._busy = asyncio.Lock()
        self.reloaded_tai: float | None = None
        self.refused = ""

    def request(self) -> None:
        """Reload soon; may be called by a signal handler."""
        self._requested.set()

    async def run(self) -> None:
        """Serve requests until canceled."""
        while True:
            await self._requested.wait()
            # Before the reload: a signal during it causes another one.
            self._requested.clear()
            try:
                await self.now()
            except (PPDaemonError, OSError) as error:
                _LOG.error("reload refused, the old configuration stays: %s", error)
                text = error.brief if isinstance(error, ConfigError) else " ".join(str(error).split())
                self.refused = f"reload refused: {text}"

    async def now(self) -> None:
        """Reload. Raises as `reload` does."""
        async with self._busy:
            await self._reload()
        self.reloaded_tai, self.refused = self._clock.tai(), ""
        _LOG.info("configuration reloaded")
