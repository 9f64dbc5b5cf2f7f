# SPDX-License-Identifier: BSD-3-Clause
"""Keeps the pages of a zygote shared with its children.

A fork shares all memory until one side writes. Python writes whenever it looks at an object: it counts
references in the object itself. And what a child creates would fill the gaps between the zygote's objects,
page by page. Without both, a worker has half as much memory of its own.

Huge pages make the fork itself faster: it copies the table of all pages, and the child's exit frees it.
What either side writes there is copied in pages of 4 kB: the memory of a worker is the same without them.
"""

import ctypes
import gc
import sys
from bisect import bisect
from collections.abc import Iterator
from pathlib import Path
from types import CodeType

__all__ = ("keep_pages_shared",)

_HUGE_BYTES = 2 << 20
_MADV_COLLAPSE = 25
"""Puts memory into huge pages at once; kernels before Linux 6.1 refuse it."""
_FIELD = ctypes.c_uint32
"""The part of the reference count by which Python knows an immortal object."""
_GAPS = (*(1 << power for power in range(16, 9, -1)), *range(496, 0, -16))
"""Sizes of blocks that fill the gaps; larger ones are not in the heap."""
_BLOCKS = range(512, 0, -16)
"""Sizes of blocks in the arenas of Python's own allocator."""
_GAPS_MAX_BYTES = 64_000_000
"""Many times what gaps take. Without a limit, nothing would end the filling where an allocator takes new
memory below the heap, such as another library's with an unlimited stack."""
_LIBC = ctypes.CDLL(None)
_LIBC.malloc.restype = _LIBC.sbrk.restype = ctypes.c_void_p
_LIBC.malloc.argtypes = (ctypes.c_size_t,)
_LIBC.sbrk.argtypes = (ctypes.c_ssize_t,)
_LIBC.free.argtypes = (ctypes.c_void_p,)
_ADVISE = _LIBC.madvise
_ADVISE.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_ALLOCATE = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_size_t)(("PyObject_Malloc", ctypes.pythonapi))


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
    _fill_arenas()
    _use_huge_pages()
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
        referents = gc.get_referents(each)
        if isinstance(each, CodeType):  # the collector does not know what it refers to
            referents += (each.co_consts, each.co_names, each.co_filename, each.co_name, each.co_qualname)
        for referred in referents:
            if sys.getrefcount(referred) != immortal:
                _FIELD.from_address(id(referred)).value = immortal
                objects.append(referred)
    return len(objects)


def _fill_gaps() -> None:
    """Allocate what is free within the C library's heap, so that it grows from now on: 1 MB, in 1 ms."""
    _LIBC.malloc_trim(0)  # what is free at its end
    end, left_bytes = _LIBC.sbrk(0), _GAPS_MAX_BYTES
    for size in _GAPS:
        while left_bytes > 0 and (block := _LIBC.malloc(size)) is not None:
            left_bytes -= size
            if block > end:  # of new memory
                _LIBC.free(block)
                break


def _fill_arenas() -> None:
    """Allocate what is free in the arenas of Python's allocator, so that new objects get new ones, close to
    each other: 4 MB, in 10 ms.
    """
    # Of an address within a region, an odd number is below it.
    bounds = [bound for begin, end, _ in _regions() for bound in (begin, end)]
    left_bytes = _GAPS_MAX_BYTES
    for size in _BLOCKS:
        while left_bytes > 0 and bisect(bounds, _ALLOCATE(size) or 0) % 2:
            left_bytes -= size


def _use_huge_pages() -> None:
    """Put memory into huge pages, where the kernel can: 0.1 s per 100 MB. Others are not missed."""
    for begin, end, used_bytes in _regions():
        if used_bytes > (end - begin) / 2:  # the rest of a huge page would take memory, too
            for address in range(-(-begin // _HUGE_BYTES) * _HUGE_BYTES, end - _HUGE_BYTES + 1, _HUGE_BYTES):
                _ADVISE(address, _HUGE_BYTES, _MADV_COLLAPSE)


def _regions() -> Iterator[tuple[int, int, int]]:
    """Yield begin, end and used bytes of the memory that can be written and is of no file."""
    bounds: list[int] = []
    for line in Path("/proc/self/smaps").read_text().splitlines():
        match line.split():
            case [limits, access, _, _, _, *name] if len(access) == 4:
                plain = "w" in access and name in ([], ["[heap]"])
                bounds = [int(limit, 16) for limit in limits.split("-")] if plain else []
            case ["Anonymous:", used_kb, _] if bounds:
                yield bounds[0], bounds[1], int(used_kb) * 1024
