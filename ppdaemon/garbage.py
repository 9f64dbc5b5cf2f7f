# SPDX-License-Identifier: BSD-3-Clause
"""When the garbage collector of a daemon runs."""

import gc

__all__ = ("collect_seldom",)

YOUNG_OBJECTS = 20_000
"""New objects after which it runs; at most 5 MB of them are garbage. With the usual 2000 it would visit those
of a visit of 205 detectors again and again, for 1 to 25 ms, also while orders of the visit are to be sent.
Nearly all of them are freed without the collector, when the visit has ended."""


def collect_seldom() -> None:
    """Let the collector run seldom, and never visit what exists now: modules, and parts that stay until the
    end. A collection that visits them takes 40 ms.
    """
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS)
