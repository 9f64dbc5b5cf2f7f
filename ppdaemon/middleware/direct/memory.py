# SPDX-License-Identifier: BSD-3-Clause
"""A Butler that passes objects from one task to the next, without a file in between.

Objects in memory belong to this Butler alone. A task that puts an object may
keep a reference and change it: the object is copied at once or, if the task
does nothing after it puts
(`~ppdaemon.middleware.direct.tasks.reads_once_puts_last`), when its quantum
has ended. Large arrays that are not referenced anywhere else by then need no
copy.

A task gets a copy of what it reads. It gets the object itself only if nothing
can read it again: no other unfinished quantum reads it, it is not to be
written, and the task itself reads it no second time.

Tables and text are written at the put and read from the file, as with the
other engines: their formatters do not return what was put, and cannot write
everything. A plain table stays in memory: each task gets the copy that a read of
its file would give (`~ppdaemon.middleware.direct.files.as_read`).

What can neither be copied nor written does not exist for the tasks that follow,
as if it had not been put.
"""

import logging
import math
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from lsst.daf.butler import (
    ButlerMetrics,
    DatasetProvenance,
    DatasetRef,
    DatasetType,
    DimensionUniverse,
    LimitedButler,
    StorageClass,
    StorageClassDelegate,
    StorageClassFactory,
)
from lsst.daf.butler.datastore.generic_base import post_process_get
from lsst.daf.butler.registry import ConflictingDefinitionError
from lsst.pipe.base.automatic_connection_constants import METADATA_OUTPUT_TEMPLATE

from ppdaemon.middleware.butler.datafiles import LocatedFile
from ppdaemon.middleware.butler.formatters import read_dataset
from ppdaemon.middleware.direct.copies import deep_copy, measure, unshared
from ppdaemon.middleware.direct.files import MemoryDataset, TransferredDataset, as_read
from ppdaemon.middleware.direct.quanta import QuantumStep
from ppdaemon.middleware.direct.shape import TaskShape
from ppdaemon.middleware.direct.writing import BackgroundWriter, write_failure
from ppdaemon.middleware.run.engine import Unwritten

__all__ = ("MemoryButler", "InputReader")

_LOG = logging.getLogger(__name__)

_MIN_BACKGROUND_BYTES = 1_000_000
"""Smaller datasets are written at the end: a thread beside the tasks would
slow them by more than it saves."""

_IMAGE_CLASSES = frozenset(
    {
        ("lsst.images._image", "Image"),
        ("lsst.images._mask", "Mask"),
        ("lsst.images._masked_image", "MaskedImage"),
    }
)
"""Classes whose cutouts are equal to what their formatter reads, but for FITS headers and provenance; by
name, because ``lsst.images`` is not imported where no task uses it."""

type InputReader = Callable[[DatasetRef, Mapping[str, Any] | None], Any]
"""Reads an overall input; returns an object that is not referenced anywhere else."""

_Parameters = Mapping[str, Any]


