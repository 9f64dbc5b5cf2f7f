# SPDX-License-Identifier: BSD-3-Clause
"""Workers that ask the central repo at the same time: one asks for all, and each gets its own answer."""

import fcntl
import os
import select
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from centrals import Central, write_everything
from lsst.daf.butler import DatasetRef
from toycam import DETECTORS, EPOCH, NAME, Rig, load_toy_camera

from ppdaemon.clock import Clock
from ppdaemon.errors import VisitFailed
from ppdaemon.middleware.butler.central import CentralReader
from ppdaemon.middleware.butler.timings import Timings
from ppdaemon.middleware.pipelines.graph import PipelineLibrary
from ppdaemon.middleware.preload.answers import Answer, Answers, Question
from ppdaemon.middleware.preload.questionfiles import QuestionFiles
from ppdaemon.middleware.preload.questions import BATCH, HostQuestions, Turn
from ppdaemon.middleware.raws.regions import footprint_of
from ppdaemon.states import Outcome
from ppdaemon.testing.waiting import wait_until

pytest_plugins = ("toyfixtures", "dbfixtures")

LIMIT_S = 60.0
LONG_S = 1000.0
"""Far above any stall of a busy machine: only a clock that is advanced exceeds it."""


class AdvancedClock(Clock):
    """A monotonic clock that a test advances without waiting."""

    __slots__ = ("_passed_s",)

    def __init__(self) -> None:
        passed = [0.0]
        super().__init__(mono=lambda: time.monotonic() + passed[0])
        object.__setattr__(self, "_passed_s", passed)

    def advance(self, seconds: float) -> None:
        self._passed_s[0] += seconds  # type: ignore[attr-defined]


# --- who asks ----------------------------------------------------------------


class Asker:
    """A worker in a thread: files are locked by each opening of them, as by each process."""

    def __init__(
        self,
        folder: Path,
        threads: ThreadPoolExecutor,
        wait_s: float = LIMIT_S,
        batch: int = BATCH,
        clock: Clock | None = None,
    ):
        self._questions = HostQuestions[str, str](folder, wait_s, batch)
        self._threads = threads
        self._clock = clock or Clock()
        self.connected = threading.Event()
        self.may_ask = threading.Event()
        self.may_answer = threading.Event()
        self.asked: list[str] = []
        self.turn = Turn[str]()
        self.no_connection: VisitFailed | None = None
        self.failure: Exception | None = None
        self.poison = ""
        """The question that fails."""

    def ask(self, question: str) -> "Future[str]":
        def answer(turn: Turn[str]) -> list[str]:
            self.connected.set()
            self.turn = turn
            assert self.may_ask.wait(LIMIT_S)
            if self.no_connection is not None:
                raise self.no_connection
            self.asked = [question, *turn.others()]
            assert self.may_answer.wait(LIMIT_S)
            if self.failure is not None and self.poison in self.asked:
                raise self.failure
            return [f"answer to {each}" for each in self.asked]

        return self._threads.submit(self._questions.ask, question, answer, Timings(self._clock))

    def go(self) -> None:
        self.may_ask.set()
        self.may_answer.set()


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(20) as pool:
        yield pool


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "questions"


def posted(folder: Path) -> int:
    return len(list(folder.glob("*.question")))


def wait_for_questions(folder: Path, count: int) -> None:
    wait_until(lambda: posted(folder) == count, LIMIT_S, lambda: f"{posted(folder)} questions")


def ask_in_order(folder: Path, workers: Sequence[Asker], questions: str) -> "list[Future[str]]":
    """Let each ask when the question before lies there: they are answered by age."""
    answers = []
    for number, (worker, question) in enumerate(zip(workers, questions, strict=True)):
        answers.append(worker.ask(question))
        wait_for_questions(folder, number + 1)
    return answers


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_first_worker_asks_for_all(folder: Path, threads: ThreadPoolExecutor) -> None:
    first, second, third = (Asker(folder, threads) for _ in range(3))
    answers = [first.ask("1")]
    assert first.connected.wait(LIMIT_S)
    answers += [second.ask("2"), third.ask("3")]
    wait_for_questions(folder, 3)
    first.go()
    assert [each.result(LIMIT_S) for each in answers] == [f"answer to {each}" for each in "123"]
    assert sorted(first.asked) == ["1", "2", "3"]
    assert not second.connected.is_set()
    assert not third.connected.is_set()
    assert left(folder) == [".lock"]


