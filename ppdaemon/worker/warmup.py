# SPDX-License-Identifier: BSD-3-Clause
"""The zygote's warm-up: what each worker's first visit would do first, done once before any fork.

The warm-up runs code of the site, its pipelines. If it leaves something that a fork must not copy, the
zygote starts again without it: workers are slower in their first visit, and no night stops.
"""

import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from ppdaemon.config import NodeConfig
from ppdaemon.processes import children, kill_orphans
from ppdaemon.work import WorkModule
from ppdaemon.worker.imports import ThreadStarter, observed_imports

__all__ = ("LIMIT_S", "LeftOpen", "restart_cold", "time_limit", "warm_up")

LIMIT_S = 40.0
"""Time limit of the warm-up; the supervisor's for the whole start is three times as long. Its signal
restarts the zygote: what hangs may be a pipeline on a filesystem that does not answer."""


class LeftOpen(RuntimeError):
    """The warm-up has left something that children must not inherit."""


def warm_up(work: WorkModule, config: NodeConfig) -> Any:
    """Warm up; raise `LeftOpen` with the names of what is left, also if the warm-up has failed."""
    descriptors, processes, starter = _descriptors(), children(), ThreadStarter()
    try:
        with observed_imports(starter.around):
            return work.warm_up(config)
    finally:
        left = [f"a thread, of {starter.module}"] if starter.find(config.workers.work) else []
        left += [f"{path} open" for number, path in _descriptors().items() if descriptors.get(number) != path]
        left += [f"process {child}" for child in children() - processes]
        if left:
            raise LeftOpen(", ".join(left))


def _descriptors() -> dict[int, str]:
    """Return what each descriptor of this process is open on."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # the listing's own
            continue
    return found


@contextmanager
def time_limit(control: socket.socket) -> Iterator[None]:
    """Restart the zygote cold if the block takes longer than `LIMIT_S`."""
    reason = f"it takes longer than {LIMIT_S:g} s"
    signal.signal(signal.SIGALRM, lambda *_: restart_cold(reason, control))
    signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)


def restart_cold(reason: str, control: socket.socket) -> NoReturn:
    """Replace this process by a new zygote that does not warm up, with the same channel and supervisor;
    threads, and descriptors that are not inherited, end with the old one.
    """
    print(f"the zygote starts again without a warm-up: {reason}", file=sys.stderr, flush=True)
    kill_orphans(())
    control.set_inheritable(True)
    os.execv(sys.executable, [*sys.orig_argv, "--cold", reason])
