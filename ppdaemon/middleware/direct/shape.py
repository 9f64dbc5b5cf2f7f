# SPDX-License-Identifier: BSD-3-Clause
"""The shape of a pipeline: what building quanta needs to know of it, computed once per graph.

Decides which pipelines the engine supports. For any other `Unsupported` is
raised, with the reason, when the pipeline is loaded; another engine runs it.
"""

import functools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from lsst.daf.butler import DatasetType, DimensionGroup
from lsst.pipe.base import PipelineTaskConnections
from lsst.pipe.base.pipeline_graph import PipelineGraph, ReadEdge, TaskNode
from lsst.pipe.base.prerequisite_helpers import PrerequisiteFinder, PrerequisiteInfo

from ppdaemon.middleware.direct.dataids import region_element
from ppdaemon.middleware.direct.inputs import spatial_join
from ppdaemon.middleware.run.engine import Unsupported

__all__ = ("PixelSource", "Subgraph", "PipelineShape", "TaskShape", "pipeline_shape")

_DIMENSIONS = frozenset(
    {
        "instrument",
        "detector",
        "exposure",
        "visit",
        "visit_system",
        "group",
        "day_obs",
        "physical_filter",
        "band",
        "skymap",
        "tract",
        "patch",
    }
)
"""Dimensions that tasks and datasets may have, besides sky pixels."""


@dataclass(frozen=True, slots=True)
class TaskShape:
    """A task and its edges."""

    node: TaskNode
    inputs: tuple[ReadEdge, ...]
    """Regular inputs."""
    finders: tuple[PrerequisiteFinder, ...]
    """Prerequisite inputs, with the joins that find them."""
    outputs: tuple[str, ...]
    """Dataset types, with metadata and log."""
    immediate: tuple[str, ...]
    """Dataset types that are read before the task runs, named as the task
    names them; twice if two connections read one."""
    deferred: frozenset[str]
    """Dataset types that the task reads by itself, at any time."""
    log: str | None
    """Dataset type of its log."""

    @property
    def label(self) -> str:
        """Label of the task (`str`)."""
        return str(self.node.label)


@dataclass(frozen=True, slots=True)
class PixelSource:
    """Data IDs with sky pixels: those that overlap a region that each row has."""

    rows: DimensionGroup
    region: DimensionGroup
    """Dimensions with one region, and the pixels; the region is that of the others."""


@dataclass(frozen=True, slots=True)
class Subgraph:
    """Tasks that share no dataset with the other tasks of the pipeline.

    ``separable`` makes one query for each subgraph, so that a dataset that one
    of them lacks does not affect another.
    """

    tasks: tuple[TaskShape, ...]
    """In topological order."""
    dimensions: DimensionGroup
    """Of tasks, regular datasets and the constraint; of sky pixels only the
    common ones, which the registry can join."""
    constraint: tuple[str, ...]
    """Overall inputs without which there is no row."""
    pixels: Mapping[DimensionGroup, tuple[PixelSource, ...]]
    """Where the data IDs of tasks, datasets and edges with other sky pixels come from."""


@dataclass(frozen=True, slots=True)
class PipelineShape:
    """A resolved pipeline."""

    graph: PipelineGraph
    subgraphs: tuple[Subgraph, ...]
    external: dict[str, DatasetType]
    """Overall inputs by name, with init-inputs."""
    types: dict[str, DatasetType]
    """All dataset types by name."""

    @property
    def tasks(self) -> Iterator[TaskShape]:
        """All tasks; those of one subgraph in topological order."""
        for subgraph in self.subgraphs:
            yield from subgraph.tasks


@functools.lru_cache(32)  # those of the rehearsal, too: all workers have the graphs of the zygote
def pipeline_shape(graph: PipelineGraph) -> PipelineShape:
    """Return the shape of a resolved pipeline; raise `Unsupported`, with the reason, for others."""
    tasks = {label: _task_shape(node, graph) for label, node in graph.tasks.items()}
    subgraphs = tuple(_subgraph(subgraph, tasks) for subgraph in graph.split_independent())
    external = {name: node.dataset_type for name, node in graph.iter_overall_inputs() if node is not None}
    types = {name: node.dataset_type for name, node in graph.dataset_types.items()}
    return PipelineShape(graph, subgraphs, external, types)


def _subgraph(subgraph: PipelineGraph, tasks: dict[str, TaskShape]) -> Subgraph:
    dimensions = subgraph.get_all_dimensions(prerequisites=False)
    universe = dimensions.universe
    if unknown := sorted(dimensions.names - _DIMENSIONS - dimensions.skypix):
        raise Unsupported(f"datasets with dimension {', '.join(unknown)}")
    common = universe.commonSkyPix.name
    constraint = []
    for name, node in subgraph.iter_overall_inputs():
        assert node is not None  # the graph is resolved
        if not node.is_prerequisite and node.is_initial_query_constraint and node.dimensions:
            constraint.append(name)
            if node.dimensions.skypix - {common}:
                raise Unsupported(f"{name}: a regular input with sky pixels other than {common}")
    queryable = dimensions.difference(universe.conform(dimensions.skypix - {common}))
    if common in queryable.names and len(queryable.spatial) != 2:
        raise Unsupported(f"datasets with dimension {common}, and not one other kind of region to join")
    return Subgraph(
        tasks=tuple(tasks[label] for label in subgraph.tasks),
        dimensions=queryable,
        constraint=tuple(sorted(constraint)),
        pixels=_pixel_sources(_groups(subgraph), common),
    )


