# SPDX-License-Identifier: BSD-3-Clause
"""The end of processes that workers have left behind.

What a worker has detached from itself comes to its zygote when the worker
ends, and to the supervisor when that zygote ends.
"""

import asyncio
import contextlib
import os
from collections.abc import Callable, Collection

from ppdaemon.processes import children, end_orphans

__all__ = ("end_children", "reap")

PAUSE_S = 0.01


def reap(pids: Collection[int]) -> None:
    """Reap those children, which nobody else waits for, that have ended."""
    for pid in pids:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


async def end_children(mono: Callable[[], float], limit_s: float) -> None:
    """Kill all children, and theirs as they come, until none is left or the time is over."""
    until = mono() + limit_s
    while (left := children()) and mono() < until:
        end_orphans(())
        reap(left)
        await asyncio.sleep(PAUSE_S)
