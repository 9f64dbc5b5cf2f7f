# SPDX-License-Identifier: BSD-3-Clause
"""The demo's sky, its geometry, and the light in the pixels."""

import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord

from ppdaemon.camera import load_camera
from ppdaemon.demo.geometry import (
    AMPLIFIERS,
    CAMERA_NAME,
    DETECTOR_COUNT,
    DETECTOR_SIZE,
    PIXEL_SCALE_ARCSEC,
    detector_corners,
    detector_name,
    detector_offset_pixels,
    detector_wcs,
    tangent_wcs,
)
from ppdaemon.demo.plan import ExposurePlan, ImageType
from ppdaemon.demo.render import ZERO_POINT_MAG, Psf, conditions_of, draw_scene, render_raw, true_wcs
from ppdaemon.demo.signatures import EPOCHS, Signature, epoch_at
from ppdaemon.demo.sky import Scene, Sky, demo_skies, magnitude_to_njy, njy_to_magnitude, sky_at
from ppdaemon.demo.truth import TRANSIENT, VARIABLE, truth_table

MJD = 61366.2
BEGIN_TAI_S = (MJD - 40587.0) * 86400.0


def plan(**changes):
    described = {
        "seq_num": 7,
        "group": "2026-11-22T03:25:16.951",
        "physical_filter": "r_03",
        "ra_deg": 150.1,
        "dec_deg": 2.2,
        "rotpa_deg": 0.0,
        "begin_tai_s": BEGIN_TAI_S,
    }
    return ExposurePlan(**described | changes)


@pytest.fixture(scope="module")
def sky():
    return Sky()


@pytest.mark.parametrize("rotpa_deg", [0.0, 37.0, 250.0])
@pytest.mark.parametrize("dec_deg", [2.2, -71.0])
def test_a_detectors_center_agrees_with_spherical_trigonometry(rotpa_deg, dec_deg):
    boresight = SkyCoord(150.1 * u.deg, dec_deg * u.deg)
    for detector in range(DETECTOR_COUNT):
        x, y = detector_offset_pixels(detector)
        # A gnomonic projection: the focal plane's radius is the tangent of the angle.
        distance = np.arctan(np.radians(np.hypot(x, y) * PIXEL_SCALE_ARCSEC / 3600.0)) * u.rad
        position_angle = (rotpa_deg - np.degrees(np.arctan2(x, y))) * u.deg
        expected = boresight.directional_offset_by(position_angle, distance)
        middle = (DETECTOR_SIZE - 1) / 2.0
        ra_deg, dec = detector_wcs(150.1, dec_deg, rotpa_deg, detector).all_pix2world(middle, middle, 0)
        assert expected.separation(SkyCoord(ra_deg * u.deg, dec * u.deg)) < 1e-6 * u.arcsec


def test_detector_positions_agree_with_the_focal_plane_table():
    camera = load_camera(CAMERA_NAME)
    assert sorted(camera.detectors) == list(range(DETECTOR_COUNT))
    for detector in range(DETECTOR_COUNT):
        assert camera.detectors[detector].name == detector_name(detector)
        computed = SkyCoord(detector_corners(150.1, 2.2, 33.0, detector) * u.deg)
        from_table = SkyCoord(np.array(camera.footprint(detector, 150.1, 2.2, 33.0)) * u.deg)
        assert (computed.separation(from_table) < 0.1 * u.arcsec).all()


def test_at_rotation_zero_plus_y_is_north_and_plus_x_west():
    wcs = detector_wcs(150.1, 2.2, 0.0, 4)
    (ra, dec), (ra_right, _), (_, dec_up) = wcs.all_pix2world([(500, 500), (501, 500), (500, 501)], 0)
    assert ra_right < ra
    assert dec_up > dec


def test_a_detector_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="detectors 0 to 8, not 9"):
        detector_wcs(150.1, 2.2, 0.0, 9)


def test_the_same_seed_gives_the_same_truth(sky):
    again = truth_table(Sky(), MJD, "r")
    assert (truth_table(sky, MJD, "r") == again).all()


def test_another_seed_gives_another_truth(sky):
    one, other = truth_table(sky, MJD, "r"), truth_table(Sky(seed=1), MJD, "r")
    assert set(one["ra"].value).isdisjoint(other["ra"].value)


