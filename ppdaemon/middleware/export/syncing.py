# SPDX-License-Identifier: BSD-3-Clause
"""Syncs many files at once."""

import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

from ppdaemon.durable import begin_sync, sync

__all__ = ("sync_all",)

AT_ONCE = 8
"""Files that are synced at once; 16 are not faster."""
LONG_S = 0.001
"""For a file whose journal is committed: an idle disk takes a tenth of it, a busy one ten times as long."""


def sync_all(paths: Iterable[Path | str], clock: Callable[[], float] = time.perf_counter) -> None:
    """Wait until all these files, or the names in folders, are on the disk.

    All are begun, then the first one is synced alone: that commits the filesystem's journal for all. What
    is left is to flush the disk's cache once for each. On a busy disk with ext4 that took 127 ms for 21
    files, and 44 ms by threads, for which the kernel does it together; on an idle one 2 ms for 14, and 3.5
    by threads. So these are started when one file takes long.
    """
    paths = list(paths)
    for path in paths:
        begin_sync(path)
    left = iter(paths)
    for path in islice(left, 1):
        sync(path)
    for path in left:
        begin = clock()
        sync(path)
        if clock() - begin > LONG_S:
            break
    if others := list(left):
        with ThreadPoolExecutor(min(len(others), AT_ONCE), "sync") as threads:
            for _ in threads.map(sync, others):
                pass
