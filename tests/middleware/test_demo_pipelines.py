# SPDX-License-Identifier: BSD-3-Clause
"""The demo's pipelines, run unchanged on a real repo: their results and their failures."""

import dataclasses
import gc
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from demovisits import (
    OLD_BEGIN_TAI_S,
    observe,
    plan_calibration,
    plan_exposure,
    put_region_time,
    run_pipeline,
)
from lsst.daf.butler import Butler
from lsst.dax.apdb import Apdb
from lsst.images import MaskedImage
from lsst.pipe.base import NoWorkFound

from ppdaemon.demo.alertplot import plot_alerts
from ppdaemon.demo.central import make_apdb
from ppdaemon.demo.plan import ExposurePlan, ImageType
from ppdaemon.demo.score import read_alerts, score_alerts, total_score
from ppdaemon.demo.sky import Sky
from ppdaemon.demo.tasks.alerts import alert_file_name
from ppdaemon.demo.tasks.associate import AssociateTask, LoadDiaCatalogsTask
from ppdaemon.demo.tasks.checkcalib import CheckCalibTask
from ppdaemon.demo.tasks.errors import AlreadyAssociatedError, BadRawError, TooFewStarsError
from ppdaemon.demo.tasks.isr import IsrTask
from ppdaemon.demo.tasks.subtract import SubtractTask

pytestmark = pytest.mark.slow

DETECTOR = 4
CAMERA: dict[str, Any] = {"instrument": "DemoCam", "detector": DETECTOR}


@dataclasses.dataclass(frozen=True)
class Observed:
    """One visit run through Preprocess and ApPipe."""

    root: Path
    plan: ExposurePlan
    apdb: Path
    alert_dir: Path
    collections: list[str]

    def get(self, name: str, **where: Any) -> Any:
        """Read an output of the visit."""
        with Butler.from_config(self.root, collections=self.collections) as butler:
            if "group" in butler.get_dataset_type(name).dimensions.names:
                where.setdefault("group", self.plan.group)
            key = "exposure" if name in ("post_isr_image", "isr_metadata") else "visit"
            where.setdefault(key, self.plan.exposure_id)
            return butler.get(name, CAMERA | where)


@pytest.fixture(scope="module")
def sky() -> Sky:
    return Sky()


def _new_apdb(folder: Path) -> Path:
    config = make_apdb(folder)
    with warnings.catch_warnings():
        # The tables are made through an engine that dax_apdb leaves to the garbage collector.
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
    return config


@pytest.fixture(scope="module")
def raw_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("raws")


@pytest.fixture(scope="module")
def observed(
    demo_central: Path, raw_root: Path, tmp_path_factory: pytest.TempPathFactory, sky: Sky
) -> Observed:
    folder = tmp_path_factory.mktemp("visit")
    apdb = _new_apdb(folder)
    (visit,) = _observe(demo_central, raw_root, [plan_exposure(1)], apdb, folder / "alerts", sky)
    return visit


def _observe(
    root: Path, raw_root: Path, plans: list[ExposurePlan], apdb: Path, alert_dir: Path, sky: Sky
) -> list[Observed]:
    """Preload for the group of the exposures, then run the alert pipeline on all of them."""
    before, preload, run = (f"test/{plans[0].obs_id}/{step}" for step in ("region", "preload", "ap"))
    put_region_time(root, plans[0], DETECTOR, before)
    where = f"instrument='DemoCam' and detector={DETECTOR} and"
    run_pipeline(
        root,
        "Preprocess",
        f"{where} group='{plans[0].group}'",
        preload,
        inputs=[before],
        config={"loadDiaCatalogs": {"apdb_config_url": str(apdb)}},
    )
    exposures = [str(observe(root, raw_root, plan, DETECTOR, sky)) for plan in plans]
    count = run_pipeline(
        root,
        "ApPipe",
        f"{where} exposure IN ({', '.join(exposures)})",
        run,
        inputs=[preload],
        config={"associate": {"apdb_config_url": str(apdb)}, "alerts": {"alert_dir": str(alert_dir)}},
    )
    assert count == 6 * len(plans)
    return [Observed(root, plan, apdb, alert_dir, [run, preload, before]) for plan in plans]


def test_nine_of_ten_transients_are_recovered_and_nothing_else_is_alerted(
    observed: Observed, sky: Sky
) -> None:
    path = observed.alert_dir / alert_file_name(observed.plan.exposure_id, DETECTOR)
    score = total_score([score_alerts(path, observed.get("difference_image"), sky)])
    assert score.injected >= 5
    assert score.completeness >= 0.9
    assert score.false_positives < score.detectors


def test_the_score_counts_missing_and_false_alerts(observed: Observed, sky: Sky, tmp_path: Path) -> None:
    other_sky = Sky(seed=sky.seed + 1)
    path = observed.alert_dir / alert_file_name(observed.plan.exposure_id, DETECTOR)
    score = score_alerts(path, observed.get("difference_image"), other_sky)
    assert score.completeness < 0.5
    assert len(score.missed) == score.injected - score.recovered
    assert score.false_positives > score.alerts / 2


