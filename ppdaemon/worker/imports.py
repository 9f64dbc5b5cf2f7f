# SPDX-License-Identifier: BSD-3-Clause
"""Imports modules, and finds the one that starts a thread: a process with threads cannot be forked."""

import contextlib
import os
from collections.abc import Iterator
from importlib.machinery import ExtensionFileLoader, SourceFileLoader
from pathlib import Path
from typing import Any

__all__ = ("ThreadStarter", "thread_names", "watch_threads")


class ThreadStarter:
    """The innermost module whose import has started a thread."""

    def __init__(self) -> None:
        self.module = ""
        """Empty if no module has."""
        self._before = len(os.listdir("/proc/self/task"))

    def imported(self, module: str) -> None:
        """Count the threads after an import; modules that import others are reported after those."""
        if not self.module and len(os.listdir("/proc/self/task")) > self._before:
            self.module = module

    def find(self, module: str) -> bool:
        """Return whether the import of a module, which has ended, has started a thread."""
        self.imported(module)  # it may be built in, or loaded in an unusual way
        return bool(self.module)


@contextlib.contextmanager
def watch_threads() -> Iterator[ThreadStarter]:
    """Count the threads after the import of each module, which takes some 10 us."""
    starter = ThreadStarter()
    # A finder in `sys.meta_path` would see an import before it has happened. Libraries are
    # loaded in `create_module`, whose initialization may start threads.
    patched = [
        (loader, name, getattr(loader, name))
        for loader, name in (
            (SourceFileLoader, "exec_module"),
            (ExtensionFileLoader, "create_module"),
            (ExtensionFileLoader, "exec_module"),
        )
    ]
    for loader, name, function in patched:
        setattr(loader, name, _counting(function, starter))
    try:
        yield starter
    finally:
        for loader, name, function in patched:
            setattr(loader, name, function)


def _counting(function: Any, starter: ThreadStarter) -> Any:
    def load(loader: Any, module_or_spec: Any) -> Any:
        try:
            return function(loader, module_or_spec)
        finally:
            starter.imported(getattr(module_or_spec, "__name__", None) or module_or_spec.name)

    return load


def thread_names() -> list[str]:
    """Return the names that the kernel has for the threads of this process."""
    names = []
    for task in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            names.append(Path(f"/proc/self/task/{task}/comm").read_text().strip())
    return names
