# SPDX-License-Identifier: BSD-3-Clause
"""The daytime catch-up in the central repo: brings raws and visits there, and asks for what was made.

``python -m ppdaemon.middleware.catchup prepare`` (or ``check``) reads a `~ppdaemon.catchup.CatchupOrder` as
JSON and prints a list of `~ppdaemon.catchup.CatchupRow`; ``targets PATH...`` prints
what overrides can change in pipelines. Raws are checked, and records made, as by a worker.
"""

import json
import logging
import sys
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lsst.daf.butler import (
    Butler,
    CollectionType,
    DatasetRef,
    DimensionRecord,
    MissingCollectionError,
    MissingDatasetTypeError,
)
from lsst.daf.butler.registry import ConflictingDefinitionError
from lsst.pipe.base import Instrument
from lsst.pipe.base.pipeline_graph import PipelineGraph, TaskNode

from ppdaemon.camera import load_camera
from ppdaemon.catchup import CatchupItem, CatchupOrder, CatchupRow, inputs_of, run_of
from ppdaemon.clock import Clock, day_obs
from ppdaemon.config import ButlerConfig, NodeConfig
from ppdaemon.errors import ConfigError, PPDaemonError, Unavailable, VisitFailed
from ppdaemon.messages import Pipelines, Prepare
from ppdaemon.middleware.butler.central import existing_collections, known_dataset_type, open_central
from ppdaemon.middleware.butler.datafiles import file_dataset
from ppdaemon.middleware.butler.failures import DATABASE_ERRORS, describe
from ppdaemon.middleware.export.mark import DatastoreMark
from ppdaemon.middleware.pipelines.graph import UnusablePipeline, load_pipeline, resolved, targets_of
from ppdaemon.middleware.pipelines.provenance import NO_PIPELINE_RUN
from ppdaemon.middleware.preload.answers import register_command
from ppdaemon.middleware.preload.findings import FOOTPRINT_TYPE
from ppdaemon.middleware.preload.groupdata import put_footprint, types_of_groups
from ppdaemon.middleware.raws.ingest import RawLimits, VisitRaws
from ppdaemon.middleware.raws.rawfiles import RawFiles
from ppdaemon.middleware.raws.records import group_record
from ppdaemon.middleware.raws.regions import CameraLoader, Footprint, find_camera, footprint_of
from ppdaemon.middleware.raws.search import RawSearch
from ppdaemon.middleware.raws.visits import AnnouncedVisit, insert_records
from ppdaemon.middleware.run.engine import RunResult
from ppdaemon.middleware.work import raw_type
from ppdaemon.pipelinenames import pipeline_name
from ppdaemon.pointing import disable_astropy_downloads, expected_begin
from ppdaemon.states import ExitCode
from ppdaemon.terminal import plain

__all__ = ("check", "main", "prepare")

_LOG = logging.getLogger(__name__)

DAY_MARGIN_S = 7200.0
"""An exposure may begin this much earlier or later than announced: its day may be another one."""
SUPPLEMENTS = 9
"""Groups ``<group>#1`` and so on that are looked for in the central repo."""
ATTEMPTS = 3
"""Attempts to ingest raws that another program ingests at the same time."""


def prepare(
    butler: Butler,
    config: NodeConfig,
    items: Sequence[CatchupItem],
    scratch: Path,
    cameras: CameraLoader = load_camera,
) -> Iterator[CatchupRow]:
    """Bring raws, exposures and visits into the central repo, and make the collections of the catch-up.

    What is there is not changed and not copied again. Raises `~ppdaemon.errors.Unavailable` if the
    datastore does not have its mark: it may not be mounted.
    """
    preparer = _Preparer(butler, config, scratch, cameras)
    if any(item.preprocessing for item in items):  # not within the transaction of an item
        for dataset_type in types_of_groups(butler.dimensions):
            butler.registry.registerDatasetType(dataset_type)
    runs = {(item.chain, run, item.instrument) for item in items for _, run in item.steps}
    for chain, run, instrument in sorted(runs):
        preparer.make_collections(chain, run, instrument)
    for item in items:
        yield preparer.prepare(item)
    for chain, instrument in sorted({(item.chain, item.instrument) for item in items}):
        before = sorted({run for item in items if item.chain == chain for _, run in item.steps[:-1]})
        preparer.define_inputs(chain, instrument, before)


