# SPDX-License-Identifier: BSD-3-Clause
"""Questions that the workers of a host have at the same time: one of them answers those of all.

Each worker writes its question to a file, which it keeps locked while it waits. The worker that gets
the lock of the folder answers all questions that are there, and leaves the answers beside them. No
answer is older than its question. If the worker dies, the kernel releases its locks: the next one
answers the questions that are left, and deletes those of dead workers. If it hangs, another one takes its
place. Whatever cannot be written or read in the folder makes a worker ask by itself.

One process may answer all questions: workers wake it, and take a turn only if it is late.
"""

import fcntl
import io
import logging
import os
import pickle
import select
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, cast

from lsst.daf.butler import DatasetAssociation

from ppdaemon.clock import Clock
from ppdaemon.errors import VisitFailed
from ppdaemon.middleware.butler.failures import describe
from ppdaemon.middleware.butler.timings import Timings

__all__ = ("HostQuestions",)

_LOG = logging.getLogger(__name__)

WAIT_S = 5.0
"""Until another worker takes the place of one that answers, and until it asks by itself after as long
again: many times the duration of a query, and a fraction of the time from the announcement to the image.
The worker that answers may wait for a server that hangs, or be stopped."""
_PAUSE_S = 0.004, 0.1
"""Between two looks, shortest and longest: the queries of a visit take ten times the shortest."""
_PAUSE = 1 / 8
"""As a fraction of the time that a worker has waited: hundreds of them would use the cores that the one
needs that answers."""
PATIENCE_S = 0.25
"""Until a worker takes its turn although there is a process that answers for all: a cold query takes half of
it, and an asker that is busy has the lock."""
_LOCK = ".lock"
_DOORBELL = ".doorbell"
_VERSION = ".version"
_QUESTION, _ANSWER = ".question", ".answer"
_NEW_QUESTION, _NEW_ANSWER = ".new", ".part"


