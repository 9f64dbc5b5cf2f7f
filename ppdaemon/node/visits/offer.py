# SPDX-License-Identifier: BSD-3-Clause
"""Sends the relay how many visit-detectors this node can have, whenever that changes."""

import asyncio
import logging
from collections.abc import Callable

from ppdaemon.config import WorkersConfig
from ppdaemon.node.processes.reload import Generations
from ppdaemon.node.slots.capacity import Capacity, capacity_of
from ppdaemon.node.slots.events import SlotChanged
from ppdaemon.node.slots.pool import Pool
from ppdaemon.node.slots.slot import Slot
from ppdaemon.node.visits.core import Visits
from ppdaemon.node.visits.journal import Journal
from ppdaemon.node.visits.model import SlotsChanged
from ppdaemon.node.visits.source import VisitSource
from ppdaemon.sqlitefile import BatchWriter, Commit
from ppdaemon.states import SlotState

__all__ = ("CapacityOffer",)

_LOG = logging.getLogger(__name__)

GATHER_S = 0.1
"""Slots often fail together: one message for all."""
PROBE_S = 10.0
"""Interval of writes to the journal, without which an idle node would not find that it cannot."""
FAULTY_SHARE = 4
"""A host that may be faulty offers a quarter."""
HANGS_S = 10.0
"""A write takes milliseconds, and seconds on a busy disk."""
TRY_S = 2.0
"""How long an operator waits for a write."""


class CapacityOffer:
    """Keeps the relay's number of visit-detectors true. `post` takes events for the visits."""

    def __init__(
        self,
        config: WorkersConfig,
        pool: Pool,
        generations: Generations,
        visits: Visits,
        journal: BatchWriter[Journal],
        source: VisitSource,
        post: Callable[[object], None],
    ):
        self.offered = config.max
        """As last sent."""
        self.problem = ""
        """Why no slot can take a visit-detector, or blank."""
        self._config = config
        self._pool = pool
        self._generations = generations
        self._visits = visits
        self._journal = journal
        self._source = source
        self._post = post
        self._notified = (False, False)
        self._loop = asyncio.get_running_loop()
        self._update_due = False
        self._probed_at = self._loop.time()
        self._probing = False
        pool.watch(self._slot_changed)

    @property
    def journal_problem(self) -> str:
        """Why the journal, and with it the state disk, cannot be written; or blank."""
        if self._probing and self._loop.time() - self._probed_at > HANGS_S:
            return f"the journal has not been written for {self._loop.time() - self._probed_at:.0f} s"
        return self._journal.problem

    def reconfigure(self, config: WorkersConfig) -> None:
        """Use other limits from now on."""
        self._config = config
        self.update()

    def update(self) -> None:
        """Send the present number, if it differs from the last one."""
        self._update_due = False
        slots = list(self._pool.slots.values())
        capacity = capacity_of(self._config, slots, self._generations.fork_problem)
        self._notify(capacity)
        closed = self._loop.time() > self._visits.takes_until
        offered = 0 if self.journal_problem or closed else capacity.number
        if self._visits.health.host_problem and offered:
            # Not 0: a visit whose worker lives shows that the host is not the cause.
            offered = max(1, offered // FAULTY_SHARE)
        if offered != self.offered:
            self.offered = offered
            _LOG.info("the node offers to have %d visit-detectors at once", offered)
            self._source.set_capacity(offered)

    def probe(self) -> None:
        """Write to the journal if that was not done for a while, or if the last time it failed."""
        pause_s = 0.0 if self._journal.problem else PROBE_S
        if not self._probing and self._loop.time() - self._probed_at >= pause_s:
            self._probing, self._probed_at = True, self._loop.time()
            self._journal.put(Commit(Journal.probe, self._probed, self._probed))

    async def try_journal(self) -> str:
        """Write to the journal now; return why that is not possible, or not done after `TRY_S`; or blank."""
        ended: asyncio.Future[None] = self._loop.create_future()

        def end(result: object) -> None:
            if not ended.done():
                ended.set_result(None)

        self._journal.put(Commit(Journal.probe, end, end))
        try:
            await asyncio.wait_for(ended, TRY_S)
        except TimeoutError:
            return self.journal_problem or f"the journal has not been written for {TRY_S:g} s"
        return self.journal_problem

    def _probed(self, result: object) -> None:
        self._probing, self._probed_at = False, self._loop.time()
        # Later: the writer changes its `problem` after this call, if the write has failed.
        self._schedule_update()

    def _notify(self, capacity: Capacity) -> None:
        if capacity.problem and not self.problem:
            _LOG.error("no slot can take a visit: %s; the relay sends them to other nodes", capacity.problem)
        self.problem = capacity.problem
        # Also when the relay has come back: it takes back what is queued.
        changed = bool(capacity.problem), bool(capacity.problem) and self._source.connected
        if changed != self._notified:  # not when only the text is another one: it has times
            self._notified = changed
            self._post(SlotsChanged(capacity.problem, hand_back=changed[1]))

    def _slot_changed(self, slot: Slot, change: SlotChanged) -> None:
        # Other changes leave the number as it is, and there are many in each visit.
        if slot.quarantined or SlotState.STARTING in (change.before, change.after):
            self._schedule_update()

    def _schedule_update(self) -> None:
        if not self._update_due:
            self._update_due = True
            self._loop.call_later(GATHER_S, self.update)
