# SPDX-License-Identifier: BSD-3-Clause
"""Announced positions and rotations, in whichever system they come."""

import logging
import math
import subprocess
import sys
from typing import Any

import astropy.units as u
import pytest
from astropy.coordinates import TETE, EarthLocation, SkyCoord
from astropy.time import Time
from hypothesis import given, settings
from hypothesis import strategies as st

from ppdaemon.camera import Site, load_camera
from ppdaemon.pointing import (
    Pointing,
    announced,
    boresight,
    disable_astropy_downloads,
    expected_begin,
    needs_astropy,
)
from ppdaemon.visit import NextVisit, read_next_visit

SITE = load_camera("LSSTCam").site
START_TAI = 1763781946.0
NONE, ICRS, OBSERVED, MOUNT = 1, 2, 3, 4
SKY, HORIZON, ROTATOR = 2, 3, 4


def visit(system: int, position: tuple[float, float], rotation: int = SKY, **fields: Any) -> NextVisit:
    values = {
        "groupId": "g",
        "instrument": "LSSTCam",
        "coordinateSystem": system,
        "position": position,
        "rotationSystem": rotation,
        "cameraAngle": 30.0,
        "startTime": START_TAI,
    }
    return read_next_visit(values | fields)


def of_date(azimuth: float, altitude: float) -> tuple[SkyCoord, float]:
    """Return where a direction without refraction lies, and the parallactic
    angle, by the textbook's triangle of pole, zenith and star.
    """
    disable_astropy_downloads()
    assert SITE is not None
    place = EarthLocation.from_geodetic(SITE.longitude_deg, SITE.latitude_deg, SITE.height_m)
    when = Time(40587.0, START_TAI / 86400.0, format="mjd", scale="tai", location=place)
    az, alt, lat = (math.radians(angle) for angle in (azimuth, altitude, SITE.latitude_deg))
    dec = math.asin(math.sin(alt) * math.sin(lat) + math.cos(alt) * math.cos(lat) * math.cos(az))
    hour_angle = math.atan2(
        -math.cos(alt) * math.sin(az),
        math.sin(alt) * math.cos(lat) - math.cos(alt) * math.sin(lat) * math.cos(az),
    )
    parallactic = math.atan2(
        math.sin(hour_angle), math.tan(lat) * math.cos(dec) - math.sin(dec) * math.cos(hour_angle)
    )
    ra = when.sidereal_time("apparent").deg - math.degrees(hour_angle)
    apparent = SkyCoord(ra * u.deg, math.degrees(dec) * u.deg, frame=TETE(obstime=when, location=place))
    return apparent.icrs, math.degrees(parallactic) % 360.0


def test_a_place_on_the_sky_is_taken_as_it_is() -> None:
    assert announced(visit(ICRS, (370.0, -30.0)), None) == Pointing(10.0, -30.0, 30.0)
    assert boresight(visit(ICRS, (370.0, -30.0)), None) == (10.0, -30.0)


@pytest.mark.parametrize("system", [OBSERVED, MOUNT])
@pytest.mark.parametrize(
    "direction", [(0.0, 60.0), (90.0, 45.0), (180.0, 80.0), (270.0, 45.0), (137.0, 89.99), (200.0, 30.0)]
)
def test_azimuth_and_altitude_become_a_place_on_the_sky(system: int, direction: tuple[float, float]) -> None:
    got = boresight(visit(system, direction), SITE)
    assert got is not None
    true, _ = of_date(*direction)
    # Refraction lifts what is seen: up to 0.03 degrees at these altitudes.
    assert SkyCoord(*got, unit="deg").separation(true).deg < 0.03
    assert true.separation(of_date(direction[0] + 180.0, direction[1])[0]).deg > 0.01  # the test can fail


@pytest.mark.parametrize(
    "direction", [(0.0, 60.0), (90.0, 45.0), (180.0, 80.0), (270.0, 45.0), (200.0, 30.0)]
)
def test_a_rotation_from_the_zenith_is_turned_by_the_parallactic_angle(
    direction: tuple[float, float],
) -> None:
    got = announced(visit(OBSERVED, direction, HORIZON, cameraAngle=12.0), SITE)
    assert got is not None
    _, parallactic = of_date(*direction)
    # North of date is not north of ICRS: 0.2 degrees at these places.
    assert (got.sky_angle_deg - 12.0 - parallactic + 180.0) % 360.0 - 180.0 == pytest.approx(0.0, abs=0.5)


