# SPDX-License-Identifier: BSD-3-Clause
"""The demo camera in the middleware: headers, raws, and the content of the central repo."""

import json
import logging
import shutil

import astropy.time
import astropy.units as u
import numpy as np
import pytest
from astro_metadata_translator import ObservationInfo
from astropy.coordinates import SkyCoord
from astropy.io import fits
from demovisits import BEGIN_TAI_S, OLD_BEGIN_TAI_S, footprint, observe, plan_calibration, plan_exposure
from lsst.daf.butler import Butler, Timespan
from lsst.dax.apdb import Apdb
from lsst.images import Box
from lsst.pipe.base import Instrument

from ppdaemon.demo.central import APDB_CONFIG, FIELD_IDS, make_central_repo, reference_catalog
from ppdaemon.demo.geometry import AMPLIFIERS, RAW_SHAPE, detector_name, detector_wcs
from ppdaemon.demo.instrument import DemoCam
from ppdaemon.demo.plan import ExposurePlan, ImageType, primary_header
from ppdaemon.demo.rawformatter import read_raw
from ppdaemon.demo.raws import detector_names, encode_blank, raw_path, write_expected_sensors, write_raw
from ppdaemon.demo.render import render_raw
from ppdaemon.demo.sky import Sky
from ppdaemon.demo.skymap import PATCH_COUNT, TractMap
from ppdaemon.raws.layout import make_layout
from ppdaemon.raws.path import RawFileKind, sidecar_path

DETECTOR = 4
MAY_BE_NULL = {"boresight_rotation_angle", "tracking_radec", "altaz_begin", "altaz_end", "boresight_airmass"}


@pytest.fixture(scope="module")
def sky():
    return Sky()


def properties(info):
    return {name: getattr(info, name) for name in info.all_properties if not name.startswith("ext_")}


def test_a_science_header_has_every_property_without_a_warning(caplog):
    plan = plan_exposure(12, snap_index=2, snap_count=2)
    with caplog.at_level(logging.WARNING):
        info = ObservationInfo(primary_header(plan, DETECTOR, detector_name(DETECTOR)), pedantic=True)
    assert not caplog.records
    assert {name for name, value in properties(info).items() if value is None} == set()
    assert info.instrument == "DemoCam"
    assert info.observation_type == "science"
    assert info.exposure_id == info.visit_id == plan.exposure_id == 2026112100012
    assert (info.group_counter_start, info.group_counter_end) == (11, 12)
    assert info.observing_day == 20261121
    assert info.datetime_begin.scale == "tai"
    assert info.datetime_begin.unix_tai == pytest.approx(plan.begin_tai_s, abs=1e-3)
    assert info.tracking_radec.separation(SkyCoord(plan.ra_deg, plan.dec_deg, unit="deg")) < 1e-9 * u.deg
    assert info.boresight_rotation_angle.deg == pytest.approx(25.0)
    assert info.detector_unique_name == "R22_S11"
    assert info.exposure_time == 30.0 * u.s


@pytest.mark.parametrize("image_type", [ImageType.BIAS, ImageType.DARK, ImageType.FLAT])
def test_a_calibration_header_has_no_position_on_the_sky(image_type, caplog):
    plan = plan_calibration(3, image_type)
    with caplog.at_level(logging.WARNING):
        info = ObservationInfo(primary_header(plan, 0, detector_name(0)), pedantic=True)
    assert not caplog.records
    assert {name for name, value in properties(info).items() if value is None} == MAY_BE_NULL
    assert info.observation_type == image_type.lower()
    assert info.datetime_end > info.datetime_begin
    assert not info.can_see_sky


