# SPDX-License-Identifier: BSD-3-Clause
"""Builds quanta from rows and an index in memory, by the rules of ``QuantumGraphBuilder``; pure.

Tasks are processed in topological order. The outputs of a task without work do
not exist for the tasks that follow.
"""

import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lsst.daf.butler import DataCoordinate, DatasetRef, DatasetType, DimensionGroup, NamedKeyDict, Quantum
from lsst.pipe.base import AdjustQuantumHelper, NoWorkFound
from lsst.pipe.base.pipeline_graph import TaskNode
from lsst.pipe.base.prerequisite_helpers import PrerequisiteFinder

from ppdaemon.middleware.direct.dataids import DataIds, Row
from ppdaemon.middleware.direct.inputs import InputIndex
from ppdaemon.middleware.direct.shape import PipelineShape, Subgraph, TaskShape
from ppdaemon.middleware.run.engine import Unsupported

__all__ = ("LookupFunction", "QuantumStep", "build_steps")

type LookupFunction = Callable[[PrerequisiteFinder, DataCoordinate], list[DatasetRef]]
"""Calls a task's lookup function for a prerequisite."""

type _Key = tuple[str, tuple[Any, ...]]
"""Dataset type, and values of the data ID."""
type _Refs = NamedKeyDict[DatasetType, Sequence[DatasetRef]]


@dataclass(frozen=True, slots=True, eq=False)
class QuantumStep:
    """A quantum and its task."""

    task: TaskShape
    quantum: Quantum
    after: frozenset[uuid.UUID]
    """Quanta whose outputs it reads."""
    id: uuid.UUID = field(default_factory=uuid.uuid4)

    @property
    def node(self) -> TaskNode:
        """The task (`lsst.pipe.base.pipeline_graph.TaskNode`)."""
        return self.task.node

    @property
    def order(self) -> tuple[Any, ...]:
        """Key by which ``separable`` sorts quanta that can be run (`tuple`)."""
        assert self.quantum.dataId is not None  # each step has a data ID
        return (self.task.label, *self.quantum.dataId.required_values)


def build_steps(
    shape: PipelineShape,
    data_ids: DataIds,
    rows: Callable[[Subgraph], Iterable[Row]],
    inputs: InputIndex,
    run: str,
    find_by_function: LookupFunction,
) -> list[QuantumStep]:
    """Return the quanta in topological order, none if there is nothing to do.

    ``adjustQuantum`` of a task may raise anything if a quantum must not be
    built, for instance without a required prerequisite.
    """
    steps: list[QuantumStep] = []
    for subgraph in shape.subgraphs:
        complete = [row for row in rows(subgraph) if _has_constraints(row, subgraph, shape, data_ids, inputs)]
        steps += _SubgraphBuilder(subgraph, shape, data_ids, inputs, run, find_by_function).steps(complete)
    return steps


def _has_constraints(
    row: Row, subgraph: Subgraph, shape: PipelineShape, data_ids: DataIds, inputs: InputIndex
) -> bool:
    """Return whether all datasets exist that constrain the query of ``separable`` in a row."""
    return all(
        inputs.find_regular(name, data_ids.of(shape.external[name].dimensions, row)) is not None
        for name in subgraph.constraint
    )


