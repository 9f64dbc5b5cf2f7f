# SPDX-License-Identifier: BSD-3-Clause
"""Selects pipelines before a decision needs them."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from ppdaemon.config import NodeConfig
from ppdaemon.messages import CancelVisit, ReserveVisit, ResultsSeen, Welcome
from ppdaemon.node.visits.turn import Reserved
from ppdaemon.selection import Chosen, Selector
from ppdaemon.visit import NextVisit

__all__ = ("PipelineChooser",)

_LOG = logging.getLogger(__name__)


class PipelineChooser:
    """Turns what the relay sends into events, in the order in which it came.

    A rule that asks for a place on the sky may take long; it is asked in a
    thread. A cancellation must not overtake its visit, so what comes behind
    such a visit waits with it.
    """

    def __init__(self, config: NodeConfig, post: Callable[[object], None], count: Counter[str]):
        self._post = post
        self._count = count
        self._messages: asyncio.Queue[ReserveVisit | CancelVisit | ResultsSeen | Welcome] = asyncio.Queue()
        self._served = {name: frozenset(ids) for name, ids in config.node.instruments.items()}
        self.reconfigure(config)

    def reconfigure(self, config: NodeConfig) -> None:
        """Use other rules from now on."""
        self._selector = Selector(config.pipelines.preprocessing, config.pipelines.main)

    def receive(self, message: ReserveVisit | CancelVisit | ResultsSeen | Welcome) -> None:
        """Take a message of the relay."""
        self._messages.put_nowait(message)

    async def run(self) -> None:
        """Post events until cancelled."""
        while True:
            message = await self._messages.get()
            await asyncio.sleep(0)  # neither this nor a choice waits while there are messages
            if not isinstance(message, ReserveVisit):
                self._post(message)
                continue
            served = self._served.get(message.visit.instrument, ())
            ours = [detector for detector in message.detectors if detector in served]
            try:
                self._post(Reserved(message, await self.choose(message.visit, ours) if ours else {}))
            except Exception:  # costs this message, which the relay will repeat, not the daemon
                self._count["background_error"] += 1
                _LOG.exception("no pipelines can be selected for %r", message.visit)

    async def choose(self, visit: NextVisit, detectors: Sequence[int]) -> Mapping[int, Chosen]:
        """Return what each detector of a visit gets."""
        if self._selector.takes_long(visit):
            return await asyncio.to_thread(self._selector.choose, visit, detectors)
        return self._selector.choose(visit, detectors)