def test_no_answer_is_older_than_its_question(folder: Path, threads: ThreadPoolExecutor) -> None:
    first, second = (Asker(folder, threads) for _ in range(2))
    first.may_ask.set()
    one = first.ask("1")
    wait_until(lambda: bool(first.asked), LIMIT_S, lambda: "the first has not asked")
    two = second.ask("2")
    wait_for_questions(folder, 2)
    second.go()
    first.go()
    assert one.result(LIMIT_S) == "answer to 1"
    assert two.result(LIMIT_S) == "answer to 2"
    assert (first.asked, second.asked) == (["1"], ["2"])


@pytest.mark.parametrize(
    "failure", [VisitFailed(Outcome.PRELOAD_FAILED, "away", retriable=True), ZeroDivisionError("a bug")]
)
def test_a_question_that_fails_is_no_other_workers_problem(
    folder: Path, threads: ThreadPoolExecutor, failure: Exception
) -> None:
    askers = [Asker(folder, threads) for _ in range(4)]
    for each in askers:
        each.failure, each.poison = failure, "2"
    answers = [askers[0].ask("0")]
    assert askers[0].connected.wait(LIMIT_S)
    answers += [asker.ask(str(number)) for number, asker in enumerate(askers) if number]
    wait_for_questions(folder, 4)
    for each in askers:
        each.go()
    with pytest.raises(type(failure)):
        answers.pop(2).result(LIMIT_S)
    assert [each.result(LIMIT_S) for each in answers] == ["answer to 0", "answer to 1", "answer to 3"]
    assert [each.asked for each in askers] == [["0"], ["1"], ["2"], ["3"]], "then each alone"
    assert left(folder) == [".lock"]


def test_those_that_failed_with_a_failing_question_are_answered_together(
    folder: Path, threads: ThreadPoolExecutor
) -> None:
    """It is not theirs, if its own worker fails alone, too."""
    first, *others = (Asker(folder, threads) for _ in range(4))
    first.failure, first.poison = ZeroDivisionError("a bug"), "0"
    failing = first.ask("0")
    assert first.connected.wait(LIMIT_S)
    answers = [other.ask(number) for number, other in zip("123", others, strict=True)]
    wait_for_questions(folder, 4)
    for each in (first, *others):
        each.go()
    with pytest.raises(ZeroDivisionError):
        failing.result(LIMIT_S)
    assert [each.result(LIMIT_S) for each in answers] == [f"answer to {number}" for number in "123"]
    assert sorted(map(len, (each.asked for each in others))) == [0, 0, 3]


@pytest.mark.parametrize("failure", [None, ZeroDivisionError("a bug")])
def test_a_question_is_withdrawn_before_another_one_has_the_turn(
    folder: Path, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch, failure: Exception | None
) -> None:
    turn, seen = QuestionFiles.turn, []

    @contextmanager
    def watched(*args: Any) -> Iterator[Any]:
        with turn(*args) as progressed:
            try:
                yield progressed
            finally:
                seen.append(left(folder))

    monkeypatch.setattr(QuestionFiles, "turn", watched)
    asker = Asker(folder, threads)
    asker.failure, asker.poison = failure, "0"
    asker.go()
    assert type(asker.ask("0").exception(LIMIT_S)) is type(failure)
    assert seen == [[".lock"]]


