# SPDX-License-Identifier: BSD-3-Clause
"""Runs a process from its order to its exit, whether it was forked or spawned."""

import importlib
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable
from typing import NoReturn, cast

from ppdaemon.config import NodeConfig
from ppdaemon.errors import PPDaemonError
from ppdaemon.messages import ForkWorker
from ppdaemon.states import ExitCode
from ppdaemon.work import WorkModule
from ppdaemon.worker.childsetup import ChildSettings, set_up_child
from ppdaemon.worker.main import run_role

__all__ = ("import_work", "run_child")


def import_work(config: NodeConfig) -> WorkModule:
    """Import the modules that the workers of a configuration need, and set up their libraries.
    Raise `ImportError` if one is missing: no visit could be processed.
    """
    modules = [importlib.import_module(name) for name in (config.workers.work, *config.workers.preload)]
    work = cast(WorkModule, modules[0])
    work.set_up_libraries()
    return work


def run_child(
    order: ForkWorker,
    channel: socket.socket,
    lifeline: int,
    config: NodeConfig,
    work: Callable[[], WorkModule],
) -> NoReturn:
    """Set up this child, run its role, and exit with its status. `work` is called after the setup."""
    status = ExitCode.SOFTWARE
    try:
        set_up_child(
            ChildSettings(
                title=f"ppdaemon {order.role} {order.slot if order.role == 'worker' else ''}".strip(),
                log=order.log,
                lifeline=lifeline,
                keep=(channel.fileno(), lifeline),
                nice=config.workers.nice,
                seed=time.time_ns() ^ os.getpid(),
            )
        )
        status = run_role(order, channel, config, work())
    except BaseException as error:
        traceback.print_exc()
        if isinstance(error, PPDaemonError):
            status = error.exit_code
    finally:
        # Without the interpreter's shutdown: its atexit functions and finalizers
        # belong to the zygote, and those of libraries may wait for ever.
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status)
