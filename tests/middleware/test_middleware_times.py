# SPDX-License-Identifier: BSD-3-Clause
"""Images whose time is not the announced one: calibrations, and dates that cannot be."""

import json
import shutil
from pathlib import Path
from typing import Any

import astropy.time
import astropy.units as u
import pytest
from astro_metadata_translator import ObservationInfo
from enginecompare import EACH_ENGINE
from lsst.daf.butler import Butler, CollectionType, Timespan
from test_middleware_visit import read_output
from toycam import BEGIN_TAI, DAY, EPOCH, NAME, MakeRig, Rig

from ppdaemon.errors import VisitFailed
from ppdaemon.messages import Process, Raw
from ppdaemon.middleware.butlerwork import ButlerWork
from ppdaemon.middleware.export.manifest import read_manifest
from ppdaemon.middleware.raws.header import ExposureHeader, impossible_dates
from ppdaemon.states import Outcome, Stage

pytest_plugins = ("toyfixtures",)

EARLY = EPOCH - 10 * u.day
OTHER = Timespan(EPOCH - 20 * u.day, EPOCH - 15 * u.day)


def raw_of(rig: Rig, begin: astropy.time.Time, seq_num: int = 1, **header: Any) -> Raw:
    """Write a raw that was taken at a time."""
    day = (begin - 12 * u.hour).strftime("%Y%m%d")
    dates = {"DATE_BEG": begin.isot, "DATE_END": (begin + 30 * u.s).isot, "DAYOBS": day}
    raw = rig.raw(seq_num=seq_num, **(dates | header))
    return raw.model_copy(update={"exposure": int(day) * 100000 + seq_num})


def run(rig: Rig, worker: ButlerWork, *raws: Raw, **order: Any) -> Any:
    worker.prepare(rig.order(**{"main": "Short", "before": ""} | order))
    for raw in raws:
        worker.ingest(raw)
    return worker.process(Process(exposures=tuple(raw.exposure for raw in raws)))