def test_where_one_cannot_connect_no_other_tries_for_as_long(
    folder: Path, threads: ThreadPoolExecutor
) -> None:
    clock = AdvancedClock()
    first, second, late = (Asker(folder, threads, wait_s=9 * LONG_S, clock=clock) for _ in range(3))
    first.no_connection = VisitFailed(Outcome.PRELOAD_FAILED, "away", retriable=True)
    one = first.ask("1")
    assert first.connected.wait(LIMIT_S)
    two = second.ask("2")
    wait_for_questions(folder, 2)
    clock.advance(LONG_S)
    three = late.ask("3")
    wait_for_questions(folder, 3)
    first.go()
    late.go()
    for each in (one, two):
        with pytest.raises(VisitFailed, match="away") as raised:
            each.result(LIMIT_S)
        assert raised.value.outcome is Outcome.PRELOAD_FAILED
        assert raised.value.retriable
    assert not second.connected.is_set()
    assert three.result(LIMIT_S) == "answer to 3", "it has hardly waited"
    assert left(folder) == [".lock"]


def test_the_oldest_are_answered_first_and_not_too_many_at_once(
    folder: Path, threads: ThreadPoolExecutor
) -> None:
    askers = [Asker(folder, threads, batch=3) for _ in range(7)]
    answers = ask_in_order(folder, askers, "0123456")
    assert askers[0].connected.wait(LIMIT_S)
    for asker in askers:
        asker.go()
    assert [each.result(LIMIT_S) for each in answers] == [f"answer to {number}" for number in range(7)]
    assert askers[0].asked == ["0", "1", "2"]
    assert sorted(len(asker.asked) for asker in askers) == [0, 0, 0, 0, 1, 3, 3]