def test_a_place_on_the_sky_may_have_a_rotation_from_the_zenith() -> None:
    seen = announced(visit(OBSERVED, (120.0, 60.0), HORIZON), SITE)
    assert seen is not None
    same = announced(visit(ICRS, (seen.ra_deg, seen.dec_deg), HORIZON), SITE)
    assert same is not None
    assert same.sky_angle_deg == pytest.approx(seen.sky_angle_deg, abs=0.01)


@pytest.mark.parametrize(
    ("event", "site", "message"),
    [
        (visit(NONE, (0.0, 0.0)), SITE, "without a position on the sky"),
        (visit(ICRS, (0.0, 91.0)), SITE, "declination 91"),
        (visit(OBSERVED, (0.0, 60.0)), None, "OBSERVED position and no site for 'LSSTCam'"),
        (visit(OBSERVED, (0.0, 91.0)), SITE, "altitude 91"),
        (visit(MOUNT, (0.0, 60.0), startTime=0.0), SITE, "MOUNT position and no time"),
        (visit(MOUNT, (0.0, 60.0), startTime=1e300), SITE, "no time"),
    ],
)
def test_without_a_position_on_the_sky_there_is_none_and_one_log_message(
    event: NextVisit, site: Site | None, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        assert announced(event, site) is None
    (message,) = caplog.messages
    assert message in message
    assert boresight(event, site) is None


@pytest.mark.parametrize("rotation", [1, HORIZON, ROTATOR])
def test_without_a_usable_rotation_the_position_remains(
    rotation: int, caplog: pytest.LogCaptureFixture
) -> None:
    event = visit(ICRS, (10.0, -30.0), rotation)
    assert announced(event, None) is None
    assert len(caplog.messages) == 1
    assert "footprint unknown" in caplog.text
    assert boresight(event, None) == (10.0, -30.0)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 4),
    st.tuples(st.floats(-1e6, 1e6), st.floats(-200, 200)),
    st.integers(1, 4),
    st.floats(-1e6, 1e6),
    st.sampled_from([0.0, -1e9, 1e18, 946684800.0, START_TAI, 1900000000.0]),
    st.sampled_from([None, SITE]),
)
def test_no_event_raises_and_what_comes_out_is_in_range(
    system: int, position: tuple[float, float], rotation: int, angle: float, start: float, site: Site | None
) -> None:
    got = announced(visit(system, position, rotation, cameraAngle=angle, startTime=start), site)
    if got is not None:
        assert 0.0 <= got.ra_deg < 360.0
        assert -90.0 <= got.dec_deg <= 90.0
        assert 0.0 <= got.sky_angle_deg < 360.0


@pytest.mark.parametrize(
    ("start", "published", "begin"),
    [
        (START_TAI, 5.0, (START_TAI, "startTime")),
        (0.0, START_TAI, (START_TAI, "private_sndStamp")),
        (START_TAI * 1e3, START_TAI, (START_TAI, "private_sndStamp")),  # in milliseconds
        (-1e9, None, (7.0, "now")),
        (0.0, 1e18, (7.0, "now")),
    ],
)
def test_a_time_that_cannot_be_one_is_not_taken(
    start: float, published: float | None, begin: tuple[float, str]
) -> None:
    stamp = {} if published is None else {"private_sndStamp": published}
    assert expected_begin(visit(ICRS, (0.0, 0.0), startTime=start, **stamp), 7.0) == begin


def test_astropy_is_imported_only_when_it_is_needed() -> None:
    events = {
        name: visit(system, (10.0, 60.0), rotation)
        for name, system, rotation in (
            ("sky", ICRS, SKY),
            ("none", NONE, HORIZON),
            ("mount rotation", ICRS, ROTATOR),
            ("horizontal", OBSERVED, SKY),
            ("from the zenith", ICRS, HORIZON),
        )
    }
    assert {name for name, event in events.items() if needs_astropy(event)} == {
        "horizontal",
        "from the zenith",
    }
    code = (
        "import sys, json\n"
        "from ppdaemon.pointing import announced\n"
        "from ppdaemon.selection import Selector\n"
        "from ppdaemon.visit import read_next_visit\n"
        "announced(read_next_visit(json.loads(sys.argv[1])), None)\n"
        "print(sorted({'astropy', 'numpy', 'hpgeom'} & set(sys.modules)))\n"
    )
    event = events["sky"].model_dump_json(by_alias=True)
    done = subprocess.run([sys.executable, "-c", code, event], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