class _Preparer:
    def __init__(self, butler: Butler, config: NodeConfig, scratch: Path, cameras: CameraLoader):
        assert config.butler is not None
        self._butler = butler
        self._config = config
        self._central: ButlerConfig = config.butler
        self._scratch = scratch
        self._cameras = cameras
        self._search = RawSearch(config.arrivals, config.node.instruments)
        self._files = RawFiles(config.arrivals)
        self._mark = DatastoreMark(butler)
        self._mark.check()  # before anything is made, and again before each raw
        self._limits: dict[str, RawLimits] = {}

    def make_collections(self, chain: str, run: str, instrument: str) -> None:
        collections = self._butler.collections
        collections.register(self._instrument(instrument).makeDefaultRawIngestRunName())
        collections.register(run_of(chain, NO_PIPELINE_RUN))
        collections.register(run)
        collections.register(chain, CollectionType.CHAINED)
        if run not in collections.get_info(chain).children:
            collections.prepend_chain(chain, run)

    def define_inputs(self, chain: str, instrument: str, before: Sequence[str]) -> None:
        """Define the inputs of a day: only what exists, because ``pipetask`` refuses anything else.

        ``before`` are the runs of preprocessing; what it made in the night is searched after them.
        """
        collections = self._butler.collections
        raws = self._instrument(instrument).makeDefaultRawIngestRunName()
        named = [*self._central.calibs, *self._central.inputs]
        made = {run.rpartition("/")[0] for run in before} | {f"{chain}/{NO_PIPELINE_RUN}"}
        preloaded = sorted(run for folder in made for run in collections.query(f"{folder}/*"))
        names = [each.format(instrument=instrument) for each in named]
        earlier = [run for run in self._children(inputs_of(chain)) if run.startswith(f"{chain}/")]
        found = existing_collections(self._butler, [*before, *earlier, *preloaded, *names, raws])
        inputs = inputs_of(chain)
        collections.register(inputs, CollectionType.CHAINED)
        if collections.get_info(inputs).children != found:
            collections.redefine_chain(inputs, found)

    def _children(self, chain: str) -> tuple[str, ...]:
        with suppress(MissingCollectionError):
            return self._butler.collections.get_info(chain).children
        return ()

    def prepare(self, item: CatchupItem) -> CatchupRow:
        keys = item.model_dump(include={"instrument", "group", "detector", "attempt", "run"})
        row = CatchupRow(**keys, pipeline=pipeline_name(item.pipeline), state="no_raw")
        for attempt in range(1, ATTEMPTS + 1):
            try:
                exposures, new, reasons = self._bring(item)
                break
            except ConflictingDefinitionError as error:  # another program has ingested the same raw
                if attempt == ATTEMPTS:
                    return row.model_copy(update={"state": "refused", "text": describe(error)})
        if not exposures:
            text = "; ".join(reasons) or "no raw in the central repo, and none below arrivals.roots"
            return row.model_copy(update={"text": text})
        update = {"state": "prepared", "exposures": exposures, "new_raws": new, "text": "; ".join(reasons)}
        return row.model_copy(update=update)

    def _bring(self, item: CatchupItem) -> tuple[tuple[int, ...], int, list[str]]:
        """Ingest the raws that are missing and define visits; return the exposures, the number of new raws,
        and why others are not used.
        """
        butler, instrument = self._butler, self._instrument(item.instrument)
        run = instrument.makeDefaultRawIngestRunName()
        known = _known_exposures(butler, item)
        present = _with_raw(butler, item, run, known)
        announced = self._announced(item, instrument)
        with tempfile.TemporaryDirectory(prefix="raws-", dir=self._scratch) as incoming:
            raws = VisitRaws(
                announced,
                lambda: butler,
                False,
                self._limits_of(item.instrument),
                self._files,
                Path(incoming),
            )
            reasons = self._take(item, raws, present)
            self._mark.check()
            with butler.transaction():
                insert_records(butler, raws.shared_records)
                refs = _ingest(butler, instrument, item, raws.files, run)
                exposures = tuple(sorted({*present, *raws.files}))
                records = _exposure_records(butler, item.instrument, exposures)
                insert_records(butler, announced.visit_records(filter(_has_visit, records)))
                if exposures and item.preprocessing:
                    self._put_footprint(item, announced.footprint)
        return exposures, len(refs), reasons

    def _put_footprint(self, item: CatchupItem, footprint: Footprint) -> None:
        """Write the input of preprocessing, as a worker does before the image."""
        insert_records(self._butler, [group_record(self._butler.dimensions, item.instrument, item.group)])
        run = run_of(item.chain, NO_PIPELINE_RUN)
        data_id = {"instrument": item.instrument, "group": item.group, "detector": item.detector}
        if self._butler.find_dataset(FOOTPRINT_TYPE, data_id, collections=run) is None:
            pipelines = Pipelines(main=(item.pipeline,))
            order = Prepare(visit=item.visit, detector=item.detector, pipelines=pipelines)
            put_footprint(self._butler, order, footprint, run)

    def _take(self, item: CatchupItem, raws: VisitRaws, present: Collection[int]) -> list[str]:
        begin_tai, _ = expected_begin(item.visit, item.received_tai)
        days = frozenset(day_obs(begin_tai + margin) for margin in (-DAY_MARGIN_S, 0.0, DAY_MARGIN_S))
        reasons = []
        for raw in self._search.find(item.instrument, item.group, item.detector, days):
            if raw.exposure in present or raw.exposure in raws.files:
                continue
            try:
                raws.take(raw)
            except VisitFailed as error:
                reasons.append(str(error))
        return reasons

    def _announced(self, item: CatchupItem, instrument: Instrument) -> AnnouncedVisit:
        camera = find_camera(self._cameras, item.instrument)
        footprint = footprint_of(
            item.visit,
            item.detector,
            camera,
            padding_arcsec=self._config.preload.padding_arcsec,
            image_deadline_s=self._config.arrivals.image_deadline_s(item.visit),
            now_tai=item.received_tai,
        )
        grouped = self._central.visits.get(item.instrument) == "by-group"
        return AnnouncedVisit(
            self._butler.dimensions, instrument, item.visit, item.detector, footprint, camera, grouped
        )

    def _instrument(self, name: str) -> Instrument:
        return Instrument.from_string(self._central.instrument_class[name])

    def _limits_of(self, instrument: str) -> RawLimits:
        if instrument not in self._limits:
            filters = self._butler.query_dimension_records(
                "physical_filter", instrument=instrument, explain=False, limit=None
            )
            names = frozenset(str(record.name) for record in filters)
            command = register_command(self._central, instrument)
            self._limits[instrument] = RawLimits(self._config.exposures, names, names, command, Clock())
        return self._limits[instrument]


