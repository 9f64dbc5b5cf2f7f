# SPDX-License-Identifier: BSD-3-Clause
"""One worker's visits: the steps of `ppdaemon.work.Work` in its own repo."""

import gc
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from lsst.daf.butler import DimensionRecord
from lsst.pipe.base import Instrument

from ppdaemon.camera import Camera, load_camera
from ppdaemon.config import ButlerConfig
from ppdaemon.errors import VisitFailed
from ppdaemon.messages import Done, Ingested, PointOfNoReturn, Prepare, Prepared, Process, Raw, StageReached
from ppdaemon.middleware.cache import SharedCache
from ppdaemon.middleware.central import CentralReader
from ppdaemon.middleware.engine import Engine, Job, Selection, TaskFailure, build_first
from ppdaemon.middleware.failures import space_watched
from ppdaemon.middleware.graph import LoadedPipeline
from ppdaemon.middleware.ingest import IngestedRaw, RawIngest
from ppdaemon.middleware.preload import Figures, Library, Preload, Preloaded, missing_inputs, put_footprint
from ppdaemon.middleware.provenance import NO_PIPELINE_RUN, deployment_of, output_chain, output_run
from ppdaemon.middleware.records import group_record, insert_records
from ppdaemon.middleware.regions import CameraLoader, find_camera, place_of, pointing_of
from ppdaemon.middleware.repo import LocalRepo
from ppdaemon.middleware.separable import SeparableEngine
from ppdaemon.middleware.spool import SpoolKey, select_outputs, write_spool
from ppdaemon.states import Outcome, Stage
from ppdaemon.work import Seat

__all__ = ("LocalWork",)

_LOG = logging.getLogger(__name__)


@dataclass(slots=True)
class _Visit:
    """The visit-detector that is prepared."""

    order: Prepare
    instrument: Instrument
    camera: Camera | None
    preload_run: str = ""
    """Run of footprint and preprocessing outputs."""
    inputs: tuple[str, ...] = ()
    """Collections of what was copied from the central repo."""
    pipelines: tuple[LoadedPipeline, ...] = ()
    """Main pipelines whose inputs are there, in order of preference."""
    records: list[DimensionRecord] = field(default_factory=list)
    """All that were made here and that the central repo may lack."""
    raws: dict[int, IngestedRaw] = field(default_factory=dict)
    """By exposure."""


class _Announcer:
    """Tells the supervisor of the first task and of points of no return, before they are passed."""

    def __init__(self, seat: Seat, detail: dict[str, object]):
        self._seat = seat
        self._detail = detail
        self._started = False
        self.passed: set[str] = set()
        """Labels of tasks that may have done something permanent."""

    def before_task(self, label: str) -> None:
        if not self._started:
            self._started = True
            self._seat.report(
                StageReached(stage=Stage.FIRST_TASK, tai=self._seat.clock.tai(), detail=self._detail)
            )
        if label in self._seat.config.engine.no_return and label not in self.passed:
            self.passed.add(label)
            self._seat.report(PointOfNoReturn(what=label))