def test_alerts_are_complete_packets_of_what_was_stored(observed: Observed) -> None:
    packets = read_alerts(observed.alert_dir / alert_file_name(observed.plan.exposure_id, DETECTOR))
    summary = observed.get("alerts")
    stored = observed.get("dia_source_apdb")
    assert summary["count"] == len(packets) == len(stored) > 0
    assert [packet["diaSourceId"] for packet in packets] == summary["dia_source_ids"]
    for packet, source_id in zip(packets, stored["diaSourceId"], strict=True):
        assert packet["diaSource"]["diaSourceId"] == source_id
        assert packet["diaSource"]["diaObjectId"] == packet["diaObject"]["diaObjectId"]
        assert packet["diaSource"]["band"] == "r"
        for name in ("Science", "Template", "Difference"):
            assert packet[f"cutout{name}"].startswith(b"SIMPLE  =")


def test_calibration_finds_the_pointing_error_and_the_zero_point(observed: Observed) -> None:
    metadata = observed.get("preliminary_visit_image").metadata
    assert 0.9 < metadata["pointing_error_arcsec"] < 2.2
    assert metadata["astrometric_scatter_arcsec"] < 0.03
    assert metadata["zero_point_scatter_mag"] < 0.03
    assert 0.65 < metadata["psf_fwhm_arcsec"] < 1.1
    assert observed.get("difference_image").metadata["kernel_flux_ratio"] == pytest.approx(1.0, abs=0.05)


def test_the_difference_is_noise_where_nothing_changed(observed: Observed) -> None:
    difference = observed.get("difference_image")
    scaled = difference.image.array / np.sqrt(difference.variance.array)
    assert 1.4826 * np.median(np.abs(scaled)) == pytest.approx(1.0, abs=0.05)


@pytest.fixture(scope="module")
def snaps(observed: Observed, raw_root: Path, sky: Sky) -> list[Observed]:
    """Return two snaps of one later group, both run with the same preloaded objects."""
    group = "2026-11-22T04:00:00.000"
    plans = [
        plan_exposure(10 + snap, group=group, snap_index=snap, snap_count=2, rotpa_deg=60.0)
        for snap in (1, 2)
    ]
    return _observe(observed.root, raw_root, plans, observed.apdb, observed.alert_dir, sky)


def test_two_snaps_are_two_visits_of_one_group(snaps: list[Observed]) -> None:
    tables = [snap.get("dia_source_apdb") for snap in snaps]
    for snap, table in zip(snaps, tables, strict=True):
        assert (table["visit"] == snap.plan.exposure_id).all()
        assert (snap.alert_dir / alert_file_name(snap.plan.exposure_id, DETECTOR)).exists()
    assert not set(tables[0]["diaSourceId"]) & set(tables[1]["diaSourceId"])


def test_a_later_visit_updates_the_objects_of_the_first(observed: Observed, snaps: list[Observed]) -> None:
    first_objects = set(observed.get("dia_object_apdb")["diaObjectId"])
    objects = snaps[0].get("dia_object_apdb").set_index("diaObjectId")
    again = objects.loc[[number for number in objects.index if number in first_objects]]
    assert len(again) >= 5
    assert (again["nDiaSources"] == 2).all()
    assert (again["r_psfFluxNdata"] == 2).all()
    packets = read_alerts(snaps[0].alert_dir / alert_file_name(snaps[0].plan.exposure_id, DETECTOR))
    assert len([packet for packet in packets if packet["prvDiaSources"]]) == len(again)
    apdb = Apdb.from_uri(str(observed.apdb))
    assert apdb.containsVisitDetector(snaps[1].plan.exposure_id, DETECTOR)
    assert not apdb.containsVisitDetector(snaps[1].plan.exposure_id, DETECTOR + 1)


def test_single_frame_measures_the_quality(demo_central: Path, raw_root: Path, sky: Sky) -> None:
    plan = plan_exposure(20)
    exposure = observe(demo_central, raw_root, plan, DETECTOR, sky)
    where = f"instrument='DemoCam' and detector={DETECTOR} and exposure={exposure}"
    assert run_pipeline(demo_central, "SingleFrame", where, "test/single") == 3
    with Butler.from_config(demo_central, collections="test/single") as butler:
        metrics = butler.get("visit_metrics", CAMERA, visit=exposure)
    assert 0.65 < metrics["seeing_arcsec"] < 1.1
    assert metrics["sky_mag_arcsec2"] == pytest.approx(21.0, abs=0.5)
    assert 23.8 < metrics["depth_mag"] < 25.2
    assert metrics["astrometric_scatter_arcsec"] < 0.03


