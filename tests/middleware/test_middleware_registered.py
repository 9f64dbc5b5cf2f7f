# SPDX-License-Identifier: BSD-3-Clause
"""Instruments, detectors and filters that are not registered in the central repo."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from enginecompare import EACH_ENGINE
from lsst.daf.butler import Butler, Timespan
from test_middleware_visit import read_output
from toycam import DAY, EPOCH, NAME, MakeRig, Rig, ToyCam, load_toy_camera

from ppdaemon.errors import VisitFailed
from ppdaemon.messages import Process
from ppdaemon.middleware import work
from ppdaemon.middleware.butlerwork import ButlerWork
from ppdaemon.states import Outcome

pytest_plugins = ("toyfixtures",)

EXPOSURE = DAY * 100000 + 1
SHORT = {"main": "Short", "before": ""}


def command(rig: Rig) -> str:
    return f"butler register-instrument {rig.central} {ToyCam.__module__}.ToyCam --update"


NOT_REGISTERED: list[tuple[dict[str, Any], str]] = [
    ({"filters": "zz_99"}, f"filter zz_99 of {NAME}"),
    ({"filters": "zz_99, none"}, f"filter zz_99 or none of {NAME}"),
    ({"filters": "R_03"}, f"filter R_03 of {NAME}"),
    ({"detector": 77}, f"detector 77 of {NAME}"),
]


@EACH_ENGINE
def test_what_is_not_registered_is_refused_while_preparing(rigs: MakeRig, kind: str) -> None:
    rig, worker = rigs(engine={"kind": kind})
    for order, what in NOT_REGISTERED:
        with pytest.raises(VisitFailed) as caught:
            worker.prepare(rig.order(**SHORT, **order))
        assert (caught.value.outcome, caught.value.retriable) == (Outcome.NO_PIPELINE, False)
        assert f"the central repo has no record of the {what}: {command(rig)}" in str(caught.value)
        assert "lacks" not in str(caught.value)
    assert worker.prepare(rig.order(**SHORT)).pipeline == "Short"


def test_an_instrument_that_is_not_registered_is_refused(rigs: MakeRig, tmp_path: Path) -> None:
    central = tmp_path / "empty"
    Butler.makeRepo(str(central))
    rig, worker = rigs(central)
    with pytest.raises(
        VisitFailed, match=f"has no record of the instrument {NAME}: butler register-"
    ) as caught:
        worker.prepare(rig.order(**SHORT))
    assert caught.value.outcome == Outcome.NO_PIPELINE


def test_one_known_filter_of_several_is_enough(rigs: MakeRig) -> None:
    rig, worker = rigs()
    assert worker.prepare(rig.order(**SHORT, filters="zz_99,r_03")).detail["datasets"] == 2


def test_what_was_registered_since_is_searched(rigs: MakeRig, own_central: Path) -> None:
    rig, worker = rigs(own_central)
    with pytest.raises(VisitFailed):
        worker.prepare(rig.order(**SHORT, filters="g_01_new"))
    with Butler.from_config(str(own_central), writeable=True) as butler:
        record = {"instrument": NAME, "name": "g_01_new", "band": "g"}
        butler.registry.insertDimensionData("physical_filter", record)
    with pytest.raises(VisitFailed, match="Short lacks flat"):
        worker.prepare(rig.order(**SHORT, filters="g_01_new"))


@pytest.mark.parametrize("kind", ["direct", "separable"])
@pytest.mark.parametrize("filters", ["", "r_03"])
def test_an_image_with_a_filter_that_is_not_registered_is_a_bad_raw(
    rigs: MakeRig, kind: str, filters: str
) -> None:
    rig, worker = rigs(engine={"kind": kind}, exposures={"filter": "ignore"})
    worker.prepare(rig.order(**SHORT, filters=filters))
    with pytest.raises(VisitFailed) as caught:
        worker.ingest(rig.raw(FILTER="zz_99"))
    assert caught.value.outcome == Outcome.BAD_RAW
    text = f"its filter 'zz_99' is not registered in the central repo: {command(rig)}"
    assert text in str(caught.value)
    worker.ingest(rig.raw())
    assert worker.process(Process(exposures=(EXPOSURE,))).outcome == Outcome.SUCCEEDED


def test_a_filter_that_was_registered_after_the_start_needs_a_restart(
    rigs: MakeRig, own_central: Path
) -> None:
    with Butler.from_config(str(own_central), writeable=True) as butler:
        record = {"instrument": NAME, "name": "i_07", "band": "i"}
        butler.registry.insertDimensionData("physical_filter", record)
    rig, worker = rigs(own_central, exposures={"filter": "ignore"})
    worker.prepare(rig.order(**SHORT))
    with pytest.raises(VisitFailed, match="in the worker's repo: run ppctl reload") as caught:
        worker.ingest(rig.raw(FILTER="i_07"))
    assert caught.value.outcome == Outcome.BAD_RAW


@pytest.fixture
def own_central(tmp_path: Path, toy_central: Path) -> Path:
    return Path(shutil.copytree(toy_central, tmp_path / "central"))


@pytest.fixture
def with_template(tmp_path: Path) -> Iterator[Callable[[Path], tuple[Rig, ButlerWork]]]:
    """Return a function that makes a template of a central repo, as the daemon does when it starts."""
    opened: list[ButlerWork] = []

    def make(central: Path) -> tuple[Rig, ButlerWork]:
        rig = Rig(tmp_path / "node", tmp_path / "node" / "ram", central)
        work.build_template(rig.context)
        assert rig.config.butler is not None
        opened.append(ButlerWork(rig.context, rig.config.butler, load_toy_camera))
        return rig, opened[-1]

    yield make
    for each in opened:
        each.close()


@pytest.mark.slow
def test_a_filter_that_only_the_central_repo_has_is_used(
    own_central: Path, with_template: Callable[[Path], tuple[Rig, ButlerWork]]
) -> None:
    """The installed package of the camera is older than that with which the repo was registered."""
    with Butler.from_config(str(own_central), writeable=True) as butler:
        record = {"instrument": NAME, "name": "i_07", "band": "i"}
        butler.registry.insertDimensionData("physical_filter", record)
        run = f"{NAME}/calib/i"
        butler.collections.register(run)
        ids = {"instrument": NAME, "detector": 1, "physical_filter": "i_07"}
        flat = butler.put({"epoch": "new", "filter": "i_07"}, "flat", ids, run=run)
        butler.registry.certify(f"{NAME}/calib/certified", [flat], Timespan(EPOCH, None))
    rig, worker = with_template(own_central)
    worker.prepare(rig.order(**SHORT, filters="i_07"))
    worker.ingest(rig.raw(FILTER="i_07"))
    done = worker.process(Process(exposures=(EXPOSURE,)))
    assert done.outcome == Outcome.SUCCEEDED, done.reason
    assert "filter: i_07" in read_output(done.spool, "toy_isr")