@pytest.mark.parametrize(("ra_deg", "field"), [(150.0, 0), (153.0, 1), (0.0, 0), (330.0, 1), (332.0, 0)])
def test_a_camera_observes_the_nearest_field(ra_deg, field):
    skies = demo_skies()
    assert sky_at(skies, ra_deg, 2.0) is skies[field]
    assert sky_at(skies[:1], ra_deg, 2.0) is skies[0]


def test_transients_fade_and_the_template_has_none(sky):
    early, late = truth_table(sky, MJD, "r"), truth_table(sky, MJD + 3.0, "r")
    new = early["kind"] == TRANSIENT
    assert new.sum() > 200
    assert not np.allclose(early["mag"][new][:100].value, late["mag"][late["kind"] == TRANSIENT][:100].value)
    static, live = sky.scene("r"), sky.scene("r", MJD)
    assert len(live) - len(static) == len(sky.transients.id)


def test_variables_are_at_their_mean_in_the_template(sky):
    truth = truth_table(sky, MJD, "i")
    variables = truth[truth["kind"] == VARIABLE]
    index = sky.variables.index
    change = sky.scene("i", MJD).flux_njy[index] - sky.scene("i").flux_njy[index]
    assert np.allclose(variables["difference_njy"].value, change)
    assert np.abs(change / sky.scene("i").flux_njy[index]).max() > 0.3


def test_every_detector_has_transients_on_any_date(sky):
    for mjd in (60310.0, MJD, 62000.0):
        bright = truth_table(sky, mjd, "r")
        assert ((bright["kind"] == TRANSIENT) & (bright["mag"].value < 22.5)).sum() > 60
    truth = truth_table(sky, MJD, "r")
    for detector in range(DETECTOR_COUNT):
        wcs = true_wcs(plan(), detector, sky.seed)
        xy = np.column_stack(wcs.all_world2pix(truth["ra"].value, truth["dec"].value, 0))
        assert ((xy > 0) & (xy < DETECTOR_SIZE)).all(axis=1).sum() >= 3


@pytest.mark.parametrize("magnitude", [17.0, 21.0])
@pytest.mark.parametrize("half_light_arcsec", [0.0, 0.6])
def test_all_light_of_a_source_is_drawn_at_its_position(magnitude, half_light_arcsec):
    wcs = tangent_wcs(150.1, 2.2, 20.0, 100.3, 99.6)
    flux = magnitude_to_njy(np.array([magnitude]))
    one = np.ones(1)
    scene = Scene(150.1 * one, 2.2 * one, flux, half_light_arcsec * one, 0.5 * one, 40.0 * one)
    image = draw_scene(scene, wcs, Psf(0.8, 0.03, -0.02), (201, 201), floor_njy=0.5)
    assert image.sum() == pytest.approx(flux[0], rel=0.01)
    y, x = np.mgrid[:201, :201]
    assert (x * image).sum() / image.sum() == pytest.approx(100.3, abs=0.01)
    assert (y * image).sum() / image.sum() == pytest.approx(99.6, abs=0.01)


def test_a_disk_is_elongated_along_its_position_angle():
    wcs = tangent_wcs(150.1, 2.2, 0.0, 100.0, 100.0)
    one = np.ones(1)
    scene = Scene(150.1 * one, 2.2 * one, 1e5 * one, 2.0 * one, 0.3 * one, 45.0 * one)
    image = draw_scene(scene, wcs, Psf(0.8), (201, 201), floor_njy=0.01)
    y, x = np.mgrid[:201, :201] - 100.0
    # North through east: up and to the left, where x is negative.
    assert (x * y * image).sum() / image.sum() < -10.0


def test_the_psf_has_the_width_of_its_parameter():
    wcs = tangent_wcs(150.1, 2.2, 0.0, 100.0, 100.0)
    scene = Scene.points(np.array([150.1]), np.array([2.2]), np.array([1e6]))
    image = draw_scene(scene, wcs, Psf(1.6), (201, 201), floor_njy=0.1)
    profile = image[100, 100:] / image[100, 100]
    half_width = np.interp(-0.5, -profile, np.arange(101.0))
    assert 2.0 * half_width * PIXEL_SCALE_ARCSEC == pytest.approx(1.6, rel=0.03)