def test_the_fits_header_and_the_sidecar_agree(tmp_path):
    for plan in (plan_exposure(1), plan_calibration(2, ImageType.BIAS)):
        path = write_raw(tmp_path, plan, 0, np.full(RAW_SHAPE, 1000, dtype=np.uint16))
        with fits.open(path) as hdus:
            from_fits = ObservationInfo(hdus[0].header, pedantic=True)
        from_json = ObservationInfo(json.loads(path.with_suffix(".json").read_text()), pedantic=True)
        assert from_fits == from_json
        assert read_raw(str(path)).metadata["RA"] == plan.ra_deg


def test_the_butler_returns_a_raw_as_it_was_rendered(demo_central, tmp_path, sky):
    root = tmp_path / "repo"
    shutil.copytree(demo_central, root)
    plan = plan_exposure(1)
    exposure = observe(root, tmp_path / "raw", plan, DETECTOR, sky)
    with Butler.from_config(root, collections="DemoCam/raw/all") as butler:
        data_id = {"instrument": "DemoCam", "exposure": exposure, "detector": DETECTOR}
        image = butler.get("raw", data_id)
        box = Box.from_shape((10, 20), start=(5, 500))
        part = butler.get("raw", data_id, parameters={"bbox": box})
        assert butler.get("raw.bbox", data_id) == image.bbox
    pixels = render_raw(plan, DETECTOR, sky)
    assert (image.array == pixels).all()
    assert (part.array == pixels[5:15, 500:520]).all()
    assert image.unit == u.adu
    assert image.metadata["OBSID"] == plan.obs_id
    assert image.metadata["GAINC00"] == AMPLIFIERS[0].gain


def test_a_file_that_is_not_a_democam_raw_is_refused(tmp_path):
    plan = ExposurePlan(instrument="LATISS", **plan_exposure(1).model_dump(exclude={"instrument"}))
    path = tmp_path / "other.fits"
    path.write_bytes(encode_blank(plan, 0, "R00_S00")[0])
    with pytest.raises(ValueError, match="no extension C00"):
        read_raw(str(path))


@pytest.mark.parametrize("fraction", [0.0, 0.001, 0.3, 0.7, 0.999])
def test_a_truncated_raw_is_an_error_that_names_the_file(fraction, tmp_path, sky):
    plan = plan_calibration(2, ImageType.BIAS)
    path = write_raw(tmp_path, plan, 0, render_raw(plan, 0, sky))
    complete = path.read_bytes()
    path.write_bytes(complete[: int(fraction * len(complete))])
    with pytest.raises(OSError, match=r"(?i)truncated|empty"):
        read_raw(str(path))


def calibration(butler, name, tai_s, **more):
    instant = Timespan.fromInstant(astropy.time.Time(tai_s, format="unix_tai", scale="tai"))
    found = butler.find_dataset(
        name, instrument="DemoCam", detector=DETECTOR, timespan=instant, collections="DemoCam/calib", **more
    )
    return butler.get(found)


def test_the_date_decides_which_bias_is_valid_and_only_it_fits(demo_central, sky):
    with Butler.from_config(demo_central) as butler:
        old = calibration(butler, "bias", OLD_BEGIN_TAI_S)
        new = calibration(butler, "bias", BEGIN_TAI_S)
    for begin_tai_s, valid, other in ((OLD_BEGIN_TAI_S, old, new), (BEGIN_TAI_S, new, old)):
        raw = render_raw(plan_calibration(5, ImageType.BIAS, begin_tai_s=begin_tai_s), DETECTOR, sky)
        assert residual_adu(raw, valid) < 4.5
        assert residual_adu(raw, other) > 6.0
    assert (old.mask.array == new.mask.array).all()


def residual_adu(raw, bias):
    """Return the scatter after a bias is subtracted, without bad columns."""
    image = np.empty(bias.image.array.shape, dtype=np.float32)
    for amplifier in AMPLIFIERS:
        overscan = np.median(raw[:, amplifier.overscan_columns], axis=1)
        image[:, amplifier.columns] = raw[:, amplifier.data_columns] - overscan[:, np.newaxis]
    image -= bias.image.array
    return image[~bias.mask.get("BAD")].std()


