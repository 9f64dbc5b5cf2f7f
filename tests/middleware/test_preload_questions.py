# SPDX-License-Identifier: BSD-3-Clause
"""Workers that ask the central repo at the same time: one asks for all, and each gets its own answer."""

import fcntl
import os
import select
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

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
from ppdaemon.middleware.preload.questions import HostQuestions
from ppdaemon.middleware.raws.regions import footprint_of
from ppdaemon.states import Outcome
from ppdaemon.testing.waiting import wait_until

pytest_plugins = ("toyfixtures", "dbfixtures")

LIMIT_S = 60.0

# --- who asks ----------------------------------------------------------------


class Asker:
    """A worker in a thread: files are locked by each opening of them, as by each process."""

    def __init__(self, folder: Path, threads: ThreadPoolExecutor, wait_s: float = LIMIT_S):
        self._questions = HostQuestions[str, str](folder, wait_s)
        self._threads = threads
        self.connected = threading.Event()
        self.may_ask = threading.Event()
        self.may_answer = threading.Event()
        self.asked: list[str] = []
        self.failure: Exception | None = None

    def ask(self, question: str) -> "Future[str | None]":
        def answer(others: Callable[[], list[str]]) -> list[str]:
            self.connected.set()
            assert self.may_ask.wait(LIMIT_S)
            self.asked = [question, *others()]
            assert self.may_answer.wait(LIMIT_S)
            if self.failure is not None:
                raise self.failure
            return [f"answer to {each}" for each in self.asked]

        return self._threads.submit(self._questions.ask, question, answer, Timings(Clock()))

    def go(self) -> None:
        self.may_ask.set()
        self.may_answer.set()


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as pool:
        yield pool


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "questions"


def posted(folder: Path) -> int:
    return len(list(folder.glob("*.question")))


def wait_for_questions(folder: Path, count: int) -> None:
    wait_until(lambda: posted(folder) == count, LIMIT_S, lambda: f"{posted(folder)} questions")


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


def test_if_one_cannot_ask_for_all_each_asks_by_itself(folder: Path, threads: ThreadPoolExecutor) -> None:
    first, second = (Asker(folder, threads) for _ in range(2))
    first.failure = VisitFailed(Outcome.PRELOAD_FAILED, "away", retriable=True)
    answers = [first.ask("1")]
    assert first.connected.wait(LIMIT_S)
    answers.append(second.ask("2"))
    wait_for_questions(folder, 2)
    first.go()
    assert [each.result(LIMIT_S) for each in answers] == [None, None]
    alone = Asker(folder, threads)
    alone.failure = first.failure
    alone.go()
    with pytest.raises(VisitFailed, match="away"):
        alone.ask("1").result(LIMIT_S)


def test_an_error_of_one_worker_lets_no_other_wait(folder: Path, threads: ThreadPoolExecutor) -> None:
    first, second = (Asker(folder, threads) for _ in range(2))
    first.failure = ZeroDivisionError("a bug")
    one = first.ask("1")
    assert first.connected.wait(LIMIT_S)
    two = second.ask("2")
    wait_for_questions(folder, 2)
    first.go()
    assert [one.result(LIMIT_S), two.result(LIMIT_S)] == [None, None], "each asks by itself"
    alone = Asker(folder, threads)
    alone.failure = first.failure
    alone.go()
    with pytest.raises(ZeroDivisionError):
        alone.ask("3").result(LIMIT_S)


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


def test_nobody_waits_long_if_all_that_ask_hang(folder: Path, threads: ThreadPoolExecutor) -> None:
    hanging, next_, last = (Asker(folder, threads, wait_s) for wait_s in (LIMIT_S, 1.0, 0.3))
    answers = [hanging.ask("1")]
    assert hanging.connected.wait(LIMIT_S)
    answers.append(next_.ask("2"))
    assert next_.connected.wait(LIMIT_S)
    (folder / ".lock").touch()  # as if it had just begun
    assert last.ask("3").result(LIMIT_S) is None
    for each in (hanging, next_):
        each.go()
    assert [each.result(LIMIT_S) for each in answers] == ["answer to 1", "answer to 2"]


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
        assert two.result(LIMIT_S) is None
        first.go()
        assert one.result(LIMIT_S) == "answer to 1"
        assert cut.exists()


def test_an_answer_that_cannot_be_pickled_lets_nobody_wait(folder: Path, threads: ThreadPoolExecutor) -> None:
    first, second = (Asker(folder, threads) for _ in range(2))
    second.go()
    wrong: list[str] = []

    def answer(others: Callable[[], list[str]]) -> list[object]:
        first.connected.set()
        assert first.may_ask.wait(LIMIT_S)
        wrong.extend(others())
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
    assert asker.ask("1").result(LIMIT_S) is None
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
from ppdaemon.clock import Clock
from ppdaemon.middleware.butler.timings import Timings
from ppdaemon.middleware.preload.questions import HostQuestions

def hang(others):
    print(len(others()), flush=True)
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

    def __init__(self, folder: Path, wait_s: float = LIMIT_S):
        self._questions = HostQuestions[str, str](folder, wait_s)
        self._open = ExitStack()
        self._doorbell = self._open.enter_context(self._questions.doorbell())
        self.asked: list[list[str]] = []
        self.failure: Exception | None = None

    def is_woken(self) -> bool:
        return bool(select.select([self._doorbell], [], [], 0)[0])

    def answer(self) -> None:
        self._questions.answer_all(self._doorbell, self._answer, Clock())

    def _answer(self, others: Callable[[], list[str]]) -> list[str]:
        self.asked.append(others())
        if self.failure is not None:
            raise self.failure
        return [f"common answer to {each}" for each in self.asked[-1]]

    def close(self) -> None:
        self._open.close()


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let workers wait for the one that answers for all as long as a test takes."""
    monkeypatch.setattr("ppdaemon.middleware.preload.questions.PATIENCE_S", LIMIT_S)


@pytest.mark.usefixtures("patience")
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


@pytest.mark.usefixtures("patience")
def test_if_the_one_cannot_ask_each_worker_asks_by_itself(folder: Path, threads: ThreadPoolExecutor) -> None:
    one, worker = AnswersAll(folder), Asker(folder, threads)
    one.failure = VisitFailed(Outcome.PRELOAD_FAILED, "away", retriable=True)
    answer = worker.ask("1")
    wait_for_questions(folder, 1)
    one.answer()
    assert answer.result(LIMIT_S) is None
    one.close()


def test_workers_do_not_wait_for_one_that_does_not_answer(folder: Path, threads: ThreadPoolExecutor) -> None:
    one, worker = AnswersAll(folder), Asker(folder, threads)
    worker.go()
    assert worker.ask("1").result(LIMIT_S) == "answer to 1"
    assert one.is_woken()
    one.answer()  # too late
    assert one.asked == []
    assert not one.is_woken()
    one.close()


@pytest.mark.usefixtures("patience")
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


@pytest.mark.usefixtures("patience")
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