def test_another_worker_takes_the_place_of_one_that_hangs(folder: Path, threads: ThreadPoolExecutor) -> None:
    hanging, *others = (Asker(folder, threads, wait_s=2.0) for _ in range(3))
    one = hanging.ask("1")
    assert hanging.connected.wait(LIMIT_S)
    for other in others:
        other.go()
    answers = [other.ask(number) for other, number in zip(others, "23", strict=True)]
    assert [each.result(LIMIT_S) for each in answers] == ["answer to 2", "answer to 3"]
    later = Asker(folder, threads)
    later.go()
    assert later.ask("4").result(LIMIT_S) == "answer to 4", "nobody waits for it any more"
    hanging.go()
    assert one.result(LIMIT_S) == "answer to 1"


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return a list to which each look of a worker is added: for how long it has waited."""
    looks: list[float] = []
    turn = QuestionFiles.turn

    def noted(
        files: QuestionFiles[str, str], clock: Clock, waited: float
    ) -> AbstractContextManager[Callable[[], None] | None]:
        looks.append(waited)
        return turn(files, clock, waited)

    monkeypatch.setattr(QuestionFiles, "turn", noted)
    return looks


def wait_for_looks(looks: list[float], waited_s: float, count: int = 2) -> None:
    """Wait until workers have looked so often after so much time; the first look may take the place."""
    wait_until(lambda: sum(each > waited_s for each in looks) >= count, LIMIT_S, lambda: f"{looks[-9:]}")


def test_one_that_is_slow_keeps_its_turn(
    folder: Path, threads: ThreadPoolExecutor, looks: list[float]
) -> None:
    clock = AdvancedClock()
    slow, other = (Asker(folder, threads, wait_s=LONG_S, clock=clock) for _ in range(2))
    one = slow.ask("1")
    assert slow.connected.wait(LIMIT_S)
    two = other.ask("2")
    wait_for_questions(folder, 2)
    for number in range(1, 5):
        slow.turn.progressed()
        clock.advance(0.8 * LONG_S)
        wait_for_looks(looks, 0.75 * number * LONG_S)
    assert not other.connected.is_set()
    slow.go()
    assert [each.result(LIMIT_S) for each in (one, two)] == ["answer to 1", "answer to 2"]
    assert slow.asked == ["1", "2"]


def test_if_all_that_ask_hang_only_few_ask(
    folder: Path, threads: ThreadPoolExecutor, looks: list[float]
) -> None:
    """Each has twice as long as the one before."""
    clock = AdvancedClock()
    askers = [Asker(folder, threads, wait_s=LONG_S, clock=clock) for _ in range(10)]
    answers = [asker.ask(str(number)) for number, asker in enumerate(askers)]

    def that_ask() -> int:
        return sum(asker.connected.is_set() for asker in askers)

    wait_until(lambda: that_ask() == 1, LIMIT_S, lambda: f"{that_ask()} ask")
    passed_s = 0.0
    for number in range(3):
        # Not before, however many have waited for as long.
        for part, expected in ((0.9, number + 1), (0.2, number + 2)):
            clock.advance(part * 2**number * LONG_S)
            passed_s += part * 2**number * LONG_S
            wait_for_looks(looks, passed_s - 0.05 * LONG_S, 30)
            wait_until(lambda: that_ask() >= expected, LIMIT_S, lambda: f"{that_ask()} ask")  # noqa: B023
            assert that_ask() == expected
    for asker in askers:
        asker.go()
    assert [each.result(LIMIT_S) for each in answers] == [f"answer to {number}" for number in range(10)]


def test_a_worker_that_has_not_waited_takes_no_place(
    folder: Path, threads: ThreadPoolExecutor, looks: list[float]
) -> None:
    """As where hundreds that start at once have no time to look before."""
    clock = AdvancedClock()
    slow, other = (Asker(folder, threads, wait_s=LONG_S, clock=clock) for _ in range(2))
    one = slow.ask("1")
    assert slow.connected.wait(LIMIT_S)
    clock.advance(1.5 * LONG_S)
    inode = (folder / ".lock").stat().st_ino
    two = other.ask("2")
    wait_for_looks(looks, -1.0, 3)
    slow.turn.progressed()
    assert (folder / ".lock").stat().st_ino == inode
    other.go()
    slow.go()
    assert [each.result(LIMIT_S) for each in (one, two)] == ["answer to 1", "answer to 2"]


def test_one_that_begins_is_not_taken_for_one_that_hangs(folder: Path, threads: ThreadPoolExecutor) -> None:
    first = Asker(folder, threads)
    first.go()
    first.ask("1").result(LIMIT_S)
    # The next one locks the file before it can write since when it has it.
    assert (folder / ".lock").stat().st_mtime > Clock().mono() + LIMIT_S


def test_what_cannot_be_read_is_nobody_elses_problem(folder: Path, threads: ThreadPoolExecutor) -> None:
    first, second = (Asker(folder, threads) for _ in range(2))
    one = first.ask("1")
    assert first.connected.wait(LIMIT_S)
    cut = folder / "cut.question"
    with cut.open("wb") as locked:
        fcntl.flock(locked, fcntl.LOCK_EX)
        two = second.ask("2")
        wait_for_questions(folder, 3)
        (question,) = (path for path in folder.glob("*.question") if b"\x8c\x012" in path.read_bytes())
        question.with_suffix(".answer").touch()  # empty
        second.go()
        first.go()
        assert one.result(LIMIT_S) == "answer to 1"
        assert two.result(LIMIT_S) == "answer to 2"
        assert second.asked == ["2"], "alone"
        assert cut.exists()


def test_an_answer_that_cannot_be_pickled_lets_nobody_wait(folder: Path, threads: ThreadPoolExecutor) -> None:
    first, second = (Asker(folder, threads) for _ in range(2))
    second.go()
    wrong: list[str] = []

    def answer(turn: Turn[str]) -> list[object]:
        first.connected.set()
        assert first.may_ask.wait(LIMIT_S)
        wrong.extend(turn.others())
        return ["own", *(threading.Lock() for _ in wrong)]

    one = threads.submit(HostQuestions[str, object](folder, LIMIT_S).ask, "1", answer, Timings(Clock()))
    assert first.connected.wait(LIMIT_S)
    two = second.ask("2")
    wait_for_questions(folder, 2)
    first.go()
    assert (one.result(LIMIT_S), two.result(LIMIT_S)) == ("own", "answer to 2")
    assert wrong == ["2"]
    assert left(folder) == [".lock"]


def test_without_a_folder_a_worker_asks_by_itself(folder: Path, threads: ThreadPoolExecutor) -> None:
    """As in a full RAM disk, for which the shared cache then makes room."""
    folder.touch()
    asker = Asker(folder, threads)
    asker.go()
    assert asker.ask("1").result(LIMIT_S) == "answer to 1"
    HostQuestions[str, str](folder).renew()


def test_files_of_killed_workers_are_deleted(folder: Path, threads: ThreadPoolExecutor) -> None:
    folder.mkdir()
    for name in ("1.new", "2.part", "3.question", "3.answer", "4.answer"):
        (folder / name).touch()
    asker = Asker(folder, threads)
    asker.go()
    assert asker.ask("5").result(LIMIT_S) == "answer to 5"
    assert left(folder) == [".lock"]


HANG = """
import sys, time
from pathlib import Path
from typing import Any
from ppdaemon.clock import Clock
from ppdaemon.middleware.butler.timings import Timings
from ppdaemon.middleware.preload.questions import HostQuestions

