# SPDX-License-Identifier: BSD-3-Clause
"""The process state that visits share: what a task has changed is restored, or named.

Covers state that changes the results, the logs or the time limits of a later visit without an
error. Does not cover open descriptors and memory: the supervisor limits those.
"""

import concurrent.futures.thread
import contextlib
import faulthandler
import multiprocessing
import os
import random
import shutil
import signal
import stat
import sys
import tempfile
import threading
import types
from collections.abc import Collection, Iterable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from ppdaemon.processes import children, has_children
from ppdaemon.worker.interpreterstate import INTERPRETER
from ppdaemon.worker.librarystate import LIBRARIES
from ppdaemon.worker.statepart import Part

__all__ = ("Leftovers", "ScratchFolder")

STACK = ("lsst", "builtins", "numpy", "random", "time")
"""Packages whose module attributes are compared."""
PLAIN = (bool, int, float, complex, str, bytes, tuple, frozenset)
"""Types of module attributes that are configuration; classes and what can be called are code.
Others are often created when they are first needed, and restoring would undo that."""
IDLE = (
    threading.Condition.wait.__code__,  # of queues and events, too
    concurrent.futures.thread._worker.__code__,  # it gets its work from a queue written in C
)
"""Functions in which threads wait for work."""
SEED_BYTES = 32
"""More than enough for different numbers in all visits."""
HARMLESS = frozenset({"tqdm"})
"""Packages whose threads do nothing but watch their own objects."""


class ScratchFolder:
    """The working directory of a worker, and its folder for temporary files; empty before each visit."""

    def __init__(self, path: Path):
        self.path = path

    def enter(self) -> None:
        """Create or empty the folder, and make it the working directory."""
        mode = 0
        with contextlib.suppress(FileNotFoundError):
            mode = os.lstat(self.path).st_mode
            if not stat.S_ISDIR(mode):
                self.path.unlink()  # never what a link leads to
        if not stat.S_ISDIR(mode):
            self.path.mkdir()
        elif stat.S_IMODE(mode) != 0o755:
            self.path.chmod(0o755)
        for entry in os.scandir(self.path):
            if entry.is_dir(follow_symlinks=False):
                _remove(entry.path)
            else:
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)
        os.chdir(self.path)

    def use_for_temporary_files(self) -> None:
        """Let this process and its children create temporary files in the folder."""
        os.environ["TMPDIR"] = str(self.path)
        tempfile.tempdir = str(self.path)


def _remove(folder: str) -> None:
    """Remove a folder, also one without permissions. What remains is a mount point, say."""
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):  # usually it is gone
        os.chmod(folder, 0o700)
        for parent, names, _ in os.walk(folder):  # a folder is listed after its permissions are set
            for name in names:
                if not os.path.islink(path := os.path.join(parent, name)):
                    os.chmod(path, 0o700)
        shutil.rmtree(folder, ignore_errors=True)


