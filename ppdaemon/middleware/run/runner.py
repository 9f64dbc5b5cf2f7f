# SPDX-License-Identifier: BSD-3-Clause
"""Runs the pipelines of one slot: decides on pipeline and engine, reports tasks before they run.

A pipeline that cannot be built is replaced by the next one, and an engine that
cannot run a pipeline by the next one. A task that fails is never replaced, not
even if its constructor fails: if a database is down, an alert pipeline must
not become a smaller one that succeeds.
"""

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lsst.daf.butler import DimensionRecord
from lsst.sphgeom import Angle, Region

from ppdaemon.config import EngineConfig
from ppdaemon.errors import VisitFailed
from ppdaemon.messages import StageReached
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

__all__ = ("NoReturnReporter", "BuiltPipeline", "PipelineRunner", "nothing_permanent")

_LOG = logging.getLogger(__name__)

_AROUND = Angle.fromDegrees(0.01)
"""Objects that far outside a detector may still belong to it: the pointing was wrong."""
_ROUNDING_DAYS = 1e-6
"""Times of the database are floating-point numbers."""


class NoReturnReporter:
    """Reports the first task to the supervisor; waits at a point of no return until it may be passed."""

    def __init__(self, context: WorkerContext):
        self._context = context
        self.passed: set[str] = set()
        """Labels of tasks that may have written something permanent."""
        self.began: dict[str, float] = {}
        """When the last quantum of each task began, TAI seconds."""

    def before(
        self, pipeline: LoadedPipeline, first: Mapping[str, object] | None = None
    ) -> Callable[[str], None]:
        """Return the function to be called with the label of each task before it is run.

        `first` is the detail of the stage of the first task; without it the
        first task is not a stage of the visit.
        """
        permanent = labels_named(pipeline.graph, self._context.config.engine.no_return)
        pending = [] if first is None else [dict(first)]

        def before_task(label: str) -> None:
            self.began[label] = self._context.clock.tai()
            if pending:
                self._context.report(
                    StageReached(stage=Stage.FIRST_TASK, tai=self._context.clock.tai(), detail=pending.pop())
                )
            if label in permanent and label not in self.passed:
                self._context.cross(label)
                self.passed.add(label)

        return before_task


@dataclass(frozen=True, slots=True)
class BuiltPipeline:
    """The first job that could be built."""

    job: Job
    run: PipelineRun
    """Runs it; if a task cannot be constructed, it only returns that failure."""
    rejected: tuple[str, ...]
    """Why the jobs before it could not be built."""
    engine: str
    """Name of the engine that runs it."""
    declined: str = ""
    """Why it is not the configured engine."""