def _known_exposures(butler: Butler, item: CatchupItem) -> set[int]:
    """Return the exposures of a visit: those of the journal, and those that the repo has of its group."""
    groups = [item.group, *(f"{item.group}#{number}" for number in range(1, SUPPLEMENTS + 1))]
    records = butler.query_dimension_records(
        "exposure",
        where="instrument = visit_instrument AND group IN (visit_groups)",
        bind={"visit_instrument": item.instrument, "visit_groups": groups},
        explain=False,
    )
    return {*item.exposures, *(int(record.id) for record in records)}


def _with_raw(butler: Butler, item: CatchupItem, run: str, exposures: Collection[int]) -> set[int]:
    """Return the exposures of which the repo has the detector's raw."""
    if not exposures or known_dataset_type(butler, "raw") is None:
        return set()
    refs = butler.query_datasets(
        "raw",
        collections=run,
        where="instrument = raw_instrument AND detector = raw_detector AND exposure IN (raw_exposures)",
        bind={
            "raw_instrument": item.instrument,
            "raw_detector": item.detector,
            "raw_exposures": sorted(exposures),
        },
        explain=False,
    )
    return {int(ref.dataId["exposure"]) for ref in refs}


def _ingest(
    butler: Butler, instrument: Instrument, item: CatchupItem, files: Mapping[int, Path], run: str
) -> list[DatasetRef]:
    """Move copies of raws into the repo."""
    datasets = []
    for exposure, copy in files.items():
        data_id = butler.registry.expandDataId(
            instrument=item.instrument, exposure=exposure, detector=item.detector
        )
        ref = DatasetRef(butler.get_dataset_type("raw"), data_id, run=run)
        datasets.append(file_dataset(copy, [ref], instrument.getRawFormatter(data_id)))
    if datasets:
        butler.ingest(*datasets, transfer="move")
    return [ref for dataset in datasets for ref in dataset.refs]


