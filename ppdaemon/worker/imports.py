# SPDX-License-Identifier: BSD-3-Clause
"""Observes imports: which one starts a thread, and what they cost in a worker.

A process with threads cannot be forked. What a worker imports by itself costs its first visit
time, and memory that the zygote would share.
"""

import contextlib
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from importlib.machinery import ExtensionFileLoader, SourceFileLoader
from pathlib import Path
from typing import Any

__all__ = ("ImportCosts", "ThreadStarter", "observed_imports", "thread_names")

type Around = Callable[[str], AbstractContextManager[None]]
"""Returns a context for the import of a module. Modules that it imports are within."""

LOADERS = (
    (SourceFileLoader, "exec_module"),
    # Libraries are loaded in the first function; their initialization may start threads, too.
    (ExtensionFileLoader, "create_module"),
    (ExtensionFileLoader, "exec_module"),
)
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def observed_imports(around: Around) -> Iterator[None]:
    """Run each import in a context, which takes some 10 us for each."""
    # A finder in `sys.meta_path` would be called before the import only.
    functions = [(loader, name, getattr(loader, name)) for loader, name in LOADERS]
    for loader, name, function in functions:
        setattr(loader, name, _within(around, function))
    try:
        yield
    finally:
        for loader, name, function in functions:
            setattr(loader, name, function)


def _within(around: Around, function: Any) -> Any:
    def load(loader: Any, module_or_spec: Any) -> Any:
        with around(getattr(module_or_spec, "__name__", None) or module_or_spec.name):
            return function(loader, module_or_spec)

    return load


class ThreadStarter:
    """Finds the innermost module whose import starts a thread."""

    def __init__(self) -> None:
        self.module = ""
        """Empty if no module has."""
        self._before = len(os.listdir("/proc/self/task"))

    @contextlib.contextmanager
    def around(self, module: str) -> Iterator[None]:
        """Count the threads after an import."""
        try:
            yield
        finally:
            self.find(module)

    def find(self, module: str) -> bool:
        """Return whether this import, which has ended, or one within it has started a thread."""
        if not self.module and len(os.listdir("/proc/self/task")) > self._before:
            self.module = module
        return bool(self.module)


class ImportCosts:
    """Adds up the time and the memory of imports."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        """By module; without modules that were imported within another import."""
        self.memory_bytes = 0
        """Growth of this process's anonymous memory in all imports."""
        self._within = False

    @contextlib.contextmanager
    def around(self, module: str) -> Iterator[None]:
        """Measure an import that is not within another one."""
        if self._within:
            yield
            return
        self._within = True
        begin, before = time.perf_counter(), _memory_bytes()
        try:
            yield
        finally:
            self._within = False
            self.seconds[module] += time.perf_counter() - begin
            self.memory_bytes += max(0, _memory_bytes() - before)

    def slowest(self, number: int) -> list[str]:
        """Return the names of the slowest modules."""
        return sorted(self.seconds, key=lambda module: -self.seconds[module])[:number]


def _memory_bytes() -> int:
    _, resident, shared, *_ = map(int, Path("/proc/self/statm").read_text().split())
    return (resident - shared) * PAGE_BYTES


def thread_names() -> list[str]:
    """Return the names that the kernel has for the threads of this process."""
    names = []
    for task in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            names.append(Path(f"/proc/self/task/{task}/comm").read_text().strip())
    return names
