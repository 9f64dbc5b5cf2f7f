# SPDX-License-Identifier: BSD-3-Clause
"""Keeps the pages of a zygote shared with its children.

A fork shares all memory until one side writes. Python writes whenever it looks at an object: it counts
references in the object itself. Of what the zygote has imported, a worker would copy 25 MB in its start
and 20 MB more in its first visit, at some microseconds per page.
"""

import ctypes
import gc
import sys

__all__ = ("keep_pages_shared",)

_FIELD = ctypes.c_uint32
"""The part of the reference count by which Python knows an immortal object."""


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
