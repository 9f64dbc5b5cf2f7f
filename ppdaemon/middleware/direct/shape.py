# SPDX-License-Identifier: BSD-3-Clause
"""The shape of a pipeline: what building quanta needs to know of it, computed once per worker.

Decides which pipelines the engine supports. For any other `Unsupported` is
raised, with the reason, when the pipeline is loaded; another engine runs it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from lsst.daf.butler import DatasetType, DimensionGroup, SkyPixDimension
from lsst.pipe.base import PipelineTaskConnections
from lsst.pipe.base.pipeline_graph import PipelineGraph, ReadEdge, TaskNode
from lsst.pipe.base.prerequisite_helpers import PrerequisiteFinder, PrerequisiteInfo

from ppdaemon.middleware.run.engine import Unsupported

__all__ = ("EXPOSURE_DIMENSIONS", "Subgraph", "PipelineShape", "TaskShape", "pipeline_shape")

EXPOSURE_DIMENSIONS = frozenset(
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
    }
)
"""Dimensions that a task may have."""

_SKY_DIMENSIONS = frozenset({"skymap", "tract", "patch"})
"""Dimensions that only inputs of tasks may have."""


@dataclass(frozen=True, slots=True)
class TaskShape:
    """A task and its edges."""

    node: TaskNode
    inputs: tuple[ReadEdge, ...]
    """Regular inputs."""
    finders: tuple[PrerequisiteFinder, ...]
    """Prerequisite inputs; a finder knows how they are joined."""
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
class Subgraph:
    """Tasks that share no dataset with the other tasks of the pipeline.

    ``separable`` makes one query for each subgraph, so that a dataset that one
    of them lacks does not affect another.
    """

    tasks: tuple[TaskShape, ...]
    """In topological order."""
    dimensions: DimensionGroup
    """Of tasks, regular datasets and the constraint."""
    constraint: tuple[str, ...]
    """Overall inputs without which there is no row."""


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


def pipeline_shape(graph: PipelineGraph) -> PipelineShape:
    """Return the shape of a resolved pipeline; raise `Unsupported`, with the reason, for others."""
    tasks = {label: _task_shape(node, graph) for label, node in graph.tasks.items()}
    subgraphs = tuple(_subgraph(subgraph, tasks) for subgraph in graph.split_independent())
    external = {name: node.dataset_type for name, node in graph.iter_overall_inputs() if node is not None}
    types = {name: node.dataset_type for name, node in graph.dataset_types.items()}
    return PipelineShape(graph, subgraphs, external, types)


def _subgraph(subgraph: PipelineGraph, tasks: dict[str, TaskShape]) -> Subgraph:
    dimensions = subgraph.get_all_dimensions(prerequisites=False)
    constraint = []
    for name, node in subgraph.iter_overall_inputs():
        assert node is not None  # the graph is resolved
        if not node.is_prerequisite and node.is_initial_query_constraint and node.dimensions:
            constraint.append(name)
            dimensions = dimensions.union(node.dimensions)
    if unknown := sorted(dimensions.names - EXPOSURE_DIMENSIONS - _SKY_DIMENSIONS):
        raise Unsupported(f"datasets with dimension {', '.join(unknown)}")
    if dimensions.names & _SKY_DIMENSIONS and "visit" not in dimensions.names:
        raise Unsupported("spatial datasets in a pipeline without the dimension visit")
    return Subgraph(tuple(tasks[label] for label in subgraph.tasks), dimensions, tuple(sorted(constraint)))


def _task_shape(node: TaskNode, graph: PipelineGraph) -> TaskShape:
    if unknown := sorted(node.dimensions.names - EXPOSURE_DIMENSIONS):
        raise Unsupported(f"{node.label}: a task with dimension {', '.join(unknown)}")
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
    name = f"{finder.task_node.label}.{finder.edge.connection_name}"
    if (finder.dataset_skypix or finder.dataset_other_spatial) and not finder.task_node.dimensions.spatial:
        raise Unsupported(f"{name}: a spatial prerequisite of a task without region")
    common = finder.task_node.dimensions.universe.commonSkyPix.name
    for element in finder.dataset_type_node.dimensions.elements:
        if isinstance(finder.task_node.dimensions.universe[element], SkyPixDimension) and element != common:
            raise Unsupported(f"{name}: dimension {element}")


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
