# SPDX-License-Identifier: BSD-3-Clause
"""From an order to the end of a process, forked or spawned alike."""

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
from ppdaemon.worker.childsetup import Child, set_up_child
from ppdaemon.worker.main import run_role

__all__ = ("import_work", "live")


def import_work(config: NodeConfig) -> WorkModule:
    """Import all that the workers of a configuration need.

    Parameters
    ----------
    config : `~ppdaemon.config.NodeConfig`
        Names the modules.

    Returns
    -------
    work : `~ppdaemon.work.WorkModule`
        What workers do, its libraries set up.

    Raises
    ------
    ImportError
        Raised if a module is missing: it would be missed in each visit.
    """
    modules = [importlib.import_module(name) for name in (config.workers.work, *config.workers.preload)]
    work = cast(WorkModule, modules[0])
    work.set_up_libraries()
    return work


def live(
    order: ForkWorker,
    channel: socket.socket,
    lifeline: int,
    config: NodeConfig,
    work: Callable[[], WorkModule],
) -> NoReturn:
    """Be what the supervisor asked for, and end with its exit status.

    Parameters
    ----------
    order : `~ppdaemon.messages.ForkWorker`
        What this process is for.
    channel : `socket.socket`
        Its end of the channel.
    lifeline : `int`
        Read end of the supervisor's pipe.
    config : `~ppdaemon.config.NodeConfig`
        The node's configuration.
    work : `~collections.abc.Callable`
        Called after birth; returns what is done.
    """
    status = ExitCode.SOFTWARE
    try:
        set_up_child(
            Child(
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
        # Without the interpreter's own ending: its atexit functions and
        # finalizers are the zygote's, and libraries may wait in theirs.
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status)
