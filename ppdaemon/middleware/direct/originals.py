# SPDX-License-Identifier: BSD-3-Clause
"""Datasets of which each task gets a copy: a large array is copied page by page, when it is written to."""

import mmap
import os
import weakref
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from lsst.daf.butler import StorageClass

from ppdaemon.middleware.direct.copies import contains, deep_copy, measure

__all__ = ("Original",)

_MADV_POPULATE_READ = 22
"""Maps pages without a fault for each; kernels before Linux 5.14 refuse it."""


class Original:
    """A dataset that nobody changes, and from which copies are made.

    A copy in new memory takes several times as long as the bytes alone: the kernel clears each page before it
    is written. Large arrays are therefore in a file in memory, which copies map privately. Tasks rarely
    write to calibrations and templates, so that a worker has most of them once.

    `NotImplementedError` is raised if the class of `content` cannot be copied.
    """

    def __init__(self, content: Any, storage: StorageClass):
        self._storage = storage
        arrays = [each for each in measure(content)[1] if each.flags.c_contiguous]
        self._pages = _Pages(arrays)
        # Not touched: pages of files that are mapped count for each mapping.
        self._arrays = self._pages.map(mmap.MAP_SHARED, mmap.PROT_READ)
        self._content = deep_copy(content, storage, _instead_of(arrays, self._arrays))
        if not contains(self._content, self._arrays):  # its class copies in another way
            self._pages, self._arrays = _Pages(()), []

    @property
    def shares_pages(self) -> bool:
        """Whether copies share the memory of large arrays until they are written to (`bool`)."""
        return bool(self._arrays)

    def copy(self) -> Any:
        """Return a deep copy."""
        arrays = self._pages.map(mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
        return deep_copy(self._content, self._storage, _instead_of(self._arrays, arrays))


def _instead_of(arrays: Sequence[Any], others: Sequence[Any]) -> dict[int, Any]:
    return {id(array): other for array, other in zip(arrays, others, strict=True)}


class _Pages:
    """The content of some contiguous arrays, each from the begin of a page."""

    def __init__(self, arrays: Sequence[Any]):
        self._size_bytes = 0
        self._parts: list[tuple[tuple[int, ...], Any, int]] = []
        """Shape, type and offset of each."""
        if not arrays:
            return
        self._descriptor = os.memfd_create("inputs", os.MFD_CLOEXEC)
        weakref.finalize(self, os.close, self._descriptor)
        with open(self._descriptor, "wb", closefd=False) as file:
            for each in arrays:
                self._parts.append((each.shape, each.dtype, self._size_bytes))
                file.seek(self._size_bytes)
                file.write(each.reshape(-1).view(np.uint8))
                self._size_bytes += -(-each.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
            file.truncate(self._size_bytes)

    def map(self, flags: int, access: int) -> list[Any]:
        """Return the arrays as parts of one mapping, which exists as long as one of them."""
        if not self._parts:
            return []
        mapping = mmap.mmap(self._descriptor, self._size_bytes, flags, access)
        if access & mmap.PROT_WRITE:
            with suppress(OSError):
                mapping.madvise(_MADV_POPULATE_READ)
        return [np.ndarray(shape, dtype, mapping, offset) for shape, dtype, offset in self._parts]