class Leftovers:
    """Finds what a visit has left in this process; created before the first one, or before the fork: see
    `begin`.

    `preloaded` are further packages whose module attributes are compared. Threads whose names
    match a pattern in `allowed_threads` are ignored.
    """

    def __init__(self, preloaded: Iterable[str] = (), allowed_threads: Collection[str] = ()):
        packages = {name.partition(".")[0] for name in (*STACK, *preloaded)}
        self._allowed_threads = allowed_threads
        self._before: dict[Part, Any] = dict.fromkeys(INTERPRETER)
        self._libraries: set[str] = set()
        self._attributes = _attributes(packages)
        self._importing = False
        self.begin()

    def begin(self) -> None:
        """Compare with the state of now; called in the child if this was created before the fork, which
        takes a tenth of the time of creating it.
        """
        self._add_libraries()
        self._before = {part: _read(part) for part in self._before}
        self._children = children()
        self._threads = {thread.ident for thread in threading.enumerate()}
        for number, (module, name, value) in enumerate(self._attributes):
            if (now := module.get(name)) is not value:
                self._attributes[number] = module, name, now
        self._start_method = multiprocessing.get_start_method(allow_none=True)

    @contextlib.contextmanager
    def around(self, _module: str) -> Iterator[None]:
        """Retain what an import changes, since it is not run again. Takes about 1 ms for an import
        that is not within another one.
        """
        if self._importing:
            yield
            return
        self._importing = True
        # What a task has changed before the import is restored nevertheless.
        parts = [part for part, before in self._before.items() if _is_as_before(part, before)]
        attributes = [
            number
            for number, (module, name, value) in enumerate(self._attributes)
            if module.get(name) is value
        ]
        try:
            yield
        finally:
            self._importing = False
            self._before |= {part: _read(part) for part in parts}
            for number in attributes:
                module, name, _ = self._attributes[number]
                self._attributes[number] = module, name, module.get(name)
            self._add_libraries()

    def _add_libraries(self) -> None:
        """Compare the state of libraries that have been imported, from now on."""
        for module, parts in LIBRARIES.items():
            if module in sys.modules and module not in self._libraries:
                self._libraries.add(module)
                self._before |= {part: _read(part) for part in parts()}

    def restore(self) -> tuple[list[str], list[str]]:
        """Restore what can be restored. Return the names of what was restored, and of what only a
        new process does not have.
        """
        restored: list[str] = []
        remaining: list[str] = []
        try:
            self._restore(restored, remaining)
        except Exception as error:  # a task may have replaced a function that is used here
            remaining.append(f"what raises {type(error).__name__}")
        return restored, remaining

    def _restore(self, restored: list[str], remaining: list[str]) -> None:
        for part, before in self._before.items():
            if _is_as_before(part, before):
                continue
            if part.restore is not None:
                # A part that cannot be restored is still different, which decides.
                with contextlib.suppress(Exception):
                    part.restore(before)
            (restored if part.restore and _is_as_before(part, before) else remaining).append(part.name)
        for module, name, value in self._attributes:
            if module.get(name) is not value:
                module[name] = value
                restored.append(f"{module.get('__name__')}.{name}")
        _reseed()
        # These cannot be read, or are set at the first use.
        faulthandler.cancel_dump_traceback_later()
        signal.set_wakeup_fd(-1)  # the descriptor may be that of another file by now
        multiprocessing.set_start_method(self._start_method, force=True)
        remaining += [f"process {name}" for name in self._new_children()]
        remaining += [f"thread {name}" for name in self._new_threads()]

    def _new_children(self) -> list[str]:
        """Return the names of processes that a visit has left."""
        names: list[str] = []
        if not has_children():
            return names
        for child in sorted(children() - self._children):
            with contextlib.suppress(OSError):  # it has ended and was waited for
                names.append(Path(f"/proc/{child}/comm").read_text().strip())
        return names

    def _new_threads(self) -> list[str]:
        """Return the names of threads that a visit has left and that may still do something."""
        new = [thread for thread in threading.enumerate() if thread.ident not in self._threads]
        frames = sys._current_frames() if new else {}
        return sorted(
            thread.name
            for thread in new
            if not any(fnmatch(thread.name, pattern) for pattern in self._allowed_threads)
            and not _is_idle(thread, frames.get(thread.ident or 0))
        )


def _read(part: Part) -> Any:
    """Return a part's value; an unreadable one, such as a closed descriptor's, differs from any other."""
    try:
        return part.read()
    except Exception:
        return object()


def _is_as_before(part: Part, before: Any) -> bool:
    """Return whether a part is as it was; not if that cannot be found out, for example because values
    are arrays.
    """
    try:
        return bool(part.read() == before)
    except Exception:
        return False


def _is_idle(thread: threading.Thread, frame: types.FrameType | None) -> bool:
    """Return whether a thread waits for work, without end: it changes nothing by itself. One that waits
    for some time does something after it.
    """
    if type(thread).__module__.partition(".")[0] in HARMLESS:
        return True
    if frame is None or frame.f_code not in IDLE or isinstance(thread, threading.Timer):
        return False
    return frame.f_locals.get("timeout") is None


def _attributes(packages: Collection[str]) -> list[tuple[dict[str, Any], str, Any]]:
    """Return the public attributes of all modules of some packages that are configuration or code."""
    return [
        (vars(module), name, value)
        for module in list(sys.modules.values())
        if isinstance(module, types.ModuleType) and module.__name__.partition(".")[0] in packages
        for name, value in list(vars(module).items())
        if not name.startswith("_") and (isinstance(value, PLAIN) or callable(value))
    ]


def _reseed() -> None:
    """Seed the random generators from the operating system, as in a new worker: a task may have
    seeded them with a constant.
    """
    random.seed(int.from_bytes(os.urandom(SEED_BYTES)))  # without a number, it reads 2500 bytes
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
