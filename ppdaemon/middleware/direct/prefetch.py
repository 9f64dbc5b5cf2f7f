# SPDX-License-Identifier: BSD-3-Clause
"""Inputs that are read before the image: one private object for each read that is expected.

Inputs without a region, above all calibrations, are cached for later visits,
too: as an original that no task ever gets. So are inputs with a region, such as
templates, if two visits in succession read them: a survey that stays in a field
will read them again, and any other one will not.
"""

import logging
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lsst.daf.butler import DatasetRef

from ppdaemon.middleware.butler.failures import describe
from ppdaemon.middleware.direct.copies import deep_copy, size_bytes
from ppdaemon.middleware.direct.originals import Original
from ppdaemon.middleware.direct.quanta import QuantumStep

__all__ = ("Prefetcher", "count_reads")

_LOG = logging.getLogger(__name__)

_VISIT_DIMENSIONS = frozenset({"exposure", "visit", "day_obs", "group"})
"""A dataset with one of these dimensions is useless for later visits."""

type _Key = tuple[object, str, str]
"""Dataset id, dataset type with component, storage class: what a task requests."""


@dataclass(frozen=True, slots=True)
class _CachedInput:
    original: Original
    size_bytes: int
    is_spatial: bool


def count_reads(steps: Iterable[QuantumStep]) -> Counter[DatasetRef]:
    """Return how often tasks will read each overall input.

    Inputs that are read in any case come first. Deferred ones follow, for
    which one read is assumed.
    """
    steps = list(steps)
    produced = {ref.id for step in steps for refs in step.quantum.outputs.values() for ref in refs}
    certain: Counter[DatasetRef] = Counter()
    likely: Counter[DatasetRef] = Counter()
    for step in steps:
        for dataset_type, refs in step.quantum.inputs.items():
            count = step.task.immediate.count(dataset_type.name)
            external = [ref for ref in refs if ref.id not in produced]
            certain.update({ref: count for ref in external if count})
            if dataset_type.name in step.task.deferred:
                likely.update(external)
    return certain + likely


class Prefetcher:
    """Reads inputs before the image, and caches some of them for later visits."""

    def __init__(self, limit_bytes: int):
        self._limit_bytes = limit_bytes
        """For the objects of one visit and, again, for those that are cached for later visits."""
        self._cache: OrderedDict[_Key, _CachedInput] = OrderedDict()
        self._prefetched: dict[_Key, list[Any]] = defaultdict(list)
        self._previous: frozenset[_Key] = frozenset()
        """Inputs with a region that the last visit has read."""

    @property
    def cached_bytes(self) -> int:
        """Memory of what is cached for later visits (`int`)."""
        return sum(cached.size_bytes for cached in self._cache.values())

    def discard_unread(self) -> None:
        """Release what a visit did not read; the cache stays."""
        self._prefetched.clear()

    def read(self, reads: Mapping[DatasetRef, int], get: Callable[[DatasetRef], Any]) -> int:
        """Read each dataset as often as given while there is room; return the bytes that are ready now.

        A dataset that cannot be read is logged; the task will read it again.
        """
        self._prefetched.clear()
        spatial = frozenset(_key(ref) for ref in reads if ref.dataId.dimensions.spatial)
        # Those of another place go at once: they take memory, and the field has changed.
        for key in [each for each in self._cache if self._cache[each].is_spatial and each not in spatial]:
            del self._cache[key]
        total = 0
        for ref, count in reads.items():
            try:
                total += self._read(ref, count, get, self._limit_bytes - total)
            except Exception as error:  # formatters are foreign code
                _LOG.warning("cannot prefetch %s, its task reads it again: %s", ref, describe(error))
        self._previous = spatial
        return total

    def pop(self, ref: DatasetRef) -> tuple[Any, bool]:
        """Remove a prefetched object and return it; the second value is whether there was one."""
        prefetched = self._prefetched.get(_key(ref))
        return (prefetched.pop(), True) if prefetched else (None, False)

    def _read(self, ref: DatasetRef, count: int, get: Callable[[DatasetRef], Any], room_bytes: int) -> int:
        key, storage = _key(ref), ref.datasetType.storageClass
        cached = self._cache.get(key)
        if cached is not None:
            self._cache.move_to_end(key)
            if cached.size_bytes * count > room_bytes:
                return 0
            self._prefetched[key] = [cached.original.copy() for _ in range(count)]
            return cached.size_bytes * count
        if room_bytes <= 0:
            return 0
        content = get(ref)
        size = size_bytes(content)
        if size * count > room_bytes:
            return 0
        try:
            original = self._add_to_cache(ref, content, size)
            if original is not None and original.shares_pages:
                # None gets the object that was read: its arrays would be in memory twice.
                objects = [original.copy() for _ in range(count)]
            else:
                objects = [content, *(deep_copy(content, storage) for _ in range(count - 1))]
        except NotImplementedError:
            objects = [content, *(get(ref) for _ in range(count - 1))]
        self._prefetched[key] = objects
        return size * count

    def _add_to_cache(self, ref: DatasetRef, content: Any, size: int) -> Original | None:
        """Cache an object if later visits can use it and there is room; return what was cached.

        `NotImplementedError` is raised if it cannot be copied.
        """
        key, is_spatial = _key(ref), bool(ref.dataId.dimensions.spatial)
        if not _VISIT_DIMENSIONS.isdisjoint(ref.dataId.dimensions.names):
            return None
        if size > self._limit_bytes or (is_spatial and key not in self._previous):
            return None
        original = Original(content, ref.datasetType.storageClass)
        self._cache[key] = _CachedInput(original, size, is_spatial)
        # Calibrations stay: each visit of the detector reads them. The least recently used goes first.
        oldest = [each for each in self._cache if self._cache[each].is_spatial]
        oldest += [each for each in self._cache if not self._cache[each].is_spatial]
        while self.cached_bytes > self._limit_bytes:
            del self._cache[oldest.pop(0)]
        return original


def _key(ref: DatasetRef) -> _Key:
    return ref.id, str(ref.datasetType.name), str(ref.datasetType.storageClass_name)