def _exposure_records(butler: Butler, instrument: str, exposures: Iterable[int]) -> list[DimensionRecord]:
    return [
        record
        for exposure in exposures
        for record in butler.query_dimension_records("exposure", instrument=instrument, exposure=exposure)
    ]


def _has_visit(exposure: DimensionRecord) -> bool:
    """Return whether a visit is defined for an exposure; see `ExposureHeader.has_visit`."""
    pointing = None not in (exposure.tracking_ra, exposure.tracking_dec, exposure.sky_angle)
    return exposure.can_see_sky is not False and (pointing or exposure.observation_type == "science")


# --- what was made -----------------------------------------------------------

type _Places = dict[tuple[Any, int], DatasetRef]
"""Datasets by exposure, visit or group, and detector."""


@dataclass(frozen=True, slots=True)
class _Task:
    """What the tasks of one label have left in a run."""

    label: str
    dimension: str
    """``exposure``, ``visit`` or ``group``."""
    metadata: _Places
    """Of those that have succeeded."""
    logs: _Places
    """Of those that have ended."""


def check(butler: Butler, config: NodeConfig, items: Sequence[CatchupItem]) -> Iterator[CatchupRow]:
    """Return what the central repo has of visit-detectors from the catch-up; only reads.

    A task has succeeded if its metadata are there: it writes them last. Exit codes of ``bps`` do not tell it.
    """
    steps = {step for item in items for step in item.steps}
    tasks = {run: list(_tasks(butler, config, path, run)) for path, run in sorted(steps)}
    for item in items:
        row = _checked(butler, config, item, tasks[item.run])
        for _, run in item.steps[:-1]:
            if row.state == "not_run" and row.exposures:  # because preprocessing has failed?
                before = _checked(butler, config, item, tasks[run])
                row = row if before.state == "done" else before
        yield row


def _tasks(butler: Butler, config: NodeConfig, path: str, run: str) -> Iterator[_Task]:
    """Yield the tasks of a pipeline that run for a detector, in the order of their inputs."""
    try:
        graph: PipelineGraph = resolved(load_pipeline(path, config.pipelines.overrides), butler)
    except UnusablePipeline as error:
        raise ConfigError([str(error)]) from error
    graph.sort()
    for label, task in graph.tasks.items():
        names = task.dimensions.names
        dimension = next((name for name in ("visit", "exposure", "group") if name in names), None)
        if dimension is None or "detector" not in names:
            continue
        metadata = _places(butler, task.metadata_output.dataset_type_name, run, dimension)
        logs = {} if task.log_output is None else _logs(butler, task, run, dimension)
        yield _Task(label, dimension, metadata, logs)


def _logs(butler: Butler, task: TaskNode, run: str, dimension: str) -> _Places:
    assert task.log_output is not None
    return _places(butler, task.log_output.dataset_type_name, run, dimension)


def _places(butler: Butler, name: str, run: str, dimension: str) -> _Places:
    try:
        refs = butler.query_datasets(name, collections=run, explain=False, limit=None)
    except (MissingDatasetTypeError, MissingCollectionError):
        return {}
    return {(ref.dataId[dimension], int(ref.dataId["detector"])): ref for ref in refs}


