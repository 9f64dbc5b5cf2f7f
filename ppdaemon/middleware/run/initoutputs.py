# SPDX-License-Identifier: BSD-3-Clause
"""Datasets of which each output run has one: task configurations, init-outputs, packages, deployment.

The first worker of a host that needs those of a run creates them, which takes
a quarter of a second and constructs every task. The others link the same files
into their repos, so that these are the same datasets on the whole host.
"""

import fcntl
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pydantic
from lsst.daf.butler import (
    DatasetId,
    DatasetNotFoundError,
    DatasetRef,
    DatasetType,
    DimensionUniverse,
    SerializedDatasetRef,
)
from lsst.pipe.base.pipeline_graph import PipelineGraph

from ppdaemon.middleware.butler.datafiles import LocatedFile, copied, ingest_shared, located
from ppdaemon.middleware.butler.localdatasets import LocalDataset
from ppdaemon.middleware.pipelines.graph import resolved
from ppdaemon.middleware.pipelines.provenance import system_packages
from ppdaemon.middleware.run.engine import Job, TaskFailure
from ppdaemon.wire import Model

__all__ = ("DEPLOYMENT_TYPE", "ConstructionFailed", "InitOutputs", "record_exported", "types_of_runs")

DEPLOYMENT_TYPE = "prompt_deployment"
"""Dataset type of the deployment of a run: its pipeline and configuration."""

_LISTING = "files.json"
_KEEP_S = 3 * 86_400.0
"""Runs that no worker has needed for that long are of previous days."""


class ConstructionFailed(Exception):
    """The constructor of a task has raised an exception."""

    def __init__(self, failure: TaskFailure):
        super().__init__(failure.reason)
        self.failure = failure


class _SharedFile(Model):
    """A dataset of a run in the shared folder."""

    name: str
    formatter: str
    ref: SerializedDatasetRef


_LISTED = pydantic.TypeAdapter(tuple[_SharedFile, ...])