def test_masters_have_the_units_and_shapes_of_the_contract(demo_central):
    with Butler.from_config(demo_central) as butler:
        bias, dark = (calibration(butler, name, BEGIN_TAI_S) for name in ("bias", "dark"))
        flat = calibration(butler, "flat", BEGIN_TAI_S, physical_filter="r_03")
    assert (bias.unit, dark.unit, flat.unit) == (u.adu, u.electron / u.s, None)
    assert {each.image.array.shape for each in (bias, dark, flat)} == {(1024, 1024)}
    assert flat.image.array.mean() == pytest.approx(1.0, abs=1e-4)
    assert bias.mask.get("BAD").any(axis=0).sum() == 3
    for each in (bias, dark, flat):
        assert each.image.array.dtype == each.variance.array.dtype == np.float32


def test_a_flat_field_exposure_is_flat_after_the_master(demo_central, sky):
    raw = render_raw(plan_calibration(6, ImageType.FLAT), DETECTOR, sky)
    with Butler.from_config(demo_central) as butler:
        bias = calibration(butler, "bias", BEGIN_TAI_S)
        flat = calibration(butler, "flat", BEGIN_TAI_S, physical_filter="r_03")
    amplifier = AMPLIFIERS[0]
    data = raw[:, amplifier.data_columns] - np.median(raw[:, amplifier.overscan_columns])
    electrons = (data - bias.image.array[:, amplifier.columns]) * amplifier.gain
    corrected = electrons / flat.image.array[:, amplifier.columns]
    good = ~bias.mask.get("BAD")[:, amplifier.columns]
    assert corrected[good].std() / corrected[good].mean() == pytest.approx(1.0 / np.sqrt(25_000), rel=0.1)


def test_the_patches_overlap_every_detector_of_a_dithered_turned_camera(demo_central, sky):
    tract = TractMap.around(sky)
    regions = [tract.region(tract.patch_box(patch)) for patch in range(PATCH_COUNT)]
    tract_region = tract.region(tract.projection.pixel_frame.bbox)
    for rotpa_deg in (0.0, 45.0, 130.0):
        plan = plan_exposure(1, ra_deg=150.1 + 0.016, rotpa_deg=rotpa_deg)
        for detector in range(9):
            region = footprint(plan, detector)
            assert tract_region.contains(region)
            assert 1 <= sum(each.overlaps(region) for each in regions) <= 9
    with Butler.from_config(demo_central, collections="DemoCam/templates") as butler:
        records = butler.query_dimension_records("patch", skymap="demo", tract=0)
        assert len(records) == len(butler.query_datasets("template")) == PATCH_COUNT


def test_templates_show_the_sky_without_transients_at_the_right_position(demo_central, sky):
    with Butler.from_config(demo_central, collections="DemoCam/templates") as butler:
        template = butler.get("template", skymap="demo", tract=0, patch=12, band="r")
        beside = butler.get("template", skymap="demo", tract=0, patch=13, band="r")
    assert template.unit == u.nJy
    assert template.metadata["PSF_FWHM_ARCSEC"] < 0.7
    shared = template.bbox.intersection(beside.bbox)
    assert shared.shape == (1088, 64)
    noise = np.sqrt(np.median(template.variance.array))
    assert np.abs(template[shared].image.array - beside[shared].image.array).max() < noise
    box = template.bbox
    assert template.sky_projection.as_fits_wcs(box) is not None
    stars = np.flatnonzero((sky.stars.magnitude["r"] > 18) & (sky.stars.magnitude["r"] < 20))
    pixels = template.sky_projection.sky_to_pixel(
        SkyCoord(sky.stars.ra_deg[stars] * u.deg, sky.stars.dec_deg[stars] * u.deg)
    )
    inside = [
        (round(x) - box.x.start, round(y) - box.y.start)
        for x, y in zip(pixels.x, pixels.y, strict=True)
        if box.x.start + 5 < x < box.x.stop - 5 and box.y.start + 5 < y < box.y.stop - 5
    ]
    assert inside
    assert all(template.image.array[y, x] > 50 * noise for x, y in inside)
    static = sky.scene("r")
    assert len(static) == len(sky.stars.id) + len(sky.galaxies.id)


