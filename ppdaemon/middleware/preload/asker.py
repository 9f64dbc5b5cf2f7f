# SPDX-License-Identifier: BSD-3-Clause
"""One process that asks the central repo for all workers of a host.

So a worker needs no central Butler of its own: opening one takes longer than all queries of a visit, and an
open one takes 12 MB. If this process is late or ended, the workers ask by themselves.
"""

import gc
import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from ppdaemon.camera import load_camera
from ppdaemon.config import ButlerConfig
from ppdaemon.errors import VisitFailed
from ppdaemon.messages import Pipelines, Prepare
from ppdaemon.middleware.butler.central import CentralReader
from ppdaemon.middleware.butler.failures import describe
from ppdaemon.middleware.butler.timings import Timings
from ppdaemon.middleware.pipelines.graph import PipelineLibrary
from ppdaemon.middleware.preload.answers import Question
from ppdaemon.middleware.preload.preload import Preload
from ppdaemon.middleware.preload.questions import WAIT_S
from ppdaemon.middleware.raws.regions import find_camera, footprint_of
from ppdaemon.visit import CoordinateSystem, NextVisit, RotationSystem
from ppdaemon.work import WorkerContext

__all__ = ("HostAsker",)

_LOG = logging.getLogger(__name__)


class HostAsker:
    """Answers the questions of the workers that have the same configuration."""

    def __init__(self, context: WorkerContext, config: ButlerConfig, library: PipelineLibrary):
        self._clock, self._config = context.clock, context.config
        # Not retried for longer: then the workers ask by themselves, and retry.
        self._central = CentralReader(config.source, WAIT_S, context.template)
        self._preload = Preload.of(context, config, self._central, library)
        self._stack = ExitStack()
        self._doorbell = self._stack.enter_context(self._preload.doorbell())

    def fileno(self) -> int:
        """Return a descriptor that becomes readable when there are questions."""
        return self._doorbell

    def prepare(self, report: Callable[[Sequence[float]], None]) -> None:
        """Open the central repo, and ask it something, before the first question; log if that is not
        possible. The first query of each kind takes several times as long as the next ones; see
        `~ppdaemon.work.Asker.prepare` for `report`.
        """
        try:
            self._preload.connect(Timings(self._clock))
            report(())
            for name, detectors in self._config.node.instruments.items():
                self._preload.rehearse(self._question(name, min(detectors)), Timings(self._clock))
                report(())
        except Exception as error:  # also of a pipeline's code; questions do without
            unexpected = not isinstance(error, VisitFailed)
            reason = describe(error) if unexpected else error
            _LOG.warning("not opened before the first question: %s", reason, exc_info=unexpected)
        gc.collect()
        gc.freeze()  # it stays: no later collection visits it

    def _question(self, instrument: str, detector: int) -> Question:
        """Return a question about all pipelines, somewhere on the sky."""
        visit = NextVisit(
            groupId="rehearsal",
            instrument=instrument,
            coordinateSystem=CoordinateSystem.ICRS,
            rotationSystem=RotationSystem.SKY,
        )
        footprint = footprint_of(
            visit,
            detector,
            find_camera(load_camera, instrument),
            padding_arcsec=self._config.preload.padding_arcsec,
            image_deadline_s=self._config.arrivals.image_deadline_s(visit),
            now_tai=self._clock.tai(),
        )
        pipelines = Pipelines(main=tuple(self._config.pipelines.paths))
        return Question(Prepare(visit=visit, detector=detector, pipelines=pipelines), footprint)

    def answer(self, report: Callable[[Sequence[float]], None]) -> None:
        """Answer all questions that are there; see `~ppdaemon.work.Asker.answer`."""
        self._preload.answer_all(self._doorbell, Timings(self._clock), report)

    def close(self) -> None:
        """Disconnect."""
        self._stack.close()
        self._central.close()
