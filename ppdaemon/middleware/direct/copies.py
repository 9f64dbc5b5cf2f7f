# SPDX-License-Identifier: BSD-3-Clause
"""Copies of datasets in memory, and an estimate of their size."""

import copy
import pickle
import sys
import weakref
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from lsst.daf.butler import StorageClass, StorageClassDelegate

__all__ = ("contains", "deep_copy", "measure", "size_bytes", "unshared")

_MAX_OBJECTS = 500
"""Objects that are visited to measure a dataset. Images and tables consist of
few large objects; a dataset of more objects is small in comparison."""
_ARRAY_ATTRIBUTES = ("image", "mask", "variance", "array")
"""Attributes of classes written in C++ that return the arrays."""
_LARGE_BYTES = 100_000
"""A smaller array is copied faster than its references are counted."""
_CONTAINERS = frozenset((dict, list, tuple, set, frozenset))


def deep_copy(content: Any, storage: StorageClass, instead: Mapping[int, Any] = MappingProxyType({})) -> Any:
    """Return a deep copy of a dataset that has the objects in `instead` in place of those with these ids.

    A class that has its own way of copying may ignore `instead`. `NotImplementedError` is raised if it cannot
    be copied.
    """
    try:
        delegate = storage.delegate()
    except TypeError:  # the storage class has no delegate
        delegate = StorageClassDelegate(storage)
    if type(delegate).copy is not StorageClassDelegate.copy:
        return delegate.copy(content)
    try:
        # Deep copies of pandas share the objects in cells; pickling does not.
        if type(content).__module__.partition(".")[0] == "pandas":
            return pickle.loads(pickle.dumps(content))
        return copy.deepcopy(content, dict(instead))
    except Exception as error:  # __deepcopy__ is foreign code and may raise anything
        raise NotImplementedError(f"{type(content)} cannot be copied: {error}") from error


def contains(content: Any, parts: Iterable[Any]) -> bool:
    """Return whether all these objects are in a dataset."""
    found = {id(each) for each, _ in _walk(content)}
    return all(id(part) in found for part in parts)


def measure(content: Any) -> tuple[int, list[Any]]:
    """Return the bytes of a dataset, and its large arrays that own their memory."""
    size_bytes, movable = 0, []
    for each, leaf_bytes in _walk(content):
        size_bytes += leaf_bytes
        if leaf_bytes >= _LARGE_BYTES and _is_movable(each):
            movable.append(each)
    return size_bytes, movable


def _is_movable(content: Any) -> bool:
    """Return whether each user of a large object's memory has a reference to the object: not so for views."""
    return (
        type(content) is np.ndarray
        and bool(content.flags.owndata)
        and not content.dtype.hasobject
        and not weakref.getweakrefcount(content)
    )


def unshared(arrays: Sequence[Any]) -> list[Any]:
    """Return the arrays that are referenced only by this sequence and by one other object."""
    reference = [np.empty(0)]  # referenced by a sequence only: it gives the count to compare with
    *counts, baseline = [sys.getrefcount(each) for each in [*arrays, reference[0]]]
    # The temporary list has one reference to each array, and the caller's sequence another.
    return [each for each, count in zip(arrays, counts, strict=True) if count <= baseline + 1]


def size_bytes(content: Any) -> int:
    """Return the bytes of the arrays in a dataset; memory that two arrays share counts twice."""
    return measure(content)[0]


def _walk(content: Any) -> Iterator[tuple[Any, int]]:
    """Yield a dataset and the objects in it, each once, with the bytes of those that contain no others."""
    seen: set[int] = set()
    pending = [content]
    while pending and len(seen) < _MAX_OBJECTS:
        each = pending.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        leaf_bytes = _leaf_bytes(each)
        yield each, leaf_bytes or 0
        if leaf_bytes is None:
            pending.extend(_parts(each))


def _leaf_bytes(content: Any) -> int | None:
    """Return the size of an object that contains no other objects, `None` for a container."""
    if type(content) in _CONTAINERS:  # first: metadata of tasks have many
        return None
    if isinstance(content, np.ndarray):
        return int(content.nbytes)
    if isinstance(content, (str, bytes, bytearray)):
        return len(content)
    if isinstance(content, (int, float, type, type(None), np.generic)):
        return 0
    size = getattr(content, "nbytes", None)  # an Arrow table
    return size if isinstance(size, int) else None


def _parts(content: Any) -> Collection[Any]:
    if isinstance(content, (dict, Mapping)):  # abstract classes take longer to look for
        return list(content.values())
    if isinstance(content, (list, tuple, set, frozenset)):
        return list(content)
    if fields := getattr(content, "__dict__", None):
        return list(fields.values())
    names = [*getattr(type(content), "__slots__", ()), *_ARRAY_ATTRIBUTES]
    return [getattr(content, name, None) for name in names]