def hang(turn):
    print(len(turn.others()), flush=True)
    time.sleep(600)

HostQuestions(Path(sys.argv[1])).ask("of a process that is killed", hang, Timings(Clock()))
"""


def test_when_the_asking_worker_is_killed_another_one_asks(folder: Path, threads: ThreadPoolExecutor) -> None:
    command = [sys.executable, "-c", HANG, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as killed:
        assert killed.stdout is not None
        killed.stdout.readline()  # it has asked
        second = Asker(folder, threads)
        second.go()
        answer = second.ask("2")
        wait_for_questions(folder, 2)
        assert not second.connected.is_set()
        killed.kill()
        assert answer.result(LIMIT_S) == "answer to 2"
    assert second.asked == ["2"], "nobody waits for the other answer"
    assert left(folder) == [".lock"]


def test_questions_are_private(folder: Path, threads: ThreadPoolExecutor) -> None:
    before = os.umask(0)
    try:
        first, second = (Asker(folder, threads) for _ in range(2))
        one = first.ask("1")
        assert first.connected.wait(LIMIT_S)
        two = second.ask("2")
        wait_for_questions(folder, 2)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
        first.go()
        assert {one.result(LIMIT_S), two.result(LIMIT_S)} == {"answer to 1", "answer to 2"}
    finally:
        os.umask(before)


# --- one process answers for all ---------------------------------------------


class AnswersAll:
    """The process that answers for all, in a thread; it answers when it is told to."""

    def __init__(self, folder: Path, wait_s: float = LIMIT_S, batch: int = BATCH):
        self._questions = HostQuestions[str, str](folder, wait_s, batch)
        self._open = ExitStack()
        self._doorbell = self._open.enter_context(self._questions.doorbell())
        self.asked: list[list[str]] = []
        self.waited: list[Sequence[float]] = []
        self.no_connection: VisitFailed | None = None
        self.poison = ""
        """The question that fails."""

    def is_woken(self) -> bool:
        return bool(select.select([self._doorbell], [], [], 0)[0])

    def answer(self) -> None:
        self._questions.answer_all(self._doorbell, self._answer, Clock(), self._report)

    def _report(self, waited_s: Sequence[float]) -> None:
        self.waited.append(waited_s)
        assert len(self.waited) < 10, "it answers nothing, without end"

    def _answer(self, turn: Turn[str]) -> list[str]:
        if self.no_connection is not None:
            raise self.no_connection
        self.asked.append(turn.others())
        if self.poison in self.asked[-1]:
            raise VisitFailed(Outcome.PRELOAD_FAILED, "a bad question", retriable=True)
        return [f"common answer to {each}" for each in self.asked[-1]]

    def close(self) -> None:
        self._open.close()


@pytest.fixture
def asker_never_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let workers wait for the one that answers for all as long as a test takes."""
    monkeypatch.setattr("ppdaemon.middleware.preload.questions.ASKER_LATE_S", LIMIT_S)