class PipelineRunner:
    """Builds pipelines with the init-outputs of their runs.

    `engines` are tried in this order; the last one runs any pipeline.
    """

    def __init__(self, engines: Sequence[Engine], init_outputs: InitOutputs):
        self._engines = tuple(engines)
        self._init_outputs = init_outputs
        self._declined: dict[tuple[str, str], str] = {}
        """Why engines do not run pipelines, by engine and path; logged once each."""

    def reset(self) -> None:
        """Release the state of a visit; the worker's repo is a fresh copy now."""
        self._init_outputs.reset()
        for engine in self._engines:
            engine.reset()

    def discard_inputs(self) -> None:
        """Find inputs again: datasets were added to the worker's repo."""
        for engine in self._engines:
            engine.discard_inputs()

    def prepare(self, job: Job, raws: VisitRaws) -> Mapping[str, object]:
        """Do the work that needs no image; return numbers for the journal.

        An error is logged; the work is tried again when the image is there.
        """
        try:
            self._init_outputs.provide(job)
            for engine in self._engines:
                try:
                    return engine.prepare(job, raws)
                except Unsupported as reason:
                    self._decline(engine, job, reason)
        except (ConstructionFailed, UnusablePipeline) as error:
            _LOG.warning("cannot prepare %s, it is tried again with the image: %s", job.pipeline.name, error)
        return {}

    def build_first(
        self, jobs: Sequence[Job], query: DataQuery, raws: VisitRaws | None = None
    ) -> BuiltPipeline:
        """Build the first job that can be built; without raws, one that needs no image.

        `VisitFailed` with ``NO_PIPELINE`` and all reasons is raised if there
        is none.
        """
        reasons: list[str] = []
        for job in jobs:
            try:
                self._init_outputs.provide(job)
                return self._build(job, query, raws, tuple(reasons))
            except ConstructionFailed as error:
                _LOG.exception("task %s cannot be constructed, the visit fails", error.failure.label)
                return BuiltPipeline(job, _FailedRun(error.failure), tuple(reasons), self._engines[0].name)
            except UnusablePipeline as error:
                _LOG.warning("falling back to the next pipeline: %s", error)
                reasons.append(str(error))
        raise VisitFailed(Outcome.NO_PIPELINE, "no pipeline can be built: " + "; ".join(reasons))

    def _build(
        self, job: Job, query: DataQuery, raws: VisitRaws | None, rejected: tuple[str, ...]
    ) -> BuiltPipeline:
        declined = ""
        for engine in self._engines:
            try:
                return BuiltPipeline(job, engine.build(job, query, raws), rejected, engine.name, declined)
            except Unsupported as reason:
                declined = self._decline(engine, job, reason)
        raise AssertionError("the last engine runs any pipeline")

    def _decline(self, engine: Engine, job: Job, reason: Unsupported) -> str:
        """Return why an engine does not run a pipeline; log it when it is new."""
        key, text = (engine.name, job.pipeline.path), str(reason)
        if self._declined.get(key) != text:
            self._declined[key] = text
            _LOG.warning(
                "%s cannot be run by the %s engine, %s runs it: %s",
                job.pipeline.name,
                engine.name,
                self._engines[-1].name,
                text,
            )
        return text


class _FailedRun(PipelineRun):
    """Replaces a run of which a task could not be constructed."""

    in_repo = False

    def __init__(self, failure: TaskFailure):
        self._failure = failure

    def __call__(self, before_task: Callable[[str], None]) -> RunResult:
        return RunResult(self._failure)


def nothing_permanent(
    config: EngineConfig,
    instrument: str,
    detector: int,
    records: Iterable[DimensionRecord],
    pipeline: LoadedPipeline,
    passed: Collection[str],
) -> bool:
    """Return whether a visit-detector has written nothing permanent, so that it can be repeated.

    True only if the alert database confirms it for each visit in `records`,
    and if all tasks in `passed` (labels whose point of no return was passed)
    write into that database alone and not, for instance, alerts.
    """
    by_element: dict[str, list[DimensionRecord]] = {"visit": [], "visit_detector_region": []}
    for record in records:
        by_element.setdefault(record.definition.name, []).append(record)
    url, visits = config.apdb.get(instrument), by_element["visit"]
    if url is None or not visits or not set(passed) <= labels_named(pipeline.graph, config.apdb_tasks):
        return False
    from lsst.dax.apdb import Apdb  # needed only if a database is configured

    regions = {record.visit: record.region for record in by_element["visit_detector_region"]}
    try:
        apdb = Apdb.from_uri(url)
        return not any(_may_be_stored(apdb, visit, detector, regions.get(visit.id)) for visit in visits)
    except Exception as error:  # each kind of database raises other errors
        _LOG.warning(
            "cannot query the alert database %s, the visit is not repeated: %s", url, describe(error)
        )
        return False


def _may_be_stored(apdb: Any, visit: DimensionRecord, detector: int, region: Region | None) -> bool:
    """Return whether the alert database has something of a visit-detector, or may have it."""
    if apdb.containsVisitDetector(visit=visit.id, detector=detector):
        return True
    # It knows sources only. A visit without sources may have changed objects:
    # these have no visit, but a time, of the visit or of its processing.
    if region is None or visit.timespan is None or visit.timespan.begin is None:
        return True
    objects = apdb.getDiaObjects(region.getBoundingCircle().dilatedBy(_AROUND))
    begin = visit.timespan.begin
    if "validityStartMjdTai" in objects:
        return bool((objects["validityStartMjdTai"] >= begin.tai.mjd - _ROUNDING_DAYS).any())
    if "validityStart" in objects:  # schemas of 2025 and before
        return bool((objects["validityStart"] >= begin.utc.datetime).any())
    return len(objects) > 0
