# SPDX-License-Identifier: BSD-3-Clause
"""The process that asks the central repo for all workers, with a real central repo."""

import os
import select
import shutil
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from centrals import Central, make_few
from lsst.daf.butler import Butler
from postgres import USER, OwnPostgresServer, running_server
from toycam import NAME, MakeRig, Rig, load_toy_camera

from ppdaemon.clock import Clock
from ppdaemon.middleware import work
from ppdaemon.middleware.butler.timings import Timings
from ppdaemon.middleware.butlerwork import ButlerWork
from ppdaemon.middleware.preload.answers import Answers, Question

pytest_plugins = ("toyfixtures",)

LIMIT_S = 60.0


@contextmanager
def asker(rig: Rig) -> Iterator[list[float]]:
    """Run an asker in a thread, as in a process of its own; yield how long its questions had waited."""
    waited: list[float] = []
    ready, (stop, stopped) = threading.Event(), os.pipe()

    def serve() -> None:
        one = work.open_asker(rig.context)
        try:
            one.prepare(waited.extend)
            ready.set()
            while stop not in select.select([stop, one.fileno()], [], [])[0]:
                one.answer(waited.extend)
        finally:
            one.close()

    with ThreadPoolExecutor() as threads:
        serving = threads.submit(serve)
        try:
            assert ready.wait(LIMIT_S) or serving.result(0) is None
            yield waited
        finally:
            os.close(stopped)
            serving.result(LIMIT_S)
            os.close(stop)


@pytest.fixture(autouse=True)
def asker_never_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let workers wait for the asker as long as a test takes."""
    monkeypatch.setattr("ppdaemon.middleware.preload.questions.ASKER_LATE_S", LIMIT_S)


@pytest.fixture
def central(toy_central: Path, tmp_path: Path) -> Path:
    """Return a central repo that a test may change."""
    return Path(shutil.copytree(toy_central, tmp_path / "central"))


@pytest.fixture
def toy(rigs: MakeRig, central: Path) -> tuple[Rig, ButlerWork]:
    return rigs(central)


def test_a_worker_needs_no_central_butler_of_its_own(toy: tuple[Rig, ButlerWork], central: Path) -> None:
    rig, worker = toy
    alone = worker.prepare(rig.order()).detail
    worker.reset()
    worker.close()
    with asker(rig) as waited:
        (central / "butler.yaml").rename(central / "butler.yaml.away")  # a Butler cannot be opened any more
        detail = worker.prepare(rig.order()).detail
    assert (alone["asked_for"], detail["asked_for"]) == (1, 0)
    assert (detail["datasets"], detail["quanta"]) == (alone["datasets"], alone["quanta"])
    assert "connect_ms" not in detail
    (waited_s,) = waited
    assert 0.0 < waited_s < LIMIT_S


def test_an_asker_finds_what_is_new_in_the_central_repo(toy: tuple[Rig, ButlerWork], central: Path) -> None:
    rig, worker = toy
    order = rig.order(filters="u_09")
    with asker(rig):
        worker.prepare(rig.order())
        worker.reset()
        with Butler.from_config(str(central), writeable=True) as butler:
            record = {"instrument": NAME, "name": "u_09", "band": "u"}
            butler.registry.insertDimensionData("physical_filter", record)
        plan = worker._preload.find(order, worker._footprint(order), Timings(Clock()))
    assert "u_09" in plan.filters


def test_a_central_repo_that_is_away_at_the_start_costs_nothing_but_a_later_opening(
    toy: tuple[Rig, ButlerWork], central: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rig, worker = toy
    away = central.rename(central.with_name("away"))
    with asker(rig):
        assert "not opened before the first question: the central repo" in caplog.text
        away.rename(central)
        assert worker.prepare(rig.order()).detail["asked_for"] == 0


def test_an_asker_asks_before_the_first_question(
    toy: tuple[Rig, ButlerWork], monkeypatch: pytest.MonkeyPatch
) -> None:
    rig, worker = toy
    questions: list[Question] = []
    find = Answers.find

    def record(self: Answers, central: Butler, asked: Sequence[Question], *args: Any, **kw: Any) -> Any:
        questions.extend(asked)
        return find(self, central, asked, *args, **kw)

    monkeypatch.setattr(Answers, "find", record)
    monkeypatch.setattr("ppdaemon.middleware.preload.asker.load_camera", load_toy_camera)
    with asker(rig):
        (rehearsed,) = questions
        assert rehearsed.footprint.region is not None
        worker.prepare(rig.order())
    assert set(rehearsed.order.pipelines.main) >= set(questions[1].order.pipelines.main)


def test_an_asker_reports_after_each_part_of_its_preparation(toy: tuple[Rig, ButlerWork]) -> None:
    rig, _ = toy
    reports: list[Sequence[float]] = []
    one = work.open_asker(rig.context)
    try:
        one.prepare(reports.append)
    finally:
        one.close()
    # That it is connected, and that it has asked for each instrument.
    assert reports == [()] * (1 + len(rig.context.config.node.instruments))


# --- databases that are away, or take another password ------------------------


@pytest.fixture
def server() -> Iterator[OwnPostgresServer]:
    """Give a PostgreSQL server for one test, which may stop it."""
    with running_server() as server:
        yield server


@contextmanager
def worker_of(central: Central, folder: Path) -> Iterator[tuple[Rig, ButlerWork]]:
    rig = Rig(folder, folder / "ram", central.root)
    work.build_template(rig.context)
    assert rig.config.butler is not None
    with closing(ButlerWork(rig.context, rig.config.butler, load_toy_camera)) as worker:
        yield rig, worker


def asked_by_itself(rig: Rig, worker: ButlerWork) -> bool:
    detail = worker.prepare(rig.order(main="Frame")).detail
    worker.reset()
    return bool(detail["asked_for"])


def test_an_asker_answers_when_a_database_that_was_away_at_its_start_is_back(
    tmp_path: Path, server: OwnPostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    central = make_few(tmp_path / "few", server)
    with worker_of(central, tmp_path / "rig") as (rig, worker):
        server.stop()
        with asker(rig):
            assert "not opened before the first question" in caplog.text
            server.start()
            assert not asked_by_itself(rig, worker)
            server.stop()  # with its connections
            server.start()
            assert not asked_by_itself(rig, worker)


def test_an_asker_uses_the_new_password_after_a_change(tmp_path: Path, server: OwnPostgresServer) -> None:
    central = make_few(tmp_path / "few", server)
    settings = central.root / "butler.yaml"

    def change(before: str, password: str) -> None:
        server.run("postgres", f"ALTER ROLE {USER} PASSWORD '{password}'")
        text = settings.read_text()
        assert f"//{USER}{before}@" in text
        settings.write_text(text.replace(f"//{USER}{before}@", f"//{USER}:{password}@"))

    with worker_of(central, tmp_path / "rig") as (rig, worker):
        change("", "old")
        server.require_passwords(central.database)
        with asker(rig):
            assert not asked_by_itself(rig, worker)
            change(":old", "new")
            assert not asked_by_itself(rig, worker)
