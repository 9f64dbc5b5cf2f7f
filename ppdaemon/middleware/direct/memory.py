# SPDX-License-Identifier: BSD-3-Clause
"""A Butler that hands on objects: what a task puts, the next one gets, without a file in between.

An object belongs to one task at a time. Whoever reads a dataset last gets the
object itself; who reads before gets a copy, and so does a reader of what is
still to be written. Objects that one task has put may share memory, so none
of them is given away while another of them is still needed. Tasks that may
read again, or go on with what they have put, are given copies, and copies are
taken from them.
"""

import logging
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lsst.daf.butler import (
    ButlerMetrics,
    DatasetProvenance,
    DatasetRef,
    DatasetType,
    DimensionUniverse,
    LimitedButler,
    StorageClass,
    StorageClassFactory,
)
from lsst.daf.butler.datastore.generic_base import post_process_get
from lsst.daf.butler.registry import ConflictingDefinitionError

from ppdaemon.middleware.direct.copies import copied, size_bytes
from ppdaemon.middleware.direct.files import DatasetFile, DatasetWriter, read_dataset
from ppdaemon.middleware.direct.quanta import Step
from ppdaemon.middleware.direct.scribe import Scribe

__all__ = ("Held", "Made", "MemoryButler", "Source")

_LOG = logging.getLogger(__name__)

_BIG_BYTES = 1_000_000
"""Smaller datasets are written in the end: a thread beside the tasks would
take more from them than it saves."""

type Source = Callable[[DatasetRef, Mapping[str, Any] | None], Any]
"""Returns an overall input, an object that nobody else has."""

_Parameters = Mapping[str, Any]


@dataclass(slots=True)
class Held:
    """A dataset that a task has put."""

    ref: DatasetRef
    """As the repo defines it."""
    family: uuid.UUID | None
    """Quantum whose task has put it; `None` for what shares nothing."""
    content: Any = None
    file: DatasetFile | None = None
    """Where it is written."""
    kept: bool = True
    """Whether it is in memory."""
    provenance: DatasetProvenance | None = None
    size_bytes: int = 0
    wanted: bool = False
    """Whether it is to be written for export."""
    given: bool = False
    """Whether a reader has the object itself."""

    @property
    def unwritten(self) -> bool:
        """Whether it is still to be written (`bool`)."""
        return self.wanted and self.file is None


@dataclass(frozen=True, slots=True)
class Made:
    """A dataset on its way from one process to another."""

    id: uuid.UUID
    content: Any = None
    file: tuple[Path, str] | None = None
    """Where it is instead, and the class that reads it."""
    provenance: DatasetProvenance | None = None
    size_bytes: int = 0
    shares: bool = False
    """Whether it may share memory with what its quantum has made besides."""