@pytest.mark.usefixtures("asker_never_late")
def test_one_process_answers_for_all(folder: Path, threads: ThreadPoolExecutor) -> None:
    one, workers = AnswersAll(folder), [Asker(folder, threads) for _ in range(3)]
    assert not one.is_woken()
    answers = [worker.ask(number) for worker, number in zip(workers, "123", strict=True)]
    wait_for_questions(folder, 3)
    wait_until(one.is_woken, LIMIT_S, lambda: "nobody has woken it")
    one.answer()
    assert [each.result(LIMIT_S) for each in answers] == [f"common answer to {each}" for each in "123"]
    assert not any(worker.connected.is_set() for worker in workers)
    assert [sorted(each) for each in one.asked] == [["1", "2", "3"]]
    wait_for_questions(folder, 0)
    one.answer()
    assert len(one.asked) == 1, "there is nothing to ask"
    assert left(folder) == [".doorbell", ".lock"]
    one.close()


@pytest.mark.usefixtures("asker_never_late")
def test_a_question_that_fails_is_asked_by_its_own_worker_alone(
    folder: Path, threads: ThreadPoolExecutor
) -> None:
    one, workers = AnswersAll(folder), [Asker(folder, threads) for _ in range(3)]
    one.poison = "2"
    answers = ask_in_order(folder, workers, "123")
    workers[1].go()
    one.answer()
    assert [each.result(LIMIT_S) for each in answers] == [
        "common answer to 1",
        "answer to 2",
        "common answer to 3",
    ]
    assert [worker.asked for worker in workers] == [[], ["2"], []]
    assert [len(each) for each in one.waited] == [0, 1, 0, 1], "a report after each step"
    one.close()


@pytest.mark.usefixtures("asker_never_late")
def test_the_one_answers_the_oldest_first_and_not_too_many_at_once(
    folder: Path, threads: ThreadPoolExecutor
) -> None:
    one = AnswersAll(folder, batch=3)
    answers = ask_in_order(folder, [Asker(folder, threads) for _ in range(7)], "0123456")
    one.answer()
    assert [each.result(LIMIT_S) for each in answers] == [f"common answer to {number}" for number in range(7)]
    assert one.asked == [["0", "1", "2"], ["3", "4", "5"], ["6"]]
    assert [len(each) for each in one.waited] == [3, 3, 1]
    assert all(0.0 < waited_s < LIMIT_S for each in one.waited for waited_s in each)
    one.close()