class InitOutputs:
    """Provides runs with their init-outputs.

    The folder is shared by the workers of a host, on the filesystem of their
    repos: files are hard links.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._graphs: dict[str, PipelineGraph] = {}
        self._provided: dict[str, tuple[str, list[DatasetRef]]] = {}
        """Digest and datasets by run, in the present repo."""
        self._listed: dict[tuple[Path, int, int], list[LocatedFile]] = {}

    def reset(self) -> None:
        """Assume a fresh repo."""
        self._provided.clear()

    def provide(self, job: Job) -> None:
        """Put the init-outputs of a run into a worker's repo, unless they are there.

        Those of another pipeline, which could not be built, are removed. All
        types that the pipeline writes are defined. `ConstructionFailed` is
        raised if a task cannot be constructed, `UnusablePipeline` if the
        pipeline does not fit the repo.
        """
        digest, refs = self._provided.get(job.run, ("", []))
        if digest == job.digest:
            return
        graph, repo = self._graph(job), job.repo
        repo.define(_output_types(graph, repo.dimensions))
        repo.write_later(lambda butler: butler.collections.register(job.run))
        if refs:
            repo.remove(refs)
            del self._provided[job.run]
        self._provided[job.run] = job.digest, self._link_or_create(graph, job)

    def is_exported(self, ref: DatasetRef) -> bool:
        """Return whether an init-output is in the central repo; see `record_exported`."""
        return not ref.dataId.dimensions and _export_marker(self._folder, ref.run, ref.id).exists()

    def _link_or_create(self, graph: PipelineGraph, job: Job) -> list[DatasetRef]:
        run_folder = _run_folder(self._folder, job.run)
        run_folder.mkdir(parents=True, exist_ok=True)
        shared = run_folder / job.digest
        if not shared.exists():
            with _first_worker_alone(run_folder / ".lock") as first:
                if not shared.exists():  # again, since another worker may have published meanwhile
                    _create(graph, job)
                    files = _created(job)
                    if first:
                        _publish(files, shared)
                        _delete_old_runs(self._folder)
                    return _refs(files)
        os.utime(run_folder)  # it is in use: _delete_old_runs goes by this time
        files = self._read(shared, job.repo.dimensions)
        job.repo.datasets.add(LocalDataset.of_files(files))
        job.repo.write_later(partial(ingest_shared, files=files))
        return _refs(files)

    def _read(self, shared: Path, universe: DimensionUniverse) -> list[LocatedFile]:
        """Return the shared files of a run; they are listed once as long as the folder is the same."""
        status = shared.stat()
        key = shared, status.st_ino, status.st_mtime_ns
        if key not in self._listed:
            self._listed[key] = _read(shared, universe)
        return self._listed[key]

    def _graph(self, job: Job) -> PipelineGraph:
        path = job.pipeline.path
        if path not in self._graphs:
            self._graphs[path] = resolved(job.pipeline, job.repo)
        return self._graphs[path]


def record_exported(folder: Path, exported: Iterable[tuple[str, DatasetId]]) -> None:
    """Record which init-outputs, by run and id, are in the central repo, so that no other visit exports them.

    `folder` is that of `InitOutputs`.
    """
    for run, dataset in exported:
        marker = _export_marker(folder, run, dataset)
        if marker.parent.is_dir():  # else no worker of this daemon run needs the output run
            marker.touch()


def types_of_runs(universe: DimensionUniverse) -> list[DatasetType]:
    """Return the dataset types that each run has, whatever the pipeline: packages and deployment."""
    return [
        PipelineGraph(universe=universe).packages_dataset_type,
        DatasetType(DEPLOYMENT_TYPE, universe.empty, "StructuredDataDict"),
    ]


@contextmanager
def _first_worker_alone(lock: Path) -> Iterator[bool]:
    """Let one worker create init-outputs alone; others wait for it and then continue together.

    So if the first one fails after a while, because the database of a task
    does not answer, the others do not fail one after the other.
    """
    # A lock on the file, since the workers are processes; it ends with a dead worker.
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
    for run_folder in folder.iterdir():
        with suppress(FileNotFoundError):  # another worker may delete it at the same time
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
    """Write the init-outputs of a run that an earlier attempt has not written."""
    for task in graph.tasks.values():
        _put_new(job, task.config, task.init.config_output.dataset_type_name)
    for label in graph.tasks:
        outputs: list[tuple[object, DatasetType]] = []
        try:
            graph.instantiate_tasks(partial(_get_init_input, job), outputs, [label])
        except BaseException as error:  # NoWorkFound and SystemExit are not subclasses of Exception
            raise ConstructionFailed(TaskFailure.of(label, error)) from error
        for content, dataset_type in outputs:
            _put_new(job, content, dataset_type.name)
    deployment = {"digest": job.digest, "name": job.pipeline.name, "pipeline": job.pipeline.text}
    _put_new(job, deployment, DEPLOYMENT_TYPE)
    _put_new(job, system_packages(), graph.packages_dataset_type.name)


def _get_init_input(job: Job, dataset_type: DatasetType) -> Any:
    """Return an init-input from the first collection that has it, as `lsst.daf.butler.Butler.get`."""
    name, component = dataset_type.nameAndComponent()
    ranks = {collection: rank for rank, collection in enumerate((job.run, *job.inputs))}
    found = [
        (ranks[collection], each.ref)
        for each in job.repo.datasets.by_type()[name]
        for collection, _ in each.within(ranks)
    ]
    if not found:
        raise DatasetNotFoundError(f"Dataset {name} could not be found in {', '.join(ranks)}.")
    _, ref = min(found, key=lambda each: each[0])
    part = ref if component is None else ref.makeComponentRef(component)
    return job.repo.get(part.overrideStorageClass(dataset_type.storageClass))


def _put_new(job: Job, content: object, name: str) -> None:
    if all(each.ref.datasetType.name != name for each in job.repo.datasets.in_run(job.run)):
        job.repo.put(content, name, {}, run=job.run)


def _created(job: Job) -> list[LocatedFile]:
    """Return the files of a run's init-outputs."""
    found = [each for each in job.repo.datasets.in_run(job.run) if not each.ref.dataId.dimensions]
    files = [each.file for each in found if each.file is not None]
    if len(files) < len(found):  # the repo's own Butler has written them
        files = located(job.butler, [each.ref for each in found])
        job.repo.datasets.add(LocalDataset.of_files(files))
    return files


def _refs(files: Iterable[LocatedFile]) -> list[DatasetRef]:
    return [ref for file in files for ref in file.refs]


def _publish(files: Iterable[LocatedFile], shared: Path) -> None:
    """Copy the files into the shared folder; they appear there all at once."""
    partial_folder = shared.with_name(f"{shared.name}.part")
    shutil.rmtree(partial_folder, ignore_errors=True)
    partial_folder.mkdir(parents=True)
    listed = tuple(
        _SharedFile(name=file.path.name, formatter=file.formatter, ref=file.refs[0].to_simple())
        for file in copied(files, partial_folder)
    )
    (partial_folder / _LISTING).write_bytes(_LISTED.dump_json(listed, exclude_none=True))
    partial_folder.rename(shared)


def _read(shared: Path, universe: DimensionUniverse) -> list[LocatedFile]:
    return [
        LocatedFile(
            shared / shared_file.name,
            shared_file.formatter,
            (DatasetRef.from_simple(shared_file.ref, universe=universe),),
        )
        for shared_file in _LISTED.validate_json((shared / _LISTING).read_bytes())
    ]
