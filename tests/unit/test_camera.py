# SPDX-License-Identifier: BSD-3-Clause
"""Focal-plane tables and footprints, against astropy's independent mathematics."""

import math

import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.wcs import WCS
from hypothesis import given, settings
from hypothesis import strategies as st

from ppdaemon.camera import Camera, camera_names, load_camera, padded
from ppdaemon.demo.geometry import CAMERA_NAME, detector_corners
from ppdaemon.errors import ConfigError

POINTINGS = [
    (150.1, 2.2, 0.0),
    (0.0, 0.0, 33.0),
    (359.999, -29.9, 271.5),
    (0.001, 45.0, 90.0),
    (77.0, -89.9, 12.0),
    (200.0, 90.0, 0.0),
    (200.0, -90.0, 123.0),
]
TOLERANCE_ARCSEC = 0.1


def separation_arcsec(a: tuple[float, float], b: tuple[float, float]) -> float:
    return SkyCoord(*a, unit="deg").separation(SkyCoord(*b, unit="deg")).arcsec


def corners_mm(camera: Camera, detector: int) -> list[tuple[float, float]]:
    place = camera.detectors[detector]
    signs = [(-1, -1), (1, -1), (1, 1), (-1, 1)]
    return [(place.x_mm + sx * place.width_mm / 2, place.y_mm + sy * place.height_mm / 2) for sx, sy in signs]


def undistorted_deg(camera: Camera, x: float, y: float) -> tuple[float, float]:
    """Return a place of the focal plane in the plane that touches the sky."""
    r2 = x * x + y * y
    radial = camera.radial_coefficients
    factor = radial.c1 + radial.c3 * r2 + radial.c5 * r2 * r2
    scale = camera.plate_scale_arcsec_per_mm / 3600.0
    return scale * factor * x, scale * factor * y


def tangent_wcs(camera: Camera, ra: float, dec: float, angle: float) -> WCS:
    """Degrees of the touching plane to the sky, as FITS defines it."""
    sine, cosine = math.sin(math.radians(angle)), math.cos(math.radians(angle))
    x_sign = 1.0 if camera.focal_plane_parity else -1.0
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [ra, dec]
    wcs.wcs.crpix = [1.0, 1.0]
    # +Y points to the position angle, +X a right angle before or after it.
    wcs.wcs.cd = np.array([[x_sign * cosine, sine], [-x_sign * sine, cosine]])
    if abs(dec) == 90.0:
        wcs.wcs.lonpole = 180.0
    wcs.wcs.set()
    return wcs


def assert_agrees_with_astropy(camera: Camera, detectors: list[int], pointing: tuple[float, float, float]):
    wcs = tangent_wcs(camera, *pointing)
    plane = [
        undistorted_deg(camera, *corner) for detector in detectors for corner in corners_mm(camera, detector)
    ]
    want = SkyCoord(wcs.all_pix2world(plane, 0), unit="deg")
    got = SkyCoord([corner for d in detectors for corner in camera.footprint(d, *pointing)], unit="deg")
    assert got.separation(want).arcsec.max() < TOLERANCE_ARCSEC


@pytest.mark.parametrize("pointing", POINTINGS)
@pytest.mark.parametrize("instrument", camera_names())
def test_all_footprints_agree_with_the_gnomonic_projection_of_astropy(instrument, pointing):
    camera = load_camera(instrument)
    assert_agrees_with_astropy(camera, list(camera.detectors), pointing)


@settings(max_examples=50)
@given(st.floats(0, 360, exclude_max=True), st.floats(-89.999, 89.999), st.floats(-720, 720))
def test_footprints_agree_with_astropy_wherever_the_camera_points(ra, dec, angle):
    assert_agrees_with_astropy(load_camera("LSSTCam"), [0, 94, 188, 191, 204], (ra, dec, angle))


@pytest.mark.parametrize("pointing", [pointing for pointing in POINTINGS if abs(pointing[1]) < 90.0])
def test_the_simulated_camera_is_where_its_pixels_are(pointing):
    camera = load_camera(CAMERA_NAME)
    for detector in camera.detectors:
        want = detector_corners(*pointing, detector)
        for got, corner in zip(camera.footprint(detector, *pointing), want, strict=True):
            assert separation_arcsec(got, tuple(corner)) < TOLERANCE_ARCSEC


def test_at_rotation_zero_y_is_north_and_x_is_west():
    camera = load_camera("LSSTCam")
    right = camera.center(camera.by_name("R24_S11").id, 40.0, 0.0, 0.0)
    top = camera.center(camera.by_name("R42_S11").id, 40.0, 0.0, 0.0)
    assert right[0] < 39.0
    assert right[1] == pytest.approx(0.0, abs=1e-9)
    assert top[1] > 0.5
    assert top[0] == pytest.approx(40.0)


