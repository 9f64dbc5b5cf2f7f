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

__all__ = ("QuestionFiles", "Reply")

_LOG = logging.getLogger(__name__)

_LOCK = ".lock"
_DOORBELL = ".doorbell"
_VERSION = ".version"
_QUESTION, _ANSWER = ".question", ".answer"
_NEW_QUESTION, _NEW_ANSWER = ".new", ".part"


@dataclass(frozen=True, slots=True)
class Reply[A]:
    """What a worker finds beside its question: if neither, it must ask alone."""

    answer: A | None = None
    failure: tuple[Outcome, str] | None = None
    """Of a retriable visit: nobody can ask."""


class QuestionFiles[Q, A]:
    """Questions and answers of the processes that use one folder, which only their user can read or write.

    They are pickled.
    """

    def __init__(self, folder: Path):
        self._folder = folder

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
    def turn(self, clock: Clock, wait_s: float) -> Iterator[tuple[Callable[[], None] | None, int]]:
        """Lock the folder; yield what is to be called after each step if that succeeded at once, and the
        inode of the lock file.

        A lock file whose process makes no progress is deleted, so that the next look makes another one. If
        there can be no lock file, each process has its turn at once.
        """
        path = self._folder / _LOCK
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            _LOG.warning("this process asks alone: %s", describe(error))
            yield lambda: None, 0
            return

        def progressed() -> None:
            # By the clock that no correction changes. In a full RAM disk, too.
            os.utime(descriptor, (now := clock.mono(), now))

        try:
            is_mine = _locks(descriptor)
            held = os.fstat(descriptor)
            if is_mine:
                progressed()
            elif clock.mono() - held.st_mtime > wait_s:
                with suppress(FileNotFoundError):
                    if path.stat().st_ino == held.st_ino:  # not that of the next process
                        _LOG.warning(
                            "a process that asks for others makes no progress for %.0f s, "
                            "another one takes its place",
                            wait_s,
                        )
                        path.unlink()
            try:
                yield progressed if is_mine else None, held.st_ino
            finally:
                if is_mine:  # far in the future: the next process is not taken for one that hangs
                    os.utime(descriptor)
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
        return path.with_suffix(_ANSWER).exists()

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

    def _make_folder(self) -> None:
        self._folder.parent.mkdir(parents=True, exist_ok=True)
        # For its owner only: what is in it is unpickled.
        self._folder.mkdir(mode=0o700, exist_ok=True)


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
