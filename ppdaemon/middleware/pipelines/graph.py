# SPDX-License-Identifier: BSD-3-Clause
"""Pipelines: parsed once, with their overall inputs known before the image."""

import hashlib
import logging
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from lsst.daf.butler import DatasetType, DimensionUniverse
from lsst.pipe.base import Pipeline
from lsst.pipe.base.pipeline_graph import PipelineGraph, ReadEdge, TaskNode

from ppdaemon.middleware.butler.central import Definitions, known_dataset_type
from ppdaemon.middleware.butler.failures import describe
from ppdaemon.pipelinenames import PARAMETERS, override_target, pipeline_name

__all__ = (
    "PipelineLibrary",
    "LoadedPipeline",
    "OverallInput",
    "PipelineCache",
    "UnusablePipeline",
    "dataset_types_of",
    "labels_named",
    "load_pipeline",
    "overall_inputs",
    "rehearse_resolving",
    "resolved",
    "targets_of",
)

_LOG = logging.getLogger(__name__)

_OBSERVATION = frozenset({"exposure", "visit", "group", "day_obs"})
"""Without one of these dimensions a dataset has the same data ID for every visit."""

_ANY_PIXELS = "skypix"
"""Dimension of a connection that stands for that of the repo's dataset type, such as ``htm7``."""


class UnusablePipeline(Exception):
    """This pipeline cannot run; another one may."""


@dataclass(frozen=True, slots=True)
class LoadedPipeline:
    """A parsed and configured pipeline."""

    name: str
    """File name without suffix, and labels; part of run names."""
    path: str
    graph: PipelineGraph
    """Not resolved, unless by `rehearse_resolving`; copy it before use."""
    text: str
    """The content of the file, its imports and the overrides, as YAML."""
    fingerprint: str
    """Hash of task classes and complete configurations; it does not depend on
    the location of the file or on the user."""
    targets: frozenset[str]
    """What overrides can change: labels, and parameters as ``parameters:name``."""


@dataclass(frozen=True, slots=True)
class OverallInput:
    """An overall input: a dataset type that a pipeline reads and does not produce."""

    dataset_type: DatasetType
    required: bool
    """Whether a task cannot run without any such dataset."""

    @property
    def name(self) -> str:
        """Name of the dataset type (`str`)."""
        return str(self.dataset_type.name)


def load_pipeline(path: str, overrides: Mapping[str, Any]) -> LoadedPipeline:
    """Parse a pipeline file, import its tasks and configure them.

    `overrides` are values by ``label:field``, or by ``parameters:name``; labels
    and parameters of other pipelines are ignored. `UnusablePipeline` is raised
    if the pipeline cannot be constructed.
    """
    try:
        pipeline = _read(path)
        targets = _targets(pipeline)
        for key, value in overrides.items():
            if override_target(key) in targets:
                label, _, field = key.partition(":")
                pipeline.addConfigOverride(label, field, value)
        graph = pipeline.to_graph()
    except (Exception, SystemExit) as error:  # pipelines and configurations are code, also scripts
        raise UnusablePipeline(f"{path} cannot be constructed: {describe(error)}") from error
    if not graph.tasks:
        # A range a..c has the tasks that depend on a and on which c depends: possibly none.
        raise UnusablePipeline(f"{path} has no tasks")
    return LoadedPipeline(pipeline_name(path), path, graph, str(pipeline), _fingerprint(graph), targets)


def _read(path: str) -> Pipeline:
    file, mark, labels = path.partition("#")
    # As a URI: of a plain path, "%41" in a name would be decoded to another name.
    return Pipeline.from_uri(f"{Path(file).absolute().as_uri()}{mark}{labels}")


def _targets(pipeline: Pipeline) -> frozenset[str]:
    # A pipeline has no public list of its parameters.
    parameters = yaml.safe_load(str(pipeline)).get(PARAMETERS) or ()
    return frozenset({*pipeline.task_labels, *(f"{PARAMETERS}:{name}" for name in parameters)})


