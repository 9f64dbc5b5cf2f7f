# SPDX-License-Identifier: BSD-3-Clause
"""Calls in a forked process, which has all that is in memory and leaves its result in memory, too."""

import gc
import logging
import mmap
import os
import pickle
import select
import signal
import struct
import sys
import warnings
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any, NoReturn, Self

from sqlalchemy import event
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.pool import Pool

from ppdaemon.middleware.butler.failures import describe
from ppdaemon.processes import die_with_parent, signal_name

__all__ = ("DiedWithoutResult", "ForkedCall")

_LOG = logging.getLogger(__name__)

_ALIGNMENT_BYTES = 64
"""Arrays begin at cache lines."""
_SMALL_BYTES = 100_000
"""Smaller arrays are copied: one that is kept would keep all that came with it."""
_OFFSET = struct.Struct("<Q")


class DiedWithoutResult(Exception):
    """A process has ended without a result."""


class ForkedCall:
    """A forked process that makes one call.

    Only a process whose other threads do nothing may begin one.
    """

    def __init__(self, pid: int, result: int):
        self._pid = pid
        self._result = result
        """Descriptor of the file in memory where the result will be."""
        self._pidfd = os.pidfd_open(pid)

    @classmethod
    def start[T](cls, call: Callable[[], T], fallback: Callable[[T], object]) -> Self:
        """Fork a child, which dies with this process, and let it call `work`.

        A result that cannot be pickled is given to `plain`, which returns it
        in a form that can.

        Raises
        ------
        OSError
            Raised if there cannot be another process.
        """
        _flush_streams()  # or the child would write the same once more
        result = os.memfd_create("quantum", os.MFD_CLOEXEC)
        parent = os.getpid()
        try:
            with warnings.catch_warnings():
                # Idle threads of libraries written in C++ know what a fork is.
                warnings.simplefilter("ignore", DeprecationWarning)
                pid = os.fork()
        except OSError:
            os.close(result)
            raise
        if pid == 0:
            _run_child(call, fallback, result, parent)
        try:
            return cls(pid, result)
        except OSError:  # no descriptor is left
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            os.close(result)
            raise

    def result(self) -> Any:
        """Wait for the end, and return the result.

        Its large arrays lie where the child has written them; nobody else has
        them, nor has a process that is forked later.

        Raises
        ------
        DiedWithoutResult
            Raised, with the way it has ended, if there is none.
        """
        try:
            _, status = os.waitpid(self._pid, 0)
            if (code := os.waitstatus_to_exitcode(status)) != 0:
                raise DiedWithoutResult(signal_name(-code) if code < 0 else f"exit status {code}")
            return _read_result(self._result)
        finally:
            self._close()

    def kill(self) -> None:
        """Kill the child; nobody wants the result any more."""
        try:
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
        finally:
            self._close()

    @staticmethod
    def ended(running: Collection["ForkedCall"], *, wait: bool) -> list["ForkedCall"]:
        """Return those that have ended, in the order given; if asked to, wait until there is one."""
        poll = select.poll()
        for each in running:
            poll.register(each._pidfd, select.POLLIN)
        ended = {descriptor for descriptor, _ in poll.poll(None if wait else 0)}
        return [each for each in running if each._pidfd in ended]

    def _close(self) -> None:
        os.close(self._pidfd)
        os.close(self._result)


def _run_child[T](
    call: Callable[[], T], fallback: Callable[[T], object], result: int, parent: int
) -> NoReturn:
    """Make the call and end, whatever happens, without running what the parent has registered for its end."""
    status = 1
    try:
        die_with_parent()
        if os.getppid() == parent:
            gc.freeze()  # or a collection would touch, and so copy, each page of the parent's
            # All children inherit the same random state; that of ``random`` Python itself makes anew.
            if "numpy.random" in sys.modules:
                sys.modules["numpy.random"].seed()
            _abandon_connections()
            content = call()
            try:
                _write_result(content, result)
            except Exception as error:  # classes are foreign code: anything may come out
                _LOG.info("what a task has made goes through files: %s", describe(error))
                _write_result(fallback(content), result)
            status = 0
    except BaseException:
        _LOG.exception("a process for one quantum has failed")
    finally:
        try:
            _flush_streams()
        finally:
            os._exit(status)


def _flush_streams() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):  # closed, or none
            stream.flush()


def _abandon_connections() -> None:
    """Use no database connection that was opened before the fork; open new ones.

    SQLAlchemy's recipe for connection pools and ``os.fork``: tasks that were
    constructed before the fork have engines of their own. The old connections
    are not closed either: the server, or SQLite, would take that for the
    parent's request.
    """
    child_connections: set[int] = set()
    abandoned: list[object] = []

    @event.listens_for(Pool, "connect")
    def on_connect(connection: Any, record: Any) -> None:
        child_connections.add(id(connection))

    @event.listens_for(Pool, "checkout")
    def on_checkout(connection: Any, record: Any, proxy: Any) -> None:
        if id(connection) not in child_connections:
            abandoned.append(connection)
            record.dbapi_connection = proxy.dbapi_connection = None
            raise DisconnectionError("opened before the fork")


def _write_result(content: object, target: int) -> None:
    """Write arrays as they lie in memory, then the object without them, then where that begins.

    Raises
    ------
    Exception
        Raised if the object's classes cannot write or read it.
    """
    arrays: list[pickle.PickleBuffer] = []
    body = pickle.dumps(content, protocol=5, buffer_callback=arrays.append)
    pickle.loads(body, buffers=arrays)  # only here is a way left for what cannot be read
    spans = []
    with open(target, "wb", closefd=False) as file:
        for array in arrays:
            start = file.seek(-file.tell() % _ALIGNMENT_BYTES, os.SEEK_CUR)
            spans.append((start, start + file.write(array.raw())))
        start = file.tell()
        pickle.dump((body, spans), file)
        file.write(_OFFSET.pack(start))


def _read_result(source: int) -> Any:
    if not os.fstat(source).st_size:
        raise DiedWithoutResult("exit status 0")
    # Private: what is changed here is not changed in children that are forked later, nor the reverse.
    content = memoryview(mmap.mmap(source, 0, flags=mmap.MAP_PRIVATE))
    (start,) = _OFFSET.unpack(content[-_OFFSET.size :])
    body, spans = pickle.loads(content[start:])
    arrays = [content[start:stop] for start, stop in spans]
    return pickle.loads(
        body, buffers=[bytearray(array) if len(array) < _SMALL_BYTES else array for array in arrays]
    )
