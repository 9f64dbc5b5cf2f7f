# SPDX-License-Identifier: BSD-3-Clause
"""Syncs many files at once."""

import ctypes
import errno
import os
import platform
import threading
from collections.abc import Iterable, Sequence
from itertools import batched
from pathlib import Path
from typing import Self

from ppdaemon.durable import wait_until_written

__all__ = ("AT_ONCE", "OpenFiles", "sync_all")

AT_ONCE = 32
"""Files that are synced by one request. The kernel has 65,536 places for all processes of a host."""
_SETUP, _SUBMIT, _GET_EVENTS = {"x86_64": (206, 209, 208), "aarch64": (0, 2, 4)}.get(
    platform.machine(), (None, None, None)
)
"""Numbers of the system calls `io_setup`, `io_submit` and `io_getevents`: the C library has no functions."""
_FSYNC = 2
"""`IOCB_CMD_FSYNC` of ``linux/aio_abi.h``, from which the structures are."""
_LIBC = ctypes.CDLL(None, use_errno=True)


class _Request(ctypes.Structure):
    _fields_ = (
        ("number", ctypes.c_uint64),
        ("key", ctypes.c_uint64),
        ("operation", ctypes.c_uint16),
        ("priority", ctypes.c_int16),
        ("descriptor", ctypes.c_uint32),
        ("others", ctypes.c_uint64 * 5),
    )


class _Event(ctypes.Structure):
    _fields_ = (
        ("number", ctypes.c_uint64),
        ("request", ctypes.c_uint64),
        ("result", ctypes.c_int64),
        ("other", ctypes.c_int64),
    )


class _Queue:
    """Requests of this process to the kernel, and their results, for one thread at a time.

    The kernel has a queue for each process, and a forked one does not inherit it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner = 0
        """Process for which the kernel was asked for a queue."""
        self._context = ctypes.c_ulong(0)
        self._usable = False
        self._events = (_Event * AT_ONCE)()
        self._numbers = 0
        """Requests up to now."""

    def sync(self, descriptors: Sequence[int]) -> list[int]:
        """Wait until open files are on the disk; return an error number for each, or 0.

        Files that the kernel does not take are left out: the last ones, or all.
        """
        with self._lock:
            if self._owner != os.getpid():
                self._owner, self._context = os.getpid(), ctypes.c_ulong(0)
                self._usable = _call(_SETUP, AT_ONCE, ctypes.addressof(self._context)) == 0
            return self._sync(descriptors) if self._usable else []

    def _sync(self, descriptors: Sequence[int]) -> list[int]:
        first = self._numbers
        requests = [_Request(first + k, 0, _FSYNC, 0, each) for k, each in enumerate(descriptors)]
        pointers = (ctypes.c_void_p * len(requests))(*map(ctypes.addressof, requests))
        context = self._context.value
        self._numbers += len(requests)  # before: an exception of a signal may follow the call
        taken = max(0, _call(_SUBMIT, context, len(requests), ctypes.addressof(pointers)))
        results: dict[int, int] = {}
        while left := taken - len(results):
            found = _call(_GET_EVENTS, context, left, AT_ONCE, ctypes.addressof(self._events), 0)
            if found < 0 and (error := ctypes.get_errno()) != errno.EINTR:
                raise OSError(error, os.strerror(error))
            # Others are of an earlier wait, which the exception of a signal has ended.
            events = (each for each in self._events[: max(0, found)] if each.number >= first)
            results |= {each.number: -each.result for each in events}
        return [results[first + k] for k in range(taken)]


_QUEUE = _Queue()


def _call(number: int | None, *arguments: int) -> int:
    """Call the kernel; return -1 after an error."""
    if number is None:  # of another kind of machine
        return -1
    return int(_LIBC.syscall(*map(ctypes.c_long, (number, *arguments))))


class OpenFiles:
    """At most `AT_ONCE` files and folders that are open, whatever becomes of their names."""

    def __init__(self, paths: Iterable[Path | str]):
        self.paths = tuple(paths)
        self._descriptors: list[int] = []

    def __enter__(self) -> Self:
        try:
            for path in self.paths:
                self._descriptors.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        for descriptor in self._descriptors:
            os.close(descriptor)

    def wait_until_written(self) -> None:
        """Wait until the disk has the content of all; `sync` makes it durable."""
        # The last one first: when the disk has it, it mostly has the others, for which nothing waits then.
        for path, descriptor in zip(reversed(self.paths), reversed(self._descriptors), strict=True):
            try:
                wait_until_written(descriptor)
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(path)) from error

    def sync(self) -> None:
        """Wait until all these files, and the names in these folders, are on the disk."""
        results = _QUEUE.sync(self._descriptors)
        for path, error in zip(self.paths, results, strict=False):
            if error:
                raise OSError(error, os.strerror(error), str(path))
        for descriptor in self._descriptors[len(results) :]:
            os.fsync(descriptor)


def sync_all(paths: Iterable[Path | str]) -> None:
    """Wait until all these files, or the names in folders, are on the disk.

    By one request to the kernel: the filesystem's journal is committed once for all of them, and the
    disk's cache is flushed once. One after the other, each waits for a flush of its own: on a busy disk with
    ext4 14 files took 20 ms, and 5 by one request, on an idle one 1.6 ms and 0.8.
    """
    for group in batched(paths, AT_ONCE):
        with OpenFiles(group) as files:
            files.sync()