class HostQuestions[Q, A]:
    """Questions of the processes that use one folder, which only their user can read or write.

    Questions and answers are pickled.
    """

    def __init__(self, folder: Path, wait_s: float = WAIT_S):
        self._folder = folder
        self._wait_s = wait_s

    def ask(
        self, question: Q, answer: Callable[[Callable[[], list[Q]]], Sequence[A]], timings: Timings
    ) -> A | None:
        """Return the answer to a question; `None` if the caller must find it by itself.

        `answer` may be called, in one process at a time unless that hangs. It gets a function that returns
        the other questions, to be called once, as late as possible, and returns the answers to all, that to
        `question` first. If it raises, so does this function, unless it was for others, too: the error may
        be theirs.
        """
        with ExitStack() as stack:
            try:
                path = stack.enter_context(self._posted(question))
            except OSError as error:  # a full RAM disk: files are evicted when the inputs are copied
                _LOG.warning("cannot ask together with other workers: %s", describe(error))
                return None
            return self._wait_or_answer(path, answer, timings)

    @contextmanager
    def doorbell(self) -> Iterator[int]:
        """Yield a descriptor that becomes readable when a worker has a question: `answer_all` is to be called
        then.
        """
        self._make_folder()
        path = self._folder / _DOORBELL
        with suppress(FileExistsError):  # of the process before
            os.mkfifo(path, 0o600)
        # Also for writing: otherwise it would be readable for ever when the first worker has closed it.
        descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def answer_all(
        self, doorbell: int, answer: Callable[[Callable[[], list[Q]]], Sequence[A]], clock: Clock
    ) -> None:
        """Answer the questions that are there. `answer` is as for `ask`, without a question of its own.

        Its errors are logged: the workers ask by themselves then.
        """
        with suppress(BlockingIOError):
            os.read(doorbell, select.PIPE_BUF)
        begin, waited = clock.mono(), 0.0
        while waited < self._wait_s and self._is_asked():
            with self._turn(clock) as is_mine:
                if is_mine:
                    self._answer(None, answer)
                    return
            time.sleep(_pause_s(waited))  # for a worker that has not waited for this process
            waited = clock.mono() - begin

    def _wait_or_answer(
        self, path: Path, answer: Callable[[Callable[[], list[Q]]], Sequence[A]], timings: Timings
    ) -> A | None:
        begin, waited = timings.clock.mono(), 0.0
        patience_s = PATIENCE_S if self._ring() else 0.0
        while waited < 2 * self._wait_s:
            if waited < patience_s:
                if path.with_suffix(_ANSWER).exists():
                    return self._read(path.with_suffix(_ANSWER))
            else:
                with self._turn(timings.clock) as is_mine:
                    # Only now: another process may have answered while this one did not look.
                    if path.with_suffix(_ANSWER).exists():
                        return self._read(path.with_suffix(_ANSWER))
                    if is_mine:
                        return self._answer(path, answer)
            with timings.timed("wait"):
                time.sleep(_pause_s(waited))
            waited = timings.clock.mono() - begin
        _LOG.warning("no answer from another worker in %.0f s, this one asks by itself", waited)
        return None

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

    def _ring(self) -> bool:
        """Wake the process that answers for all; return whether there is one."""
        try:
            descriptor = os.open(self._folder / _DOORBELL, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:  # nobody has it open, or it does not exist
            return False
        try:
            os.write(descriptor, b"\0")
        except BlockingIOError:  # rung by very many
            return True
        except OSError:  # it has ended just now
            return False
        finally:
            os.close(descriptor)
        return True

    def _is_asked(self) -> bool:
        """Return whether there is a question without an answer."""
        names = {path.name for path in self._folder.iterdir()}
        return any(
            name.endswith(_QUESTION) and name.removesuffix(_QUESTION) + _ANSWER not in names for name in names
        )

    def _answer(self, own: Path | None, answer: Callable[[Callable[[], list[Q]]], Sequence[A]]) -> A | None:
        others: list[tuple[Path, Q]] = []

        def take_others() -> list[Q]:
            others.extend(self._others(own))
            return [question for _, question in others]

        first: A | None = None
        rest: Sequence[A | None] = []
        try:
            rest = answer(take_others)
            if own is not None:
                first, *rest = rest
        except Exception as error:  # of whichever question: its own worker raises it again
            if own is not None and not others:
                raise
            unexpected = not isinstance(error, VisitFailed)
            _LOG.warning(
                "not answered together with those of other workers: %s", describe(error), exc_info=unexpected
            )
        finally:
            # In any case: those without an answer would wait.
            for (path, _), each in zip(others, rest or [None] * len(others), strict=True):
                self._write(path.with_suffix(_ANSWER), each)
        return first

    @contextmanager
    def _posted(self, question: Q) -> Iterator[Path]:
        """Write a question, and delete it with its answer at the end."""
        self._make_folder()
        path = self._folder / f"{uuid.uuid4()}{_QUESTION}"
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
    def _turn(self, clock: Clock) -> Iterator[bool]:
        """Lock the folder; yield whether that succeeded at once.

        A lock file that another process has locked for too long is deleted, so that the next look makes
        another one.
        """
        path = self._folder / _LOCK
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            now = clock.mono()
            is_mine = _locks(descriptor)
            if is_mine:
                # Since when, by the clock that no correction changes. In a full RAM disk, too.
                os.utime(descriptor, (now, now))
            elif now - (held := os.fstat(descriptor)).st_mtime > self._wait_s:
                with suppress(FileNotFoundError):
                    if path.stat().st_ino == held.st_ino:  # not that of the next process
                        _LOG.warning("a worker that asks for others hangs, another one takes its place")
                        path.unlink()
            yield is_mine
            if is_mine:
                os.utime(descriptor)  # far in the future: the next process is not taken for one that hangs
        finally:
            os.close(descriptor)

    def _others(self, own: Path | None) -> Iterator[tuple[Path, Q]]:
        """Yield the questions without an answer; delete what dead processes have left."""
        names = {path.name for path in self._folder.iterdir()}
        for name in sorted(names if own is None else names - {own.name}):
            path = self._folder / name
            if path.suffix in (_QUESTION, _NEW_QUESTION):
                if _is_abandoned(path):
                    path.unlink(missing_ok=True)
                    path.with_suffix(_ANSWER).unlink(missing_ok=True)
                elif path.suffix == _QUESTION and path.with_suffix(_ANSWER).name not in names:
                    try:
                        question = cast(Q, pickle.loads(path.read_bytes()))
                    except FileNotFoundError:  # its process has waited too long
                        continue
                    except Exception as error:  # unpickling may raise anything; its process asks by itself
                        _LOG.warning("the question of another worker cannot be read: %s", describe(error))
                        continue
                    yield path, question
            elif path.suffix == _ANSWER:
                if path.with_suffix(_QUESTION).name not in names:
                    path.unlink(missing_ok=True)
            elif path.suffix == _NEW_ANSWER:  # of a process that had the turn before
                path.unlink(missing_ok=True)

    def _write(self, path: Path, answer: A | None) -> None:
        part = path.with_name(f"{uuid.uuid4()}{_NEW_ANSWER}")  # a process that hung may write one, too
        try:
            part.touch(0o600)
            part.write_bytes(_pickled(answer))
            part.rename(path)
        except Exception as error:  # pickling may raise anything; its process asks by itself
            _LOG.warning("an answer for another worker cannot be written: %s", describe(error))
            part.unlink(missing_ok=True)

    def _read(self, path: Path) -> A | None:
        try:
            return cast(A | None, pickle.loads(path.read_bytes()))
        except Exception as error:  # such as dimensions that this process has not loaded
            _LOG.warning("the answer of another worker cannot be read: %s", describe(error))
            return None


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


def _pause_s(waited_s: float) -> float:
    """Return the time between two looks."""
    return min(max(_PAUSE * waited_s, _PAUSE_S[0]), _PAUSE_S[1])


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
