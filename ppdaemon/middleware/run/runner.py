# SPDX-License-Identifier: BSD-3-Clause
"""Running pipelines in one seat: which one, and what the supervisor is told before a task.

Falling back is here: a pipeline that cannot be built gives way to the next
one. A task that fails never does, its constructor included: a database that
is away must not turn an alert pipeline into a lesser one that succeeds.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

from lsst.daf.butler import Butler, DatasetRef

from ppdaemon.errors import VisitFailed
from ppdaemon.messages import PointOfNoReturn, StageReached
from ppdaemon.middleware.direct.engine import DirectEngine
from ppdaemon.middleware.direct.shape import Unsupported
from ppdaemon.middleware.direct.unregistered import UnregisteredRaws
from ppdaemon.middleware.pipelines.graph import LoadedPipeline, UnusablePipeline, labels_named
from ppdaemon.middleware.run.engine import DataQuery, Engine, Job, PipelineRun, RunResult
from ppdaemon.middleware.run.initoutputs import ConstructionFailed, InitOutputs
from ppdaemon.states import Outcome, Stage
from ppdaemon.work import Seat

__all__ = ("NoReturnReporter", "BuiltPipeline", "PipelineRunner")

_LOG = logging.getLogger(__name__)


class NoReturnReporter:
    """Tells the supervisor of the first task and of points of no return, before they are passed.

    Parameters
    ----------
    seat : `~ppdaemon.work.Seat`
        Tells what can not be taken back, and is told.
    """

    def __init__(self, seat: Seat):
        self._seat = seat
        self.passed: set[str] = set()
        """Labels of tasks that may have done something permanent."""

    def before(
        self, pipeline: LoadedPipeline, first: Mapping[str, object] | None = None
    ) -> Callable[[str], None]:
        """Return what is to be called with the label of each task before it is run.

        Parameters
        ----------
        pipeline : `~ppdaemon.middleware.pipelines.graph.LoadedPipeline`
            The tasks.
        first : `~collections.abc.Mapping`, optional
            Figures to go with the first task; if they are not given, the
            first task is not a stage of the visit.

        Returns
        -------
        before_task : `~collections.abc.Callable`
            For `~ppdaemon.middleware.run.engine.PipelineRun`.
        """
        permanent = labels_named(pipeline.graph, self._seat.config.engine.no_return)
        waiting = [] if first is None else [dict(first)]

        def before_task(label: str) -> None:
            if waiting:
                self._seat.report(
                    StageReached(stage=Stage.FIRST_TASK, tai=self._seat.clock.tai(), detail=waiting.pop())
                )
            if label in permanent and label not in self.passed:
                self.passed.add(label)
                self._seat.report(PointOfNoReturn(what=label))

        return before_task


@dataclass(frozen=True, slots=True)
class BuiltPipeline:
    """The job that could be built."""

    job: Job
    run: PipelineRun
    """Runs it; if a task cannot be constructed, it only says so."""
    passed_over: tuple[str, ...]
    """Why the jobs before it could not."""
    engine: str
    """Which engine runs it."""
    declined: str = ""
    """Why it is not the configured engine."""


class PipelineRunner:
    """Builds pipelines, with all that their runs need.

    Parameters
    ----------
    reference : `~ppdaemon.middleware.run.engine.Engine`
        Builds and runs anything.
    init_outputs : `~ppdaemon.middleware.run.initoutputs.InitOutputs`
        What each run has once.
    direct : `~ppdaemon.middleware.direct.engine.DirectEngine`, optional
        Is asked first where raws need not be in the repo.
    """

    def __init__(self, reference: Engine, init_outputs: InitOutputs, direct: DirectEngine | None = None):
        self._reference = reference
        self._init_outputs = init_outputs
        self._direct = direct
        self._declined: dict[str, str] = {}
        """Why pipelines cannot be run directly, by path."""

    def forget(self) -> None:
        """Go on with a repo that has nothing yet."""
        self._init_outputs.forget()
        if self._direct is not None:
            self._direct.forget()

    def handles(self, job: Job, butler: Butler) -> bool:
        """Find out whether a pipeline is run without raws in the repo.

        Parameters
        ----------
        job : `~ppdaemon.middleware.run.engine.Job`
            The pipeline.
        butler : `lsst.daf.butler.Butler`
            The worker's repo.

        Returns
        -------
        handles : `bool`
            If not, the log says why, once for each pipeline.
        """
        if self._direct is None:
            return False
        try:
            self._direct.check(job, butler)
        except Unsupported as reason:
            self._decline(job, reason)
            return False
        except UnusablePipeline:
            return False  # the reference will say so
        return True

    def make_ready(
        self, job: Job, butler: Butler, landing: UnregisteredRaws | None = None
    ) -> dict[str, object]:
        """Do what needs no image.

        What goes wrong is told, and tried again when the image is there.

        Parameters
        ----------
        job : `~ppdaemon.middleware.run.engine.Job`
            What will be run, as far as it is known.
        butler : `lsst.daf.butler.Butler`
            The worker's repo.
        landing : `~ppdaemon.middleware.direct.unregistered.UnregisteredRaws`, optional
            What will come, if it is not put into the repo.

        Returns
        -------
        timings : `dict`
            What was done.
        """
        try:
            self._init_outputs.provide(job, butler)
            if self._direct is not None and landing is not None:
                return asdict(self._direct.warm(job, landing.expected(), butler))
        except (ConstructionFailed, UnusablePipeline, Unsupported) as error:
            _LOG.warning("%s is not ready: %s", job.pipeline.name, error)
        return {}

    def build_first(
        self, jobs: Sequence[Job], data: DataQuery, butler: Butler, landing: UnregisteredRaws | None = None
    ) -> BuiltPipeline:
        """Build the first job that can be built.

        Parameters
        ----------
        jobs : `~collections.abc.Sequence` [`~ppdaemon.middleware.run.engine.Job`]
            In order of preference.
        data : `~ppdaemon.middleware.run.engine.DataQuery`
            What they are to work on.
        butler : `lsst.daf.butler.Butler`
            The worker's repo.
        landing : `~ppdaemon.middleware.direct.unregistered.UnregisteredRaws`, optional
            What came, if it is not in the repo.

        Returns
        -------
        built : `BuiltPipeline`
            The one.

        Raises
        ------
        ppdaemon.errors.VisitFailed
            Raised with ``NO_PIPELINE`` and all reasons if none is left.
        """
        reasons: list[str] = []
        for job in jobs:
            try:
                self._init_outputs.provide(job, butler)
                return self._build(job, data, butler, landing, tuple(reasons))
            except ConstructionFailed as error:
                _LOG.exception("%s cannot be constructed", error.failure.label)
                return BuiltPipeline(job, _failing(RunResult(error.failure)), tuple(reasons), self.engine)
            except UnusablePipeline as error:
                _LOG.warning("falling back: %s", error)
                reasons.append(str(error))
        raise VisitFailed(Outcome.NO_PIPELINE, "no pipeline can be built: " + "; ".join(reasons))

    @property
    def engine(self) -> str:
        """Name of the configured engine (`str`)."""
        return self._reference.name if self._direct is None else self._direct.name

    def _build(
        self,
        job: Job,
        data: DataQuery,
        butler: Butler,
        landing: UnregisteredRaws | None,
        passed_over: tuple[str, ...],
    ) -> BuiltPipeline:
        if self._direct is not None and landing is not None and not landing.registered:
            try:
                direct = self._direct.build(job, landing.landed(data.context), butler)
                return BuiltPipeline(job, direct, passed_over, self._direct.name)
            except Unsupported as reason:
                self._decline(job, reason)
                landing.register()
        run = self._reference.build(job, data, butler)
        return BuiltPipeline(job, run, passed_over, self._reference.name, self._why_not_direct(job))

    def _why_not_direct(self, job: Job) -> str:
        if self._direct is None:
            return ""
        return self._declined.get(job.pipeline.path, "the raws were put into the repo")

    def _decline(self, job: Job, reason: Unsupported) -> None:
        """Tell why a pipeline is not run by the configured engine; say it once."""
        if self._declined.get(job.pipeline.path) != str(reason):
            self._declined[job.pipeline.path] = str(reason)
            _LOG.warning("%s is run by %s: %s", job.pipeline.name, self._reference.name, reason)

    def is_exported(self, ref: DatasetRef) -> bool:
        """Tell whether a dataset is in the central repo already; see `InitOutputs`."""
        return self._init_outputs.is_exported(ref)


def _failing(ran: RunResult) -> PipelineRun:
    def run(before_task: Callable[[str], None]) -> RunResult:
        return ran

    return run
