# SPDX-License-Identifier: BSD-3-Clause
"""Selects pipelines before a decision needs them."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from ppdaemon import log
from ppdaemon.config import NodeConfig
from ppdaemon.messages import ReserveVisit
from ppdaemon.node.visits.model import FromLink, Reserved
from ppdaemon.selection import PipelineChoice, Selector
from ppdaemon.visit import NextVisit

__all__ = ("PipelineChooser",)

_LOG = logging.getLogger(__name__)


class PipelineChooser:
    """Turns the relay's messages into events, in the order of their arrival.

    A rule that uses a position on the sky may take long and is evaluated in a
    thread. Messages behind such a visit wait for it: a cancellation must not
    overtake its visit.
    """

    def __init__(self, config: NodeConfig, post: Callable[[object], None], count: Counter[str]):
        self._post = post
        self._count = count
        self._messages: asyncio.Queue[FromLink] = asyncio.Queue()
        self._served = {name: frozenset(ids) for name, ids in config.node.instruments.items()}
        self.reconfigure(config)

    def reconfigure(self, config: NodeConfig) -> None:
        """Use the rules of another configuration from now on."""
        self._selector = Selector(config.pipelines.preprocessing, config.pipelines.main)

    def receive(self, message: FromLink) -> None:
        """Queue a message of the relay."""
        self._messages.put_nowait(message)

    async def run(self) -> None:
        """Post events until canceled."""
        while True:
            message = await self._messages.get()
            # A filled queue and a quick choice never suspend this task: other
            # tasks run here.
            await asyncio.sleep(0)
            if not isinstance(message, ReserveVisit):
                self._post(message)
                continue
            served = self._served.get(message.visit.instrument, ())
            detectors = [detector for detector in message.detectors if detector in served]
            try:
                chosen = await self.choose(message.visit, detectors) if detectors else {}
                self._post(Reserved(message, chosen))
            except Exception:  # costs this message, which the relay repeats, not the daemon
                self._count["background_error"] += 1
                with log.about(instrument=message.visit.instrument, group=message.visit.group):
                    _LOG.exception("cannot select pipelines for %r; the relay sends it again", message.visit)

    async def choose(self, visit: NextVisit, detectors: Sequence[int]) -> Mapping[int, PipelineChoice]:
        """Return the pipelines of each detector of a visit."""
        if self._selector.takes_long(visit):
            return await asyncio.to_thread(self._selector.choose, visit, detectors)
        return self._selector.choose(visit, detectors)