class MemoryButler(LimitedButler):
    """Hands on objects between the quanta of one visit.

    Parameters
    ----------
    universe : `lsst.daf.butler.DimensionUniverse`
        Dimensions of the repo.
    definitions : `~collections.abc.Mapping` [`str`, `DatasetType`]
        What the repo has for each dataset type.
    steps : `~collections.abc.Iterable` [`~ppdaemon.middleware.direct.quanta.Step`]
        Who will read what.
    source : `~collections.abc.Callable`
        Reads overall inputs.
    is_wanted : `~collections.abc.Callable`
        Tells by a dataset type's name whether it is to be written.
    writer : `~ppdaemon.middleware.direct.files.DatasetWriter`
        Writes what is too big.
    folder : `pathlib.Path`
        Where that goes.
    limit_bytes : `int`
        Memory for what tasks have put.
    scribe : `~ppdaemon.middleware.direct.scribe.Scribe`
        Is offered what is to be written.
    """

    def __init__(
        self,
        universe: DimensionUniverse,
        definitions: Mapping[str, DatasetType],
        steps: Iterable[Step],
        source: Source,
        is_wanted: Callable[[str], bool],
        writer: DatasetWriter,
        folder: Path,
        limit_bytes: int,
        scribe: Scribe,
    ):
        self.storageClasses = StorageClassFactory()
        self._metrics = ButlerMetrics()
        self._universe = universe
        self._definitions = definitions
        self._source = source
        self._is_wanted = is_wanted
        self._writer = writer
        self._folder = folder
        self._limit_bytes = limit_bytes
        self._scribe = scribe
        self._held: dict[uuid.UUID, Held] = {}
        self._readings: dict[uuid.UUID, Counter[uuid.UUID]] = {}
        """By dataset and quantum: how often it will be read."""
        self._kept: dict[uuid.UUID, frozenset[uuid.UUID]] = {}
        """By quantum: datasets that it may read any number of times."""
        self._made: set[uuid.UUID] = set()
        self._running: uuid.UUID | None = None
        self._goes_on = False
        """Whether the running task may change what it has put."""
        self._expect(steps)

    # What the engine calls.

    def begin(self, step: Step) -> None:
        """Let a quantum read and write.

        Parameters
        ----------
        step : `~ppdaemon.middleware.direct.quanta.Step`
            The quantum.
        """
        self._running = step.id
        self._goes_on = not step.task.orderly

    def end(self, step: Step) -> None:
        """Forget what nobody reads any more, now that a quantum has ended, or never begins.

        Parameters
        ----------
        step : `~ppdaemon.middleware.direct.quanta.Step`
            The quantum.
        """
        self._running = None
        self._kept.pop(step.id, None)
        for refs in step.quantum.inputs.values():
            for ref in refs:
                self._readings.get(ref.id, Counter()).pop(step.id, None)
        for held in list(self._held.values()):
            if self._is_read(held.ref.id):
                continue
            if not held.wanted:
                del self._held[held.ref.id]
            elif held.file is not None:
                held.content, held.kept = None, False

    def made_by(self, step: Step, *, in_files: bool = False) -> list[Made]:
        """Return what a quantum has put, for the memory of another process.

        Parameters
        ----------
        step : `~ppdaemon.middleware.direct.quanta.Step`
            The quantum.
        in_files : `bool`, optional
            Whether nothing is handed over as an object.

        Returns
        -------
        made : `list` [`Made`]
            Each dataset; of those that nobody needs no more than the id.
        """
        made = []
        for ref in _outputs(step):
            held = self._held.get(ref.id)
            if held is None:
                made += [Made(ref.id)] if ref.id in self._made else []
                continue
            if in_files and held.kept:
                self._move_out(held)
            file = None if held.file is None else (held.file.path, held.file.formatter)
            shares = held.family is not None
            made.append(Made(ref.id, held.content, file, held.provenance, held.size_bytes, shares))
        return made

    def adopt(self, step: Step, made: Iterable[Made]) -> None:
        """Take over what a quantum has put in another process.

        Parameters
        ----------
        step : `~ppdaemon.middleware.direct.quanta.Step`
            The quantum.
        made : `~collections.abc.Iterable` [`Made`]
            What `made_by` has returned there.
        """
        refs = {ref.id: ref for ref in _outputs(step)}
        for each in made:
            held = self._held_for(refs[each.id], step.id if each.shares else None)
            held.provenance, held.size_bytes = each.provenance, each.size_bytes
            if each.file is not None:
                held.content, held.kept = None, False
                held.file = DatasetFile(*each.file, held.ref)
            else:
                held.content = each.content
                if self.used_bytes + held.size_bytes > self._limit_bytes:
                    self._move_out(held)
            self._hold(held)

    @property
    def outputs(self) -> Sequence[Held]:
        """What is to be written (`~collections.abc.Sequence` [`Held`])."""
        return [held for held in self._held.values() if held.wanted]

    @property
    def used_bytes(self) -> int:
        """Memory of what tasks have put (`int`)."""
        return sum(held.size_bytes for held in self._held.values() if held.kept)

    # What tasks and executors call.

    def isWriteable(self) -> bool:  # noqa: N802
        """Return `True`."""
        return True

    @property
    def dimensions(self) -> DimensionUniverse:
        """Dimensions of the repo (`lsst.daf.butler.DimensionUniverse`)."""
        return self._universe

    def put(self, obj: Any, ref: DatasetRef, /, *, provenance: DatasetProvenance | None = None) -> DatasetRef:
        """Take a dataset over; see `lsst.daf.butler.LimitedButler`."""
        with self._metrics.instrument_put(_LOG, msg="Dataset handed on"):
            if ref.id in self._made:
                raise ConflictingDefinitionError(f"Dataset {ref} was put before.")
            held = self._held_for(ref, self._family(ref))
            held.provenance = None if provenance is None else _as_it_is(provenance)
            self._take(held, obj)
            self._hold(held)
        return ref

    def get(
        self,
        ref: DatasetRef,
        /,
        *,
        parameters: dict[str, Any] | None = None,
        storageClass: StorageClass | str | None = None,  # noqa: N803
    ) -> Any:
        """Give a dataset, a part of it, or a copy; see `lsst.daf.butler.LimitedButler`."""
        with self._metrics.instrument_get(_LOG, msg="Got dataset"):
            if storageClass is not None:
                ref = ref.overrideStorageClass(storageClass)
            held = self._held.get(ref.id)
            if held is None:
                if ref.id in self._made:
                    raise FileNotFoundError(f"Dataset {ref} was read by the last that needed it.")
                return self._source(ref, parameters)
            self._count(ref)
            if not held.kept:
                assert held.file is not None  # it was moved out
                return read_dataset(held.file, ref, parameters)
            return self._hand_out(held, ref, parameters)

    def stored_many(self, refs: Iterable[DatasetRef]) -> dict[DatasetRef, bool]:
        """Tell what is there; see `lsst.daf.butler.LimitedButler`."""
        return {ref: ref.id in self._made or ref.id not in self._predicted for ref in refs}

    def pruneDatasets(  # noqa: N802
        self,
        refs: Iterable[DatasetRef],
        *,
        disassociate: bool = True,
        unstore: bool = False,
        tags: Iterable[str] = (),
        purge: bool = False,
    ) -> None:
        """Forget datasets; see `lsst.daf.butler.LimitedButler`."""
        for ref in refs:
            self._held.pop(ref.id, None)
            self._made.discard(ref.id)

    # The rules.

    def _expect(self, steps: Iterable[Step]) -> None:
        """Note who will read and make what."""
        predicted: set[uuid.UUID] = set()
        for step in steps:
            kept: set[uuid.UUID] = set()
            for dataset_type, refs in step.quantum.inputs.items():
                often = step.task.direct.count(dataset_type.name)
                for ref in refs:
                    counter = self._readings.setdefault(ref.id, Counter())
                    counter[step.id] += often
                    if dataset_type.name in step.task.deferred or not step.task.orderly:
                        kept.add(ref.id)
            self._kept[step.id] = frozenset(kept)
            predicted.update(ref.id for refs in step.quantum.outputs.values() for ref in refs)
        self._predicted: Collection[uuid.UUID] = predicted

    def _take(self, held: Held, content: Any) -> None:
        """Take an object over, as what the repo says it is."""
        held.content = content
        needed = held.wanted or self._is_read(held.ref.id)
        try:
            held.content = _accepted(content, held.ref)
        except TypeError:
            if not self._writer.accepts(content, held.ref):
                raise
            if needed:
                self._move_out(held)  # only the formatter knows how it becomes what it should be
            return
        if not needed:
            return
        if held.family is not None:  # metadata and logs are small, and made of many objects
            held.size_bytes = size_bytes(held.content)
            if self._goes_on:
                self._part_with(held)
        if self.used_bytes + held.size_bytes > self._limit_bytes:
            self._move_out(held)

    def _held_for(self, ref: DatasetRef, family: uuid.UUID | None) -> Held:
        name = ref.datasetType.name
        own = ref.overrideStorageClass(self._definitions[name].storageClass)
        return Held(own, family, wanted=self._is_wanted(name))

    def _hold(self, held: Held) -> None:
        """Keep a dataset if somebody needs it."""
        self._made.add(held.ref.id)
        if held.wanted or self._is_read(held.ref.id):
            self._held[held.ref.id] = held
        if held.unwritten and held.size_bytes >= _BIG_BYTES:
            self._scribe.offer(held)

    def _part_with(self, held: Held) -> None:
        """Have something that whoever has put it cannot change any more."""
        try:
            held.content = copied(held.content, held.ref.datasetType.storageClass)
        except NotImplementedError:
            self._move_out(held)

    def _is_read(self, dataset: uuid.UUID) -> bool:
        """Tell whether some quantum may still read a dataset."""
        if any(self._readings.get(dataset, {}).values()):
            return True
        return any(dataset in kept for kept in self._kept.values())

    def _family(self, ref: DatasetRef) -> uuid.UUID | None:
        """Return with what a dataset may share memory; executors put metadata and logs of their own."""
        name = ref.datasetType.name
        return None if name.endswith(("_metadata", "_log")) else self._running

    def _count(self, ref: DatasetRef) -> None:
        """Note that the running quantum has read a dataset once."""
        counter = self._readings.get(ref.id)
        if self._running is not None and counter is not None and counter[self._running]:
            counter[self._running] -= 1

    def _hand_out(self, held: Held, ref: DatasetRef, parameters: _Parameters | None) -> Any:
        content = _part(held, ref, parameters)
        if held.given:
            _LOG.warning("%s is read again by the task that had it last", ref.datasetType.name)
            return content
        if self._may_give(held):
            held.given = True
            return content
        return self._copy(held, ref, parameters, content)

    def _may_give(self, held: Held) -> bool:
        """Tell whether nobody else needs an object, or one that it may share memory with."""
        if held.unwritten or self._is_read(held.ref.id):
            return False
        relatives = (
            other
            for other in self._held.values()
            if other is not held and other.family == held.family and other.kept and not other.given
        )
        return held.family is None or not any(
            other.unwritten or self._is_read(other.ref.id) for other in relatives
        )

    def _copy(self, held: Held, ref: DatasetRef, parameters: _Parameters | None, content: Any) -> Any:
        try:
            return copied(content, ref.datasetType.storageClass)
        except NotImplementedError:
            # What cannot be copied goes the way that everything goes in the
            # reference: through a file.
            self._move_out(held)
            assert held.file is not None  # it was written
            return read_dataset(held.file, ref, parameters)

    def _move_out(self, held: Held) -> None:
        """Write a dataset to the RAM disk and forget the object."""
        self._folder.mkdir(parents=True, exist_ok=True)
        if held.file is None:
            held.file = self._writer.write(held.content, held.ref, self._folder, held.provenance)
        held.content, held.kept = None, False


