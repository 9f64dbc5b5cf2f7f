# SPDX-License-Identifier: BSD-3-Clause
"""Questions that the workers of a host have at the same time: one process answers those of many.

The process that has the turn answers the oldest questions that are there, up to `BATCH`. It is the asker, if
the node has one: workers wake it, and take a turn only if it is late. Without it the worker with the turn
answers those of the others with its own, and the next one answers the next ones. So many workers as a host
may have ask through one connection at a time, and none gets an answer that is older than its question.

If the process that has the turn dies, the next one answers the questions that are left. If it makes no
progress, another one takes its place. Being slow is not enough: where each that has waited for long asked by
itself, hundreds of them would make all others slow, too. What cannot be written or read in the folder makes a
worker ask for itself alone, in its turn.
"""

import logging
import os
import select
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from ppdaemon.clock import Clock
from ppdaemon.errors import VisitFailed
from ppdaemon.middleware.butler.failures import describe
from ppdaemon.middleware.butler.timings import Timings
from ppdaemon.middleware.preload.questionfiles import QuestionFiles, Reply, asked_mono

__all__ = ("HostQuestions", "Turn")

_LOG = logging.getLogger(__name__)

WAIT_S = 5.0
"""Without progress, until another process takes the place of the one that has the turn: many times the
duration of a query, and a fraction of the time from the announcement to the image. That one may wait for a
server that hangs, or be stopped. The next one has twice as long: if the server is slow, or the host has no
time for its workers, more that ask at once do not make it faster."""
ASKER_LATE_S = 0.25
"""Until a worker takes its turn although there is an asker: a cold query takes half of it, and an asker that
is busy has the turn."""
BATCH = 64
"""Questions that are answered together at most: those of all detectors of a host, mostly. Of more, the first
begin to copy while the next are answered; the memory for answers is limited, and a question that no query
can answer concerns only so many others."""
_PAUSE_S = 0.004, 0.1
"""Between two looks, shortest and longest: the queries of a visit take ten times the shortest."""
_PAUSE = 1 / 8
"""As a fraction of the time that a worker has waited: hundreds of them would use the cores that the one
needs that answers."""


@dataclass(frozen=True, slots=True)
class Turn[Q]:
    """The right to ask."""

    others: Callable[[], list[Q]] = list
    """Returns the questions of other workers; to be called once, as late as possible."""
    progressed: Callable[[], None] = lambda: None
    """To be called after each step, such as a statement."""


type _Answering[Q, A] = Callable[[Turn[Q]], Sequence[A]]


