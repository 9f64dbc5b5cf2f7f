# SPDX-License-Identifier: BSD-3-Clause
"""Questions that the workers of a host have at the same time: one of them answers those of many.

Each worker writes its question to a file, which it keeps locked while it waits. The worker that gets
the lock of the folder has the turn: it answers the oldest questions that are there, up to `BATCH`, and leaves
the answers beside them. The next one answers the next ones. So many workers as a host may have ask
through one connection at a time, and none gets an answer that is older than its question.

If the worker that has the turn dies, the kernel releases its locks: the next one answers the questions that
are left, and deletes those of dead workers. If it makes no progress, another one takes its place. Being slow
is not enough: where each that has waited for long asked by itself, hundreds of them would make all others
slow, too. What cannot be written or read in the folder makes a worker ask for itself alone, in its turn.
"""

import fcntl
import io
import itertools
import logging
import os
import pickle
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from lsst.daf.butler import DatasetAssociation

from ppdaemon.clock import Clock
from ppdaemon.errors import VisitFailed
from ppdaemon.middleware.butler.failures import describe
from ppdaemon.middleware.butler.timings import Timings
from ppdaemon.states import Outcome

__all__ = ("HostQuestions", "Turn")

_LOG = logging.getLogger(__name__)

WAIT_S = 5.0
"""Without progress, until another worker takes the place of the one that has the turn: many times the
duration of a query, and a fraction of the time from the announcement to the image. That one may wait for a
server that hangs, or be stopped. The next one has twice as long: if the server is slow, or the host has no
time for its workers, more that ask at once do not make it faster."""
_NO_LIMIT_S = 1e6
"""A time of access above this is that of a new file."""
BATCH = 64
"""Questions that are answered together at most: those of all detectors of a host, mostly. Of more, the first
begin to copy while the next are answered; the memory for answers is limited, and a question that no query
can answer concerns only so many others."""
_PAUSE_S = 0.004, 0.1
"""Between two looks, shortest and longest: the queries of a visit take ten times the shortest."""
_PAUSE = 1 / 8
"""As a fraction of the time that a worker has waited: hundreds of them would use the cores that the one
needs that answers."""
_LOCK = ".lock"
_VERSION = ".version"
_QUESTION, _ANSWER = ".question", ".answer"
_NEW_QUESTION, _NEW_ANSWER = ".new", ".part"


@dataclass(frozen=True, slots=True)
class Turn[Q]:
    """The right to ask."""

    others: Callable[[], list[Q]] = list
    """Returns the questions of other workers; to be called once, as late as possible."""
    progressed: Callable[[], None] = lambda: None
    """To be called after each step, such as a statement."""


@dataclass(frozen=True, slots=True)
class _Reply[A]:
    """What a worker finds beside its question: if neither, it must ask alone."""

    answer: A | None = None
    failure: tuple[Outcome, str] | None = None
    """Of a retriable visit: nobody can ask."""