@EACH_ENGINE
def test_calibrations_are_looked_up_again_at_the_time_of_the_image(
    rigs: MakeRig, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    rig, worker = rigs(engine={"kind": kind})
    done = run(rig, worker, raw_of(rig, EARLY))
    assert done.outcome == Outcome.SUCCEEDED, done.reason
    assert "epoch: old" in read_output(done.spool, "toy_isr")
    assert "2 inputs copied late: taken at [2026-11-10T00:00:00" in done.reason
    assert done.reason in caplog.text
    (first,) = [fact for fact in rig.reports if fact.stage == Stage.FIRST_TASK]
    assert first.detail["datasets_again"] == 2


@EACH_ENGINE
def test_optional_calibrations_are_looked_up_too(rigs: MakeRig, kind: str, tmp_path: Path) -> None:
    rig, worker = rigs(engine={"kind": kind})
    rig.add_pipeline("Forgiving", {"forgiving": "timedtasks.ForgivingTask"})
    done = run(rig, worker, raw_of(rig, EARLY), main="Forgiving")
    assert done.outcome == Outcome.SUCCEEDED, done.reason
    assert read_output(done.spool, "toy_forgiving").count("epoch: old") == 2


def test_the_next_visit_has_its_own_calibrations(rigs: MakeRig) -> None:
    rig, worker = rigs()
    assert "epoch: old" in read_output(run(rig, worker, raw_of(rig, EARLY)).spool, "toy_isr")
    worker.prepare(rig.order(main="Short", before="", attempt=2))
    worker.ingest(rig.raw())
    done = worker.process(Process(exposures=(DAY * 100000 + 1,)))
    assert "epoch: new" in read_output(done.spool, "toy_isr")
    assert done.reason == ""


def test_each_snap_gets_the_calibrations_of_its_time(rigs: MakeRig) -> None:
    """The first snap is at the announced time, the second one before a change of calibrations."""
    rig, worker = rigs()
    done = run(rig, worker, raw_of(rig, BEGIN_TAI), raw_of(rig, EARLY, seq_num=2), nimages=2)
    assert done.outcome == Outcome.SUCCEEDED, done.reason
    files = [
        file for file in read_manifest(Path(done.spool)).files if file.refs[0].datasetType.name == "toy_isr"
    ]
    texts = [Path(done.spool, file.name).read_text() for file in files]
    assert sorted(("epoch: old" in text, "epoch: new" in text) for text in texts) == [
        (False, True),
        (True, False),
    ]


def test_an_image_in_another_filter_gets_its_flat(rigs: MakeRig) -> None:
    rig, worker = rigs(exposures={"filter": "ignore"})
    done = run(rig, worker, raw_of(rig, BEGIN_TAI, FILTER="g_01"))
    assert done.outcome == Outcome.SUCCEEDED, done.reason
    assert "filter: g_01" in read_output(done.spool, "toy_isr")
    assert "1 inputs copied late" in done.reason


@pytest.fixture
def central_with_a_gap(tmp_path: Path, toy_central: Path) -> Path:
    """Return a central repo whose calibrations end a minute after the usual exposure, and of which only
    the flats are valid on five days before, in another collection.
    """
    root = Path(shutil.copytree(toy_central, tmp_path / "central"))
    with Butler.from_config(str(root), writeable=True) as butler:
        certified, other = f"{NAME}/calib/certified", f"{NAME}/calib/other"
        for name in ("bias", "flat"):
            butler.registry.decertify(certified, name, Timespan(BEGIN_TAI + 60 * u.s, None))
            butler.registry.decertify(certified, name, OTHER)
        butler.collections.register(other, CollectionType.CALIBRATION)
        butler.collections.redefine_chain(f"{NAME}/calib", [certified, other])
        flats = butler.query_datasets("flat", collections=f"{NAME}/calib/new", find_first=False)
        butler.registry.certify(other, flats, OTHER)
    return root


@EACH_ENGINE
def test_a_run_without_calibrations_is_reported(
    rigs: MakeRig, central_with_a_gap: Path, tmp_path: Path, kind: str
) -> None:
    """They were valid when the image was expected, and so the preload found them."""
    rig, worker = rigs(central_with_a_gap, engine={"kind": kind})
    rig.add_pipeline("Forgiving", {"forgiving": "timedtasks.ForgivingTask"})
    done = run(rig, worker, raw_of(rig, BEGIN_TAI + 120 * u.s), main="Forgiving")
    assert read_output(done.spool, "toy_forgiving") == "bias: null\nflat: null\n"
    assert done.reason.startswith("processed without bias, flat: none is valid at [2026-11-23T03:27:16")


@EACH_ENGINE
def test_calibrations_in_another_collection_are_found(
    rigs: MakeRig, central_with_a_gap: Path, tmp_path: Path, kind: str
) -> None:
    rig, worker = rigs(central_with_a_gap, engine={"kind": kind})
    rig.add_pipeline("Forgiving", {"forgiving": "timedtasks.ForgivingTask"})
    done = run(rig, worker, raw_of(rig, OTHER.begin + 2 * u.day), main="Forgiving")
    assert "bias: null\nflat:\n  epoch: new" in read_output(done.spool, "toy_forgiving")
    assert "processed without bias: none" in done.reason


def test_without_the_central_repo_the_visit_may_be_retried(
    rigs: MakeRig, toy_central: Path, tmp_path: Path
) -> None:
    central = Path(shutil.copytree(toy_central, tmp_path / "central"))
    rig, worker = rigs(central)
    worker.prepare(rig.order(main="Short", before=""))
    raw = raw_of(rig, EARLY)
    worker.ingest(raw)
    (central / "gen3.sqlite3").write_bytes(b"damaged" * 1000)
    with pytest.raises(VisitFailed) as caught:
        worker.process(Process(exposures=(raw.exposure,)))
    assert (caught.value.outcome, caught.value.retriable) == (Outcome.PRELOAD_FAILED, True)


# --- impossible dates ----------------------------------------------------------


def header_at(begin: astropy.time.Time, end: astropy.time.Time) -> ExposureHeader:
    others = dict.fromkeys(("instrument", "detector", "exposure", "group", "obs_id", "physical_filter"))
    return ExposureHeader(begin=begin, end=end, day_obs=0, info=ObservationInfo(None), **others)


def tai(text: str) -> astropy.time.Time:
    return astropy.time.Time(text, scale="tai")


@pytest.mark.parametrize(
    ("begin", "end", "reason"),
    [
        ("1858-11-17T00:00:00", "1858-11-17T00:00:30", "before 1990"),
        ("1970-01-01T00:00:00", "2026-11-23T00:00:30", "before 1990"),
        ("1980-01-06T00:00:00", "1980-01-06T00:00:30", "before 1990"),
        ("2026-11-24T04:00:00", "2026-11-24T04:00:30", "more than a day in the future"),
        ("9999-01-01T00:00:00", "9999-01-01T00:00:30", "more than a day in the future"),
        ("2026-11-23T00:00:00", "2062-11-23T00:00:30", "more than a day later"),
        ("2026-11-23T03:25:16", "2026-11-23T03:25:46", ""),
        ("2026-11-23T15:25:16", "2026-11-23T15:25:46", ""),
        ("1999-12-31T00:00:00", "1999-12-31T00:00:30", ""),
    ],
)
def test_dates_that_cannot_be_are_named(begin: str, end: str, reason: str) -> None:
    found = impossible_dates(header_at(tai(begin), tai(end)), BEGIN_TAI.unix_tai)
    assert found.endswith(reason)
    assert bool(found) == bool(reason)


@pytest.mark.parametrize("begin", ["1970-01-01T00:00:00", "2055-01-01T00:00:00"])
def test_an_image_with_impossible_dates_is_a_bad_raw(rigs: MakeRig, begin: str) -> None:
    rig, worker = rigs()
    worker.prepare(rig.order(main="Short", before=""))
    with pytest.raises(VisitFailed, match=f"its dates are impossible: it begins at {begin}") as caught:
        worker.ingest(raw_of(rig, tai(begin)))
    assert caught.value.outcome == Outcome.BAD_RAW
    worker.ingest(rig.raw())


def test_a_sidecar_with_impossible_dates_is_ignored(rigs: MakeRig) -> None:
    rig, worker = rigs()
    worker.prepare(rig.order(main="Short", before=""))
    raw = rig.raw()
    assert raw.sidecar is not None
    header = json.loads(Path(raw.sidecar).read_text()) | {"DATE-BEG": "1970-01-01T00:00:00.000"}
    Path(raw.sidecar).write_text(json.dumps(header))
    assert worker.ingest(raw).shutter_close_tai == pytest.approx((BEGIN_TAI + 65 * u.s).unix_tai)


def test_a_simulated_night_of_the_future_is_processed_if_it_was_announced(rigs: MakeRig) -> None:
    rig, worker = rigs()
    future = tai("2031-05-01T03:00:00")
    done = run(rig, worker, raw_of(rig, future), startTime=future.unix_tai)
    assert done.outcome == Outcome.SUCCEEDED, done.reason
