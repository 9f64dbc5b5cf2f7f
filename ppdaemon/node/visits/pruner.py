# SPDX-License-Identifier: BSD-3-Clause
"""Deletes old visit-detectors from the journal, in small transactions between all others."""

import asyncio
import logging
import sqlite3
from dataclasses import dataclass

from ppdaemon.clock import Clock
from ppdaemon.errors import Refused
from ppdaemon.node.visits.journal import Journal
from ppdaemon.sqlitefile import BatchWriter

__all__ = ("JournalPruner",)

_LOG = logging.getLogger(__name__)

PRUNE_S = 3600.0
"""Interval: an hour has at most some 23,000 rows of LSSTCam, 50 transactions."""
PAUSE_S = 0.05
"""Pause between two transactions, in which other changes are written."""


@dataclass(eq=False)
class JournalPruner:
    """Deletes what is older than `keep_days`; with `reporting` only what the relay has confirmed."""

    journal: BatchWriter[Journal]
    clock: Clock
    keep_days: float
    reporting: bool

    async def run(self) -> None:
        """Delete once an hour until canceled."""
        while True:
            try:
                await self.prune()
            except (sqlite3.Error, Refused) as error:
                _LOG.warning("old visits stay in the journal, trying again in an hour: %s", error)
            await asyncio.sleep(PRUNE_S)

    async def prune(self) -> None:
        """Delete all that may be deleted now."""
        keep_s = self.keep_days * 86_400.0
        # Both: the wall clock may be wrong, and the other one begins anew with each boot.
        before_tai, before_mono = self.clock.tai() - keep_s, self.clock.mono() - keep_s
        after: int | None = 0
        while after is not None:
            after = await self._prune_batch(before_tai, before_mono, after)
            await asyncio.sleep(PAUSE_S)

    async def _prune_batch(self, before_tai: float, before_mono: float, after: int) -> int | None:
        return await self.journal.call(
            lambda journal: journal.prune(
                before_tai, after, reporting=self.reporting, before_mono=before_mono
            )
        )