class HostQuestions[Q, A]:
    """Questions of the processes that use one folder, which only their user can read or write.

    Questions and answers are pickled.
    """

    def __init__(self, folder: Path, wait_s: float = WAIT_S, batch: int = BATCH):
        self._folder = folder
        self._wait_s = wait_s
        self._batch = batch

    def ask(self, question: Q, answer: Callable[[Turn[Q]], Sequence[A]], timings: Timings) -> A:
        """Return the answer to a question.

        `answer` may be called, in one process at a time unless that makes no progress. It returns the answer
        to `question`, then those to the others of its turn. If it raises `~ppdaemon.errors.VisitFailed`
        before it calls `Turn.others`, nobody can ask: so does this function in all processes that have waited
        for at least half as long. If it raises later, the error may be another question's: it is called again
        for `question` alone, and the others ask alone, too, one after the other.
        """
        with ExitStack() as stack:
            try:
                path = stack.enter_context(self._posted(question, timings.clock))
            except OSError as error:  # a full RAM disk: files are evicted when the inputs are copied
                _LOG.warning("cannot ask together with other workers: %s", describe(error))
                path = None
            return self._wait_or_answer(path, answer, timings)

    def _wait_or_answer(
        self, path: Path | None, answer: Callable[[Turn[Q]], Sequence[A]], timings: Timings
    ) -> A:
        begin, waited = timings.clock.mono(), 0.0
        while True:
            with self._turn(timings.clock, waited) as progressed:
                # Only now: another process may have answered while this one did not look.
                if path is not None and path.with_suffix(_ANSWER).exists():
                    reply = self._read(path.with_suffix(_ANSWER))
                    if reply.failure is not None:
                        raise VisitFailed(*reply.failure, retriable=True)
                    if reply.answer is not None:
                        return reply.answer
                    path = None  # what was found there stays: nobody else is to answer
                if progressed is not None:
                    return self._answer(path, answer, progressed, timings.clock)
            with timings.timed("wait"):
                time.sleep(min(max(_PAUSE * waited, _PAUSE_S[0]), _PAUSE_S[1]))
            waited = timings.clock.mono() - begin

    @property
    def version(self) -> str:
        """A text that changes with each `renew` by any process (`str`)."""
        try:
            return (self._folder / _VERSION).read_text()
        except FileNotFoundError:
            return ""

    def renew(self) -> None:
        """Change `version`: what was cached for answers is not to be used any more."""
        try:
            self._make_folder()
            (self._folder / _VERSION).write_text(str(uuid.uuid4()))
        except OSError as error:
            _LOG.warning("other workers are not told: %s", describe(error))

    def _answer(
        self,
        own: Path | None,
        answer: Callable[[Turn[Q]], Sequence[A]],
        progressed: Callable[[], None],
        clock: Clock,
    ) -> A:
        others: list[tuple[Path, Q]] = []
        begin, can_ask = clock.mono(), False

        def take_others() -> list[Q]:
            nonlocal can_ask
            can_ask = True
            if own is not None:
                others.extend(itertools.islice(self._others(own), self._batch - 1))
            return [question for _, question in others]

        try:
            first, *rest = answer(Turn(take_others, progressed))
        except Exception as error:
            if isinstance(error, VisitFailed) and not can_ask:
                # Each would try for as long, one after the other.
                self._fail(error, (begin + clock.mono()) / 2)
            if not others:
                raise
            unexpected = not isinstance(error, VisitFailed)
            _LOG.warning(
                "not answered together with those of other workers: %s", describe(error), exc_info=unexpected
            )
            # If this fails, too, the next one answers those of the others.
            first, rest = self._answer(None, answer, progressed, clock), []
        replies = [_Reply(each) for each in rest] or [_Reply[A]()] * len(others)
        for (path, _), reply in zip(others, replies, strict=True):
            self._write(path.with_suffix(_ANSWER), reply)
        return first

    def _fail(self, error: VisitFailed, until: float) -> None:
        """Write a failure beside the questions that were written until a time of the clock."""
        for path in self._folder.glob(f"*{_QUESTION}"):
            if path.name < _name(until) and not path.with_suffix(_ANSWER).exists():
                self._write(path.with_suffix(_ANSWER), _Reply(failure=(error.outcome, str(error))))

    @contextmanager
    def _posted(self, question: Q, clock: Clock) -> Iterator[Path]:
        """Write a question, and delete it with its answer at the end."""
        self._make_folder()
        path = self._folder / f"{_name(clock.mono())}-{uuid.uuid4()}{_QUESTION}"
        hidden = path.with_suffix(_NEW_QUESTION)
        descriptor = os.open(hidden, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            # Locked before it has its name: an unlocked one is that of a dead process.
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            hidden.write_bytes(_pickled(question))
            hidden.rename(path)
            yield path
        finally:
            for each in (hidden, path, path.with_suffix(_ANSWER)):
                each.unlink(missing_ok=True)
            os.close(descriptor)

    def _make_folder(self) -> None:
        self._folder.parent.mkdir(parents=True, exist_ok=True)
        # For its owner only: what is in it is unpickled.
        self._folder.mkdir(mode=0o700, exist_ok=True)

    @contextmanager
    def _turn(self, clock: Clock, waited: float) -> Iterator[Callable[[], None] | None]:
        """Lock the folder; yield what is to be called after each step if that succeeded at once.

        The lock file has the time of the last step as its time of change, and as its time of access for how
        many seconds there may be no other one: both can be set in a full RAM disk, too. If there can be no
        lock file, each process has its turn at once.
        """
        try:
            descriptor = self._open_lock(self._folder / _LOCK)
        except OSError as error:
            _LOG.warning("this worker asks alone: %s", describe(error))
            yield lambda: None
            return
        try:
            if _locks(descriptor):
                limit_s = self._limit_s(descriptor)

                def progressed() -> None:
                    # By the clock that no correction changes.
                    os.utime(descriptor, (limit_s, clock.mono()))

                progressed()
                try:
                    yield progressed
                finally:
                    # Far in the future: the next process is not taken for one that hangs.
                    os.utime(descriptor, (self._wait_s, time.time()))
            else:
                # A process that has not waited itself may only have had no time to look.
                if waited > (limit_s := self._limit_s(descriptor)):
                    self._replace_lock(os.fstat(descriptor), limit_s, clock)
                yield None
        finally:
            os.close(descriptor)

    def _open_lock(self, path: Path) -> int:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def _limit_s(self, descriptor: int) -> float:
        limit_s = os.fstat(descriptor).st_atime
        return limit_s if limit_s < _NO_LIMIT_S else self._wait_s

    def _replace_lock(self, held: os.stat_result, limit_s: float, clock: Clock) -> None:
        """Replace the lock file of a process that makes no progress: the next look locks another one."""
        path = self._folder / _LOCK
        if clock.mono() - held.st_mtime <= limit_s:
            return
        other = path.with_name(f"{uuid.uuid4()}{_NEW_ANSWER}")
        try:
            descriptor = self._open_lock(other)
            try:
                os.utime(descriptor, (2 * limit_s, time.time()))
            finally:
                os.close(descriptor)
            if path.stat().st_ino == held.st_ino:  # not that of the next process
                _LOG.warning(
                    "a worker that asks for others makes no progress for %.0f s, another one takes its place",
                    limit_s,
                )
                other.replace(path)
        except OSError as error:  # of another worker that does the same, or of a full RAM disk
            _LOG.info("the worker that asks for others is not replaced: %s", describe(error))
        finally:
            other.unlink(missing_ok=True)

    def _others(self, own: Path) -> Iterator[tuple[Path, Q]]:
        """Yield the questions without an answer; delete what dead processes have left."""
        names = {path.name for path in self._folder.iterdir()}
        for name in sorted(names - {own.name}):
            path = self._folder / name
            if path.suffix in (_QUESTION, _NEW_QUESTION):
                if _is_abandoned(path):
                    path.unlink(missing_ok=True)
                    path.with_suffix(_ANSWER).unlink(missing_ok=True)
                elif path.suffix == _QUESTION and path.with_suffix(_ANSWER).name not in names:
                    try:
                        question = cast(Q, pickle.loads(path.read_bytes()))
                    except FileNotFoundError:  # its process has ended
                        continue
                    except Exception as error:  # unpickling may raise anything; its process asks alone
                        _LOG.warning("the question of another worker cannot be read: %s", describe(error))
                        continue
                    yield path, question
            elif path.suffix == _ANSWER:
                if path.with_suffix(_QUESTION).name not in names:
                    path.unlink(missing_ok=True)
            elif path.suffix == _NEW_ANSWER:  # of a process that had the turn before
                path.unlink(missing_ok=True)

    def _write(self, path: Path, reply: _Reply[A]) -> None:
        part = path.with_name(f"{uuid.uuid4()}{_NEW_ANSWER}")  # a process that hung may write one, too
        try:
            part.touch(0o600)
            part.write_bytes(_pickled(reply))
            part.rename(path)
        except Exception as error:  # pickling may raise anything; its process asks alone
            _LOG.warning("an answer for another worker cannot be written: %s", describe(error))
            part.unlink(missing_ok=True)

    def _read(self, path: Path) -> _Reply[A]:
        try:
            return cast(_Reply[A], pickle.loads(path.read_bytes()))
        except Exception as error:  # such as dimensions that this process has not loaded
            _LOG.warning("the answer of another worker cannot be read: %s", describe(error))
            return _Reply()


def _name(mono_s: float) -> str:
    """Return the begin of a name that sorts by time."""
    return f"{round(mono_s * 1e6):018d}"


class _Pickler(pickle.Pickler):
    """Pickles associations, too: their class is frozen and has slots, so that the usual way fails."""

    def reducer_override(self, content: Any) -> Any:
        """Return how to make an association again."""
        if type(content) is DatasetAssociation:
            return DatasetAssociation, (content.ref, content.collection, content.timespan)
        return NotImplemented


def _pickled(content: object) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer, pickle.HIGHEST_PROTOCOL).dump(content)
    return buffer.getvalue()


def _locks(descriptor: int) -> bool:
    """Lock a file; return whether that succeeded at once."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_abandoned(path: Path) -> bool:
    """Return whether the process of a question has ended."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return _locks(descriptor)
    finally:
        os.close(descriptor)