def _checked(butler: Butler, config: NodeConfig, item: CatchupItem, tasks: Sequence[_Task]) -> CatchupRow:
    keys = item.model_dump(include={"instrument", "group", "detector", "attempt", "run"})
    row = CatchupRow(**keys, pipeline=pipeline_name(item.pipeline), state="not_run")
    assert config.butler is not None
    instrument = Instrument.from_string(config.butler.instrument_class[item.instrument])
    run = instrument.makeDefaultRawIngestRunName()
    exposures = _with_raw(butler, item, run, _known_exposures(butler, item))
    if not tasks:
        return row.model_copy(update={"text": "no task of the pipeline runs for a detector of an exposure"})
    if not exposures:
        return row.model_copy(update={"text": "no raw in the central repo: ppctl catchup prepare"})
    values: dict[str, list[Any]] = {
        "exposure": sorted(exposures),
        "visit": sorted(_visits(butler, item.instrument, exposures)),
        "group": [item.group],
    }
    succeeded = []
    for task in tasks:
        if not values[task.dimension]:
            return row.model_copy(update={"text": "no visit is defined: ppctl catchup prepare"})
        for value in values[task.dimension]:
            place = value, item.detector
            if place not in task.metadata:
                state, text = "not_run", f"{task.label} has not run"
                if place in task.logs:
                    state, text = "failed", f"{task.label}: {_last_error(butler, task.logs[place])}"
                return row.model_copy(
                    update={"state": state, "text": text, "exposures": tuple(sorted(exposures))}
                )
            succeeded.append((task.label, butler.get(task.metadata[place])))
    update = {"state": "done", "exposures": tuple(sorted(exposures))}
    return row.model_copy(update=update | {"text": RunResult.of(None, succeeded).reason})


def _visits(butler: Butler, instrument: str, exposures: Iterable[int]) -> set[int]:
    return {
        int(record.visit)
        for exposure in exposures
        for record in butler.query_dimension_records(
            "visit_definition", instrument=instrument, exposure=exposure, explain=False
        )
    }


def _last_error(butler: Butler, log: DatasetRef) -> str:
    """Return the last error in the log of a task: its exception, or the message."""
    for record in reversed(list(butler.get(log))):
        if record.levelno >= logging.ERROR:
            _, _, exception = record.message.partition(" failed. Exception ")
            lines = (exception or record.exc_info or record.message).strip().splitlines() or [record.name]
            return plain(lines[0] if exception else lines[-1])
    return "it has ended without outputs and without an error in its log"


# --- the process ---------------------------------------------------------------


def _run(task: str) -> list[CatchupRow]:
    disable_astropy_downloads()
    order = CatchupOrder.model_validate_json(sys.stdin.buffer.read())
    config = order.config
    if config.butler is None:
        raise ConfigError(["butler: missing key, it names the central repo"])
    try:
        with open_central(config.butler.central, writeable=task == "prepare") as butler:
            if task == "check":
                return list(check(butler, config, order.items))
            for name in sorted({item.instrument for item in order.items}):
                instrument = Instrument.from_string(config.butler.instrument_class[name])
                butler.registry.registerDatasetType(raw_type(instrument, butler))
            return list(prepare(butler, config, order.items, Path.cwd()))
    except DATABASE_ERRORS as error:
        raise Unavailable(f"the central repo {config.butler.central}: {describe(error)}") from error


def main() -> None:
    """Run one task and print its rows as JSON."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING)
    task, *paths = sys.argv[1:]
    try:
        if task == "targets":
            found: Any = {path: sorted(targets_of(path)) for path in paths}
        else:
            found = [row.model_dump(mode="json") for row in _run(task)]
    except (PPDaemonError, UnusablePipeline) as error:
        print(f"ppctl: {error}", file=sys.stderr)
        sys.exit(error.exit_code if isinstance(error, PPDaemonError) else ExitCode.CONFIG)
    json.dump(found, sys.stdout)
    sys.stdout.flush()
    sys.exit(ExitCode.OK)


if __name__ == "__main__":
    main()