def targets_of(path: str) -> frozenset[str]:
    """Return what overrides can change in a pipeline file, whose tasks need not be importable.

    `UnusablePipeline` is raised if it cannot be parsed.
    """
    try:
        return _targets(_read(path))
    except (Exception, SystemExit) as error:  # a pipeline's imports may raise anything
        raise UnusablePipeline(f"{path} cannot be parsed: {describe(error)}") from error


def labels_named(graph: PipelineGraph, names: Collection[str]) -> frozenset[str]:
    """Return the labels of the tasks that these labels or full class names select.

    A class also selects the tasks of classes derived from it.
    """
    classes = tuple(found for name in names if isinstance(found := _imported_object(name), type))
    return frozenset(
        label for label, task in graph.tasks.items() if label in names or issubclass(task.task_class, classes)
    )


def _imported_object(name: str) -> object:
    """Return an object of an imported module by its full name; the classes of a pipeline are imported."""
    module, _, attribute = name.rpartition(".")
    return getattr(sys.modules.get(module), attribute, None)


def _fingerprint(graph: PipelineGraph) -> str:
    digest = hashlib.sha256()
    for label, task in sorted(graph.tasks.items()):
        digest.update(f"{label}\0{task.task_class_name}\0{task.get_config_str()}\0".encode())
    return digest.hexdigest()


def overall_inputs(pipeline: LoadedPipeline, repo: Definitions) -> tuple[OverallInput, ...]:
    """Return the datasets that a pipeline reads and does not produce, with init-inputs; see `resolved`."""
    graph = resolved(pipeline, repo)
    required = {
        edge.parent_dataset_type_name
        for task, edge in _inputs(graph)
        if not task.is_optional(edge.connection_name)
    }
    return tuple(
        OverallInput(node.dataset_type, name in required)
        for name, node in graph.iter_overall_inputs()
        if node is not None
    )


def dataset_types_of(pipeline: LoadedPipeline, repo: Definitions) -> list[DatasetType]:
    """Return the types that a pipeline writes, and those it reads that a repo has; see `resolved`.

    They can be registered before any visit.
    """
    graph = resolved(pipeline, repo)
    return [
        node.dataset_type
        for name, node in graph.dataset_types.items()
        if node.producing_edge is not None or known_dataset_type(repo, name) is not None
    ]


def rehearse_resolving(pipeline: LoadedPipeline, universe: DimensionUniverse) -> None:
    """Resolve a pipeline's graph as for a repo that only has its reference catalogs, in the usual pixels; an
    error of it may be raised.

    Most repos have the definitions of the pipelines themselves: `resolved` returns this graph for them.
    """
    catalogs = {}
    for name, edge in _in_any_pixels(pipeline.graph):
        dimensions = (edge.raw_dimensions - {_ANY_PIXELS}) | {universe.commonSkyPix.name}
        catalogs[name] = DatasetType(name, universe.conform(dimensions), edge.storage_class_name)
    pipeline.graph.resolve(dimensions=universe, dataset_types=catalogs)


def resolved(pipeline: LoadedPipeline, repo: Definitions) -> PipelineGraph:
    """Return a pipeline's graph, resolved with the dimensions and dataset types of a repo; it may be shared.

    Its tasks can be constructed. `UnusablePipeline` is raised if dataset types
    contradict each other, or if a task combines visits: a worker has one.
    """
    graph = pipeline.graph
    known = ((name, known_dataset_type(repo, name)) for name in graph.dataset_types)
    definitions = {name: found for name, found in known if found is not None}
    if not _is_resolved(graph, repo.dimensions, definitions):
        graph = graph.copy()
        try:
            graph.resolve(dimensions=repo.dimensions, dataset_types=definitions)
        except (Exception, SystemExit) as error:  # resolving runs code of the connections
            raise UnusablePipeline(f"{pipeline.path} does not fit the repo: {describe(error)}") from error
    if labels := sorted(_combining(graph)):
        raise UnusablePipeline(
            f"{pipeline.path} combines several visits, which workers do not do, in: {', '.join(labels)}"
        )
    return graph


