# SPDX-License-Identifier: BSD-3-Clause
"""Quanta, made of rows and an index in memory by the rules of ``QuantumGraphBuilder``; pure.

Tasks are gone through in topological order. What a task without work would
have made is not there for those that follow.
"""

import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lsst.daf.butler import DataCoordinate, DatasetRef, DatasetType, NamedKeyDict, Quantum
from lsst.pipe.base import AdjustQuantumHelper, NoWorkFound
from lsst.pipe.base.pipeline_graph import PipelineGraph, TaskNode
from lsst.pipe.base.prerequisite_helpers import PrerequisiteFinder

from ppdaemon.middleware.direct.dataids import DataIds, Row
from ppdaemon.middleware.direct.inputs import Inputs
from ppdaemon.middleware.direct.shape import Part, Shape, TaskShape
from ppdaemon.middleware.run.engine import Unsupported

__all__ = ("LookUp", "Step", "build_steps")

type LookUp = Callable[[PrerequisiteFinder, DataCoordinate], list[DatasetRef]]
"""Calls a task's own function that finds a prerequisite."""

type _Key = tuple[str, tuple[Any, ...]]
"""Dataset type or task, and values of the data ID."""
type _Refs = NamedKeyDict[DatasetType, Sequence[DatasetRef]]


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """A quantum, and what runs it."""

    id: uuid.UUID
    task: TaskShape
    quantum: Quantum
    after: frozenset[uuid.UUID]
    """Quanta whose outputs it reads."""

    @classmethod
    def of(cls, task: TaskShape, quantum: Quantum, after: frozenset[uuid.UUID]) -> "Step":
        """Make a step with an id of its own.

        Parameters
        ----------
        task, quantum, after
            As the attributes.

        Returns
        -------
        step : `Step`
            The step.
        """
        return cls(uuid.uuid4(), task, quantum, after)

    @property
    def node(self) -> TaskNode:
        """The task (`lsst.pipe.base.pipeline_graph.TaskNode`)."""
        return self.task.node

    @property
    def order(self) -> tuple[Any, ...]:
        """By this the reference decides which of several is run first (`tuple`)."""
        assert self.quantum.dataId is not None  # each step has a data ID
        return (self.task.label, *self.quantum.dataId.required_values)


def build_steps(
    shape: Shape,
    data_ids: DataIds,
    rows: Callable[[Part], Iterable[Row]],
    inputs: Inputs,
    run: str,
    look_up: LookUp,
) -> list[Step]:
    """Decide what is to be done.

    Parameters
    ----------
    shape : `~ppdaemon.middleware.direct.shape.Shape`
        The pipeline.
    data_ids : `~ppdaemon.middleware.direct.dataids.DataIds`
        Makes data IDs of rows.
    rows : `~collections.abc.Callable`
        Returns the rows of a part.
    inputs : `~ppdaemon.middleware.direct.inputs.Inputs`
        What there is.
    run : `str`
        Output run.
    look_up : `~collections.abc.Callable`
        Finds prerequisites that have a lookup function.

    Returns
    -------
    steps : `list` [`Step`]
        Quanta in topological order; empty if there is nothing to do.

    Raises
    ------
    Exception
        Raised by ``adjustQuantum`` where a quantum must not be built, for
        instance without a required prerequisite.
    """
    steps: list[Step] = []
    for part in shape.parts:
        chosen = [row for row in rows(part) if _complete(row, part, shape, data_ids, inputs)]
        steps += _PartBuilder(part, shape, data_ids, inputs, run, look_up).steps(chosen)
    return steps


def _complete(row: Row, part: Part, shape: Shape, data_ids: DataIds, inputs: Inputs) -> bool:
    """Tell whether a row has all that constrains the reference's query."""
    return all(
        inputs.regular(name, data_ids.of(shape.external[name].dimensions, row)) is not None
        for name in part.constraint
    )


