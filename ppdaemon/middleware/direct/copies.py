# SPDX-License-Identifier: BSD-3-Clause
"""Copies of datasets in memory, and about how much memory they take."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from lsst.daf.butler import StorageClass, StorageClassDelegate

__all__ = ("copied", "size_bytes")

_FEW = 500
"""Objects looked at to find out a size: images and tables have few, and big
ones; what has more of them is small in comparison."""
_PIXELS = ("image", "mask", "variance", "array")
"""Where classes written in C++ keep what counts."""


def copied(content: Any, storage: StorageClass) -> Any:
    """Copy a dataset.

    Parameters
    ----------
    content : `object`
        The dataset.
    storage : `lsst.daf.butler.StorageClass`
        Knows how it is copied; else a deep copy is made.

    Returns
    -------
    copy : `object`
        Shares nothing with it that could be changed.

    Raises
    ------
    NotImplementedError
        Raised if it cannot be copied.
    """
    try:
        delegate = storage.delegate()
    except TypeError:  # says that it has none
        delegate = StorageClassDelegate(storage)
    return delegate.copy(content)


def size_bytes(content: Any) -> int:
    """Return about how much memory a dataset takes.

    Parameters
    ----------
    content : `object`
        The dataset.

    Returns
    -------
    size : `int`
        Bytes of all arrays in it, as far as they are found; arrays that
        share their memory count each.
    """
    total, looked, seen = 0, 0, set[int]()
    waiting = [content]
    while waiting and looked < _FEW:
        each = waiting.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        looked += 1
        if (size := _own_bytes(each)) is not None:
            total += size
        else:
            waiting.extend(_parts(each))
    return total


def _own_bytes(content: Any) -> int | None:
    """Return the size of what has nothing in it, `None` of anything else."""
    if isinstance(content, np.ndarray):
        return int(content.nbytes)
    if isinstance(content, (str, bytes, bytearray)):
        return len(content)
    if isinstance(content, (int, float, type, type(None), np.generic)):
        return 0
    size = getattr(content, "nbytes", None)  # an Arrow table
    return size if isinstance(size, int) else None


def _parts(content: Any) -> Iterable[Any]:
    if isinstance(content, Mapping):
        return list(content.values())
    if isinstance(content, (list, tuple, set, frozenset)):
        return list(content)
    if fields := getattr(content, "__dict__", None):
        return list(fields.values())
    names = [*getattr(type(content), "__slots__", ()), *_PIXELS]
    return [getattr(content, name, None) for name in names]
