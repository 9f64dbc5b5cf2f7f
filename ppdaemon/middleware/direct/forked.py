# SPDX-License-Identifier: BSD-3-Clause
"""Calls in a forked process, which has a copy of this process's memory and returns its result in memory."""

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
from ppdaemon.processes import describe_end, die_with_parent

__all__ = ("DiedWithoutResult", "ForkedCall")

_LOG = logging.getLogger(__name__)

_ALIGNMENT_BYTES = 64
"""Arrays begin at cache lines."""
_SMALL_BYTES = 100_000
"""A smaller array is copied out of the result: otherwise it would keep the
whole mapping in memory."""
_OFFSET = struct.Struct("<Q")


class DiedWithoutResult(Exception):
    """A process has ended without a result."""


class ForkedCall:
    """A forked process that makes one call.

    It may be started only while no other thread of this process is active: a
    lock that another thread has would stay locked in the child.
    """

    def __init__(self, pid: int, result: int):
        self._pid = pid
        self._result = result
        """Descriptor of the file in memory that receives the result."""
        self._pidfd = os.pidfd_open(pid)

    @classmethod
    def start[T](cls, call: Callable[[], T], fallback: Callable[[T], object]) -> Self:
        """Fork a child, which dies with this process, and let it make the call.

        If the result cannot be pickled, `fallback` converts it to a form that
        can. `OSError` is raised if no process can be forked.
        """
        _flush_streams()  # otherwise the child would print the buffered text a second time
        result = os.memfd_create("quantum", os.MFD_CLOEXEC)
        parent = os.getpid()
        try:
            with warnings.catch_warnings():
                # Python warns about any other thread; idle ones of C++ libraries handle a fork.
                warnings.simplefilter("ignore", DeprecationWarning)
                pid = os.fork()
        except OSError:
            os.close(result)
            raise
        if pid == 0:
            _run_child(call, fallback, result, parent)
        try:
            return cls(pid, result)
        except OSError:  # no descriptor is free for the pidfd: nothing could wait for the child
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            os.close(result)
            raise

    def result(self) -> Any:
        """Wait for the end, and return the result.

        Its large arrays stay in the pages that the child has written; no other
        process shares them, nor does one that is forked later.
        `DiedWithoutResult` is raised, which says how it ended, if there
        is no result.
        """
        try:
            _, status = os.waitpid(self._pid, 0)
            if (code := os.waitstatus_to_exitcode(status)) != 0:
                raise DiedWithoutResult(describe_end(code))
            return _read_result(self._result)
        finally:
            self._close()

    def send_kill(self) -> None:
        """Kill the child without waiting: one that waits for a disk ends only afterwards."""
        with suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)

    def kill(self) -> None:
        """Kill the child, wait for its end, and discard its result."""
        try:
            self.send_kill()
            os.waitpid(self._pid, 0)
        finally:
            self._close()

    @staticmethod
    def ended(
        running: Collection["ForkedCall"], *, wait: bool, limit_s: float | None = None
    ) -> list["ForkedCall"]:
        """Return the calls that have ended, in the order given; with `wait`, wait until there is one."""
        poll = select.poll()
        for each in running:
            poll.register(each._pidfd, select.POLLIN)
        limit_ms = None if limit_s is None else 1000 * limit_s
        ended = {descriptor for descriptor, _ in poll.poll(limit_ms if wait else 0)}
        return [each for each in running if each._pidfd in ended]

    def _close(self) -> None:
        os.close(self._pidfd)
        os.close(self._result)


def _run_child[T](
    call: Callable[[], T], fallback: Callable[[T], object], result: int, parent: int
) -> NoReturn:
    """Make the call and end in any case, without the exit handlers of the parent."""
    status = 1
    try:
        die_with_parent()
        if os.getppid() == parent:  # the parent may have died before die_with_parent took effect
            gc.freeze()  # a collection would write to, and so copy, each page of the parent
            # All children inherit the same random state; Python reseeds only its own ``random``.
            if "numpy.random" in sys.modules:
                sys.modules["numpy.random"].seed()
            _abandon_connections()
            content = call()
            try:
                _write_result(content, result)
            except Exception as error:  # pickling runs foreign code, which may raise anything
                _LOG.info("a result cannot be pickled, its fallback is sent: %s", describe(error))
                _write_result(fallback(content), result)
            status = 0
    except BaseException:
        _LOG.exception("a forked process failed; its parent handles the missing result")
    finally:
        try:
            _flush_streams()
        finally:
            os._exit(status)


def _flush_streams() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):  # the stream may be closed or None
            stream.flush()


def _abandon_connections() -> None:
    """Use no database connection that was opened before the fork; open new ones.

    SQLAlchemy's recipe for connection pools and ``os.fork``: tasks that were
    constructed before the fork have their own engines. The old connections are
    not closed: the server, or SQLite, would take that for a request of the
    parent.
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
    """Write the arrays as they are in memory, then the pickled object without them, then its offset."""
    arrays: list[pickle.PickleBuffer] = []
    body = pickle.dumps(content, protocol=5, buffer_callback=arrays.append)
    # Checked here, where the fallback is still possible: the parent has no other form.
    pickle.loads(body, buffers=arrays)
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
        raise DiedWithoutResult(describe_end(0))
    # Private: neither this process nor children forked later see changes of the other.
    content = memoryview(mmap.mmap(source, 0, flags=mmap.MAP_PRIVATE))
    (start,) = _OFFSET.unpack(content[-_OFFSET.size :])
    body, spans = pickle.loads(content[start:])
    arrays = [content[start:stop] for start, stop in spans]
    return pickle.loads(
        body, buffers=[bytearray(array) if len(array) < _SMALL_BYTES else array for array in arrays]
    )