def test_the_reference_catalog_covers_a_detector_with_stars_of_the_sky(demo_central, sky):
    with Butler.from_config(demo_central, collections="refcats") as butler:
        shards = [butler.get(ref) for ref in butler.query_datasets("demo_refcat")]
    shards = [shard for shard in shards if shard["id"].max() < FIELD_IDS]
    assert sum(map(len, shards)) == len(reference_catalog(sky))
    assert shards[0].colnames == ["id", "ra", "dec", "g_mag", "r_mag", "i_mag"]
    ra, dec = (np.concatenate([shard[name].value for shard in shards]) for name in ("ra", "dec"))
    x, y = detector_wcs(150.1, 2.2, 0.0, 0).all_world2pix(ra, dec, 0)
    assert ((x > 0) & (x < 1023) & (y > 0) & (y < 1023)).sum() > 30
    ids = np.concatenate([shard["id"].value for shard in shards])
    measured = SkyCoord(ra * u.deg, dec * u.deg)
    true = SkyCoord(sky.stars.ra_deg[ids - 1] * u.deg, sky.stars.dec_deg[ids - 1] * u.deg)
    assert measured.separation(true).max() < 0.05 * u.arcsec


def test_the_instrument_is_found_by_its_name_and_registers_twice(demo_central):
    with Butler.from_config(demo_central) as butler:
        camera = Instrument.fromName("DemoCam", butler.registry)
        detectors = butler.query_dimension_records("detector", instrument="DemoCam")
    assert isinstance(camera, DemoCam)
    assert sorted(each.full_name for each in detectors) == sorted(map(detector_name, range(9)))


def test_the_alert_database_waits_for_locks_and_pools_no_connections(demo_central):
    apdb = Apdb.from_uri(demo_central / APDB_CONFIG)
    assert apdb.tableRowCount()["DiaObject"] == 0
    assert apdb.getConfig().connection_config.connection_timeout == 120
    assert not apdb.getConfig().connection_config.connection_pool


def test_an_existing_folder_is_refused_and_untouched(tmp_path):
    (tmp_path / "keep").touch()
    with pytest.raises(FileExistsError, match="name a folder that does not"):
        make_central_repo(tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["keep"]


def test_a_repo_that_fails_half_way_leaves_no_files(tmp_path):
    def fail_at_the_catalog(line):
        if line == "reference catalog":
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        make_central_repo(tmp_path / "repo.v1", processes=1, progress=fail_at_the_catalog)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("instrument", ["DemoCam", "LSSTCam", "LSSTComCam", "LATISS"])
def test_paths_are_parsed_to_the_values_they_were_made_from(instrument, tmp_path):
    plan = ExposurePlan(instrument=instrument, **plan_exposure(77).model_dump(exclude={"instrument"}))
    layout = make_layout("lsst", {instrument: [0]})
    for detector, (name, purpose) in detector_names(instrument).items():
        path = raw_path(plan, name).as_posix()
        read = layout.parse(path)
        kind = RawFileKind.GUIDER if purpose == "GUIDER" else RawFileKind.IMAGE
        assert (read.kind, read.exposure, read.detector) == (kind, plan.exposure_id, detector)
        assert layout.parse(sidecar_path(path)).kind is RawFileKind.SIDECAR
    listed = write_expected_sensors(tmp_path, plan, [0])
    assert layout.parse(listed.relative_to(tmp_path).as_posix()).kind is RawFileKind.EXPECTED
    assert len(json.loads(listed.read_text())["expectedSensors"]) == 1
