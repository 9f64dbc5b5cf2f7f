# SPDX-License-Identifier: BSD-3-Clause
"""Keeps the pages of a zygote shared with its children.

A fork shares all memory until one side writes. Python writes whenever it looks at an object: it counts
references in the object itself. And what a child creates would fill the gaps between the zygote's objects,
page by page. Without both, a worker has half as much memory of its own.
"""

import ctypes
import gc
import sys

__all__ = ("keep_pages_shared",)

_FIELD = ctypes.c_uint32
"""The part of the reference count by which Python knows an immortal object."""
_GAPS = (*(1 << power for power in range(16, 9, -1)), *range(496, 0, -16))
"""Sizes of blocks that fill the gaps; larger ones are not in the heap."""
_LIBC = ctypes.CDLL(None)
_LIBC.malloc.restype = _LIBC.sbrk.restype = ctypes.c_void_p
_LIBC.malloc.argtypes = (ctypes.c_size_t,)
_LIBC.sbrk.argtypes = (ctypes.c_ssize_t,)
_LIBC.free.argtypes = (ctypes.c_void_p,)


def keep_pages_shared() -> int:
    """Make all objects of this process immortal, and leave them out of garbage collections, which are
    disabled; return their number.

    Python neither counts the references to immortal objects, as of `None`, nor deletes them. What the
    children create by themselves is counted, collected and deleted as ever.
    """
    gc.collect()
    gc.disable()
    number = _make_immortal() if _counts_are_known() else 0
    gc.freeze()  # a later collection would write into each object's header
    _fill_gaps()
    return number


def _counts_are_known() -> bool:
    """Return whether this Python has immortal objects, with the count where it is expected: an attempt on
    a new object shows it.
    """
    immortal, probe = sys.getrefcount(None), object()
    if _FIELD.from_address(id(None)).value != immortal or _FIELD.from_address(id(probe)).value != 1:
        return False
    _FIELD.from_address(id(probe)).value = immortal
    return sys.getrefcount(probe) == immortal


def _make_immortal() -> int:
    immortal = sys.getrefcount(None)
    objects = gc.get_objects()
    for each in objects:
        _FIELD.from_address(id(each)).value = immortal
    # Also what the collector does not know, such as texts and the code of functions: the list grows.
    for each in objects:
        for referred in gc.get_referents(each):
            if sys.getrefcount(referred) != immortal:
                _FIELD.from_address(id(referred)).value = immortal
                objects.append(referred)
    return len(objects)


def _fill_gaps() -> None:
    """Allocate what is free within the C library's heap, so that it grows from now on: 1 MB, in 1 ms."""
    _LIBC.malloc_trim(0)  # what is free at its end
    end = _LIBC.sbrk(0)
    for size in _GAPS:
        while (block := _LIBC.malloc(size)) is not None:
            if block > end:  # of new memory
                _LIBC.free(block)
                break