def _groups(subgraph: PipelineGraph) -> Iterator[DimensionGroup]:
    """Yield the dimensions of tasks, of regular datasets, and of both ends of edges together."""
    for task in subgraph.tasks.values():
        yield task.dimensions
        for edge in (*task.inputs.values(), *task.iter_all_outputs()):
            dimensions = subgraph.dataset_types[edge.parent_dataset_type_name].dimensions
            yield dimensions
            yield dimensions.union(task.dimensions)


def _pixel_sources(
    groups: Iterable[DimensionGroup], common: str
) -> dict[DimensionGroup, tuple[PixelSource, ...]]:
    """Return the sources of data IDs with sky pixels that no query can join, by their dimensions.

    The graph builder computes the pixels that overlap the region of data IDs
    with one region. It projects these to dimensions without a region, and
    joins them with the data IDs of a query.
    """
    with_pixels = {group for group in groups if group.skypix - {common}}
    regional = sorted(group for group in with_pixels if len(group.skypix) == 1 and region_element(group))
    sources = {}
    for group in with_pixels:
        parts = [each for each in regional if each.skypix == group.skypix]
        if group in regional:
            found = [PixelSource(group, group)]
        elif wider := [each for each in parts if group <= each]:
            found = [PixelSource(each, each) for each in wider]
        elif len(parts) == 1 and parts[0] <= group:
            found = [PixelSource(group, parts[0])]
        else:  # the graph builder makes several joins, whose order it decides
            raise Unsupported(f"dimension {', '.join(sorted(group.skypix))} of several regions, or of none")
        sources[group] = tuple(found)
    return sources


def _task_shape(node: TaskNode, graph: PipelineGraph) -> TaskShape:
    if not node.dimensions:
        raise Unsupported(f"{node.label}: a task without dimensions")
    connections = node.get_connections()
    if type(connections).adjust_all_quanta is not PipelineTaskConnections.adjust_all_quanta:
        raise Unsupported(f"{node.label}: its connections override adjust_all_quanta")
    if node.get_spatial_bounds_connections() or node.get_temporal_bounds_connections():
        raise Unsupported(f"{node.label}: spatial or temporal bounds of other connections")
    for edge in node.inputs.values():
        if graph.dataset_types[edge.parent_dataset_type_name].dataset_type.isCalibration():
            raise Unsupported(f"{node.label}.{edge.connection_name}: a calibration that is a regular input")
    finders = tuple(PrerequisiteInfo(node, graph).finders.values())
    for finder in finders:
        if finder.dataset_type_node.name == "raw":  # raws are not in the index of prerequisites
            raise Unsupported(f"{node.label}.{finder.edge.connection_name}: a raw that is a prerequisite")
        _check_prerequisite(finder)
    immediate, deferred = _input_reads(node)
    return TaskShape(
        node=node,
        inputs=tuple(node.inputs.values()),
        finders=finders,
        outputs=tuple(edge.parent_dataset_type_name for edge in node.iter_all_outputs()),
        immediate=immediate,
        deferred=deferred,
        log=None if node.log_output is None else node.log_output.dataset_type_name,
    )


def _check_prerequisite(finder: PrerequisiteFinder) -> None:
    """Raise `Unsupported` for prerequisites that ``separable`` does not join by one query per task."""
    if finder.lookup_function is not None:
        return
    try:
        spatial_join(finder.task_node.dimensions, finder.dataset_type_node.dimensions)
    except Unsupported as error:
        raise Unsupported(f"{finder.task_node.label}.{finder.edge.connection_name}: {error}") from None


def _input_reads(node: TaskNode) -> tuple[tuple[str, ...], frozenset[str]]:
    """Return the dataset types that are read before the task runs, and the deferred ones."""
    connections = node.get_connections()
    immediate: list[str] = []
    deferred: set[str] = set()
    adapted: dict[str, str] = {}
    for edge in node.iter_all_inputs():
        storage = adapted.setdefault(edge.dataset_type_name, edge.storage_class_name)
        if storage != edge.storage_class_name:
            raise Unsupported(f"{node.label}: {edge.dataset_type_name} read as two storage classes")
        if getattr(connections, edge.connection_name).deferLoad:
            deferred.add(edge.dataset_type_name)
        else:
            immediate.append(edge.dataset_type_name)
    return tuple(immediate), frozenset(deferred)
