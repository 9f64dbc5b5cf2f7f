# SPDX-License-Identifier: BSD-3-Clause
"""Inputs that are read before any image: each reader has an object of its own waiting.

What has nothing to do with the place on the sky, the calibrations above all,
is kept for later visits, too: as one object that no task ever sees.
"""

import logging
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lsst.daf.butler import DatasetRef

from ppdaemon.middleware.butler.failures import describe
from ppdaemon.middleware.direct.copies import copied, size_bytes
from ppdaemon.middleware.direct.quanta import Step

__all__ = ("Prefetcher", "readings")

_LOG = logging.getLogger(__name__)

_PASSING = frozenset({"exposure", "visit", "day_obs", "group"})
"""What has one of these dimensions is of no use to later visits."""

type _Key = tuple[object, str, str]
"""Dataset id, dataset type with component, storage class: what a task asks for."""


@dataclass(frozen=True, slots=True)
class _Kept:
    content: Any
    size_bytes: int


def readings(steps: Iterable[Step]) -> Counter[DatasetRef]:
    """Return what tasks will read that no task makes, and how often.

    First comes what they read in any case, then what they read when they
    like, for which once is assumed.
    """
    steps = list(steps)
    made = {ref.id for step in steps for refs in step.quantum.outputs.values() for ref in refs}
    certain: Counter[DatasetRef] = Counter()
    likely: Counter[DatasetRef] = Counter()
    for step in steps:
        for dataset_type, refs in step.quantum.inputs.items():
            often = step.task.direct.count(dataset_type.name)
            external = [ref for ref in refs if ref.id not in made]
            certain.update({ref: often for ref in external if often})
            if dataset_type.name in step.task.deferred:
                likely.update(external)
    return certain + likely


class Prefetcher:
    """Objects that were read before they are asked for."""

    def __init__(self, limit_bytes: int):
        self._limit_bytes = limit_bytes
        """For one visit's objects and, the same again, for those that are kept for later visits."""
        self._kept: OrderedDict[_Key, _Kept] = OrderedDict()
        self._waiting: dict[_Key, list[Any]] = defaultdict(list)

    @property
    def kept_bytes(self) -> int:
        """Memory of what is kept for later visits (`int`)."""
        return sum(kept.size_bytes for kept in self._kept.values())

    def forget(self) -> None:
        """Drop what a visit did not read; keep what later ones may."""
        self._waiting.clear()

    def read(self, wanted: Mapping[DatasetRef, int], get: Callable[[DatasetRef], Any]) -> int:
        """Read each dataset so often, as far as there is room; return the bytes that wait now.

        What cannot be read is logged, and left to the task that will read the
        same again.
        """
        self._waiting.clear()
        total = 0
        for ref, often in wanted.items():
            try:
                total += self._read(ref, often, get, self._limit_bytes - total)
            except Exception as error:  # formatters are foreign code
                _LOG.warning("%s is not read ahead: %s", ref, describe(error))
        return total

    def take(self, ref: DatasetRef) -> tuple[Any, bool]:
        """Take an object for good; return it, and whether there was one."""
        waiting = self._waiting.get(_key(ref))
        return (waiting.pop(), True) if waiting else (None, False)

    def _read(self, ref: DatasetRef, often: int, get: Callable[[DatasetRef], Any], room_bytes: int) -> int:
        key = _key(ref)
        kept = self._kept.get(key)
        if kept is not None:
            self._kept.move_to_end(key)
            content, size = kept.content, kept.size_bytes
        elif room_bytes <= 0:
            return 0
        else:
            content = get(ref)
            size = size_bytes(content)
        if size * often > room_bytes:
            return 0
        waiting = self._waiting[key]
        if kept is None and not self._keep(ref, key, _Kept(content, size)):
            waiting.append(content)
        while len(waiting) < often:
            try:
                waiting.append(copied(content, ref.datasetType.storageClass))
            except NotImplementedError:
                waiting.append(get(ref))
        return size * often

    def _keep(self, ref: DatasetRef, key: _Key, kept: _Kept) -> bool:
        """Keep an object for later visits, if that makes sense and there is room."""
        dimensions = ref.dataId.dimensions
        if dimensions.spatial or not _PASSING.isdisjoint(dimensions.names):
            return False
        if kept.size_bytes > self._limit_bytes:
            return False
        self._kept[key] = kept
        while self.kept_bytes > self._limit_bytes:
            self._kept.popitem(last=False)
        return key in self._kept


def _key(ref: DatasetRef) -> _Key:
    return ref.id, str(ref.datasetType.name), str(ref.datasetType.storageClass_name)
