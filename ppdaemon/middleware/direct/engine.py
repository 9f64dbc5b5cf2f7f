# SPDX-License-Identifier: BSD-3-Clause
"""The ``direct`` engine: builds quanta from records in memory and runs them without files in between.

Each worker has one. Before the image it prepares a visit with the exposures as
announced; then it builds and runs with the exposures that arrived. What was
prepared is used where it fits, and made again where it does not.
"""

import logging
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lsst.daf.butler import DatasetRef, DimensionRecord
from lsst.pipe.base.quantum_graph import PredictedQuantumGraphComponents

from ppdaemon.middleware.butler.datafiles import LocatedFile
from ppdaemon.middleware.butler.failures import describe
from ppdaemon.middleware.butler.formatters import UnknownDatastore, read_dataset
from ppdaemon.middleware.butler.repo import LocalRepo
from ppdaemon.middleware.direct.dataids import DataIds, Row
from ppdaemon.middleware.direct.exposures import (
    DetectorExposures,
    DetectorGroup,
    arrived_exposures,
    expected_exposures,
    raw_files,
    static_records,
)
from ppdaemon.middleware.direct.files import DatasetWriter
from ppdaemon.middleware.direct.inputs import InputDataset, InputIndex, find_datasets
from ppdaemon.middleware.direct.lookups import LookupMiss, PrerequisiteLookups
from ppdaemon.middleware.direct.memory import MemoryButler
from ppdaemon.middleware.direct.prefetch import Prefetcher, count_reads
from ppdaemon.middleware.direct.quanta import QuantumStep, build_steps
from ppdaemon.middleware.direct.quantumrunner import QuantumRunner
from ppdaemon.middleware.direct.shape import PipelineShape, Subgraph, pipeline_shape
from ppdaemon.middleware.direct.tasks import ReadyTasks
from ppdaemon.middleware.direct.writing import BackgroundWriter, write_outputs
from ppdaemon.middleware.pipelines.graph import PipelineCache, UnusablePipeline, labels_named, resolved
from ppdaemon.middleware.raws.ingest import VisitRaws
from ppdaemon.middleware.run.engine import (
    DataQuery,
    Engine,
    Job,
    PipelineRun,
    RunResult,
    Unsupported,
    Unwritten,
    building,
)
from ppdaemon.middleware.run.provenancegraph import predicted_graph, write_provenance

__all__ = ("DirectEngine", "DirectRun")

_LOG = logging.getLogger(__name__)

_RAW = "raw"


@dataclass(frozen=True, slots=True)
class _VisitInputs:
    """The inputs of a visit, queried once for one job."""

    shape: PipelineShape
    entries: Mapping[str, tuple[InputDataset, ...]]
    records: tuple[DimensionRecord, ...]
    lookups: PrerequisiteLookups


@dataclass(frozen=True, slots=True)
class DirectRun(PipelineRun):
    """The quanta of a visit, to be run once."""

    in_repo = False
    job: Job
    visit_inputs: _VisitInputs
    runner: QuantumRunner
    memory: MemoryButler
    link: Path
    """Location of a temporary symbolic link to the folder of outputs."""
    processes: int
    """How many processes may run quanta or write files at once."""
    provenance: list[DatasetRef]
    """The provenance graph, unless it is not exported or cannot be written."""

    def __call__(self, before_task: Callable[[str], None]) -> RunResult:
        """Run all tasks; see `~ppdaemon.middleware.run.engine.PipelineRun`."""
        return self.runner(before_task)

    @property
    def outputs(self) -> list[DatasetRef]:
        """See `~ppdaemon.middleware.run.engine.PipelineRun` (`list`)."""
        return [*(dataset.ref for dataset in self.memory.outputs), *self.provenance]

    @property
    def unwritten(self) -> tuple[Unwritten, ...]:
        """Datasets that could not be written (`tuple`)."""
        return tuple(self.memory.unwritten.values())

    def write(self, folder: Path) -> Iterator[LocatedFile]:
        """Write these outputs; see `~ppdaemon.middleware.run.engine.PipelineRun`."""
        background = self.memory.background
        background.finish()
        outputs = self.memory.outputs
        files, failures = write_outputs(
            outputs, folder, self.link, background.writer, self.processes, self.job.take_room
        )
        for dataset in self.memory.outputs:
            if (failure := failures.get(dataset.ref.id)) is not None:
                self.memory.lose(dataset.ref, failure)
        yield from files
        for ref in tuple(self.provenance):
            written = write_provenance(folder, ref, self._predicted_graph, self.runner.ends)
            if written is None:
                self.provenance.remove(ref)
            else:
                yield written

    def _predicted_graph(self) -> PredictedQuantumGraphComponents:
        shape, entries = self.visit_inputs.shape, self.visit_inputs.entries
        # The first one in the search order is that of the run.
        once = {name: min(each, key=lambda one: one.rank).ref for name, each in entries.items() if each}
        return predicted_graph(self.job, shape.graph, once, self.runner.steps)