def _outputs(step: Step) -> Iterator[DatasetRef]:
    return (ref for refs in step.quantum.outputs.values() for ref in refs)


def _accepted(content: Any, ref: DatasetRef) -> Any:
    """Convert a dataset to the repo's storage class."""
    storage = ref.datasetType.storageClass
    content = storage.coerce_type(content)
    if not isinstance(content, storage.pytype):
        raise TypeError(
            f"Inconsistency between supplied object ({type(content)}) "
            f"and storage class type ({storage.pytype})"
        )
    return content


def _as_it_is(provenance: DatasetProvenance) -> DatasetProvenance:
    """Return what is known now: a task that reads on adds to it."""
    return DatasetProvenance(
        inputs=list(provenance.inputs),
        quantum_id=provenance.quantum_id,
        extras={key: dict(extra) for key, extra in provenance.extras.items()},
    )


def _part(held: Held, ref: DatasetRef, parameters: _Parameters | None) -> Any:
    """Return what of a dataset is asked for: it may be the object itself, or share memory with it."""
    storage = held.ref.datasetType.storageClass
    asked = ref.datasetType.storageClass
    component = ref.datasetType.component()
    content, given = held.content, dict(parameters or {})
    if component in storage.derivedComponents:
        storage.validateParameters(given)
        content, given = storage.delegate().handleParameters(content, given), {}
    else:
        asked.validateParameters(given)
    if component is not None:
        if component not in storage.allComponents():
            parent = ref.datasetType.parentStorageClass
            assert parent is not None  # a component's type knows it
            storage, content = parent, parent.coerce_type(content)
        content = storage.delegate().getComponent(content, component)
    content = post_process_get(content, asked, given, isComponent=component is not None)
    return asked.coerce_type(content)
