# SPDX-License-Identifier: BSD-3-Clause
"""The shape of a pipeline: all that building quanta needs to know of it, found out once per worker.

Covers which pipelines the engine handles. What it does not handle it says
here, when the pipeline is loaded, and another engine runs it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from lsst.daf.butler import DatasetType, DimensionGroup, SkyPixDimension
from lsst.pipe.base import PipelineTaskConnections
from lsst.pipe.base.pipeline_graph import PipelineGraph, ReadEdge, TaskNode
from lsst.pipe.base.prerequisite_helpers import PrerequisiteFinder, PrerequisiteInfo

from ppdaemon.middleware.run.engine import Unsupported

__all__ = ("EXPOSURE_DIMENSIONS", "IndependentSubgraph", "PipelineShape", "TaskShape", "pipeline_shape")

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
"""Dimensions that inputs of tasks may have, too."""


@dataclass(frozen=True, slots=True)
class TaskShape:
    """A task and its edges."""

    node: TaskNode
    inputs: tuple[ReadEdge, ...]
    """Regular ones."""
    finders: tuple[PrerequisiteFinder, ...]
    """Prerequisite ones; they know how each is joined."""
    outputs: tuple[str, ...]
    """Dataset types, metadata and log included."""
    immediate: tuple[str, ...]
    """Dataset types that are read at once, as the task calls them; twice, if
    two connections read them."""
    deferred: frozenset[str]
    """Dataset types that the task reads when it likes."""
    log: str | None
    """Dataset type of its log."""

    @property
    def label(self) -> str:
        """Label of the task (`str`)."""
        return str(self.node.label)


@dataclass(frozen=True, slots=True)
class IndependentSubgraph:
    """Tasks that no other part of the pipeline has to do with.

    The reference asks one query for each such part, so that a dataset which
    one part lacks does not matter to another.
    """

    tasks: tuple[TaskShape, ...]
    """In topological order."""
    dimensions: DimensionGroup
    """Of tasks and regular datasets together, and of the constraint."""
    constraint: tuple[str, ...]
    """Overall inputs without which there is no row."""


@dataclass(frozen=True, slots=True)
class PipelineShape:
    """A resolved pipeline."""

    graph: PipelineGraph
    subgraphs: tuple[IndependentSubgraph, ...]
    external: dict[str, DatasetType]
    """What it reads and does not make, by name; init-inputs too."""
    types: dict[str, DatasetType]
    """All that it reads and makes, by name."""

    @property
    def tasks(self) -> Iterator[TaskShape]:
        """All tasks; those of one part in topological order."""
        for part in self.subgraphs:
            yield from part.tasks


def pipeline_shape(graph: PipelineGraph) -> PipelineShape:
    """Return the shape of a pipeline.

    Parameters
    ----------
    graph : `lsst.pipe.base.PipelineGraph`
        The pipeline, resolved; not to be changed any more.

    Returns
    -------
    shape : `PipelineShape`
        All that building quanta needs to know.

    Raises
    ------
    Unsupported
        Raised, saying why, if this engine does not handle the pipeline.
    """
    tasks = {label: _task_shape(node, graph) for label, node in graph.tasks.items()}
    subgraphs = tuple(_subgraph(subgraph, tasks) for subgraph in graph.split_independent())
    external = {name: node.dataset_type for name, node in graph.iter_overall_inputs() if node is not None}
    types = {name: node.dataset_type for name, node in graph.dataset_types.items()}
    return PipelineShape(graph, subgraphs, external, types)


def _subgraph(subgraph: PipelineGraph, tasks: dict[str, TaskShape]) -> IndependentSubgraph:
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
        raise Unsupported("datasets of the sky that no visit is joined with")
    return IndependentSubgraph(
        tuple(tasks[label] for label in subgraph.tasks), dimensions, tuple(sorted(constraint))
    )


def _task_shape(node: TaskNode, graph: PipelineGraph) -> TaskShape:
    if unknown := sorted(node.dimensions.names - EXPOSURE_DIMENSIONS):
        raise Unsupported(f"{node.label}: a task with dimension {', '.join(unknown)}")
    if not node.dimensions:
        raise Unsupported(f"{node.label}: a task without dimensions")
    connections = node.get_connections()
    if type(connections).adjust_all_quanta is not PipelineTaskConnections.adjust_all_quanta:
        raise Unsupported(f"{node.label}: adjust_all_quanta")
    if node.get_spatial_bounds_connections() or node.get_temporal_bounds_connections():
        raise Unsupported(f"{node.label}: bounds given by other connections")
    for edge in node.inputs.values():
        if graph.dataset_types[edge.parent_dataset_type_name].dataset_type.isCalibration():
            raise Unsupported(f"{node.label}.{edge.connection_name}: a calibration that is a regular input")
    finders = tuple(PrerequisiteInfo(node, graph).finders.values())
    for finder in finders:
        if finder.dataset_type_node.name == "raw":  # is not where prerequisites are looked for
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
    """Refuse prerequisites that the reference does not join by one query per task."""
    if finder.lookup_function is not None:
        return
    name = f"{finder.task_node.label}.{finder.edge.connection_name}"
    if (finder.dataset_skypix or finder.dataset_other_spatial) and not finder.task_node.dimensions.spatial:
        raise Unsupported(f"{name}: a prerequisite of the sky for a task that is not")
    common = finder.task_node.dimensions.universe.commonSkyPix.name
    for element in finder.dataset_type_node.dimensions.elements:
        if isinstance(finder.task_node.dimensions.universe[element], SkyPixDimension) and element != common:
            raise Unsupported(f"{name}: dimension {element}")


def _input_reads(node: TaskNode) -> tuple[tuple[str, ...], frozenset[str]]:
    """Return what a task reads at once, and what it reads when it likes."""
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