class MemoryButler(LimitedButler):
    """Passes objects between the quanta of one visit.

    `definitions` are the repo's dataset types by name. `steps` are all quanta
    that will be run or skipped. `read_input` reads overall inputs.
    `is_exported` returns by the name of a dataset type whether it is to be
    written. `limit_bytes` limits the memory of what tasks have put;
    `background` writes the rest to files.
    """

    def __init__(
        self,
        universe: DimensionUniverse,
        definitions: Mapping[str, DatasetType],
        steps: Iterable[QuantumStep],
        read_input: InputReader,
        is_exported: Callable[[str], bool],
        limit_bytes: int,
        background: BackgroundWriter,
    ):
        self.storageClasses = StorageClassFactory()
        self._metrics = ButlerMetrics()
        self._universe = universe
        self._definitions = definitions
        self._read_input = read_input
        self._is_exported = is_exported
        self._limit_bytes = limit_bytes
        self.background = background
        self._datasets: dict[uuid.UUID, MemoryDataset] = {}
        self._readers: dict[uuid.UUID, set[uuid.UUID]] = {}
        """By dataset: unfinished quanta that read it."""
        self._producers: dict[uuid.UUID, TaskShape] = {}
        """By dataset: the task that puts it."""
        self.unwritten: dict[uuid.UUID, Unwritten] = {}
        """Datasets that had to be written and cannot."""
        self._put: set[uuid.UUID] = set()
        self._running: QuantumStep | None = None
        self._reads_left: dict[uuid.UUID, float] | None = None
        """How often the running task will still read each of its inputs;
        `None` if it may read and put at any time."""
        for step in steps:
            for ref in _refs(step.quantum.inputs):
                self._readers.setdefault(ref.id, set()).add(step.id)
            self._producers.update((ref.id, step.task) for ref in _refs(step.quantum.outputs))

    # Called by the engine.

    def begin(self, step: QuantumStep) -> None:
        """Let a quantum read and write."""
        self._running, self._reads_left = step, None

    def expect_single_reads(self) -> None:
        """Assume that the running task reads each connection once, and does nothing after it puts."""
        assert self._running is not None
        task, self._reads_left = self._running.task, {}
        for dataset_type, refs in self._running.quantum.inputs.items():
            name = dataset_type.name
            count = math.inf if name in task.deferred else task.immediate.count(name)
            for ref in refs:
                self._reads_left[ref.id] = self._reads_left.get(ref.id, 0) + count

    def end(self, step: QuantumStep) -> None:
        """Release datasets that no quantum reads any more, after a quantum has ended or was skipped."""
        self._running = self._reads_left = None
        for dataset in self._make_outputs_private(step):
            if dataset.unwritten and dataset.size_bytes >= _MIN_BACKGROUND_BYTES:
                self.background.offer(dataset)  # private now: no task can change it
        for ref in _refs(step.quantum.inputs):
            self._readers[ref.id].discard(step.id)
        for dataset in list(self._datasets.values()):
            if self._is_read(dataset.ref.id):
                continue
            if not dataset.to_export:
                del self._datasets[dataset.ref.id]
            elif dataset.file is not None:
                dataset.drop()

    def outputs_for_transfer(self, step: QuantumStep, *, in_files: bool = False) -> list[TransferredDataset]:
        """Return the outputs of a quantum in a form for the memory of another process.

        For a dataset that no quantum needs that is only its id. With
        `in_files` no object is passed, only files.
        """
        datasets = self._make_outputs_private(step)
        if in_files:
            datasets = [
                each for each in datasets if not each.in_memory or self._try(self._move_to_file, each)
            ]
        transferred = {
            ref.id: TransferredDataset(ref.id, unwritten=self.unwritten.get(ref.id))
            for ref in _refs(step.quantum.outputs)
            if ref.id in self._put or ref.id in self.unwritten
        }
        for dataset in datasets:
            file = None if dataset.file is None else (dataset.file.path, dataset.file.formatter)
            transferred[dataset.ref.id] = TransferredDataset(
                dataset.ref.id,
                dataset.content,
                file,
                dataset.provenance,
                dataset.size_bytes,
                dataset.is_table,
            )
        return list(transferred.values())

    def adopt(self, step: QuantumStep, transferred: Iterable[TransferredDataset]) -> None:
        """Add the outputs of a quantum that another process has run; see `outputs_for_transfer`."""
        refs = {ref.id: ref for ref in _refs(step.quantum.outputs)}
        for each in transferred:
            if each.unwritten is not None:
                self.unwritten[each.id] = each.unwritten
                continue
            dataset = self._dataset_for(refs[each.id])
            dataset.provenance, dataset.size_bytes = each.provenance, each.size_bytes
            dataset.content, dataset.is_table = each.content, each.is_table
            if each.file is not None:
                dataset.file = LocatedFile(*each.file, (dataset.ref,))
                dataset.drop()
            fits = not dataset.in_memory or self.used_bytes + dataset.size_bytes <= self._limit_bytes
            if fits or self._try(self._move_to_file, dataset):
                self._store(dataset)

    def lose(self, ref: DatasetRef, failure: str) -> None:
        """Release a dataset that cannot be written; it is as if no task had put it."""
        self._datasets.pop(ref.id, None)
        self._put.discard(ref.id)
        task, name = self._producers[ref.id], ref.datasetType.name
        kind: Literal["output", "log", "metadata"] = "output"
        if name == task.log:
            kind = "log"
        elif name == METADATA_OUTPUT_TEMPLATE.format(label=task.label):
            kind = "metadata"
        self.unwritten[ref.id] = Unwritten(kind, name, task.label, failure)

    @property
    def outputs(self) -> Sequence[MemoryDataset]:
        """Datasets to be exported (`~collections.abc.Sequence` [`MemoryDataset`])."""
        return [dataset for dataset in self._datasets.values() if dataset.to_export]

    @property
    def used_bytes(self) -> int:
        """Memory of what tasks have put (`int`)."""
        return sum(dataset.size_bytes for dataset in self._datasets.values() if dataset.in_memory)

    # Called by tasks and executors.

    def isWriteable(self) -> bool:  # noqa: N802
        """Return `True`."""
        return True

    @property
    def dimensions(self) -> DimensionUniverse:
        """Dimensions of the repo (`lsst.daf.butler.DimensionUniverse`)."""
        return self._universe

    def put(self, obj: Any, ref: DatasetRef, /, *, provenance: DatasetProvenance | None = None) -> DatasetRef:
        """Add a dataset; see `lsst.daf.butler.LimitedButler`."""
        with self._metrics.instrument_put(_LOG, msg="Dataset put in memory"):
            if ref.id in self._put:
                raise ConflictingDefinitionError(f"Dataset {ref} was put before.")
            dataset = self._dataset_for(ref)
            dataset.provenance = None if provenance is None else _copy_provenance(provenance)
            self._accept(dataset, obj)
            self._store(dataset)
        return ref

    def get(
        self,
        ref: DatasetRef,
        /,
        *,
        parameters: dict[str, Any] | None = None,
        storageClass: StorageClass | str | None = None,  # noqa: N803
    ) -> Any:
        """Return a dataset or a component of it; see `lsst.daf.butler.LimitedButler`."""
        with self._metrics.instrument_get(_LOG, msg="Got dataset"):
            if storageClass is not None:
                ref = ref.overrideStorageClass(storageClass)
            dataset = self._datasets.get(ref.id)
            if dataset is None:
                if ref.id in self._put:
                    raise FileNotFoundError(f"Dataset {ref} was released after its last expected read.")
                return self._read_input(ref, parameters)
            if self._reads_left is not None and ref.id in self._reads_left:
                self._reads_left[ref.id] -= 1
            if not dataset.in_memory:
                assert dataset.file is not None  # the object was moved to a file
                return read_dataset(dataset.file, ref, parameters)
            return self._hand_out(dataset, ref, parameters)

    def stored_many(self, refs: Iterable[DatasetRef]) -> dict[DatasetRef, bool]:
        """Return which datasets exist; see `lsst.daf.butler.LimitedButler`."""
        return {ref: ref.id in self._put or ref.id not in self._producers for ref in refs}

    def pruneDatasets(  # noqa: N802
        self,
        refs: Iterable[DatasetRef],
        *,
        disassociate: bool = True,
        unstore: bool = False,
        tags: Iterable[str] = (),
        purge: bool = False,
    ) -> None:
        """Remove datasets; see `lsst.daf.butler.LimitedButler`."""
        for ref in refs:
            self._datasets.pop(ref.id, None)
            self._put.discard(ref.id)

    # When objects are copied, stored and released.

    def _is_read(self, dataset: uuid.UUID) -> bool:
        """Return whether a quantum may still read a dataset."""
        readers = self._readers.get(dataset, set())
        if self._running is None or self._reads_left is None or self._running.id not in readers:
            return bool(readers)
        return len(readers) > 1 or self._reads_left[dataset] > 0

    def _dataset_for(self, ref: DatasetRef) -> MemoryDataset:
        name = ref.datasetType.name
        stored_ref = ref.overrideStorageClass(self._definitions[name].storageClass)
        return MemoryDataset(stored_ref, to_export=self._is_exported(name))

    def _accept(self, dataset: MemoryDataset, content: Any) -> None:
        """Add an object, converted to the storage class of the repo's definition."""
        dataset.content = content
        writer, is_read = self.background.writer, self._is_read(dataset.ref.id)
        needed = dataset.to_export or is_read
        # The metadata of tasks are rarely read, and can always be written.
        at_once = is_read or dataset.ref.datasetType.storageClass_name != "TaskMetadata"
        if needed and at_once and writer.converts(dataset.ref):
            if writer.is_plain_table(content, dataset.ref):
                self._keep_table(dataset)
            else:
                self._move_to_file(dataset)
            return
        try:
            dataset.content = _coerced(content, dataset.ref)
        except TypeError:
            if not writer.accepts(content, dataset.ref):
                raise
            if needed:
                self._move_to_file(dataset)  # only the formatter can convert it
            return
        if not needed or self._is_log(dataset):
            return
        dataset.shared = True
        if self._reads_left is None or self._is_one_of_several(dataset):
            self._make_private(dataset)

    def _keep_table(self, dataset: MemoryDataset) -> None:
        """Copy a table, with what is written to its file and lost when that is read."""
        used_bytes = self.used_bytes
        dataset.size_bytes, _ = measure(dataset.content)
        if used_bytes + dataset.size_bytes > self._limit_bytes:
            self._move_to_file(dataset)
        else:
            dataset.content, dataset.is_table = dataset.content.copy(), True

    def _is_log(self, dataset: MemoryDataset) -> bool:
        """Return whether a dataset is the log: no task has that object, and it may be too long to copy."""
        return self._running is not None and dataset.ref.datasetType.name == self._running.task.log

    def _is_one_of_several(self, dataset: MemoryDataset) -> bool:
        """Return whether a task puts several datasets of a type: it may reuse one object for them."""
        assert self._running is not None
        return len(self._running.quantum.outputs[dataset.ref.datasetType.name]) > 1

    def _store(self, dataset: MemoryDataset) -> None:
        """Store a dataset if it is to be exported or a quantum will read it."""
        self._put.add(dataset.ref.id)
        if dataset.to_export or self._is_read(dataset.ref.id):
            self._datasets[dataset.ref.id] = dataset

    def _make_outputs_private(self, step: QuantumStep) -> list[MemoryDataset]:
        """Make the outputs of a quantum private, now that it has ended."""
        datasets = [self._datasets[ref.id] for ref in _refs(step.quantum.outputs) if ref.id in self._datasets]
        return [each for each in datasets if not each.shared or self._try(self._make_private, each)]

    def _try(self, step: Callable[[MemoryDataset], None], dataset: MemoryDataset) -> bool:
        """Perform a step that may write a dataset; if it cannot be written, lose it and return `False`.

        A task that puts it, or that reads a part of it, fails instead.
        """
        try:
            step(dataset)
        except Exception as error:  # formatters are foreign code
            failure = write_failure(error)
            _LOG.error("%s cannot be written, it is lost", dataset.ref, exc_info=error)
            self.lose(dataset.ref, failure)
            return False
        return True

    def _make_private(self, dataset: MemoryDataset) -> None:
        """Copy an object, except arrays that nothing else references; write it if it cannot be copied."""
        storage = dataset.ref.datasetType.storageClass
        used_bytes = self.used_bytes
        dataset.shared = False
        dataset.size_bytes, arrays = measure(dataset.content)
        if used_bytes + dataset.size_bytes > self._limit_bytes:
            self._move_to_file(dataset)
            return
        try:
            # After the copy, an array that was moved is referenced by the copy
            # alone, unless the task or another object still refers to it.
            dataset.content = deep_copy(dataset.content, storage, {id(each): each for each in arrays})
            private = unshared(arrays)
            if len(private) < len(arrays):
                dataset.content = deep_copy(dataset.content, storage, {id(each): each for each in private})
        except NotImplementedError:
            self._move_to_file(dataset)

    def _hand_out(self, dataset: MemoryDataset, ref: DatasetRef, parameters: _Parameters | None) -> Any:
        is_cutout = _is_cutout(dataset, ref, parameters)
        if not is_cutout and _only_formatter_reads(dataset, ref, parameters):
            self.background.write(dataset)  # the object stays in memory, for those that read all of it
            assert dataset.file is not None
            content = read_dataset(dataset.file, ref, parameters)
            if not self._is_read(ref.id):
                dataset.drop()
            return content
        if is_cutout:
            assert parameters is not None
            # A copy in any case: a view would keep the memory of the whole image.
            content = deep_copy(dataset.content[parameters["bbox"]], ref.datasetType.storageClass)
        elif dataset.is_table:
            content = as_read(dataset.content)
        else:
            content = _requested_part(dataset, ref, parameters)
        if not dataset.unwritten and not self._is_read(ref.id):
            dataset.drop()
            if dataset.file is None:
                del self._datasets[ref.id]
            return content
        if dataset.is_table or is_cutout:
            return content
        try:
            return deep_copy(content, ref.datasetType.storageClass)
        except NotImplementedError:
            # What cannot be copied is passed through a file, as the separable
            # engine passes everything.
            self._move_to_file(dataset)
            assert dataset.file is not None  # _move_to_file wrote it
            return read_dataset(dataset.file, ref, parameters)

    def _move_to_file(self, dataset: MemoryDataset) -> None:
        """Write a dataset to the RAM disk and release the object."""
        self.background.write(dataset)
        dataset.drop()


