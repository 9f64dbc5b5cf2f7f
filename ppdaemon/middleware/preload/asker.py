# SPDX-License-Identifier: BSD-3-Clause
"""One process that asks the central repo for all workers of a host.

So a worker needs no central Butler of its own: opening one takes longer than all queries of a visit, and an
open one takes 12 MB. If this process is late or ended, the workers ask by themselves.
"""

import gc
import logging
from collections.abc import Callable
from contextlib import ExitStack

from ppdaemon.config import ButlerConfig
from ppdaemon.errors import VisitFailed
from ppdaemon.middleware.butler.central import CentralReader
from ppdaemon.middleware.butler.timings import Timings
from ppdaemon.middleware.pipelines.graph import PipelineLibrary
from ppdaemon.middleware.preload.preload import Preload
from ppdaemon.middleware.preload.questions import WAIT_S
from ppdaemon.work import WorkerContext

__all__ = ("HostAsker",)

_LOG = logging.getLogger(__name__)


class HostAsker:
    """Answers the questions of the workers that have the same configuration."""

    def __init__(self, context: WorkerContext, config: ButlerConfig, library: PipelineLibrary):
        self._clock = context.clock
        # Not retried for longer: then the workers ask by themselves, and retry.
        self._central = CentralReader(config.source, WAIT_S, context.template)
        self._preload = Preload.of(context, config, self._central, library)
        self._stack = ExitStack()
        self._doorbell = self._stack.enter_context(self._preload.doorbell())

    def fileno(self) -> int:
        """Return a descriptor that becomes readable when there are questions."""
        return self._doorbell

    def prepare(self) -> None:
        """Open the central repo before the first question; log if that is not possible."""
        try:
            self._preload.connect(Timings(self._clock))
        except VisitFailed as error:
            _LOG.warning("not opened before the first question: %s", error)
        gc.collect()
        gc.freeze()  # it stays: no later collection visits it

    def answer(self, begins: Callable[[], None]) -> None:
        """Answer all questions that are there; call `begins` before each batch of them."""
        self._preload.answer_all(self._doorbell, Timings(self._clock), begins)

    def close(self) -> None:
        """Disconnect."""
        self._stack.close()
        self._central.close()