def test_a_stars_electrons_give_its_magnitude(sky):
    exposure = plan()
    signature = Signature(4, epoch_at(exposure.mid_mjd_tai))
    raw = render_raw(exposure, 4, sky).astype(np.float64)
    electrons = reduce(raw, signature, exposure)
    x, y = true_wcs(exposure, 4).all_world2pix(sky.stars.ra_deg, sky.stars.dec_deg, 0)
    inside = (x > 40) & (x < DETECTOR_SIZE - 40) & (y > 40) & (y < DETECTOR_SIZE - 40)
    columns = np.array(list(signature.bad_columns()))
    inside &= np.abs(x[:, np.newaxis] - columns).min(axis=1) > 15
    r = sky.stars.magnitude["r"].copy()
    r[sky.variables.index] = np.nan
    errors = []
    for star in np.flatnonzero(inside & (r > 17.0) & (r < 20.5)):
        rate = aperture(electrons, x[star], y[star]) / exposure.exposure_s
        measured = ZERO_POINT_MAG["r"] - 2.5 * np.log10(rate)
        errors.append(measured - r[star] + 2.5 * np.log10(conditions_of(exposure).transparency))
    assert len(errors) >= 5
    assert abs(np.median(errors)) < 0.02


def reduce(raw, signature, exposure):
    """Reduce with the perfect signatures, and subtract the sky."""
    bias, image = signature.bias_adu(), np.empty((DETECTOR_SIZE, DETECTOR_SIZE))
    for amplifier in AMPLIFIERS:
        level = np.median(raw[:, amplifier.overscan_columns])
        data = raw[:, amplifier.data_columns] - level - bias[:, amplifier.columns]
        image[:, amplifier.columns] = data * amplifier.gain
    image -= signature.dark_electrons_per_s() * exposure.exposure_s
    image /= signature.response(exposure.physical_filter)
    return image - np.median(image)


def aperture(image, x, y, radius=12.0):
    """Sum the pixels of a circle, less the median of the ring around it."""
    column, row = round(float(x)), round(float(y))
    cut = image[row - 25 : row + 26, column - 25 : column + 26]
    dy, dx = np.mgrid[-25:26, -25:26]
    distance = np.hypot(dx - (x - column), dy - (y - row))
    background = np.median(cut[(distance > 18) & (distance < 25)])
    return (cut[distance < radius] - background).sum()


def test_a_readout_is_the_same_each_time_and_another_with_another_number(sky):
    bias = {
        "image_type": ImageType.BIAS,
        "exposure_s": 0.0,
        "ra_deg": None,
        "dec_deg": None,
        "rotpa_deg": None,
    }
    first = render_raw(plan(**bias), 3, sky)
    assert (first == render_raw(plan(**bias), 3, sky)).all()
    assert (first != render_raw(plan(**bias, seq_num=8), 3, sky)).any()


def test_the_true_boresight_is_one_to_two_arcsec_off():
    for seq_num in range(1, 20):
        exposure = plan(seq_num=seq_num)
        announced = detector_wcs(150.1, 2.2, 0.0, 4).all_pix2world(511.5, 511.5, 0)
        true = true_wcs(exposure, 4).all_pix2world(511.5, 511.5, 0)
        miss = SkyCoord(*announced, unit="deg").separation(SkyCoord(*true, unit="deg")).arcsec
        assert 0.99 < miss < 2.01


def test_the_epoch_follows_the_date():
    assert epoch_at(EPOCHS[1].begin_mjd_tai - 1e-6) is EPOCHS[0]
    assert epoch_at(EPOCHS[1].begin_mjd_tai) is EPOCHS[1]
    difference = Signature(4, EPOCHS[0]).bias_adu() - Signature(4, EPOCHS[1]).bias_adu()
    assert difference.std() > 4.0


def test_magnitudes_and_njy_are_each_others_inverse():
    assert magnitude_to_njy(31.4) == pytest.approx(1.0)
    assert njy_to_magnitude(magnitude_to_njy([18.0, 25.0])) == pytest.approx([18.0, 25.0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"instrument": "Foo"}, "unknown instrument 'Foo'"),
        ({"snap_index": 3, "snap_count": 2}, "snap index 3 is not within 0 to 1"),
        ({"ra_deg": None}, "needs ra_deg, dec_deg and rotpa_deg"),
        ({"image_type": ImageType.BIAS}, "a bias has exposure_s 0"),
        ({"seq_num": 0}, "greater than 0"),
    ],
)
def test_an_impossible_exposure_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        plan(**changes)


def test_the_observing_day_ends_at_noon_tai():
    noon = (61366.5 - 40587.0) * 86400.0
    assert plan(begin_tai_s=noon - 1.0).obs_id == "DC_O_20261121_000007"
    assert plan(begin_tai_s=noon).obs_id == "DC_O_20261122_000007"
    assert plan(begin_tai_s=noon).exposure_id == 2026112200007