def _is_resolved(
    graph: PipelineGraph, universe: DimensionUniverse, definitions: Mapping[str, DatasetType]
) -> bool:
    """Return whether resolving a graph again would change nothing, by the rule of `PipelineGraph.resolve`."""
    return (
        graph.is_fully_resolved
        and graph.universe is universe
        # Of these only a repo has the dimensions.
        and all(name in definitions for name, _ in _in_any_pixels(graph))
        and all(graph.dataset_types[name].dataset_type == each for name, each in definitions.items())
    )


def _combining(graph: PipelineGraph) -> Iterator[str]:
    """Yield the labels of tasks that make one dataset of all exposures or visits, such as a master bias."""
    for label, task in graph.tasks.items():
        read = (graph.dataset_types[edge.parent_dataset_type_name] for edge in task.inputs.values())
        if _OBSERVATION.isdisjoint(task.dimensions.names) and any(
            not _OBSERVATION.isdisjoint(node.dimensions.names) for node in read
        ):
            yield label


def _in_any_pixels(graph: PipelineGraph) -> Iterator[tuple[str, ReadEdge]]:
    """Yield the dataset types in pixels of the sky whose size only a repo knows."""
    for _, edge in _inputs(graph):
        if _ANY_PIXELS in edge.raw_dimensions:
            yield edge.parent_dataset_type_name, edge


def _inputs(graph: PipelineGraph) -> Iterator[tuple[TaskNode, ReadEdge]]:
    """Return each input edge of each task, with init-inputs."""
    for task in graph.tasks.values():
        for edge in (*task.iter_all_inputs(), *task.init.iter_all_inputs()):
            yield task, edge


class PipelineCache[T]:
    """Values computed for pipelines; computed again if the repo gets a dataset type that it did not know.

    The pipeline's own definition is used for a type that the repo does not
    know.
    """

    def __init__(self) -> None:
        self._cache: dict[str, tuple[T, list[str]]] = {}

    def of(
        self, pipeline: LoadedPipeline, repo: Definitions, find: Callable[[], tuple[T, Iterable[str]]]
    ) -> T:
        """Return the value from `compute`, which also returns the dataset types that it depends on."""
        cached = self._cache.get(pipeline.path)
        if cached is None or any(known_dataset_type(repo, name) is not None for name in cached[1]):
            found, types = find()
            unknown = [name for name in types if known_dataset_type(repo, name) is None]
            cached = self._cache[pipeline.path] = found, unknown
        return cached[0]


class PipelineLibrary:
    """Parsed pipelines and their overall inputs, cached as long as the worker runs.

    `overrides` is task configuration by ``label:field``.
    """

    def __init__(self, overrides: Mapping[str, Any]):
        self._overrides = overrides
        self._loaded: dict[str, LoadedPipeline] = {}
        self._needs = PipelineCache[tuple[OverallInput, ...]]()

    def load(self, paths: Iterable[str]) -> tuple[list[LoadedPipeline], list[str]]:
        """Return the pipelines of these files that can be constructed, and why the others cannot."""
        pipelines, reasons = [], []
        for path in paths:
            try:
                if path not in self._loaded:
                    self._loaded[path] = load_pipeline(path, self._overrides)
                pipelines.append(self._loaded[path])
            except UnusablePipeline as error:
                _LOG.error("%s", error)
                reasons.append(str(error))
        return pipelines, reasons

    def needs(self, pipeline: LoadedPipeline, repo: Definitions) -> tuple[OverallInput, ...]:
        """Return the overall inputs of a pipeline; see `overall_inputs`."""

        def find() -> tuple[tuple[OverallInput, ...], Iterable[str]]:
            needs = overall_inputs(pipeline, repo)
            return needs, (need.name for need in needs)

        return self._needs.of(pipeline, repo, find)
