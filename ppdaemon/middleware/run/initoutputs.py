# SPDX-License-Identifier: BSD-3-Clause
"""What each output run has once: task configurations, init-outputs, packages and what the deployment is.

The first worker of a host that needs a run's makes them, which takes a
quarter of a second and constructs every task. The others link the same files
into their repos, so that on one host they are the same datasets.
"""

import fcntl
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

import pydantic
from lsst.daf.butler import (
    Butler,
    DatasetRef,
    DatasetType,
    DimensionUniverse,
    FileDataset,
    SerializedDatasetRef,
)
from lsst.pipe.base.pipeline_graph import PipelineGraph
from lsst.utils.packages import Packages

from ppdaemon.middleware.butler.datafiles import copied, file_dataset, ingest_shared, located
from ppdaemon.middleware.pipelines.graph import resolved
from ppdaemon.middleware.run.engine import Job, TaskFailure
from ppdaemon.wire import Model

__all__ = ("DEPLOYMENT_TYPE", "ConstructionFailed", "InitOutputs", "note_exported", "types_of_runs")

DEPLOYMENT_TYPE = "prompt_deployment"
"""Dataset type of what a run's deployment is: pipeline and configuration."""

_LISTING = "files.json"
_KEEP_S = 3 * 86_400.0
"""Runs that no worker has asked for so long are of former days."""


class ConstructionFailed(Exception):
    """A task's constructor has raised.

    Parameters
    ----------
    failure : `~ppdaemon.middleware.run.engine.TaskFailure`
        Which task, and what it raised.
    """

    def __init__(self, failure: TaskFailure):
        super().__init__(failure.reason)
        self.failure = failure


class _SharedFile(Model):
    """A dataset of a run, as it lies in the shared folder."""

    name: str
    formatter: str
    ref: SerializedDatasetRef


_LISTED = pydantic.TypeAdapter(tuple[_SharedFile, ...])


