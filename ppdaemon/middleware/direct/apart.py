# SPDX-License-Identifier: BSD-3-Clause
"""Work in a forked process, which has all that is in memory and leaves what it makes in memory, too."""

import gc
import io
import logging
import mmap
import os
import pickle
import select
import signal
import struct
import sys
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from typing import Any, NoReturn, Self

from sqlalchemy import event
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.pool import Pool

from ppdaemon.middleware.butler.failures import describe
from ppdaemon.processes import die_with_parent, signal_name

__all__ = ("Apart", "EndedSilently")

_LOG = logging.getLogger(__name__)

_ALIGNMENT_BYTES = 64
"""Arrays begin at cache lines."""
_SMALL_BYTES = 100_000
"""Smaller arrays are copied: one that is kept would keep all that came with it."""
_LENGTH = struct.Struct("<Q")


class EndedSilently(Exception):
    """A process has ended without a result."""


class Apart:
    """A forked process with one piece of work.

    Only a process whose other threads do nothing may begin one.

    Parameters
    ----------
    pid : `int`
        The process.
    result : `int`
        Descriptor of the file in memory where the result will be.
    """

    def __init__(self, pid: int, result: int):
        self._pid = pid
        self._result = result
        self._end = os.pidfd_open(pid)

    @classmethod
    def begin[T](cls, work: Callable[[], T], plain: Callable[[T], object]) -> Self:
        """Fork, and let the child do something.

        Parameters
        ----------
        work : `~collections.abc.Callable`
            Returns the result.
        plain : `~collections.abc.Callable`
            Is called with a result that cannot be pickled, and returns the
            same in a form that can.

        Returns
        -------
        apart : `Apart`
            The child; it dies with this process.

        Raises
        ------
        OSError
            Raised if there cannot be another process.
        """
        _flush()  # or the child would write the same once more
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
            _be_child(work, plain, result, parent)
        try:
            return cls(pid, result)
        except OSError:  # no descriptor is left
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            os.close(result)
            raise

    def take(self) -> Any:
        """Wait for the end, and return the result.

        Returns
        -------
        result : `object`
            Its large arrays lie where the child has written them; nobody else
            has them, nor has a process that is forked later.

        Raises
        ------
        EndedSilently
            Raised, saying how it has ended, if there is none.
        """
        try:
            _, status = os.waitpid(self._pid, 0)
            if (code := os.waitstatus_to_exitcode(status)) != 0:
                raise EndedSilently(signal_name(-code) if code < 0 else f"exit status {code}")
            return _unpacked(self._result)
        finally:
            self._close()

    def end(self) -> None:
        """Kill it; nobody wants the result any more."""
        try:
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
        finally:
            self._close()

    @staticmethod
    def over(running: Collection["Apart"], *, wait: bool) -> list["Apart"]:
        """Return those that have ended.

        Parameters
        ----------
        running : `~collections.abc.Collection` [`Apart`]
            Children.
        wait : `bool`
            Whether to wait until there is one.

        Returns
        -------
        ended : `list` [`Apart`]
            In the order given.
        """
        poll = select.poll()
        for each in running:
            poll.register(each._end, select.POLLIN)
        ended = {descriptor for descriptor, _ in poll.poll(None if wait else 0)}
        return [each for each in running if each._end in ended]

    def _close(self) -> None:
        os.close(self._end)
        os.close(self._result)


def _be_child[T](work: Callable[[], T], plain: Callable[[T], object], result: int, parent: int) -> NoReturn:
    """Do the work and end, whatever happens, without running what the parent has registered for its end."""
    status = 1
    try:
        die_with_parent()
        if os.getppid() == parent:
            gc.freeze()  # or a collection would touch, and so copy, each page of the parent's
            _reseed()
            _have_own_connections()
            content = work()
            try:
                _pack(content, result)
            except Exception as error:  # classes are foreign code: anything may come out
                _LOG.info("what a task has made goes through files: %s", describe(error))
                _pack(plain(content), result)
            status = 0
    except BaseException:
        _LOG.exception("a process for one quantum has failed")
    finally:
        try:
            _flush()
        finally:
            os._exit(status)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):  # closed, or none
            stream.flush()


