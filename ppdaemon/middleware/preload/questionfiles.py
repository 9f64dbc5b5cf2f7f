# SPDX-License-Identifier: BSD-3-Clause
"""The folder in which the workers of a host ask: questions and answers as files, the turn as a lock.

A question is locked by its process while that waits. If a process dies, the kernel releases its locks: what
it has left is deleted by the next one that has the turn.
"""

import fcntl
import io
import logging
import os
import pickle
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from lsst.daf.butler import DatasetAssociation

from ppdaemon.clock import Clock
from ppdaemon.errors import VisitFailed
from ppdaemon.middleware.butler.failures import describe
from ppdaemon.states import Outcome

__all__ = ("QuestionFiles", "Reply", "asked_mono")

_LOG = logging.getLogger(__name__)

_LOCK = ".lock"
_DOORBELL = ".doorbell"
_VERSION = ".version"
_QUESTION, _ANSWER = ".question", ".answer"
_NEW_QUESTION, _NEW_ANSWER = ".new", ".part"
_NO_LIMIT_S = 1e6
"""A time of access above this is that of a new file."""


@dataclass(frozen=True, slots=True)
class Reply[A]:
    """What a worker finds beside its question: if neither, it must ask alone."""

    answer: A | None = None
    failure: tuple[Outcome, str] | None = None
    """Of a retriable visit: nobody can ask."""


class QuestionFiles[Q, A]:
    """Questions and answers of the processes that use one folder, which only their user can read or write.

    They are pickled. The process that has the turn may make no progress for `wait_s` seconds, the one that
    takes its place for twice as long, and so on.
    """

    def __init__(self, folder: Path, wait_s: float):
        self._folder = folder
        self._wait_s = wait_s

    @contextmanager
    def posted(self, question: Q, clock: Clock) -> Iterator[Path]:
        """Write a question, and delete it with its reply at the end. Raises `OSError`."""
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

    @contextmanager
    def turn(self, clock: Clock, waited: float) -> Iterator[Callable[[], None] | None]:
        """Lock the folder; yield what is to be called after each step if that succeeded at once.

        `waited` is for how long this process has waited, seconds. If the one that has the turn makes no
        progress for longer than it may, a process that has waited for as long takes its place.

        The lock file has the time of the last step as its time of change, and as its time of access for how
        many seconds there may be no other one: both can be set in a full RAM disk, too. If there can be no
        lock file, each process has its turn at once.
        """
        try:
            descriptor = self._open_lock(self._folder / _LOCK)
        except OSError as error:
            _LOG.warning("this process asks alone: %s", describe(error))
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

    def unanswered(self, own: Path | None = None) -> Iterator[tuple[Path, Q]]:
        """Yield the questions without a reply but one's own, the oldest first; delete what dead processes
        have left. Only the process that has the turn may call it.
        """
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
                    except FileNotFoundError:  # its process has ended
                        continue
                    except Exception as error:  # unpickling may raise anything; its process asks alone
                        _LOG.warning("the question of another worker cannot be read: %s", describe(error))
                        self.reply(path, Reply())
                        continue
                    yield path, question
            elif path.suffix == _ANSWER:
                if path.with_suffix(_QUESTION).name not in names:
                    path.unlink(missing_ok=True)
            elif path.suffix == _NEW_ANSWER:  # of a process that had the turn before
                path.unlink(missing_ok=True)

    def has_unanswered(self) -> bool:
        """Return whether there is a question without a reply, perhaps that of a dead process."""
        names = {path.name for path in self._folder.iterdir()}
        return any(
            name.endswith(_QUESTION) and name.removesuffix(_QUESTION) + _ANSWER not in names for name in names
        )

    def is_answered(self, path: Path) -> bool:
        """Return whether a question has a reply."""
        # As texts: the operations of `Path` take ten times as long, and hundreds of workers look.
        return os.path.exists(str(path).removesuffix(_QUESTION) + _ANSWER)

    def reply(self, path: Path, reply: Reply[A]) -> bool:
        """Write the reply to a question; return whether it could be written."""
        part = path.with_name(f"{uuid.uuid4()}{_NEW_ANSWER}")  # a process that hung may write one, too
        try:
            part.touch(0o600)
            part.write_bytes(_pickled(reply))
            part.rename(path.with_suffix(_ANSWER))
        except Exception as error:  # pickling may raise anything; its process asks alone
            _LOG.warning("an answer for another worker cannot be written: %s", describe(error))
            part.unlink(missing_ok=True)
            return False
        return True

    def read_reply(self, path: Path) -> Reply[A]:
        """Return the reply to a question that is answered."""
        try:
            return cast(Reply[A], pickle.loads(path.with_suffix(_ANSWER).read_bytes()))
        except Exception as error:  # such as dimensions that this process has not loaded
            _LOG.warning("the answer of another worker cannot be read: %s", describe(error))
            return Reply()

    def fail(self, error: VisitFailed, until: float) -> None:
        """Write a failure as the reply to the questions that were written until a time of the clock."""
        for path in self._folder.glob(f"*{_QUESTION}"):
            if path.name < _name(until) and not self.is_answered(path):
                self.reply(path, Reply(failure=(error.outcome, str(error))))

    @contextmanager
    def doorbell(self) -> Iterator[int]:
        """Yield a descriptor that becomes readable when a process rings."""
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

    def ring(self) -> bool:
        """Wake the process that has the doorbell; return whether there is one."""
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
                    "a process that asks for others makes no progress for %.0f s, "
                    "another one takes its place",
                    limit_s,
                )
                other.replace(path)
        except OSError as error:  # of another worker that does the same, or of a full RAM disk
            _LOG.info("the process that asks for others is not replaced: %s", describe(error))
        finally:
            other.unlink(missing_ok=True)

    def _make_folder(self) -> None:
        self._folder.parent.mkdir(parents=True, exist_ok=True)
        # For its owner only: what is in it is unpickled.
        self._folder.mkdir(mode=0o700, exist_ok=True)


def _name(mono_s: float) -> str:
    """Return the begin of a name that sorts by time."""
    return f"{round(mono_s * 1e6):018d}"


def asked_mono(question: Path) -> float:
    """Return when a question was written, in monotonic seconds, which all processes of a host share."""
    return int(question.name.partition("-")[0]) / 1e6


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