class InitOutputs:
    """Provides runs with their init-outputs.

    Parameters
    ----------
    folder : `pathlib.Path`
        Shared between the workers of a host, on the filesystem of their
        repos.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._graphs: dict[str, PipelineGraph] = {}
        self._provided: dict[str, tuple[str, list[DatasetRef]]] = {}
        """Digest and datasets by run: what the present repo has."""

    def reset(self) -> None:
        """Go on with a repo that has nothing yet."""
        self._provided.clear()

    def provide(self, job: Job) -> None:
        """Put a run's init-outputs into a worker's repo, if they are not there yet.

        Parameters
        ----------
        job : `~ppdaemon.middleware.run.engine.Job`
            Pipeline and run. If the run has those of another pipeline, which
            could not be built, they are removed. All types that the pipeline
            writes are registered, too.

        Raises
        ------
        ConstructionFailed
            Raised if a task cannot be constructed.
        ppdaemon.middleware.pipelines.graph.UnusablePipeline
            Raised if the pipeline does not fit the repo.
        """
        digest, refs = self._provided.get(job.run, ("", []))
        if digest == job.digest:
            return
        graph, butler = self._graph(job), job.butler
        for dataset_type in _output_types(graph, butler.dimensions):
            butler.registry.registerDatasetType(dataset_type)
        butler.collections.register(job.run)
        if refs:
            butler.pruneDatasets(refs, disassociate=True, unstore=True, purge=True)
            del self._provided[job.run]
        self._provided[job.run] = job.digest, self._link_or_create(graph, job)

    def is_exported(self, ref: DatasetRef) -> bool:
        """Tell whether an init-output is in the central repo already.

        Parameters
        ----------
        ref : `lsst.daf.butler.DatasetRef`
            A dataset of the worker's repo.

        Returns
        -------
        exported : `bool`
            True once `note_exported` was told so.
        """
        return not ref.dataId.dimensions and _export_marker(self._folder, ref.run, ref.id).exists()

    def _link_or_create(self, graph: PipelineGraph, job: Job) -> list[DatasetRef]:
        run_folder = _run_folder(self._folder, job.run)
        run_folder.mkdir(parents=True, exist_ok=True)
        shared = run_folder / job.digest
        if not shared.exists():
            with _first_worker_alone(run_folder / ".lock") as first:
                if not shared.exists():
                    _create(graph, job)
                    refs = _init_refs(graph, job)
                    if first:
                        _publish(refs, job.butler, shared)
                        _delete_old_runs(self._folder)
                    return refs
        os.utime(run_folder)
        files = _read(shared, job.butler.dimensions)
        ingest_shared(job.butler, files)
        return [ref for file in files for ref in file.refs]

    def _graph(self, job: Job) -> PipelineGraph:
        path = job.pipeline.path
        if path not in self._graphs:
            self._graphs[path] = resolved(job.pipeline, job.butler)
        return self._graphs[path]


def note_exported(folder: Path, refs: Iterable[SerializedDatasetRef]) -> None:
    """Note what is in the central repo now: no other visit needs to bring a run's init-outputs.

    Parameters
    ----------
    folder : `pathlib.Path`
        The folder of `InitOutputs`.
    refs : `~collections.abc.Iterable`
        Datasets that were exported; those with dimensions do not count.
    """
    for ref in refs:
        if ref.run is not None and (ref.dataId is None or not ref.dataId.dataId):
            marker = _export_marker(folder, ref.run, ref.id)
            if marker.parent.is_dir():  # made in this run of the daemon
                marker.touch()


def types_of_runs(universe: DimensionUniverse) -> list[DatasetType]:
    """Return the types that each run has, whatever the pipeline.

    Parameters
    ----------
    universe : `lsst.daf.butler.DimensionUniverse`
        Dimensions of the repo.

    Returns
    -------
    dataset_types : `list` [`lsst.daf.butler.DatasetType`]
        Packages and deployment.
    """
    return [
        PipelineGraph(universe=universe).packages_dataset_type,
        DatasetType(DEPLOYMENT_TYPE, universe.empty, "StructuredDataDict"),
    ]


@contextmanager
def _first_worker_alone(lock: Path) -> Iterator[bool]:
    """Let one worker go on alone; those that come meanwhile wait for it and then go on together.

    So if the first one fails after a while, because a task's database does
    not answer, the others do not fail one after the other.
    """
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            first = True
        except BlockingIOError:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            first = False
        yield first
    finally:
        os.close(descriptor)


def _delete_old_runs(folder: Path) -> None:
    """Delete runs of former days."""
    for run_folder in folder.iterdir():
        with suppress(FileNotFoundError):  # another worker does the same
            if time.time() - run_folder.stat().st_mtime > _KEEP_S:
                shutil.rmtree(run_folder)


def _run_folder(folder: Path, run: str) -> Path:
    return folder / quote(run, safe="")


def _export_marker(folder: Path, run: str, dataset: uuid.UUID) -> Path:
    return _run_folder(folder, run) / f"{dataset}.exported"


def _output_types(graph: PipelineGraph, universe: DimensionUniverse) -> Iterator[DatasetType]:
    for node in graph.dataset_types.values():
        if node.producing_edge is not None:
            yield node.dataset_type
    yield from types_of_runs(universe)


def _create(graph: PipelineGraph, job: Job) -> None:
    """Write a run's init-outputs, as far as a former try has not done so."""
    execution = job.butler.clone(collections=[job.run, *job.inputs], run=job.run)
    graph.write_configs(execution)
    for label in graph.tasks:
        outputs: list[tuple[object, DatasetType]] = []
        try:
            graph.instantiate_tasks(execution.get, outputs, [label])
        except BaseException as error:  # tasks are foreign code: NoWorkFound and SystemExit are no Exception
            raise ConstructionFailed(TaskFailure.of(label, error)) from error
        for content, dataset_type in outputs:
            _put_new(execution, content, dataset_type)
    deployment = {"digest": job.digest, "name": job.pipeline.name, "pipeline": job.pipeline.text}
    _put_new(execution, deployment, DEPLOYMENT_TYPE)
    # Not PipelineGraph.write_packages, which is content with those of an input collection.
    _put_new(execution, Packages.fromSystem(), graph.packages_dataset_type)


def _put_new(execution: Butler, content: object, dataset_type: DatasetType | str) -> None:
    if execution.find_dataset(dataset_type, collections=execution.run) is None:
        execution.put(content, dataset_type)


def _init_refs(graph: PipelineGraph, job: Job) -> list[DatasetRef]:
    found = (
        job.butler.find_dataset(dataset_type, collections=job.run)
        for dataset_type in _output_types(graph, job.butler.dimensions)
        if not dataset_type.dimensions
    )
    return [ref for ref in found if ref is not None]


def _publish(refs: list[DatasetRef], butler: Butler, shared: Path) -> None:
    """Let the other workers have the files; they appear all at once."""
    partial = shared.with_name(f"{shared.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    listed = tuple(
        _SharedFile(name=file.path.name, formatter=file.formatter, ref=file.refs[0].to_simple())
        for file in copied(located(butler, refs), partial)
    )
    (partial / _LISTING).write_bytes(_LISTED.dump_json(listed, exclude_none=True))
    partial.rename(shared)


def _read(shared: Path, universe: DimensionUniverse) -> list[FileDataset]:
    return [
        file_dataset(
            shared / shared_file.name,
            [DatasetRef.from_simple(shared_file.ref, universe=universe)],
            shared_file.formatter,
        )
        for shared_file in _LISTED.validate_json((shared / _LISTING).read_bytes())
    ]