class DirectEngine(Engine):
    """Runs pipelines in memory.

    `types` are regular expressions on the names of dataset types that are
    exported. `folder`, on the RAM disk, takes outputs that do not fit into
    `memory_bytes`. `read_ahead_bytes` limits the inputs that are read before
    the image, and again the inputs that are cached for later visits. While a
    task named in `urgent` (label or full class name) is still to be run, no
    file is written. `processes` quanta of a visit run at once.
    """

    name = "direct"

    def __init__(
        self,
        types: Collection[str],
        folder: Path,
        *,
        memory_bytes: int = 4_000_000_000,
        read_ahead_bytes: int = 2_000_000_000,
        urgent: Collection[str] = (),
        processes: int = 1,
    ):
        self._exported = re.compile("|".join(f"(?:{pattern})" for pattern in types) or r"(?!)")
        self._folder = folder
        self._urgent = tuple(urgent)
        self._processes = processes
        self._memory_bytes = memory_bytes
        self._prefetcher = Prefetcher(read_ahead_bytes)
        self._tasks = ReadyTasks()
        self._shapes = PipelineCache[PipelineShape | Unsupported]()
        self._visit_inputs: dict[tuple[str, str, tuple[str, ...]], _VisitInputs] = {}
        self._writer: DatasetWriter | None = None
        self._run: DirectRun | None = None
        """The run of the present visit; its files are in the folder."""

    def prepare(self, job: Job, raws: VisitRaws) -> Mapping[str, object]:
        """Query inputs, construct tasks and prefetch; see `~ppdaemon.middleware.run.engine.Engine`.

        Returns the number of ``quanta`` that are expected, 0 if none can be
        predicted; the ``read_bytes`` that were prefetched, and the
        ``kept_bytes`` of them that are cached for later visits.
        """
        if raws.registered:
            self._check(job)  # if the pipeline is unsupported, that is the reason to report
            raise Unsupported("the raws are already ingested in the worker's repo")
        visit_inputs = self._find_inputs(job)
        name = raws.announced.instrument.getName()
        filters = (each.name for each in job.repo.records_of(["physical_filter"]) if each.instrument == name)
        images = expected_exposures(raws.announced, filters)
        try:
            steps, _ = _steps(job, images, visit_inputs)
        except Exception as error:  # the announcement may lack what the real exposure has
            _LOG.info("quanta of %s cannot be predicted: %s", job.pipeline.name, describe(error))
            steps = []
        self._tasks.prepare(steps, self._memory(job, visit_inputs.shape, (), {}))
        reads = {
            ref: count
            for ref, count in count_reads(steps).items()
            if (ref.datasetType.nameAndComponent()[0], ref.run) != (_RAW, images.run)
        }
        read_bytes = self._prefetcher.read(reads, job.repo.get)
        return {"quanta": len(steps), "read_bytes": read_bytes, "kept_bytes": self._prefetcher.cached_bytes}

    def build(self, job: Job, query: DataQuery, raws: VisitRaws | None) -> DirectRun:
        """Build the quanta of the exposures that arrived; see `~ppdaemon.middleware.run.engine.Engine`.

        Neither raws nor their records need be in the repo. A missing required
        input makes the pipeline unusable.
        """
        if raws is not None and raws.registered:
            self._check(job)
            raise Unsupported("the raws are already ingested in the worker's repo")
        visit_inputs = self._find_inputs(job)
        shape = visit_inputs.shape
        with building(job):
            steps, files = _steps(job, _data_of(query, raws, shape), visit_inputs)
        if not steps:
            raise UnusablePipeline(f"{job.pipeline.name} finds nothing to do: its graph is empty")
        memory = self._memory(job, shape, steps, files, all_exported=raws is None)
        if raws is None:
            self._tasks.prepare(steps, memory)  # those whose construction is slow are used again
        urgent = labels_named(shape.graph, self._urgent)
        runner = QuantumRunner(steps, memory, self._tasks, query.context, urgent, self._processes)
        provenance = [] if job.provenance is None else [job.provenance]
        link = self._folder / "target"
        run = DirectRun(job, visit_inputs, runner, memory, link, self._processes, provenance)
        if raws is not None:  # the outputs of preprocessing are written when it has ended
            self._run = run
        return run

    def _memory(
        self,
        job: Job,
        shape: PipelineShape,
        steps: Iterable[QuantumStep],
        raws: Mapping[object, LocatedFile],
        *,
        all_exported: bool = False,
    ) -> MemoryButler:
        """Return a Butler for the quanta; another pipeline may read what is exported or not."""
        assert self._writer is not None  # created with the shape
        return MemoryButler(
            job.repo.dimensions,
            shape.types,
            steps,
            self._input_reader(raws, job.repo),
            lambda name: all_exported or self._exported.fullmatch(name) is not None,
            self._memory_bytes,
            BackgroundWriter(self._writer, self._folder, job.take_room),
        )

    def discard_inputs(self) -> None:
        """Query the inputs again; see `~ppdaemon.middleware.run.engine.Engine`."""
        self._visit_inputs.clear()

    def reset(self) -> None:
        """Release a visit; what does not depend on the visit stays cached."""
        if self._run is not None:
            self._run.memory.background.finish()  # its outputs may not have been written
            self._run = None
        if self._folder.exists():  # files on the RAM disk take memory
            shutil.rmtree(self._folder)
        self._visit_inputs.clear()
        self._tasks.discard()
        self._prefetcher.discard_unread()

    def _check(self, job: Job) -> PipelineShape:
        """Return the shape of a pipeline; raise `Unsupported` if this engine cannot run it."""

        def find_shape() -> tuple[PipelineShape | Unsupported, Iterable[str]]:
            try:
                shape = self._shape(job)
            except Unsupported as reason:
                return reason, ()
            return shape, shape.external

        found = self._shapes.of(job.pipeline, job.repo, find_shape)
        if isinstance(found, Unsupported):
            raise found
        return found

    def _shape(self, job: Job) -> PipelineShape:
        if self._writer is None:
            try:
                self._writer = DatasetWriter(job.repo.config, job.repo.dimensions)
            except UnknownDatastore as error:
                raise Unsupported(str(error)) from error
        return pipeline_shape(resolved(job.pipeline, job.repo))

    def _find_inputs(self, job: Job) -> _VisitInputs:
        """Find once per visit all datasets that a job may read."""
        key = job.pipeline.path, job.run, job.inputs
        if key not in self._visit_inputs:
            shape, repo = self._check(job), job.repo
            init = {
                edge.parent_dataset_type_name
                for task in shape.tasks
                for edge in task.node.init.iter_all_inputs()
            }
            if job.provenance is not None:
                init |= {
                    edge.parent_dataset_type_name
                    for task in shape.tasks
                    for edge in task.node.init.iter_all_outputs()
                }
            entries = find_datasets(repo.datasets, init.union(shape.external), (job.run, *job.inputs))
            lookups = PrerequisiteLookups(repo, (job.run, *job.inputs), entries)
            self._visit_inputs[key] = _VisitInputs(shape, entries, static_records(repo, shape), lookups)
        return self._visit_inputs[key]

    def _input_reader(
        self, raws: Mapping[object, LocatedFile], repo: LocalRepo
    ) -> Callable[[DatasetRef, Mapping[str, Any] | None], Any]:
        """Return a function that reads overall inputs: prefetched ones, raws, and the rest from the repo."""

        def get(ref: DatasetRef, parameters: Mapping[str, Any] | None) -> Any:
            if (file := raws.get(ref.id)) is not None:
                return read_dataset(file, ref, parameters)
            if not parameters:
                content, found = self._prefetcher.pop(ref)
                if found:
                    return content
            return repo.get(ref, parameters)

        return get


