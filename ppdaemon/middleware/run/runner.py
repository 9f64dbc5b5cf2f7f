# SPDX-License-Identifier: BSD-3-Clause
"""Running pipelines in one slot: which one, by which engine, and what is reported before a task.

Falling back is here: a pipeline that cannot be built gives way to the next
one, and an engine that does not handle a pipeline to the next one. A task that
fails never does, its constructor included: a database that is away must not
turn an alert pipeline into a lesser one that succeeds.
"""

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ppdaemon.config import EngineConfig
from ppdaemon.errors import VisitFailed
from ppdaemon.messages import PointOfNoReturn, StageReached
from ppdaemon.middleware.butler.failures import describe
from ppdaemon.middleware.pipelines.graph import LoadedPipeline, UnusablePipeline, labels_named
from ppdaemon.middleware.raws.ingest import VisitRaws
from ppdaemon.middleware.run.engine import (
    DataQuery,
    Engine,
    Job,
    PipelineRun,
    RunResult,
    TaskFailure,
    Unsupported,
)
from ppdaemon.middleware.run.initoutputs import ConstructionFailed, InitOutputs
from ppdaemon.states import Outcome, Stage
from ppdaemon.work import WorkerContext

__all__ = ("NoReturnReporter", "BuiltPipeline", "PipelineRunner", "nothing_permanent_written")

_LOG = logging.getLogger(__name__)


class NoReturnReporter:
    """Tells the supervisor of the first task and of points of no return, before they are passed.

    Parameters
    ----------
    context : `~ppdaemon.work.WorkerContext`
        Tells what can not be taken back, and is told.
    """

    def __init__(self, context: WorkerContext):
        self._context = context
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
        permanent = labels_named(pipeline.graph, self._context.config.engine.no_return)
        pending = [] if first is None else [dict(first)]

        def before_task(label: str) -> None:
            if pending:
                self._context.report(
                    StageReached(stage=Stage.FIRST_TASK, tai=self._context.clock.tai(), detail=pending.pop())
                )
            if label in permanent and label not in self.passed:
                self.passed.add(label)
                self._context.report(PointOfNoReturn(what=label))

        return before_task


@dataclass(frozen=True, slots=True)
class BuiltPipeline:
    """The job that could be built."""

    job: Job
    run: PipelineRun
    """Runs it; if a task cannot be constructed, it only says so."""
    rejected: tuple[str, ...]
    """Why the jobs before it could not."""
    engine: str
    """Which engine runs it."""
    declined: str = ""
    """Why it is not the configured engine."""


class PipelineRunner:
    """Builds pipelines, with all that their runs need.

    Parameters
    ----------
    engines : `~collections.abc.Sequence` [`~ppdaemon.middleware.run.engine.Engine`]
        In the order in which they are asked; the last one runs anything.
    init_outputs : `~ppdaemon.middleware.run.initoutputs.InitOutputs`
        What each run has once.
    """

    def __init__(self, engines: Sequence[Engine], init_outputs: InitOutputs):
        self._engines = tuple(engines)
        self._init_outputs = init_outputs
        self._declined: dict[tuple[str, str], str] = {}
        """Why engines do not run pipelines, by engine and path."""

    def reset(self) -> None:
        """Go on with a repo that has nothing yet."""
        self._init_outputs.reset()
        for engine in self._engines:
            engine.reset()

    def prepare(self, job: Job, raws: VisitRaws) -> Mapping[str, object]:
        """Do what needs no image; return what was done.

        What goes wrong is logged, and tried again when the image is there.
        """
        try:
            self._init_outputs.provide(job)
            for engine in self._engines:
                try:
                    return engine.prepare(job, raws)
                except Unsupported as reason:
                    self._decline(engine, job, reason)
        except (ConstructionFailed, UnusablePipeline) as error:
            _LOG.warning("%s is not ready: %s", job.pipeline.name, error)
        return {}

    def build_first(
        self, jobs: Sequence[Job], query: DataQuery, raws: VisitRaws | None = None
    ) -> BuiltPipeline:
        """Build the first job that can be built.

        Parameters
        ----------
        jobs : `~collections.abc.Sequence` [`~ppdaemon.middleware.run.engine.Job`]
            In order of preference.
        query : `~ppdaemon.middleware.run.engine.DataQuery`
            What they are to work on.
        raws : `~ppdaemon.middleware.raws.ingest.VisitRaws`, optional
            What came. Without, the last engine runs it.

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
                self._init_outputs.provide(job)
                return self._build(job, query, raws, tuple(reasons))
            except ConstructionFailed as error:
                _LOG.exception("%s cannot be constructed", error.failure.label)
                return BuiltPipeline(
                    job, _ConstructionFailedRun(error.failure), tuple(reasons), self._engines[0].name
                )
            except UnusablePipeline as error:
                _LOG.warning("falling back: %s", error)
                reasons.append(str(error))
        raise VisitFailed(Outcome.NO_PIPELINE, "no pipeline can be built: " + "; ".join(reasons))

    def _build(
        self, job: Job, query: DataQuery, raws: VisitRaws | None, rejected: tuple[str, ...]
    ) -> BuiltPipeline:
        declined = ""
        for engine in self._engines if raws is not None else self._engines[-1:]:
            try:
                return BuiltPipeline(job, engine.build(job, query, raws), rejected, engine.name, declined)
            except Unsupported as reason:
                declined = self._decline(engine, job, reason)
        raise AssertionError("the last engine runs anything")

    def _decline(self, engine: Engine, job: Job, reason: Unsupported) -> str:
        """Return why an engine does not run a pipeline; log it when it is new."""
        key, text = (engine.name, job.pipeline.path), str(reason)
        if self._declined.get(key) != text:
            self._declined[key] = text
            _LOG.warning("%s is run by %s: %s", job.pipeline.name, self._engines[-1].name, text)
        return text


class _ConstructionFailedRun(PipelineRun):
    """Stands for a run of which a task could not be constructed."""

    def __init__(self, failure: TaskFailure):
        self._failure = failure

    def __call__(self, before_task: Callable[[str], None]) -> RunResult:
        return RunResult(self._failure)


def nothing_permanent_written(
    config: EngineConfig,
    instrument: str,
    detector: int,
    visits: Iterable[int],
    pipeline: LoadedPipeline,
    passed: Collection[str],
) -> bool:
    """Find out whether nothing permanent is left of a visit-detector, so that it can be tried again.

    Parameters
    ----------
    config : `~ppdaemon.config.EngineConfig`
        Tells the database, and which tasks write nowhere else.
    instrument : `str`
        Short name.
    detector : `int`
        Id of the detector.
    visits : `~collections.abc.Iterable` [`int`]
        Ids of its visits.
    pipeline : `~ppdaemon.middleware.pipelines.graph.LoadedPipeline`
        What was run.
    passed : `~collections.abc.Collection` [`str`]
        Labels of tasks whose point of no return was passed.

    Returns
    -------
    nothing : `bool`
        True only if the database has answered so, and no task has started
        that writes something permanent elsewhere, such as alerts.
    """
    url = config.apdb.get(instrument)
    visit_ids = list(visits)
    if url is None or not visit_ids or not set(passed) <= labels_named(pipeline.graph, config.apdb_tasks):
        return False
    from lsst.dax.apdb import Apdb  # only where a database is configured

    try:
        apdb = Apdb.from_uri(url)
        return not any(apdb.containsVisitDetector(visit=visit, detector=detector) for visit in visit_ids)
    except Exception as error:  # each kind of database has errors of its own
        _LOG.warning("%s does not tell what it has of the visit: %s", url, describe(error))
        return False
