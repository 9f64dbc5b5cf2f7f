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
from ppdaemon.errors import ConfigError, PPDaemonError
from ppdaemon.messages import ForkWorker
from ppdaemon.states import ExitCode
from ppdaemon.work import WorkModule
from ppdaemon.worker.childsetup import ChildSettings, set_up_child
from ppdaemon.worker.imports import ThreadStarter, observed_imports
from ppdaemon.worker.main import run_role

__all__ = ("import_without_threads", "import_work", "run_child", "thread_problem")


def import_work(config: NodeConfig, check: Callable[[str, str], None] = lambda key, name: None) -> WorkModule:
    """Import the modules that the workers of a configuration need, and set up their libraries.

    Raise `ConfigError` if one cannot be imported: no visit could be processed. `check` is called
    after each import with the key of the configuration and the module.
    """
    modules = []
    for key, name in (
        ("workers.work", config.workers.work),
        *(("workers.preload", name) for name in config.workers.preload),
    ):
        try:
            modules.append(importlib.import_module(name))
        except ImportError as error:
            raise ConfigError([f"{key}: {name} cannot be imported: {error}"]) from error
        check(key, name)
    work = cast(WorkModule, modules[0])
    work.set_up_libraries()
    check("workers.work", config.workers.work)
    return work


def import_without_threads(config: NodeConfig) -> WorkModule:
    """Import as `import_work` does, in a process that will fork. Raise `ConfigError` if an import
    starts a thread.
    """
    starter = ThreadStarter()

    def check(key: str, name: str) -> None:
        if starter.find(name):
            raise ConfigError([f"{key}: {thread_problem(name, starter)}"])

    with observed_imports(starter.around):
        return import_work(config, check)


def thread_problem(name: str, starter: ThreadStarter) -> str:
    """Return what an operator can do about a module that starts a thread."""
    return (
        f"{name}: {starter.module} starts a thread when it is imported, and a process with threads cannot"
        " fork workers: set this library's variable against it in workers.environment, or leave the module"
        " out, so that each worker imports it by itself, or set workers.start: spawn"
    )


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