def _data_of(
    query: DataQuery, raws: VisitRaws | None, shape: PipelineShape
) -> DetectorExposures | DetectorGroup:
    if raws is not None:
        return arrived_exposures(raws)
    assert query.group_id is not None
    return DetectorGroup.of(query.group_id, shape)


def _steps(
    job: Job, exposures: DetectorExposures | DetectorGroup, visit_inputs: _VisitInputs
) -> tuple[list[QuantumStep], dict[object, LocatedFile]]:
    """Build quanta; return them, and the files of the raws by dataset id."""
    data_ids = DataIds(job.repo.dimensions, (*visit_inputs.records, *exposures.records))
    raw_type = visit_inputs.shape.external.get(_RAW)
    raws: list[LocatedFile] = []
    if raw_type is not None and isinstance(exposures, DetectorExposures):
        raws = list(raw_files(raw_type, exposures, data_ids))
    refs = [file.refs[0] for file in raws]
    inputs = InputIndex(visit_inputs.entries, {(_RAW, ref.dataId.required_values): ref for ref in refs})

    def rows(subgraph: Subgraph) -> Iterable[Row]:
        return exposures.rows(data_ids, subgraph.dimensions)

    try:
        steps = build_steps(visit_inputs.shape, data_ids, rows, inputs, job.run, visit_inputs.lookups)
    except LookupMiss:  # building has no side effects, so that it can be repeated
        with visit_inputs.lookups.registry_access(exposures.records):
            steps = build_steps(visit_inputs.shape, data_ids, rows, inputs, job.run, visit_inputs.lookups)
    return steps, {file.refs[0].id: file for file in raws}
