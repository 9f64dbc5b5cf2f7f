# SPDX-License-Identifier: BSD-3-Clause
"""The visits of one worker: the steps of `ppdaemon.work.Work` in its local repo."""

import gc
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from lsst.daf.butler import DataCoordinate, DatasetRef, DimensionRecord
from lsst.pipe.base import Instrument

from ppdaemon.camera import load_camera
from ppdaemon.config import ButlerConfig
from ppdaemon.errors import VisitFailed
from ppdaemon.folders import NodeFolders
from ppdaemon.messages import Done, Ingested, Prepare, Prepared, Process, Raw, StageReached
from ppdaemon.middleware.butler.central import CentralReader
from ppdaemon.middleware.butler.failures import is_out_of_space, ramdisk_full_errors, spool_full_errors
from ppdaemon.middleware.butler.repo import LocalRepo
from ppdaemon.middleware.butler.timings import Timings
from ppdaemon.middleware.direct.engine import DirectEngine
from ppdaemon.middleware.export.bundles import hand_to_publisher
from ppdaemon.middleware.export.manifest import SpoolKey
from ppdaemon.middleware.export.outputs import Outputs
from ppdaemon.middleware.export.spool import choose_folder, write_spool
from ppdaemon.middleware.pipelines.graph import LoadedPipeline, PipelineLibrary
from ppdaemon.middleware.pipelines.provenance import (
    NO_PIPELINE_RUN,
    deployment_hash,
    output_run,
)
from ppdaemon.middleware.pipetask.engine import PipetaskEngine
from ppdaemon.middleware.preload.answers import register_command
from ppdaemon.middleware.preload.findings import PreloadPlan, filters_of, span_of
from ppdaemon.middleware.preload.groupdata import put_bundle, put_footprint, put_metrics
from ppdaemon.middleware.preload.preload import Preload
from ppdaemon.middleware.preload.transfer import input_collections
from ppdaemon.middleware.raws.ingest import RawLimits, VisitRaws
from ppdaemon.middleware.raws.rawfiles import RawFiles
from ppdaemon.middleware.raws.records import group_record
from ppdaemon.middleware.raws.regions import CameraLoader, Footprint, find_camera, footprint_of
from ppdaemon.middleware.raws.visits import AnnouncedVisit, insert_records
from ppdaemon.middleware.run.engine import DataQuery, Engine, Job, RunResult, TakeRoom
from ppdaemon.middleware.run.initoutputs import InitOutputs
from ppdaemon.middleware.run.provenancegraph import PROVENANCE_TYPE, provenance_type
from ppdaemon.middleware.run.runner import (
    BuiltPipeline,
    NoReturnReporter,
    PipelineRunner,
    nothing_permanent,
)
from ppdaemon.middleware.run.separable import SeparableEngine
from ppdaemon.pipelinenames import output_chain
from ppdaemon.states import Outcome, Stage
from ppdaemon.uncompressed import UncompressedRoom
from ppdaemon.work import WorkerContext

__all__ = ("ButlerWork", "library_of")

_LOG = logging.getLogger(__name__)

MAX_TASKS = 500
"""Tasks whose times are sent, 40 kB: a packet takes 128 kB."""


@dataclass(slots=True)
class _Visit:
    """The visit-detector that is prepared."""

    order: Prepare
    records: list[DimensionRecord]
    """Dimension records created before the image that the central repo may lack."""
    reporter: NoReturnReporter
    raws: VisitRaws
    """The raws that arrived."""
    plan: PreloadPlan
    """What was copied from the central repo."""
    group_id: DataCoordinate
    """Instrument, group and detector, with dimension records."""
    preload_run: str = ""
    """Run of footprint and metrics."""
    preprocessing_run: str = ""
    """Run of the preprocessing pipeline, if one was run."""
    inputs: tuple[str, ...] = ()
    """Collections copied from the central repo."""
    pipelines: tuple[LoadedPipeline, ...] = ()
    """Main pipelines that have their inputs, in order of preference."""
    rejected: tuple[str, ...] = ()
    """Why the others cannot run."""
    keeps_room: bool = False
    """Whether images of its spool wait uncompressed."""

    @property
    def spool_key(self) -> SpoolKey:
        """Identifies the spool of its outputs."""
        return SpoolKey(
            instrument=self.order.visit.instrument,
            group=self.order.visit.group,
            detector=self.order.detector,
            attempt=self.order.attempt,
        )

    @property
    def group_runs(self) -> tuple[str, ...]:
        """Runs of the datasets that were made before the image."""
        return tuple(filter(None, (self.preprocessing_run, self.preload_run)))

    def fallback(self, built: BuiltPipeline) -> str:
        """Return why the pipeline that was built is not the first one; empty if it is."""
        if built.job.pipeline.path == self.order.pipelines.main[0]:
            return ""
        return "; ".join((*self.rejected, *built.rejected))