def _reseed() -> None:
    """All children inherit the same random state; that of ``random`` Python itself makes anew."""
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed()


def _have_own_connections() -> None:
    """Let each database connection that was opened before the fork alone; use new ones.

    SQLAlchemy's recipe for connection pools and ``os.fork``. The old ones are
    not closed either: the server, or SQLite, would take it for the parent's
    word.
    """
    own: set[int] = set()
    others: list[object] = []

    @event.listens_for(Pool, "connect")
    def note(connection: Any, record: Any) -> None:
        own.add(id(connection))

    @event.listens_for(Pool, "checkout")
    def check(connection: Any, record: Any, proxy: Any) -> None:
        if id(connection) not in own:
            others.append(connection)
            record.dbapi_connection = proxy.dbapi_connection = None
            raise DisconnectionError("opened before the fork")


class _Pickler(pickle.Pickler):
    """Knows one class more: coordinate systems of images, where there is no astshim."""

    def reducer_override(self, content: Any) -> Any:
        if type(content).__module__ != _AstLines.MODULE:
            return NotImplemented
        lines = _AstLines([])
        sys.modules[_AstLines.MODULE].Channel(None, lines).write(content)
        return _read_ast, (lines.lines,)


class _AstLines:
    """The text of an AST object, as a channel of its library writes and reads it: nothing is lost."""

    MODULE = "starlink.Ast"

    def __init__(self, lines: Iterable[str]):
        self.lines = list(lines)
        self._unread = iter(self.lines)

    def astsink(self, line: str) -> None:
        self.lines.append(line)

    def astsource(self) -> str | None:
        return next(self._unread, None)


def _read_ast(lines: list[str]) -> Any:
    return sys.modules[_AstLines.MODULE].Channel(_AstLines(lines), None).read()


def _pack(content: object, target: int) -> None:
    """Write an object, its arrays as they lie in memory.

    A list of lengths comes first: of all, of the object without its arrays,
    and of each array.

    Raises
    ------
    Exception
        Raised if its classes cannot write or read it.
    """
    arrays: list[pickle.PickleBuffer] = []
    stream = io.BytesIO()
    _Pickler(stream, protocol=5, buffer_callback=arrays.append).dump(content)
    pickle.loads(stream.getbuffer(), buffers=arrays)  # only here is a way left for what cannot be read
    parts = [stream.getbuffer(), *(array.raw() for array in arrays)]
    lengths = b"".join(_LENGTH.pack(each) for each in (len(parts), *(len(part) for part in parts)))
    _write(target, memoryview(lengths), 0)
    for part, place in zip(parts, _places(len(lengths), [len(part) for part in parts]), strict=True):
        _write(target, part, place)


def _write(target: int, part: memoryview, place: int) -> None:
    while part:
        written = os.pwrite(target, part, place)
        part, place = part[written:], place + written


def _unpacked(source: int) -> Any:
    if not os.fstat(source).st_size:
        raise EndedSilently("exit status 0")
    # Private: what is changed here is not changed in children that are forked later, nor the reverse.
    content = memoryview(mmap.mmap(source, 0, flags=mmap.MAP_PRIVATE))
    (count,) = _LENGTH.unpack_from(content)
    lengths = [_LENGTH.unpack_from(content, _LENGTH.size * (k + 1))[0] for k in range(count)]
    places = _places(_LENGTH.size * (count + 1), lengths)
    body, *arrays = (content[place : place + length] for place, length in zip(places, lengths, strict=True))
    return pickle.loads(
        body, buffers=[bytearray(array) if len(array) < _SMALL_BYTES else array for array in arrays]
    )


def _places(begin: int, lengths: list[int]) -> Iterator[int]:
    for length in lengths:
        begin += -begin % _ALIGNMENT_BYTES
        yield begin
        begin += length
