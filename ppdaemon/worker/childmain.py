# SPDX-License-Identifier: BSD-3-Clause
"""Runs a process from its order to its exit, whether it was forked or spawned."""

import importlib
import os
import pkgutil
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import NoReturn, cast

from ppdaemon.config import NodeConfig
from ppdaemon.errors import ConfigError, PPDaemonError
from ppdaemon.messages import ForkWorker, Role
from ppdaemon.states import ExitCode
from ppdaemon.work import WorkModule
from ppdaemon.worker.childsetup import ChildSettings, set_up_child
from ppdaemon.worker.imports import ThreadStarter, observed_imports
from ppdaemon.worker.leftovers import Leftovers
from ppdaemon.worker.main import Inherited, run_role
from ppdaemon.yamlfile import KeyPath, did_you_mean

__all__ = ("import_modules", "import_work", "inherited", "niceness", "run_child")

ASKER_NICE = 1
"""Behind the supervisor only."""


def import_modules(config: NodeConfig) -> Iterator[tuple[KeyPath, str]]:
    """Import the modules that the workers of a configuration need, and set up their libraries; yield the
    key and the problem of each module that cannot be imported, or that starts a thread in a process
    that will fork.
    """
    workers = config.workers
    steps: list[tuple[KeyPath, str, Callable[[str], object]]] = [
        (("workers", "work"), workers.work, importlib.import_module),
        *(
            (("workers", "preload", number), name, importlib.import_module)
            for number, name in enumerate(workers.preload)
        ),
        (("workers", "work"), workers.work, _set_up_libraries),
    ]
    for key, name, step in steps:
        if problem := _problem_of(step, name, config):
            yield key, problem


def import_work(config: NodeConfig) -> WorkModule:
    """Import as `import_modules` does. Raise `ConfigError` with all problems: no visit could be processed."""
    if problems := [f"{'.'.join(map(str, key))}: {text}" for key, text in import_modules(config)]:
        raise ConfigError(problems)
    return cast(WorkModule, sys.modules[config.workers.work])


def inherited(config: NodeConfig) -> Inherited:
    """Import as `import_work` does, and return what a process needs for its role."""
    work = import_work(config)
    return Inherited(work, Leftovers(config.workers.preload, config.workers.allowed_threads))


def _set_up_libraries(name: str) -> None:
    if (work := sys.modules.get(name)) is not None:
        cast(WorkModule, work).set_up_libraries()


def _problem_of(step: Callable[[str], object], name: str, config: NodeConfig) -> str:
    starter = ThreadStarter()
    try:
        with observed_imports(starter.around):
            step(name)
    except (Exception, SystemExit) as error:  # the module's code may raise anything, or be a script
        if isinstance(error, ImportError):
            return f"{name} cannot be imported: {error}{_hint(name, error)}"
        traceback.print_exc()
        return f"{name} cannot be imported: {type(error).__name__}: {error}"
    if config.workers.start == "fork" and starter.find(name):
        return (
            f"{name}: {starter.module} starts a thread when it is imported, and a process with threads cannot"
            " fork workers: set this library's variable against it in workers.environment, or leave the"
            " module out, so that each worker imports it by itself, or set workers.start: spawn"
        )
    return ""


def _hint(name: str, error: ImportError) -> str:
    """Return the most similar module beside one that does not exist, if that is within `name`."""
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if not missing or not f"{name}.".startswith(f"{missing}."):
        return ""
    parent, _, _ = missing.rpartition(".")
    path = getattr(sys.modules.get(parent), "__path__", None) if parent else None
    if parent and not path:
        return ""
    prefix = f"{parent}." if parent else ""
    return did_you_mean(missing, [prefix + each.name for each in pkgutil.iter_modules(path)])


def niceness(role: Role, config: NodeConfig) -> int:
    """Return by how much a process is nicer than the supervisor."""
    nice = config.workers.nice
    # All workers of a visit wait for the asker, and it works for a fraction of a second: beside those that
    # copy and compute it would get its share as one among hundreds.
    return min(nice, ASKER_NICE) if role == "asker" else nice


def run_child(
    order: ForkWorker,
    channel: socket.socket,
    lifeline: int,
    config: NodeConfig,
    inherit: Callable[[], Inherited],
) -> NoReturn:
    """Set up this child, run its role, and exit with its status. `inherit` is called after the setup."""
    status = ExitCode.SOFTWARE
    try:
        set_up_child(
            ChildSettings(
                title=f"ppdaemon {order.role} {order.slot if order.role == 'worker' else ''}".strip(),
                log=order.log,
                lifeline=lifeline,
                keep=(channel.fileno(), lifeline),
                nice=niceness(order.role, config),
                seed=time.time_ns() ^ os.getpid(),
            )
        )
        status = run_role(order, channel, config, inherit())
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
