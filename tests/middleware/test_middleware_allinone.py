# SPDX-License-Identifier: BSD-3-Clause
"""Raws that hold all detectors of an exposure in one file."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from enginecompare import EACH_ENGINE
from mefcam import CONFIG, pixels_of, write_file
from test_middleware_visit import read_output
from toycam import DAY, GROUP, NAME, MakeRig, Rig

from ppdaemon.errors import VisitFailed
from ppdaemon.messages import Process, Raw
from ppdaemon.states import Outcome

pytest_plugins = ("toyfixtures",)

EXPOSURE = DAY * 100000 + 1


@pytest.fixture
def mef_rig(rigs: MakeRig) -> Any:
    """Return a function that makes a rig whose camera writes one file per exposure."""

    def make(kind: str = "direct") -> Any:
        return rigs(**CONFIG | {"engine": {"kind": kind}})

    return make


def raw(path: Path, detector: int) -> Raw:
    return Raw(
        path=str(path), instrument=NAME, group=GROUP, detector=detector, exposure=EXPOSURE, seen_tai=0.0
    )


def order(rig: Rig, detector: int) -> Any:
    return rig.order(detector, main="Short", before="")


@EACH_ENGINE
def test_each_detector_is_read_from_its_hdu(mef_rig: Any, kind: str) -> None:
    rig, worker = mef_rig(kind)
    path = write_file(rig.raws, {detector: pixels_of(detector) for detector in (3, 0, 2)})
    before = path.read_bytes()
    for detector in (0, 3):
        worker.prepare(order(rig, detector))
        worker.ingest(raw(path, detector))
        done = worker.process(Process(exposures=(EXPOSURE,)))
        assert done.outcome == Outcome.SUCCEEDED, done.reason
        assert f"sum: {float(pixels_of(detector).sum())}" in read_output(done.spool, "toy_isr")
    assert path.read_bytes() == before


def test_compressed_hdus_are_found(mef_rig: Any) -> None:
    rig, worker = mef_rig()
    path = write_file(rig.raws, {0: pixels_of(0), 1: pixels_of(1)}, compressed=True)
    worker.prepare(order(rig, 1))
    worker.ingest(raw(path, 1))
    done = worker.process(Process(exposures=(EXPOSURE,)))
    assert f"sum: {float(pixels_of(1).sum())}" in read_output(done.spool, "toy_isr")


def test_a_bad_hdu_costs_its_detector_only(mef_rig: Any) -> None:
    rig, worker = mef_rig()
    path = write_file(rig.raws, {0: pixels_of(0), 1: None})
    reasons = {1: "HDU 3, with CCDNUM 1, has no data", 2: "no image HDU has CCDNUM 2"}
    for detector, reason in reasons.items():
        worker.prepare(order(rig, detector))
        with pytest.raises(VisitFailed, match=reason) as caught:
            worker.ingest(raw(path, detector))
        assert caught.value.outcome == Outcome.BAD_RAW
    worker.prepare(order(rig, 0))
    worker.ingest(raw(path, 0))
    assert worker.process(Process(exposures=(EXPOSURE,))).outcome == Outcome.SUCCEEDED


def test_a_cut_file_is_bad_for_all_detectors(mef_rig: Any) -> None:
    rig, worker = mef_rig()
    path = write_file(rig.raws, {0: pixels_of(0), 1: pixels_of(1)})
    path.write_bytes(path.read_bytes()[:-4000])
    worker.prepare(order(rig, 0))
    with pytest.raises(VisitFailed, match="not a complete FITS file"):
        worker.ingest(raw(path, 0))


def test_a_worker_reads_the_file_once(mef_rig: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rig, worker = mef_rig()
    path = write_file(rig.raws, {0: pixels_of(0), 1: pixels_of(1)})
    copied, copy = [], shutil.copyfile

    def counting(source: Any, target: Any, **options: Any) -> Any:
        copied.append(Path(target).name)
        return copy(source, target, **options)

    monkeypatch.setattr(shutil, "copyfile", counting)
    worker.prepare(order(rig, 1))
    copied.clear()
    worker.ingest(raw(path, 1))
    path.unlink()
    done = worker.process(Process(exposures=(EXPOSURE,)))
    assert done.outcome == Outcome.SUCCEEDED, done.reason
    assert copied.count(path.name) == 1