@pytest.mark.parametrize(("kind", "level"), [(ImageType.BIAS, 0.0), (ImageType.FLAT, 20_000.0)])
def test_a_calibration_frame_agrees_with_the_masters_of_its_time_only(
    demo_central: Path, raw_root: Path, sky: Sky, kind: ImageType, level: float
) -> None:
    for begin_tai_s, run in ((None, "new"), (OLD_BEGIN_TAI_S, "old")):
        changes = {} if begin_tai_s is None else {"begin_tai_s": begin_tai_s}
        plan = plan_calibration(30 + list(ImageType).index(kind), kind, **changes)
        exposure = observe(demo_central, raw_root, plan, DETECTOR, sky)
        where = f"instrument='DemoCam' and detector={DETECTOR} and exposure={exposure}"
        output = f"test/calibration/{kind}/{run}"
        assert run_pipeline(demo_central, "Calibration", where, output) == 1
        with Butler.from_config(demo_central, collections=output) as butler:
            result = butler.get("calibration_residuals", CAMERA, exposure=exposure)
        assert result["passed"], result["reasons"]
        assert result["level"] >= level - 1.0
    wrong = _check(demo_central, plan, valid_at=plan_calibration(1, kind))
    assert not wrong["passed"]
    assert "structure_ratio" in " ".join(wrong["reasons"])


def _check(root: Path, plan: ExposurePlan, valid_at: ExposurePlan) -> dict[str, Any]:
    """Check a frame against the masters of another time."""
    calibs = _calibs(root, valid_at)
    with Butler.from_config(root, collections="DemoCam/defaults") as butler:
        raw = butler.get("raw", CAMERA, exposure=plan.exposure_id)
    return CheckCalibTask().run(raw, **calibs).calibration_residuals


def _calibs(root: Path, plan: ExposurePlan) -> dict[str, MaskedImage]:
    import astropy.time
    from lsst.daf.butler import Timespan

    timespan = Timespan.fromInstant(astropy.time.Time(plan.mid_mjd_tai, format="mjd", scale="tai"))
    with Butler.from_config(root, collections="DemoCam/defaults") as butler:
        data_ids = {"bias": {}, "dark": {}, "flat": {"physical_filter": plan.physical_filter}}
        refs = {
            name: butler.find_dataset(name, CAMERA, timespan=timespan, **extra)
            for name, extra in data_ids.items()
        }
        return {name: butler.get(ref) for name, ref in refs.items()}


def test_an_image_of_the_sky_is_not_a_calibration_frame(observed: Observed) -> None:
    with pytest.raises(BadRawError, match="object image is not a calibration frame") as caught:
        _check(observed.root, observed.plan, valid_at=observed.plan)
    assert caught.value.metadata == {"image_type": "object"}


def test_a_raw_without_light_is_refused(observed: Observed) -> None:
    with Butler.from_config(observed.root, collections="DemoCam/defaults") as butler:
        raw = butler.get("raw", CAMERA, exposure=observed.plan.exposure_id)
    raw.array[...] = 1000.0
    with pytest.raises(BadRawError, match="nothing was read out"):
        IsrTask().run(raw, **_calibs(observed.root, observed.plan))


def test_without_a_template_there_is_no_work(observed: Observed) -> None:
    task = SubtractTask()
    with pytest.raises(NoWorkFound, match="covers 0%"):
        task.run(observed.get("preliminary_visit_image"), observed.get("initial_stars"), [])


def test_too_few_stars_fail_with_their_numbers(observed: Observed) -> None:
    stars = observed.get("initial_stars")
    with Butler.from_config(observed.root, collections="DemoCam/defaults") as butler:
        templates = [
            butler.getDeferred("template", skymap="demo", tract=0, patch=patch, band="r")
            for patch in (6, 7, 8, 11, 12, 13, 16, 17, 18)
        ]
        with pytest.raises(TooFewStarsError) as caught:
            SubtractTask().run(observed.get("preliminary_visit_image"), stars[:2], templates)
    assert "star_count" in caught.value.metadata


def test_storing_a_visit_twice_is_refused(observed: Observed) -> None:
    config = AssociateTask.ConfigClass()
    config.apdb_config_url = str(observed.apdb)
    task = AssociateTask(config=config)
    tables = {
        name: observed.get(name)
        for name in ("dia_source_detector", "preloaded_dia_objects", "preloaded_dia_sources")
    }
    with pytest.raises(AlreadyAssociatedError, match="would be in the database twice"):
        task.run(**tables, visit=observed.plan.exposure_id, detector=DETECTOR)


def test_a_database_that_is_not_configured_is_named(observed: Observed) -> None:
    with pytest.raises(ValueError, match="loadDiaCatalogs:apdb_config_url is not set"):
        LoadDiaCatalogsTask().run(observed.get("regionTimeInfo"))


def test_the_brightest_alerts_are_drawn(observed: Observed, tmp_path: Path) -> None:
    output = tmp_path / "alerts.png"
    drawn = plot_alerts(sorted(observed.alert_dir.iterdir()), output, count=4)
    assert drawn == 4
    assert output.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="nothing to draw"):
        plot_alerts([], output)