def test_no_worker_takes_a_turn_between_two_batches(
    folder: Path, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, workers = HostQuestions[str, str](folder, LIMIT_S, batch=2), [Asker(folder, threads) for _ in "0123"]
    entered, has_time = threading.Event(), threading.Event()
    unanswered = QuestionFiles.has_unanswered

    def has_unanswered(files: QuestionFiles[str, str]) -> bool:
        time.sleep(0.5)  # several looks of each worker
        return unanswered(files)

    def answer(turn: Turn[str]) -> list[str]:
        entered.set()
        assert has_time.wait(LIMIT_S)
        return [f"common answer to {each}" for each in turn.others()]

    with one.doorbell() as doorbell:
        monkeypatch.setattr("ppdaemon.middleware.preload.questions.ASKER_LATE_S", LIMIT_S)
        answers = [workers[0].ask("0")]
        wait_for_questions(folder, 1)
        answering = threads.submit(one.answer_all, doorbell, answer, Clock(), lambda waited_s: None)
        assert entered.wait(LIMIT_S)
        monkeypatch.setattr("ppdaemon.middleware.preload.questions.ASKER_LATE_S", 0.0)
        monkeypatch.setattr(QuestionFiles, "has_unanswered", has_unanswered)
        answers += [worker.ask(number) for worker, number in zip(workers[1:], "123", strict=True)]
        wait_for_questions(folder, 4)
        for worker in workers:
            worker.go()
        has_time.set()
        assert [each.result(LIMIT_S) for each in answers] == [
            f"common answer to {number}" for number in "0123"
        ]
        assert not any(worker.connected.is_set() for worker in workers)
        answering.result(LIMIT_S)


def test_a_question_that_can_neither_be_read_nor_answered_is_left(
    folder: Path, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a full RAM disk."""
    one = AnswersAll(folder)
    monkeypatch.setattr(QuestionFiles, "reply", lambda *_: False)
    with (folder / "cut.question").open("wb") as locked:
        fcntl.flock(locked, fcntl.LOCK_EX)
        one.answer()
    assert one.asked == [[]]
    one.close()


def test_if_the_one_cannot_connect_one_worker_tries_for_all(
    folder: Path, threads: ThreadPoolExecutor
) -> None:
    one, workers = AnswersAll(folder), [Asker(folder, threads) for _ in range(3)]
    one.no_connection = VisitFailed(Outcome.PRELOAD_FAILED, "away", retriable=True)
    answers = [worker.ask(number) for worker, number in zip(workers, "123", strict=True)]
    wait_for_questions(folder, 3)
    one.answer()  # it does not try for ever
    for worker in workers:
        worker.go()
    assert [each.result(LIMIT_S) for each in answers] == [f"answer to {number}" for number in "123"]
    one.close()


def test_a_worker_takes_the_place_of_the_one_that_hangs(folder: Path, threads: ThreadPoolExecutor) -> None:
    one = HostQuestions[str, str](folder, 0.5)
    workers = [Asker(folder, threads, wait_s=0.5) for _ in range(10)]
    entered, hangs = threading.Event(), threading.Event()

    def hang(turn: Turn[str]) -> list[str]:
        taken = turn.others()
        entered.set()
        assert hangs.wait(LIMIT_S)
        return [f"late answer to {each}" for each in taken]

    with one.doorbell() as doorbell:
        answers = [workers[0].ask("0")]
        wait_for_questions(folder, 1)
        hanging = threads.submit(one.answer_all, doorbell, hang, Clock(), lambda waited_s: None)
        assert entered.wait(LIMIT_S)
        answers += [worker.ask(str(number)) for number, worker in enumerate(workers) if number]
        for worker in workers:
            worker.go()
        assert [each.result(LIMIT_S) for each in answers] == [f"answer to {number}" for number in range(10)]
        hangs.set()
        hanging.result(LIMIT_S)


def test_workers_do_not_wait_for_one_that_does_not_answer(folder: Path, threads: ThreadPoolExecutor) -> None:
    one, worker = AnswersAll(folder), Asker(folder, threads)
    worker.go()
    assert worker.ask("1").result(LIMIT_S) == "answer to 1"
    assert one.is_woken()
    one.answer()  # too late
    assert one.asked == []
    assert not one.is_woken()
    one.close()


@pytest.mark.usefixtures("asker_never_late")
def test_workers_do_not_wait_for_one_that_has_ended(folder: Path, threads: ThreadPoolExecutor) -> None:
    AnswersAll(folder).close()
    worker = Asker(folder, threads)
    worker.go()
    assert worker.ask("1").result(LIMIT_S) == "answer to 1"
    one = AnswersAll(folder)  # the next one
    answer = worker.ask("2")
    wait_for_questions(folder, 1)
    one.answer()
    assert answer.result(LIMIT_S) == "common answer to 2"
    one.close()


@pytest.mark.usefixtures("asker_never_late")
def test_a_doorbell_that_was_rung_very_often_wakes(folder: Path, threads: ThreadPoolExecutor) -> None:
    one, worker = AnswersAll(folder), Asker(folder, threads)
    with (folder / ".doorbell").open("wb", buffering=0) as bell:
        os.set_blocking(bell.fileno(), False)
        while bell.write(bytes(4096)):  # `None` if it is full
            pass
    answer = worker.ask("1")
    wait_for_questions(folder, 1)
    assert one.is_woken()
    one.answer()
    assert answer.result(LIMIT_S) == "common answer to 1"
    one.close()


def test_the_one_lets_a_worker_answer_that_has_begun(folder: Path, threads: ThreadPoolExecutor) -> None:
    worker = Asker(folder, threads)
    own = worker.ask("1")
    assert worker.connected.wait(LIMIT_S)
    one = AnswersAll(folder, wait_s=0.05)
    one.answer()
    assert one.asked == []
    worker.go()
    assert own.result(LIMIT_S) == "answer to 1"
    one.close()


# --- what is answered --------------------------------------------------------


class Asking:
    """Questions of the detectors of ToyCam to a central repo, together or one by one."""

    def __init__(self, rig: Rig):
        assert rig.config.butler is not None
        self._rig = rig
        self._config = rig.config.butler
        self._reader = CentralReader(self._config.central)

    def question(self, detector: int, **order: str) -> Question:
        asked = self._rig.order(detector, **order)
        pipelines = asked.pipelines.model_copy(update={"main": (write_everything(self._rig.raws),)})
        footprint = footprint_of(
            asked.visit,
            detector,
            load_toy_camera(NAME),
            padding_arcsec=30.0,
            image_deadline_s=100.0,
            now_tai=0.0,
        )
        return Question(asked.model_copy(update={"pipelines": pipelines}), footprint)

    def ask(self, *questions: Question) -> list[Answer]:
        answers, timings = Answers(self._config, PipelineLibrary({}), any_filter=False), Timings(Clock())
        with self._reader.reading(timings) as central:
            return answers.find(central, questions, timings)

    def close(self) -> None:
        self._reader.close()


@pytest.fixture
def asking(tmp_path: Path, few: Central) -> Iterator[Asking]:
    rig = Rig(tmp_path, tmp_path / "ram", few.root)
    rig.raws.mkdir(exist_ok=True)
    found = Asking(rig)
    yield found
    found.close()


def comparable(answer: Answer) -> object:
    """Return an answer without its times, and without the order of rows, which a query does not define."""
    found = {
        each.dataset_type: (
            {ref: ref.dataId.records for ref in each.refs},
            {(one.ref, one.collection, str(one.timespan)) for one in each.associations},
        )
        for each in answer.found
    }
    assert all(ref.dataId.hasRecords() for each in answer.found for ref in each.refs)
    return (
        answer.search, answer.filters, answer.unregistered, answer.types, found, answer.files,
        answer.collection_types,
    )  # fmt: skip


def refs_of(answer: Answer, name: str) -> set[DatasetRef]:
    (found,) = (each for each in answer.found if each.dataset_type.name == name)
    return set(found.refs)


def test_each_detector_gets_what_its_own_query_finds(asking: Asking) -> None:
    questions = [
        asking.question(detector, **order)
        for detector in range(DETECTORS)
        for order in (
            {},
            {"filters": "g_01"},
            {"startTime": EPOCH.unix_tai},  # type: ignore[dict-item]
            {"coordinateSystem": 1, "rotationSystem": 1},  # type: ignore[dict-item]
            {"main": "Short", "before": ""},
        )
    ]
    questions.append(asking.question(DETECTORS + 3))
    together = asking.ask(*questions)
    alone = [answer for question in questions for answer in asking.ask(question)]
    assert [comparable(each) for each in together] == [comparable(each) for each in alone]
    first, _, at_change, nowhere, *_, second = alone[: len(alone) // DETECTORS + 1]
    assert refs_of(first, "toy_template") != refs_of(second, "toy_template")
    assert len(refs_of(at_change, "bias")) == 2, "an image may be taken before or after the change"
    assert refs_of(nowhere, "toy_template") == set()
    assert "no record of the detector" in alone[-1].unregistered


def test_who_answers_logs_nothing_about_the_visits_of_others(
    asking: Asking, caplog: pytest.LogCaptureFixture
) -> None:
    """Each worker logs what concerns its visit, with the visit's name."""
    (answer,) = asking.ask(asking.question(0, filters="r_03, unheard_of"))
    assert "r_03" in answer.filters
    assert "announced" not in caplog.text