def _refs(by_type: Mapping[DatasetType, Collection[DatasetRef]]) -> Iterator[DatasetRef]:
    return (ref for refs in by_type.values() for ref in refs)


def _coerced(content: Any, ref: DatasetRef) -> Any:
    """Convert a dataset to the storage class of the repo's definition."""
    storage = ref.datasetType.storageClass
    content = storage.coerce_type(content)
    if not isinstance(content, storage.pytype):
        raise TypeError(
            f"Inconsistency between supplied object ({type(content)}) "
            f"and storage class type ({storage.pytype})"
        )
    return content


def _copy_provenance(provenance: DatasetProvenance) -> DatasetProvenance:
    """Return a copy: the executor adds to the original when the task reads again."""
    return DatasetProvenance(
        inputs=list(provenance.inputs),
        quantum_id=provenance.quantum_id,
        extras={key: dict(extra) for key, extra in provenance.extras.items()},
    )


def _is_cutout(dataset: MemoryDataset, ref: DatasetRef, parameters: _Parameters | None) -> bool:
    """Return whether a box within an image is read, which its own class takes as the formatter does.

    Writing a large image for its formatter takes seconds. A box that is not within the image is left to
    the formatter, which raises the error.
    """
    kind = type(dataset.content)
    return (
        (kind.__module__, kind.__name__) in _IMAGE_CLASSES
        and parameters is not None
        and parameters.keys() == {"bbox"}
        and ref.datasetType == dataset.ref.datasetType
        and isinstance(parameters["bbox"], type(dataset.content.bbox))  # others are converted
        and bool(dataset.content.bbox.contains(parameters["bbox"]))
    )


