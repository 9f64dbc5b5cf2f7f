# SPDX-License-Identifier: BSD-3-Clause
"""Questions that the workers of a host have at the same time: one of them answers those of all.

Each worker writes its question to a file, which it keeps locked while it waits. The worker that gets
the lock of the folder answers all questions that are there, and leaves the answers beside them. No
answer is older than its question. If the worker dies, the kernel releases its locks: the next one
answers the questions that are left, and deletes those of dead workers.
"""

import fcntl
import io
import logging
import os
import pickle
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

from lsst.daf.butler import DatasetAssociation

from ppdaemon.errors import VisitFailed
from ppdaemon.middleware.butler.failures import describe
from ppdaemon.middleware.butler.timings import Timings

__all__ = ("HostQuestions",)

_LOG = logging.getLogger(__name__)

WAIT_S = 10.0
"""Until a worker answers its own question: many times the duration of a query, and a fraction of the
time from the announcement to the image. The worker that answers may wait for a server that hangs."""
_PAUSE_S = 0.004
"""Between two looks: the queries of a visit take ten times as long."""
_LOCK = ".lock"
_VERSION = ".version"
_QUESTION, _ANSWER = ".question", ".answer"


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

        `answer` may be called, in one process at a time. It gets a function that returns the other
        questions, to be called once, as late as possible, and returns the answers to all, that to
        `question` first. If it raises, so does this function, unless it was for others, too.
        """
        give_up = timings.clock.mono() + self._wait_s
        with self._posted(question) as path:
            while timings.clock.mono() < give_up:
                with self._turn() as is_mine:
                    # Only now: another process may have answered while this one did not look.
                    if path.with_suffix(_ANSWER).exists():
                        return self._read(path.with_suffix(_ANSWER))
                    if is_mine:
                        return self._answer(path, answer)
                with timings.timed("wait"):
                    time.sleep(_PAUSE_S)
        _LOG.warning("no answer from another worker in %g s, this one asks by itself", self._wait_s)
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
        self._make_folder()
        (self._folder / _VERSION).write_text(str(uuid.uuid4()))

    def _answer(self, own: Path, answer: Callable[[Callable[[], list[Q]]], Sequence[A]]) -> A | None:
        others: list[tuple[Path, Q]] = []

        def take_others() -> list[Q]:
            others.extend(self._others(own))
            return [question for _, question in others]

        first: A | None = None
        rest: Sequence[A | None] = []
        try:
            first, *rest = answer(take_others)
        except VisitFailed as error:
            if not others:
                raise
            _LOG.warning("not answered together with those of other workers: %s", error)
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
        hidden = path.with_suffix(".new")
        descriptor = os.open(hidden, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            # Locked before it has its name: an unlocked one is that of a dead process.
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            os.write(descriptor, _pickled(question))
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
    def _turn(self) -> Iterator[bool]:
        """Lock the folder; yield whether that succeeded at once."""
        descriptor = os.open(self._folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            yield _locks(descriptor)
        finally:
            os.close(descriptor)

    def _others(self, own: Path) -> Iterator[tuple[Path, Q]]:
        """Yield the questions without an answer; delete what dead processes have left."""
        names = {path.name for path in self._folder.iterdir()}
        for name in sorted(names):
            path = self._folder / name
            if path == own or path.suffix not in (_QUESTION, _ANSWER):
                continue
            if path.suffix == _ANSWER:
                if path.with_suffix(_QUESTION).name not in names:
                    path.unlink(missing_ok=True)
            elif _is_abandoned(path):
                path.unlink(missing_ok=True)
                path.with_suffix(_ANSWER).unlink(missing_ok=True)
            elif path.with_suffix(_ANSWER).name not in names:
                with suppress(FileNotFoundError):  # its process has waited too long
                    yield path, cast(Q, pickle.loads(path.read_bytes()))

    def _write(self, path: Path, answer: A | None) -> None:
        part = path.with_suffix(".part")
        try:
            part.touch(0o600)
            part.write_bytes(_pickled(answer))
            part.rename(path)
        except OSError as error:  # it waits, and then asks by itself
            _LOG.warning("an answer for another worker cannot be written: %s", describe(error))
            part.unlink(missing_ok=True)

    def _read(self, path: Path) -> A | None:
        try:
            return cast(A | None, pickle.loads(path.read_bytes()))
        except pickle.UnpicklingError as error:  # of dimensions that this process has not loaded
            _LOG.warning("the answer of another worker cannot be read: %s", error)
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