def test_with_parity_x_is_east():
    latiss = load_camera("LATISS")
    low_x, high_x, _, _ = latiss.footprint(0, 40.0, 0.0, 0.0)
    assert latiss.focal_plane_parity
    assert high_x[0] > low_x[0]


@pytest.mark.parametrize(
    ("instrument", "detector", "pointing", "center", "tolerance_arcsec"),
    [
        # An imSim raw of the tests of obs_lsst: RATEL, DECTEL, 90 - ROTANGLE, and the WCS of its amplifiers.
        (
            "LSSTCam-imSim",
            "R11_S20",
            (55.67759885870274, -30.4423935708909, 90.0 - 195.6245130779726),
            (55.90466389616512, -29.40910683348388),
            2.0,
        ),
        # Another raw, of LSSTComCamSim. Its optics are 5 % off, so that only the direction is compared.
        (
            "LSSTComCamSim",
            "R22_S00",
            (199.68134610137426, -34.544668655603914, 69.38276508708303),
            (199.52340844684164, -34.831788378670616),
            70.0,
        ),
    ],
    ids=["imSim", "ComCamSim"],
)
def test_simulated_detectors_are_where_their_raws_have_them(
    instrument, detector, pointing, center, tolerance_arcsec
):
    camera = load_camera(instrument)
    got = camera.center(camera.by_name(detector).id, *pointing)
    assert separation_arcsec(got, center) < tolerance_arcsec
    axis, raw = (SkyCoord(*point, unit="deg") for point in (pointing[:2], center))
    difference = axis.position_angle(SkyCoord(*got, unit="deg")) - axis.position_angle(raw)
    assert abs(difference.wrap_at("180d").arcmin) < 10.0


@pytest.mark.parametrize(("simulated", "real"), [("LSSTCamSim", "LSSTCam"), ("LSSTComCamSim", "LSSTComCam")])
def test_a_simulated_camera_has_the_focal_plane_of_the_real_one(simulated, real):
    assert load_camera(simulated).instrument == simulated
    assert load_camera(real).instrument == real
    assert load_camera(simulated).footprint(4, 10.0, 89.9, 3.0) == load_camera(real).footprint(
        4, 10.0, 89.9, 3.0
    )
    assert load_camera(simulated).visit_padding_arcsec == load_camera(real).visit_padding_arcsec


def test_imsim_has_its_own_positions_and_no_corner_rafts():
    imsim, real = load_camera("LSSTCam-imSim"), load_camera("LSSTCam")
    for number, detector in imsim.detectors.items():
        other = real.detectors[number]
        assert (detector.name, detector.purpose) == (other.name, "SCIENCE")
        assert math.hypot(detector.x_mm - other.x_mm, detector.y_mm - other.y_mm) < 1.0
    assert imsim.by_name("R41_S20").x_mm == pytest.approx(-168.69)
    with pytest.raises(LookupError):
        imsim.footprint(189, 0.0, 0.0, 0.0)


def test_the_angle_turns_y_from_north_to_east():
    camera = load_camera("DemoCam")
    upper = camera.by_name("R22_S21").id
    ra, dec = camera.center(upper, 40.0, 0.0, 90.0)
    assert ra > 40.05
    assert dec == pytest.approx(0.0, abs=1e-9)


@given(
    st.sampled_from([0, 4, 94, 168, 204]),
    st.floats(0, 360, exclude_max=True),
    st.floats(-90, 90),
    st.floats(-720, 720),
)
def test_corners_surround_the_center_wherever_the_telescope_points(detector, ra, dec, angle):
    camera = load_camera("LSSTCam")
    corners = camera.footprint(detector, ra, dec, angle)
    middle = vector(camera.center(detector, ra, dec, angle))
    assert all(0.0 <= corner[0] < 360.0 and -90.0 <= corner[1] <= 90.0 for corner in corners)
    assert contains([vector(corner) for corner in corners], middle)


def vector(point: tuple[float, float]) -> np.ndarray:
    ra, dec = np.radians(point)
    return np.array([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)])


def contains(polygon: list[np.ndarray], point: np.ndarray) -> bool:
    sides = [np.cross(a, b) @ point for a, b in zip(polygon, [*polygon[1:], polygon[0]], strict=True)]
    return all(side > 0 for side in sides) or all(side < 0 for side in sides)