@dataclass(slots=True)
class _SubgraphBuilder:
    """Builds the quanta of one independent subgraph."""

    subgraph: Subgraph
    shape: PipelineShape
    data_ids: DataIds
    inputs: InputIndex
    run: str
    find_by_function: LookupFunction
    available: dict[_Key, DatasetRef] = field(default_factory=dict)
    """Datasets that exist or will be produced."""
    producers: dict[uuid.UUID, uuid.UUID] = field(default_factory=dict)
    """The quantum that produces a dataset."""

    def steps(self, rows: Sequence[Row]) -> Iterator[QuantumStep]:
        for task in self.subgraph.tasks:
            for data_id, edges in self._data_ids_of(task, rows).items():
                step = self._step(task, data_id, edges)
                if step is not None:
                    self._record_outputs(step)
                    yield step

    def _data_ids_of(
        self, task: TaskShape, rows: Sequence[Row]
    ) -> dict[DataCoordinate, dict[str, dict[DataCoordinate, None]]]:
        """Return the data IDs of a task, and those of its inputs and outputs by dataset type."""
        names = [*(edge.parent_dataset_type_name for edge in task.inputs), *task.outputs]
        types = {name: self.shape.types[name].dimensions for name in names}
        by_data_id: dict[DataCoordinate, dict[str, dict[DataCoordinate, None]]] = {}
        for edge_types, edge_rows in self._rows_of_edges(task, types, rows):
            for row in edge_rows:
                edges = by_data_id.setdefault(
                    self.data_ids.of(task.node.dimensions, row), {name: {} for name in types}
                )
                for name, dimensions in edge_types.items():
                    edges[name][self.data_ids.of(dimensions, row)] = None
        return by_data_id

    def _rows_of_edges(
        self, task: TaskShape, types: Mapping[str, DimensionGroup], rows: Sequence[Row]
    ) -> Iterator[tuple[Mapping[str, DimensionGroup], Iterable[Row]]]:
        """Yield the inputs and outputs of a task with the rows that have their data IDs and the task's.

        Pixels other than the common ones are added for each edge by itself:
        they overlap the region of its own dimensions.
        """
        pixels, dimensions = self.subgraph.pixels, task.node.dimensions
        if not pixels:
            yield types, rows
            return
        yield {}, self._with_pixels(rows, dimensions)
        for name, others in types.items():
            yield {name: others}, self._with_pixels(rows, dimensions.union(others))

    def _with_pixels(self, rows: Sequence[Row], dimensions: DimensionGroup) -> Iterable[Row]:
        sources = self.subgraph.pixels.get(dimensions)
        if sources is None:
            return rows
        return (
            with_pixels
            for source in sources
            # Each once: rows also have the patches or exposures of other data IDs.
            for row in _distinct(rows, source.rows)
            for with_pixels in self.data_ids.with_pixels(row, source.region)
        )

    def _step(
        self, task: TaskShape, data_id: DataCoordinate, edges: dict[str, dict[DataCoordinate, None]]
    ) -> QuantumStep | None:
        """Return a quantum, `None` if it has no work."""
        helper = AdjustQuantumHelper(
            inputs=self._adapted_inputs(task, data_id, edges), outputs=self._adapted_outputs(task, edges)
        )
        try:
            helper.adjust_in_place(task.node.get_connections(), task.label, data_id)
        except NoWorkFound:
            return None
        if helper.outputs_adjusted and not any(helper.outputs.values()):
            return None
        if helper.inputs_adjusted and not any(helper.inputs.values()):
            raise Unsupported(f"adjustQuantum of {task.label} leaves outputs without inputs")
        quantum = Quantum(
            taskName=task.node.task_class_name,
            taskClass=task.node.task_class,
            dataId=data_id,
            initInputs=self._init_inputs(task),
            inputs=helper.inputs,
            outputs=helper.outputs,
        )
        read = {ref.id for refs in helper.inputs.values() for ref in refs}
        after = frozenset(self.producers[each] for each in read if each in self.producers)
        return QuantumStep(task, quantum, after)

    def _adapted_inputs(
        self, task: TaskShape, data_id: DataCoordinate, edges: dict[str, dict[DataCoordinate, None]]
    ) -> _Refs:
        found: dict[str, set[DatasetRef]] = defaultdict(set)
        for edge in task.inputs:
            name = edge.parent_dataset_type_name
            found[name].update(ref for each in edges[name] if (ref := self._input(name, each)) is not None)
        for finder in task.finders:
            find = self.inputs.find_prerequisites if finder.lookup_function is None else self.find_by_function
            found[finder.dataset_type_node.name].update(find(finder, data_id))
        adapted: _Refs = NamedKeyDict()
        for edge in task.node.iter_all_inputs():
            name = edge.parent_dataset_type_name
            dataset_type = edge.adapt_dataset_type(self.shape.types[name])
            adapted[dataset_type] = [edge.adapt_dataset_ref(ref) for ref in sorted(found[name])]
        return adapted

    def _input(self, name: str, data_id: DataCoordinate) -> DatasetRef | None:
        if self.shape.graph.producer_of(name) is None:
            return self.inputs.find_regular(name, data_id)
        return self.available.get((name, data_id.required_values))

    def _adapted_outputs(self, task: TaskShape, edges: dict[str, dict[DataCoordinate, None]]) -> _Refs:
        adapted: _Refs = NamedKeyDict()
        for edge in task.node.iter_all_outputs():
            name = edge.parent_dataset_type_name
            definition = self.shape.types[name]
            refs = sorted(DatasetRef(definition, data_id, run=self.run) for data_id in edges[name])
            adapted[edge.adapt_dataset_type(definition)] = [edge.adapt_dataset_ref(ref) for ref in refs]
        return adapted

    def _init_inputs(self, task: TaskShape) -> dict[DatasetType, DatasetRef]:
        adapted = {}
        for edge in task.node.init.iter_all_inputs():
            empty = DataCoordinate.make_empty(task.node.dimensions.universe)
            ref = self.inputs.find_regular(edge.parent_dataset_type_name, empty)
            if ref is None:
                raise Unsupported(f"init-input {edge.parent_dataset_type_name} of {task.label} is missing")
            found = edge.adapt_dataset_ref(ref)
            adapted[found.datasetType] = found
        return adapted

    def _record_outputs(self, step: QuantumStep) -> None:
        """Add the outputs of a quantum to the datasets that later ones may read."""
        for edge in step.node.iter_all_outputs():
            name = edge.parent_dataset_type_name
            for ref in step.quantum.outputs[edge.dataset_type_name]:
                stored_ref = ref.overrideStorageClass(self.shape.types[name].storageClass)
                self.available[name, ref.dataId.required_values] = stored_ref
                self.producers[ref.id] = step.id


def _distinct(rows: Iterable[Row], dimensions: DimensionGroup) -> Iterable[Row]:
    """Return one row for each combination of the values of some dimensions, except their sky pixels."""
    names = sorted(dimensions.names - dimensions.skypix)
    return {tuple(row[name] for name in names): row for row in rows}.values()