class HostQuestions[Q, A]:
    """Questions of the processes that use one folder, which only their user can read or write.

    Questions and answers are pickled.
    """

    def __init__(self, folder: Path, wait_s: float = WAIT_S, batch: int = BATCH):
        self._files = QuestionFiles[Q, A](folder, wait_s)
        self._wait_s = wait_s
        self._batch = batch

    def ask(self, question: Q, answer: _Answering[Q, A], timings: Timings) -> A:
        """Return the answer to a question.

        `answer` may be called, in one process at a time unless that makes no progress. It returns the answer
        to `question`, then those to the others of its turn. If it raises `~ppdaemon.errors.VisitFailed`
        before it calls `Turn.others`, nobody can ask: so does this function in all processes that have waited
        for at least half as long. If it raises later, the error may be another question's: it is called again
        for `question` alone, and the others ask alone, too, one after the other.
        """
        with ExitStack() as stack:
            try:
                path = stack.enter_context(self._files.posted(question, timings.clock))
            except OSError as error:  # a full RAM disk: files are evicted when the inputs are copied
                _LOG.warning("cannot ask together with other workers: %s", describe(error))
                path = None
            return self._wait_or_answer(path, answer, timings)

    def doorbell(self) -> AbstractContextManager[int]:
        """Return a context with a descriptor that becomes readable when a worker has a question: `answer_all`
        is to be called then.
        """
        return self._files.doorbell()

    def answer_all(
        self,
        doorbell: int,
        answer: _Answering[Q, A],
        clock: Clock,
        report: Callable[[Sequence[float]], None],
    ) -> None:
        """Answer the questions that are there. `answer` is as for `ask`, without a question of its own;
        `report` is called after each batch, with how long each question had waited, in seconds.

        Errors of `answer` are logged: the workers ask by themselves then.
        """
        with suppress(BlockingIOError):
            os.read(doorbell, select.PIPE_BUF)
        begin, waited = clock.mono(), 0.0
        while waited < self._wait_s and self._files.has_unanswered():
            with self._files.turn(clock, waited) as progressed:
                if progressed is not None:
                    # One turn for all: between two of them a worker that has waited would begin one, and
                    # open the central repo for it.
                    while self._files.has_unanswered():
                        if not self._answer_batch(answer, progressed, clock, report):
                            break
                    return
            # A worker that has not waited for this process has the turn.
            time.sleep(_pause_s(waited))
            waited = clock.mono() - begin

    @property
    def version(self) -> str:
        """A text that changes with each `renew` by any process (`str`)."""
        return self._files.version

    def renew(self) -> None:
        """Change `version`: what was cached for answers is not to be used any more."""
        self._files.renew()

    def _wait_or_answer(self, path: Path | None, answer: _Answering[Q, A], timings: Timings) -> A:
        begin, waited = timings.clock.mono(), 0.0
        asker_until_s = ASKER_LATE_S if path is not None and self._files.ring() else 0.0
        while True:
            if path is not None and self._files.is_answered(path):
                reply = self._files.read_reply(path)
                if reply.failure is not None:
                    raise VisitFailed(*reply.failure, retriable=True)
                if reply.answer is not None:
                    return reply.answer
                path, asker_until_s = None, 0.0  # what was found there stays: nobody else is to answer
            if waited >= asker_until_s:
                with self._files.turn(timings.clock, waited) as progressed:
                    if progressed is not None:
                        # Another process may have answered while this one did not look.
                        if path is not None and self._files.is_answered(path):
                            continue
                        try:
                            return self._answer(path, answer, progressed, timings.clock)
                        finally:
                            if path is not None:  # the next one that has the turn would ask for it again
                                path.unlink(missing_ok=True)
            with timings.timed("wait"):
                time.sleep(_pause_s(waited))
            waited = timings.clock.mono() - begin

    def _answer(
        self,
        own: Path | None,
        answer: _Answering[Q, A],
        progressed: Callable[[], None],
        clock: Clock,
    ) -> A:
        """Answer a worker's own question, and those of others, unless it is to ask alone."""
        others: list[tuple[Path, Q]] = []
        begin, can_ask = clock.mono(), False

        def take_others() -> list[Q]:
            nonlocal can_ask
            can_ask = True
            if own is not None:
                others.extend(islice(self._files.unanswered(own), self._batch - 1))
            return [question for _, question in others]

        try:
            first, *rest = answer(Turn(take_others, progressed))
        except Exception as error:
            if isinstance(error, VisitFailed) and not can_ask:
                # Each would try for as long, one after the other.
                self._files.fail(error, (begin + clock.mono()) / 2)
            if not others:
                raise
            _log_failure(error)
            # If this fails, too, the next one answers those of the others.
            first, rest = self._answer(None, answer, progressed, clock), []
        replies = [Reply(each) for each in rest] or [Reply[A]()] * len(others)
        for (path, _), reply in zip(others, replies, strict=True):
            self._files.reply(path, reply)
        return first

    def _answer_batch(
        self,
        answer: _Answering[Q, A],
        progressed: Callable[[], None],
        clock: Clock,
        report: Callable[[Sequence[float]], None],
    ) -> bool:
        """Answer the oldest questions; return whether it is of use to go on."""
        batch: list[tuple[Path, Q]] = []

        def take_batch() -> list[Q]:
            batch.extend(islice(self._files.unanswered(), self._batch))
            return [question for _, question in batch]

        try:
            answers = answer(Turn(take_batch, progressed))
        except Exception as error:
            _log_failure(error)
            report(())
            # One of them may be the reason. Without any nobody can ask: the workers try, and retry.
            return bool(batch) and all(
                self._answer_single(path, question, answer, progressed, clock, report)
                for path, question in batch
            )
        written = [
            path
            for (path, _), each in zip(batch, answers, strict=True)
            if self._files.reply(path, Reply(each))
        ]
        report([clock.mono() - asked_mono(path) for path in written])
        # Otherwise none can be read, or one cannot be answered: the disk is full.
        return bool(batch) and len(written) == len(batch)

    def _answer_single(
        self,
        path: Path,
        question: Q,
        answer: _Answering[Q, A],
        progressed: Callable[[], None],
        clock: Clock,
        report: Callable[[Sequence[float]], None],
    ) -> bool:
        """Answer one question, or let its worker ask alone; return whether others can be answered."""
        was_taken = False

        def take() -> list[Q]:
            nonlocal was_taken
            was_taken = True
            return [question]

        try:
            (found,) = answer(Turn(take, progressed))
        except Exception as error:
            _LOG.warning("the question of a worker is not answered: %s", describe(error))
            report(())
            return was_taken and self._files.reply(path, Reply())
        is_written = self._files.reply(path, Reply(found))
        report([clock.mono() - asked_mono(path)] if is_written else [])
        return is_written


def _log_failure(error: Exception) -> None:
    unexpected = not isinstance(error, VisitFailed)
    _LOG.warning(
        "not answered together with those of other workers: %s", describe(error), exc_info=unexpected
    )


def _pause_s(waited_s: float) -> float:
    """Return the time between two looks."""
    return min(max(_PAUSE * waited_s, _PAUSE_S[0]), _PAUSE_S[1])