class _PartBuilder:
    """Builds the quanta of one part of a pipeline."""

    def __init__(
        self, part: Part, shape: Shape, data_ids: DataIds, inputs: Inputs, run: str, look_up: LookUp
    ):
        self._part = part
        self._graph: PipelineGraph = shape.graph
        self._data_ids = data_ids
        self._inputs = inputs
        self._run = run
        self._look_up = look_up
        self._present: dict[_Key, DatasetRef] = {}
        """Datasets that are there, or will be."""
        self._maker: dict[uuid.UUID, uuid.UUID] = {}
        """The quantum that makes a dataset."""

    def steps(self, rows: Sequence[Row]) -> Iterator[Step]:
        for task in self._part.tasks:
            wanted = self._wanted(task, rows)
            for data_id, edges in wanted.items():
                step = self._step(task, data_id, edges)
                if step is not None:
                    self._note(step)
                    yield step

    def _wanted(
        self, task: TaskShape, rows: Sequence[Row]
    ) -> dict[DataCoordinate, dict[str, dict[DataCoordinate, None]]]:
        """Return the data IDs of a task, and those of its inputs and outputs by dataset type."""
        names = [*(edge.parent_dataset_type_name for edge in task.inputs), *task.outputs]
        types = {name: self._graph.dataset_types[name].dimensions for name in names}
        wanted: dict[DataCoordinate, dict[str, dict[DataCoordinate, None]]] = {}
        for row in rows:
            edges = wanted.setdefault(
                self._data_ids.of(task.node.dimensions, row), {name: {} for name in types}
            )
            for name, dimensions in types.items():
                edges[name][self._data_ids.of(dimensions, row)] = None
        return wanted

    def _step(
        self, task: TaskShape, data_id: DataCoordinate, edges: dict[str, dict[DataCoordinate, None]]
    ) -> Step | None:
        """Return a quantum, or nothing if it has no work."""
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
        after = frozenset(self._maker[each] for each in read if each in self._maker)
        return Step.of(task, quantum, after)

    def _adapted_inputs(
        self, task: TaskShape, data_id: DataCoordinate, edges: dict[str, dict[DataCoordinate, None]]
    ) -> _Refs:
        found: dict[str, set[DatasetRef]] = defaultdict(set)
        for edge in task.inputs:
            name = edge.parent_dataset_type_name
            found[name].update(ref for each in edges[name] if (ref := self._input(name, each)) is not None)
        for finder in task.finders:
            find = self._inputs.prerequisites if finder.lookup_function is None else self._look_up
            found[finder.dataset_type_node.name].update(find(finder, data_id))
        adapted: _Refs = NamedKeyDict()
        for edge in task.node.iter_all_inputs():
            dataset_type = edge.adapt_dataset_type(
                self._graph.dataset_types[edge.parent_dataset_type_name].dataset_type
            )
            adapted[dataset_type] = [
                edge.adapt_dataset_ref(ref) for ref in sorted(found[edge.parent_dataset_type_name])
            ]
        return adapted

    def _input(self, name: str, data_id: DataCoordinate) -> DatasetRef | None:
        if self._graph.producer_of(name) is None:
            return self._inputs.regular(name, data_id)
        return self._present.get((name, data_id.required_values))

    def _adapted_outputs(self, task: TaskShape, edges: dict[str, dict[DataCoordinate, None]]) -> _Refs:
        adapted: _Refs = NamedKeyDict()
        for edge in task.node.iter_all_outputs():
            definition = self._graph.dataset_types[edge.parent_dataset_type_name].dataset_type
            refs = sorted(
                DatasetRef(definition, data_id, run=self._run)
                for data_id in edges[edge.parent_dataset_type_name]
            )
            adapted[edge.adapt_dataset_type(definition)] = [edge.adapt_dataset_ref(ref) for ref in refs]
        return adapted

    def _init_inputs(self, task: TaskShape) -> dict[DatasetType, DatasetRef]:
        adapted = {}
        for edge in task.node.init.iter_all_inputs():
            empty = DataCoordinate.make_empty(task.node.dimensions.universe)
            ref = self._inputs.regular(edge.parent_dataset_type_name, empty)
            if ref is None:
                raise Unsupported(f"init-input {edge.parent_dataset_type_name} of {task.label} is missing")
            found = edge.adapt_dataset_ref(ref)
            adapted[found.datasetType] = found
        return adapted

    def _note(self, step: Step) -> None:
        """Note what a step will make; later steps may read it."""
        for edge in step.node.iter_all_outputs():
            for ref in step.quantum.outputs[edge.dataset_type_name]:
                self._present[edge.parent_dataset_type_name, ref.dataId.required_values] = (
                    ref.overrideStorageClass(
                        self._graph.dataset_types[edge.parent_dataset_type_name].dataset_type.storageClass
                    )
                )
                self._maker[ref.id] = step.id