class LocalWork:
    """Works on visits in one seat, one after the other.

    Parameters
    ----------
    seat : `~ppdaemon.work.Seat`
        Configuration and places.
    config : `~ppdaemon.config.ButlerConfig`
        The seat's Butler configuration.
    cameras : `~collections.abc.Callable`, optional
        Returns focal-plane tables.
    """

    def __init__(self, seat: Seat, config: ButlerConfig, cameras: CameraLoader = load_camera):
        self._seat = seat
        self._config = config
        self._cameras = cameras
        self._repo = LocalRepo(seat.template, seat.repo)
        self._library = Library(seat.config.pipelines.overrides)
        self._central = CentralReader(config.central)
        self._preload = Preload(config, self._central, SharedCache(seat.cache), self._library)
        self._engine: Engine = SeparableEngine()
        self._visit: _Visit | None = None

    def prepare(self, order: Prepare) -> Prepared:
        """Preload, preprocess, and find out which pipeline can run.

        Parameters
        ----------
        order : `~ppdaemon.messages.Prepare`
            The visit-detector.

        Returns
        -------
        prepared : `~ppdaemon.messages.Prepared`
            The pipeline that will run, and figures.

        Raises
        ------
        ppdaemon.errors.VisitFailed
            Raised with ``PRELOAD_FAILED``, ``NO_PIPELINE`` or
            ``RAMDISK_FULL``.
        """
        if self._visit is not None:
            self.reset()
        figures = Figures(self._seat.clock)
        with space_watched():
            visit = self._visit = self._open_visit(order)
            place = place_of(
                order.visit,
                order.detector,
                visit.camera,
                padding_arcsec=self._config.padding_arcsec,
                patience_s=2 * order.visit.duration_s + self._seat.config.arrivals.image_timeout_s,
                now_tai=self._seat.clock.tai(),
            )
            preloaded = self._preload.run(order, self._repo.butler, place, figures)
            visit.inputs = preloaded.inputs
            visit.preload_run = self._run_of(visit, NO_PIPELINE_RUN, preloaded.preprocessing, place.day_obs)
            self._repo.butler.collections.register(visit.preload_run)
            with figures.timed("preprocess"):
                put_footprint(self._repo.butler, order, place, visit.preload_run)
                failure = self._preprocess(visit, preloaded.preprocessing)
            visit.pipelines = self._runnable(visit, preloaded, failure)
        _LOG.info("prepared for %s", visit.pipelines[0].name, extra=figures.values)
        return Prepared(pipeline=visit.pipelines[0].name, detail=figures.values)

    def ingest(self, raw: Raw) -> Ingested:
        """Put a raw into the repo.

        Parameters
        ----------
        raw : `~ppdaemon.messages.Raw`
            The file, complete; a second time it is not looked at again.

        Returns
        -------
        ingested : `~ppdaemon.messages.Ingested`
            With the time at which the shutter closed.

        Raises
        ------
        ppdaemon.errors.VisitFailed
            Raised with ``BAD_RAW``, ``RAW_UNREADABLE`` or ``RAMDISK_FULL``.
        """
        visit = self._prepared()
        if raw.exposure not in visit.raws:
            ingest = RawIngest(
                self._repo.butler,
                visit.instrument,
                visit.camera,
                pointing_of(visit.order.visit),
                self._repo.incoming,
            )
            with space_watched():
                taken = ingest.take(raw)
            visit.raws[raw.exposure] = taken
            visit.records += taken.records
        header = visit.raws[raw.exposure].header
        return Ingested(exposure=raw.exposure, shutter_close_tai=header.shutter_close_tai)

    def process(self, order: Process) -> Done:
        """Run the first main pipeline that can be built; spool its outputs.

        Parameters
        ----------
        order : `~ppdaemon.messages.Process`
            The exposures.

        Returns
        -------
        done : `~ppdaemon.messages.Done`
            The outcome. Where a task failed, what others made is spooled.

        Raises
        ------
        ppdaemon.errors.VisitFailed
            Raised with ``NO_PIPELINE`` or ``RAMDISK_FULL``.
        """
        visit = self._prepared()
        missing = [exposure for exposure in order.exposures if exposure not in visit.raws]
        if missing:
            raise VisitFailed(Outcome.FAILED, f"exposures {missing} were not ingested", retriable=True)
        figures = Figures(self._seat.clock)
        announcer = _Announcer(self._seat, figures.values)
        try:
            with space_watched():
                with figures.timed("graph"):
                    job, run = build_first(
                        self._engine, self._jobs(visit, order.exposures), self._repo.butler
                    )
                failure = run(announcer.before_task)
                self._reached(Stage.PROCESSED)
                outcome, reason = _judge(failure)
                spool, datasets = self._spool(visit, job.run, order.exposures, reason)
                self._reached(Stage.SPOOLED)
        except VisitFailed as error:
            raise VisitFailed(
                error.outcome, str(error), retriable=error.retriable and not announcer.passed
            ) from error
        return Done(
            outcome=outcome,
            reason=reason,
            retriable=failure is not None and not announcer.passed,
            pipeline=job.pipeline.name,
            engine=self._engine.name,
            spool=spool,
            datasets=datasets,
        )

    def reset(self) -> None:
        """Forget the visit and begin with a fresh copy of the template."""
        self._visit = None
        self._repo.renew()
        # An old Butler is full of cycles; collected now, between visits, they
        # do not cost 0.5 s in the middle of the next one.
        gc.collect()

    def close(self) -> None:
        """Disconnect from both repos."""
        self._repo.close()
        self._central.close()

    def _reached(self, stage: Stage) -> None:
        self._seat.report(StageReached(stage=stage, tai=self._seat.clock.tai()))

    def _prepared(self) -> _Visit:
        if self._visit is None:
            raise VisitFailed(Outcome.FAILED, "no visit is prepared", retriable=True)
        return self._visit

    def _open_visit(self, order: Prepare) -> _Visit:
        name, butler = order.visit.instrument, self._repo.butler
        record = group_record(butler.dimensions, name, order.visit.group)
        insert_records(butler, [record])
        return _Visit(
            order=order,
            instrument=Instrument.from_string(self._config.instrument_class[name]),
            camera=find_camera(self._cameras, name),
            records=[record],
        )

    def _run_of(self, visit: _Visit, pipeline: str, graphs: Iterable[LoadedPipeline], day: int) -> str:
        """Return the name of an output run."""
        deployment = self._config.deployment or deployment_of(
            self._repo.versions, [loaded.graph for loaded in graphs]
        )
        return output_run(visit.order.visit.instrument, day, pipeline, deployment)

    def _preprocess(self, visit: _Visit, pipelines: Sequence[LoadedPipeline]) -> str:
        """Run the first preprocessing pipeline that can be built; say what went wrong."""
        if not pipelines:
            return ""
        order = visit.order
        selection = Selection.of_group(order.visit.instrument, order.detector, order.visit.group)
        jobs = [Job(pipeline, selection, visit.inputs, visit.preload_run) for pipeline in pipelines]
        try:
            job, run = build_first(self._engine, jobs, self._repo.butler)
        except VisitFailed as error:
            return f"preprocessing: {error}"
        failure = run(lambda label: None)
        if failure is None:
            return ""
        if failure.out_of_space:
            raise VisitFailed(Outcome.RAMDISK_FULL, _judge(failure)[1], retriable=True)
        return f"preprocessing {job.pipeline.name}: {_judge(failure)[1]}"

    def _runnable(self, visit: _Visit, preloaded: Preloaded, failure: str) -> tuple[LoadedPipeline, ...]:
        """Return the main pipelines that have all they need, or end the visit."""
        reasons = list(preloaded.reasons)
        runnable = []
        for pipeline in preloaded.main:
            missing = missing_inputs(
                preloaded.needs[pipeline.path], preloaded.counts, self._repo.butler, visit.preload_run
            )
            if missing:
                reasons.append(f"{pipeline.name} lacks {', '.join(missing)}")
            else:
                runnable.append(pipeline)
        if failure:
            _LOG.warning("%s", failure)
            reasons.append(failure)
        if runnable:
            for reason in reasons:
                _LOG.warning("not every pipeline can run: %s", reason)
            return tuple(runnable)
        # What preprocessing lacks, such as a database that is down, may be back later.
        outcome = Outcome.PRELOAD_FAILED if failure else Outcome.NO_PIPELINE
        raise VisitFailed(outcome, "no pipeline can run: " + "; ".join(reasons), retriable=bool(failure))

    def _jobs(self, visit: _Visit, exposures: Sequence[int]) -> list[Job]:
        order = visit.order
        selection = Selection.of_exposures(order.visit.instrument, order.detector, exposures)
        raws = visit.instrument.makeDefaultRawIngestRunName()
        day = visit.raws[exposures[0]].header.day_obs
        return [
            Job(
                pipeline,
                selection,
                (visit.preload_run, *visit.inputs, raws),
                self._run_of(visit, pipeline.name, [pipeline], day),
            )
            for pipeline in visit.pipelines
        ]

    def _spool(
        self, visit: _Visit, run: str, exposures: Sequence[int], failed: str
    ) -> tuple[str | None, int]:
        """Write what is to be exported to the disk; return where, and how much."""
        runs = (run, visit.preload_run)
        refs = select_outputs(self._repo.butler, runs, self._seat.config.export.types)
        if not refs:
            return None, 0
        order = visit.order
        key = SpoolKey(
            instrument=order.visit.instrument,
            group=order.visit.group,
            detector=order.detector,
            attempt=order.attempt,
        )
        used = {ref.run for ref in refs}
        chain = output_chain(order.visit.instrument, visit.raws[exposures[0]].header.day_obs)
        chains = {chain: tuple(name for name in runs if name in used)}
        folder = write_spool(self._seat.spool, key, self._repo.butler, refs, visit.records, chains, failed)
        return str(folder), len(refs)


def _judge(failure: TaskFailure | None) -> tuple[Outcome, str]:
    """Return outcome and reason of a pipeline that was run."""
    if failure is None:
        return Outcome.SUCCEEDED, ""
    outcome = Outcome.RAMDISK_FULL if failure.out_of_space else Outcome.FAILED
    return outcome, f"task {failure.label}: {failure.text}"
