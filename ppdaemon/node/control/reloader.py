# SPDX-License-Identifier: BSD-3-Clause
"""Reloads the configuration after SIGHUP or a request of an operator."""

import asyncio
import logging
from dataclasses import dataclass

from ppdaemon.clock import Clock
from ppdaemon.errors import ConfigError, PPDaemonError, Refused
from ppdaemon.node.control.status import Status
from ppdaemon.node.processes.reload import Generations, brief
from ppdaemon.notify import Notifier
from ppdaemon.problemlog import status_line
from ppdaemon.reports import Ok, RequestFailed

__all__ = ("Reloader",)

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Reloader:
    """Runs one reload after another."""

    generations: Generations
    status: Status
    notifier: Notifier
    clock: Clock
    stopping: asyncio.Event
    requested: asyncio.Event
    """Set by SIGHUP; several signals during a reload cause one more."""

    async def run(self) -> None:
        """Reload after each signal until canceled."""
        while True:
            await self.requested.wait()
            # Before the reload: a signal during it causes another one.
            self.requested.clear()
            self.notifier.notify(RELOADING=1, MONOTONIC_USEC=int(self.clock.mono() * 1e6))
            await self.generations.reload_unattended()
            self.notifier.notify(READY=1, STATUS=status_line(self.status.report()))

    async def reload(self) -> Ok | RequestFailed:
        """Reload for a client that waits for the result.

        Raises `~ppdaemon.errors.Refused` if the daemon is starting or stopping.
        """
        if self.status.state in ("starting", "stopping"):
            raise Refused(f"the daemon is {self.status.state}")
        reloading = asyncio.ensure_future(self.generations.reload())
        stopping = asyncio.ensure_future(self.stopping.wait())
        try:
            await asyncio.wait((reloading, stopping), return_when=asyncio.FIRST_COMPLETED)
            if not reloading.done():
                raise Refused("the daemon is stopping")
            warnings = reloading.result()
        except ConfigError as error:
            return RequestFailed(code="config", text=str(error))
        except Refused:
            raise
        except PPDaemonError as error:  # with the end of a log, which the daemon has logged
            _LOG.error("reload refused, the old configuration stays: %s", error)
            raise Refused(f"the old configuration stays: {brief(error)}") from error
        finally:
            for task in (reloading, stopping):
                task.cancel()
            await asyncio.gather(reloading, stopping, return_exceptions=True)
        lines = (
            f"the new configuration is in use (generation {self.generations.number})",
            *(f"warning: {text}" for text in warnings),
        )
        return Ok(data="\n".join(lines))