@pytest.mark.parametrize("parity_camera", ["LSSTCam", "LATISS"])
@pytest.mark.parametrize("pointing", POINTINGS)
def test_padding_moves_every_edge_out_by_its_amount(parity_camera, pointing):
    camera = load_camera(parity_camera)
    corners = camera.footprint(0, *pointing)
    wide = padded(corners, 30.0)
    old, new = [vector(corner) for corner in corners], [vector(corner) for corner in wide]
    assert all(contains(new, corner) for corner in old)
    for k in range(4):
        pole = np.cross(new[k], new[(k + 1) % 4])
        middle = old[k] + old[(k + 1) % 4]
        sine = pole @ middle / np.linalg.norm(pole) / np.linalg.norm(middle)
        assert abs(np.degrees(np.arcsin(sine))) * 3600 == pytest.approx(30.0, abs=0.001)


def test_no_padding_changes_nothing():
    corners = load_camera("LSSTCam").footprint(94, 0.0, -90.0, 10.0)
    for before, after in zip(corners, padded(corners, 0.0), strict=True):
        assert separation_arcsec(before, after) < 1e-6


@pytest.mark.parametrize(
    ("corners", "arcsec"),
    [([(10.0, 0.0)] * 4, 30.0), ([(10.0, 0.0), (11.0, 0.0), (10.5, 1.0)], -1.0)],
)
def test_what_cannot_be_padded_is_refused(corners, arcsec):
    with pytest.raises(ValueError, match=r"polygon|negative"):
        padded(corners, arcsec)


def test_the_tables_have_all_detectors():
    assert {name: len(load_camera(name).detectors) for name in camera_names()} == {
        "DemoCam": 9,
        "LATISS": 1,
        "LSSTCam": 205,
        "LSSTCam-imSim": 189,
        "LSSTCamSim": 205,
        "LSSTComCam": 9,
        "LSSTComCamSim": 9,
    }
    geometry = load_camera("LSSTCam").by_name("R22_S11")
    assert (geometry.id, geometry.slot, geometry.purpose) == (94, "S11", "SCIENCE")
    assert load_camera("LSSTCam").by_name("R04_SW1").purpose == "WAVEFRONT"


def test_the_sites_are_those_of_the_observatory():
    sites = {name: load_camera(name).site for name in camera_names()}
    assert sites["LSSTCam"] == sites["LSSTComCam"]
    assert sites["DemoCam"] is None
    for name in ("LSSTCam", "LATISS"):
        assert sites[name].longitude_deg == pytest.approx(-70.749, abs=0.002)
        assert sites[name].latitude_deg == pytest.approx(-30.2446, abs=0.0002)
        assert sites[name].height_m == 2663.0


def test_a_camera_is_read_once():
    assert load_camera("LATISS") is load_camera("LATISS")


@pytest.mark.parametrize("instrument", ["Hubble", "", "../etc/passwd", "lsstcam"])
def test_an_unknown_instrument_is_refused_naming_the_known_ones(instrument):
    with pytest.raises(ConfigError, match="there are tables for DemoCam, LATISS, LSSTCam, LSSTCam-imSim, "):
        load_camera(instrument)


def test_an_unknown_detector_is_refused_naming_the_range():
    with pytest.raises(LookupError, match="LSSTCam has no detector 205, it has 205 from 0 to 204"):
        load_camera("LSSTCam").footprint(205, 0.0, 0.0, 0.0)
    with pytest.raises(LookupError, match="R99_S99"):
        load_camera("LSSTCam").by_name("R99_S99")


def test_a_declination_beyond_the_pole_is_refused():
    with pytest.raises(ValueError, match="declination 91"):
        load_camera("LSSTCam").footprint(0, 0.0, 91.0, 0.0)


@pytest.mark.parametrize(
    ("second", "problem"),
    [({"id": 0, "name": "b"}, "the same id"), ({"id": 1, "name": "a"}, "the same name")],
)
def test_a_table_with_a_detector_twice_is_refused(second, problem):
    first = {
        "id": 0,
        "name": "a",
        "purpose": "SCIENCE",
        "type": "X",
        "x": 0,
        "y": 0,
        "width": 1,
        "height": 1,
        "yaw": 0,
    }
    table = {
        "instrument": "X",
        "focal_plane_parity": False,
        "plate_scale_arcsec_per_mm": 1.0,
        "radial_coefficients": {"c1": 1.0, "c3": 0.0, "c5": 0.0},
        "detectors": [first, first | second],
    }
    with pytest.raises(ValueError, match=problem):
        Camera.model_validate(table)