def _only_formatter_reads(dataset: MemoryDataset, ref: DatasetRef, parameters: _Parameters | None) -> bool:
    """Return whether a part of an object can be read from a file alone.

    The delegate of the storage class makes parts of objects in memory. The
    default delegate has no parameters; its components are attributes. Those
    with parameters, such as image planes, are not equal to what the formatter
    of ``lsst.images`` reads: their attributes have the projection, too.
    """
    storage, component = dataset.ref.datasetType.storageClass, ref.datasetType.component()
    if dataset.is_table:  # the formatter also converts, and selects columns by pattern
        return bool(parameters) or ref.datasetType != dataset.ref.datasetType
    if storage.delegateClass is not StorageClassDelegate:
        return False
    known = storage.allComponents()
    if parameters or component is None or component not in known:
        return bool(parameters)
    try:
        storage.delegate().getComponent(dataset.content, component)
    except AttributeError:
        return True
    return bool(known[component].parameters)


def _requested_part(dataset: MemoryDataset, ref: DatasetRef, parameters: _Parameters | None) -> Any:
    """Return the requested component and storage class; it may share memory with the dataset."""
    storage = dataset.ref.datasetType.storageClass
    requested = ref.datasetType.storageClass
    component = ref.datasetType.component()
    content, remaining = dataset.content, dict(parameters or {})
    if component in storage.derivedComponents:
        storage.validateParameters(remaining)
        content, remaining = storage.delegate().handleParameters(content, remaining), {}
    else:
        requested.validateParameters(remaining)
    if component is not None:
        if component not in storage.allComponents():
            parent = ref.datasetType.parentStorageClass
            assert parent is not None  # the dataset type of a component has it
            storage, content = parent, parent.coerce_type(content)
        content = storage.delegate().getComponent(content, component)
    content = post_process_get(content, requested, remaining, isComponent=component is not None)
    return requested.coerce_type(content)