class ButlerWork:
    """Works on visits in one slot, one after the other.

    `cameras` returns the focal-plane table of an instrument; tests pass
    another function.
    """

    def __init__(self, context: WorkerContext, config: ButlerConfig, cameras: CameraLoader = load_camera):
        self._context = context
        self._config = config
        self._cameras = cameras
        self._repo = LocalRepo(context.template, context.repo)
        self._library = library_of(context)
        retry_s = context.config.workers.times.prepare_s / 2
        self._central = CentralReader(config.source, retry_s, context.template)
        self._preload = Preload.of(context, config, self._central, self._library)
        init_outputs = InitOutputs(context.runs)
        self._runs = PipelineRunner(_engines(context, self._repo), init_outputs)
        export = context.config.export
        self._outputs = Outputs(
            export.types, init_outputs.is_exported, with_records=export.writer.to is not None
        )
        folder = NodeFolders.of(context.config).uncompressed
        self._room = UncompressedRoom.of(folder, context.spool, export)
        self._visit: _Visit | None = None
        self._used = False
        self._settled = False
        """Whether a visit has been released."""

    def prepare(self, order: Prepare) -> Prepared:
        """Preload, preprocess, and decide which pipelines can run.

        `VisitFailed` is raised with ``PRELOAD_FAILED``, ``NO_PIPELINE`` or
        ``RAMDISK_FULL``.
        """
        if self._used:
            self.reset()
        # Before the work: after a failure, too, the next visit gets a fresh repo.
        self._used = True
        with ramdisk_full_errors():
            return self._prepare(order)

    def ingest(self, raw: Raw) -> Ingested:
        """Take a raw, whose file must be complete; a second time it is ignored.

        Returns the time at which the shutter closed. `VisitFailed` is raised
        with ``BAD_RAW``, ``RAW_UNREADABLE`` or ``RAMDISK_FULL``.
        """
        visit = self._prepared()
        with ramdisk_full_errors():
            header = visit.raws.take(raw)
        return Ingested(exposure=raw.exposure, shutter_close_tai=header.shutter_close_tai)

    def process(self, order: Process) -> Done:
        """Run the first main pipeline that can be built; spool its outputs.

        If a task fails, or an output cannot be written, the others are spooled.
        `VisitFailed` is raised with ``NO_PIPELINE`` or ``RAMDISK_FULL``.
        """
        visit = self._prepared()
        missing = [exposure for exposure in order.exposures if exposure not in visit.raws.headers]
        if missing:
            raise VisitFailed(Outcome.FAILED, f"exposures {missing} were not ingested", retriable=True)
        timings = Timings(self._context.clock)
        passed = visit.reporter.passed
        try:
            with ramdisk_full_errors():
                searched_again = self._search_again(visit, order.exposures, timings)
                with timings.timed("visits"):
                    visit.raws.define_visits(order.exposures, visit.inputs)
                with timings.timed("graph"):
                    built = self._build(visit, order.exposures)
                job = built.job
                without = self._calibrations_missing(visit, job.pipeline, order.exposures)
                if built.declined:
                    timings.values["not_direct"] = built.declined
                result = built.run(visit.reporter.before(job.pipeline, timings.values))
                self._report_stage(Stage.PROCESSED, **self._task_times(visit, result))
                spool, datasets = self._spool(visit, built, order.exposures, result)
                result = result.without(built.run.unwritten)
                self._report_stage(Stage.SPOOLED)
        except VisitFailed as error:
            raise VisitFailed(error.outcome, str(error), retriable=error.retriable and not passed) from error
        repeatable = result.failure is not None and bool(passed) and self._nothing_permanent(visit, job)
        fallback = visit.fallback(built)
        fell_back = f"fell back: {fallback}" if fallback else ""
        return Done(
            outcome=result.outcome,
            reason="; ".join(filter(None, (result.reason, searched_again, without, fell_back))),
            # An output that cannot be written is the same in the next attempt.
            retriable=result.failure is not None and (repeatable or not passed),
            nothing_permanent=repeatable,
            pipeline=job.pipeline.name,
            engine=built.engine,
            fallback=fallback,
            spool=spool,
            datasets=datasets,
        )

    def reset(self) -> None:
        """Release the visit; the repo is as the template again."""
        if self._visit is not None and not self._visit.keeps_room:
            self._room.give_back(self._visit.spool_key.folder)
        self._visit = None
        self._used = False
        self._repo.renew()
        self._runs.reset()
        gc.collect()  # between visits, not during the next one
        if not self._settled:
            # What the first visit has left stays for all: no later collection visits it.
            gc.freeze()
            self._settled = True

    def close(self) -> None:
        """Disconnect from both repos."""
        self._repo.close()
        self._central.close()

    def _report_stage(self, stage: Stage, **detail: Any) -> None:
        self._context.report(StageReached(stage=stage, tai=self._context.clock.tai(), detail=detail))

    def _task_times(self, visit: _Visit, result: RunResult) -> dict[str, Any]:
        """Return label, begin, end and error of each task for the trace, if there are traces."""
        if self._context.config.traces.endpoint is None:
            return {}
        tasks: list[tuple[str, float, float, str | None]] = [(*times, None) for times in result.times]
        if (failure := result.failure) and (began := visit.reporter.began.get(failure.label)):
            # Its end is not in the metadata of a task: others may have run after it.
            tasks.append((failure.label, began, self._context.clock.tai(), failure.text))
        return {"tasks": tasks[:MAX_TASKS]}

    def _prepared(self) -> _Visit:
        if self._visit is None:
            raise VisitFailed(Outcome.FAILED, "no visit is prepared", retriable=True)
        return self._visit

    def _prepare(self, order: Prepare) -> Prepared:
        timings = Timings(self._context.clock)
        footprint = self._footprint(order)
        with timings.timed("total"):
            with timings.timed("search"):
                plan = self._preload.find(order, footprint, timings)
            with timings.timed("transfer"):
                inputs = self._preload.fetch(plan, self._repo, timings)
            visit = self._visit = self._open_visit(order, footprint, plan)
            visit.inputs = inputs
            visit.preload_run = self._run_of(visit, NO_PIPELINE_RUN, (), footprint.day_obs)
            self._repo.write_later(lambda butler: butler.collections.register(visit.preload_run))
            with timings.timed("preprocess"):
                put_footprint(self._repo, order, footprint, visit.preload_run)
                failure = self._preprocess(visit, plan.preprocessing, footprint.day_obs)
        visit.pipelines = self._runnable(visit, plan, failure)
        job = self._jobs(visit, footprint.day_obs)[0]
        with timings.timed("warm"):
            ready = self._runs.prepare(job, visit.raws)
        timings.values |= ready
        put_metrics(self._repo, order, plan, timings, visit.preload_run)
        put_bundle(self._repo, order, timings, visit.preload_run)
        if ready and not visit.raws.registered:
            gc.collect()  # now, instead of between the raw and the first task
        _LOG.info("prepared for %s", visit.pipelines[0].name, extra=timings.values)
        return Prepared(pipeline=visit.pipelines[0].name, detail=timings.values)

    def _footprint(self, order: Prepare) -> Footprint:
        config = self._context.config
        return footprint_of(
            order.visit,
            order.detector,
            find_camera(self._cameras, order.visit.instrument),
            padding_arcsec=config.preload.padding_arcsec,
            image_deadline_s=config.arrivals.image_deadline_s(order.visit),
            now_tai=self._context.clock.tai(),
        )

    def _open_visit(self, order: Prepare, footprint: Footprint, plan: PreloadPlan) -> _Visit:
        name, repo, config = order.visit.instrument, self._repo, self._context.config
        record = group_record(repo.dimensions, name, order.visit.group)
        repo.add_records([record])
        repo.write_later(partial(insert_records, records=[record]))
        instrument = Instrument.from_string(self._config.instrument_class[name])
        announced = AnnouncedVisit(
            repo.dimensions,
            instrument,
            order.visit,
            order.detector,
            footprint,
            find_camera(self._cameras, name),
            self._config.visits.get(name) == "by-group",
        )
        obs_base = self._config.ingest_of(name) == "obs_base"
        files = RawFiles(config.arrivals)
        filters = repo.records_of(["physical_filter"])
        limits = RawLimits(
            config.exposures,
            plan.filters,
            frozenset(str(each.name) for each in filters if each.instrument == name),
            register_command(self._config, name),
            self._context.clock,
        )
        raws = VisitRaws(announced, lambda: repo.butler, obs_base, limits, files, repo.incoming)
        dimensions = repo.dimensions.conform(("instrument", "group", "detector"))
        group_id = repo.expand(
            dimensions, {"instrument": name, "group": order.visit.group, "detector": order.detector}
        )
        return _Visit(order, [record], NoReturnReporter(self._context), raws, plan, group_id)

    def _run_of(self, visit: _Visit, name: str, pipelines: Sequence[LoadedPipeline], day: int) -> str:
        instrument = visit.order.visit.instrument
        return output_run(self._context.config, instrument, self._repo.versions, pipelines, day, name)

    def _job(
        self,
        visit: _Visit,
        pipeline: LoadedPipeline,
        inputs: tuple[str, ...],
        run: str,
        take_room: TakeRoom | None = None,
    ) -> Job:
        instrument = visit.order.visit.instrument
        digest = deployment_hash(self._context.config, instrument, self._repo.versions, [pipeline])
        provenance = None
        if self._outputs.includes(PROVENANCE_TYPE):
            definition = provenance_type(self._repo.dimensions)
            provenance = DatasetRef(definition, visit.group_id, run=run)
        return Job(pipeline, inputs, run, digest, self._repo, provenance, take_room)

    def _preprocess(self, visit: _Visit, pipelines: Sequence[LoadedPipeline], day: int) -> str:
        """Run the first preprocessing pipeline that can be built; return why it failed, or an empty text."""
        if not pipelines:
            return ""
        query = DataQuery.of_group(visit.group_id)
        inputs = (visit.preload_run, *visit.inputs)
        jobs = [
            self._job(visit, pipeline, inputs, self._run_of(visit, pipeline.name, [pipeline], day))
            for pipeline in pipelines
        ]
        try:
            built = self._runs.build_first(jobs, query)
            visit.preprocessing_run = built.job.run
            result = built.run(visit.reporter.before(built.job.pipeline))
            self._repo.add_files(list(built.run.write(self._repo.files)))
            if built.run.in_repo and built.declined:  # the other engine will not query
                self._repo.adopt(built.job.run)
            result = result.without(built.run.unwritten)
        except VisitFailed as error:
            if error.outcome == Outcome.RAMDISK_FULL:
                raise
            return f"preprocessing: {error}"
        if not result.failed:
            return ""
        if result.outcome == Outcome.RAMDISK_FULL:
            raise VisitFailed(result.outcome, result.failed, retriable=True)
        return f"preprocessing {built.job.pipeline.name}: {result.failed}"

    def _search_again(self, visit: _Visit, exposures: Sequence[int], timings: Timings) -> str:
        """Copy the calibrations of the time and filter of the exposures if they were preloaded for others;
        return why, or an empty text.
        """
        plan, headers = visit.plan, [visit.raws.headers[exposure] for exposure in exposures]
        if not plan.types_outside(headers):
            return ""
        again = Timings(self._context.clock)
        with timings.timed("preload_again"):
            visit.plan = self._preload.fetch_more(plan, headers, self._repo, again)
        timings.values["datasets_again"] = again.values["datasets"]
        visit.inputs = input_collections(visit.plan.wanted, plan.search)
        self._runs.discard_inputs()
        if visit.plan.found == plan.found:  # what was preloaded is valid at this time too
            return ""
        taken, announced = (
            f"{span} with {', '.join(filters)}"
            for span, filters in (
                (span_of(headers), filters_of(headers)),
                (plan.search.timespan, plan.search.physical_filters),
            )
        )
        reason = f"{again.values['datasets']} inputs copied late: taken at {taken}, expected in {announced}"
        _LOG.warning("%s", reason, extra=again.values)
        return reason

    def _calibrations_missing(self, visit: _Visit, pipeline: LoadedPipeline, exposures: Sequence[int]) -> str:
        """Return which optional calibrations are not valid at the time of the exposures, or an empty text."""
        headers = [visit.raws.headers[exposure] for exposure in exposures]
        names = visit.plan.not_valid_for(pipeline, headers)
        if not names:
            return ""
        reason = f"processed without {', '.join(names)}: none is valid at {span_of(headers)}"
        _LOG.warning("%s", reason)
        return reason

    def _runnable(self, visit: _Visit, plan: PreloadPlan, failure: str) -> tuple[LoadedPipeline, ...]:
        """Return the main pipelines that have all required inputs; raise `VisitFailed` if there is none."""
        reasons = list(plan.reasons)
        produced = self._repo.types_in(visit.group_runs)
        runnable = []
        for pipeline in plan.main:
            if missing := plan.lacks(pipeline, produced):
                reasons.append(missing)
            else:
                runnable.append(pipeline)
        if failure:
            _LOG.warning("%s; pipelines that need its outputs cannot run", failure)
            reasons.append(failure)
        if runnable:
            for reason in reasons:
                _LOG.warning("a pipeline cannot run, another one is used: %s", reason)
            visit.rejected = tuple(reasons)
            return tuple(runnable)
        # A failed preprocessing may succeed later, for instance when its database is up again.
        outcome = Outcome.PRELOAD_FAILED if failure else Outcome.NO_PIPELINE
        raise VisitFailed(outcome, "no pipeline can run: " + "; ".join(reasons), retriable=bool(failure))

    def _jobs(self, visit: _Visit, day: int) -> list[Job]:
        """Return the main pipelines with their output runs of a day."""
        raws = visit.raws.announced.instrument.makeDefaultRawIngestRunName()
        inputs, spool = (*visit.group_runs, *visit.inputs, raws), visit.spool_key.folder

        def take_room(ref: DatasetRef, size_bytes: int) -> bool:
            return self._room.take(spool, str(ref.id), size_bytes)

        return [
            self._job(visit, pipeline, inputs, self._run_of(visit, pipeline.name, [pipeline], day), take_room)
            for pipeline in visit.pipelines
        ]

    def _build(self, visit: _Visit, exposures: Sequence[int]) -> BuiltPipeline:
        order = visit.order
        query = DataQuery.of_exposures(order.visit.instrument, order.visit.group, order.detector, exposures)
        jobs = self._jobs(visit, visit.raws.headers[exposures[0]].day_obs)
        return self._runs.build_first(jobs, query, visit.raws)

    def _nothing_permanent(self, visit: _Visit, job: Job) -> bool:
        """Return whether a failure after a point of no return has left nothing permanent."""
        return nothing_permanent(
            self._context.config.engine,
            visit.order.visit.instrument,
            visit.order.detector,
            visit.raws.records,
            job.pipeline,
            visit.reporter.passed,
        )

    def _spool(
        self, visit: _Visit, built: BuiltPipeline, exposures: Sequence[int], result: RunResult
    ) -> tuple[str | None, int]:
        """Write the datasets to be exported to the disk; return their folder and their number."""
        runs = (built.job.run, *visit.group_runs)
        outputs = self._outputs.of(self._repo, runs, built.run)
        if not outputs.refs:
            return None, 0
        key = visit.spool_key
        chains = {output_chain(key.instrument, visit.raws.headers[exposures[0]].day_obs): runs}
        records = [*visit.records, *visit.raws.shared_records]

        def failed() -> str:
            return result.without(built.run.unwritten).failed

        def may_commit() -> None:
            self._context.cross("")

        context = self._context
        write = partial(write_spool, key=key, fill=outputs.fill, records=records, chains=chains)
        write = partial(write, failed=failed, may_commit=may_commit)
        folder = None
        parent = choose_folder(context.spool, context.ramdisk_spool, context.config.export)
        if parent != context.spool:
            try:
                folder = write(parent)
            except Exception as error:
                if not is_out_of_space(error):  # many workers may have chosen the RAM disk at the same moment
                    raise
                _LOG.warning("no space on the RAM disk, the spool goes to the disk: %s", error)
        if folder is None:
            with spool_full_errors(context.ramdisk_spool.parent):
                folder = write(context.spool)
        visit.keeps_room = outputs.has_plain
        # Before the outcome is sent: its spool may be exported, and deleted, at once.
        hand_to_publisher(folder, context.config.publish, context.publish, context.clock.tai())
        return str(folder), len(outputs.refs)


def library_of(context: WorkerContext) -> PipelineLibrary:
    """Return the pipelines that were parsed before the process was forked, or an empty library."""
    inherited: PipelineLibrary | None = context.warmed
    return PipelineLibrary(context.config.pipelines.overrides) if inherited is None else inherited


def _engines(context: WorkerContext, repo: LocalRepo) -> tuple[Engine, ...]:
    """Create the configured engine, and after ``direct`` the one that replaces it for some pipelines."""
    config, hard = context.config.engine, context.config.workers.memory.hard
    match config.kind:
        case "direct":
            direct = DirectEngine(
                context.config.export.types,
                context.repo / "direct",
                memory_bytes=hard // 4 if config.memory_max is None else config.memory_max,
                read_ahead_bytes=hard // 8 if config.read_ahead_max is None else config.read_ahead_max,
                urgent=config.no_return,
                processes=config.processes,
            )
            return direct, SeparableEngine()
        case "separable":
            return (SeparableEngine(),)
        case "pipetask":
            return (PipetaskEngine(repo.root, context.repo / "pipetask", context.config.log),)
        case unexpected:
            raise AssertionError(unexpected)
