# SPDX-License-Identifier: BSD-3-Clause
"""HEALPix maps: read as they are meant, or refused saying why."""

from functools import cache
from pathlib import Path
from typing import Any

import hpgeom
import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import fits
from hypothesis import given, settings
from hypothesis import strategies as st
from skymapfiles import write_map

from ppdaemon.skymaps import SkyMap

NSIDE = 16
COUNT = 12 * NSIDE**2
PATTERN = np.random.default_rng(7).choice([0, 1, 16], COUNT).astype(np.uint8)
FRAMES = {"C": "icrs", "G": "galactic", "E": "barycentricmeanecliptic"}


def expected(longitude: float, latitude: float, nest: bool) -> bool:
    cell = hpgeom.angle_to_pixel(NSIDE, longitude, latitude, nest=nest)
    return bool(PATTERN[cell] == 1)


@pytest.mark.parametrize("ordering", ["RING", "NESTED"])
@pytest.mark.parametrize("system", ["C", "G", "E"])
def test_each_cell_is_found_in_its_own_order_and_coordinates(
    tmp_path: Path, ordering: str, system: str
) -> None:
    nest = ordering == "NESTED"
    sky_map = SkyMap(write_map(tmp_path / "m.fits", PATTERN, ORDERING=ordering, COORDSYS=system))
    longitude, latitude = hpgeom.pixel_to_angle(NSIDE, np.arange(COUNT), nest=nest)
    centers = SkyCoord(longitude, latitude, unit="deg", frame=FRAMES[system]).icrs
    # As lists: an item of a SkyCoord is made anew, which takes most of the time.
    got = list(map(sky_map.at, zip(centers.ra.deg.tolist(), centers.dec.deg.tolist(), strict=True)))
    assert got == list(PATTERN == 1)


read_once = cache(SkyMap)


@settings(max_examples=200)
@given(st.floats(0, 360, exclude_max=True), st.floats(-90, 90))
def test_any_place_is_that_of_the_map(
    tmp_path_factory: pytest.TempPathFactory, ra: float, dec: float
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.fits"
    if not path.exists():
        write_map(path, PATTERN)
    assert read_once(str(path)).at((ra, dec)) == expected(ra, dec, nest=False)


@pytest.mark.parametrize(("format", "kind"), [("B", "u1"), ("I", "i2"), ("J", "i4"), ("K", "i8")])
def test_cells_may_be_any_integers(tmp_path: Path, format: str, kind: str) -> None:
    sky_map = SkyMap(write_map(tmp_path / "m.fits", PATTERN.astype(kind), format)).read()
    assert sky_map.at((10.0, 20.0)) == expected(10.0, 20.0, nest=False)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_cells_may_be_booleans_and_the_file_gzipped(tmp_path: Path, suffix: str) -> None:
    sky_map = SkyMap(write_map(tmp_path / f"m.fits{suffix}", PATTERN == 1, "L")).read()
    for ra in np.linspace(0, 359, 50):
        assert sky_map.at((float(ra), -30.0)) == expected(ra, -30.0, nest=False)


def test_without_coordsys_a_map_is_equatorial(tmp_path: Path) -> None:
    sky_map = SkyMap(write_map(tmp_path / "m.fits", PATTERN, COORDSYS=None))
    assert sky_map.at((200.0, -30.0)) == expected(200.0, -30.0, nest=False)


@pytest.mark.parametrize("ordering", ["RING", "NESTED"])
def test_a_map_needs_no_pixtype(tmp_path: Path, ordering: str) -> None:
    bare = {"PIXTYPE": None, "INDXSCHM": None, "OBJECT": None, "COORDSYS": None}
    sky_map = SkyMap(write_map(tmp_path / "m.fits", PATTERN, ORDERING=ordering, **bare))
    for ra in np.linspace(0, 359, 50):
        assert sky_map.at((float(ra), 40.0)) == expected(ra, 40.0, nest=ordering == "NESTED")


@pytest.mark.parametrize(
    ("cells", "header", "message"),
    [
        (PATTERN, {"PIXTYPE": "HTM"}, "not a HEALPix map: PIXTYPE is 'HTM'"),
        (PATTERN[:-1], {"PIXTYPE": None}, "3071 cells: not 12 nside^2"),
        (PATTERN, {"PIXTYPE": None, "ORDERING": None}, "ORDERING is 'missing'"),
        (PATTERN, {"ORDERING": None}, "ORDERING is 'missing', not RING or NESTED"),
        (PATTERN, {"ORDERING": "NUNIQ"}, "ORDERING is 'NUNIQ'"),
        (PATTERN, {"COORDSYS": "X"}, "COORDSYS is 'X', not C, G or E"),
        (PATTERN, {"INDXSCHM": "EXPLICIT"}, "only maps of the whole sky"),
        (PATTERN, {"OBJECT": "PARTIAL"}, "only maps of the whole sky"),
        (PATTERN, {"NSIDE": 32}, "3072 cells, but NSIDE is 32"),
        (PATTERN[:-1], {}, "3071 cells: not 12 nside^2"),
        (PATTERN[: 12 * 9], {"ORDERING": "NESTED"}, "nside 3 is not a power of 2"),
        (np.where(np.arange(COUNT) == 99, 2, PATTERN), {}, "cell 99 is 2, not 0, 1 or 16"),
    ],
)
def test_a_bad_map_is_refused_saying_why(
    tmp_path: Path, cells: np.ndarray, header: dict[str, Any], message: str
) -> None:
    path = write_map(tmp_path / "m.fits", cells, **header)
    with pytest.raises(ValueError, match=r"m\.fits: ") as caught:
        SkyMap(path).read()
    assert message in str(caught.value)


def test_numbers_with_fractions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cells are float32, not integers or booleans"):
        SkyMap(write_map(tmp_path / "m.fits", PATTERN.astype("f4"), "E")).read()


def cut(path: Path, size: int) -> None:
    write_map(path.with_name("whole.fits"), PATTERN)
    path.write_bytes(path.with_name("whole.fits").read_bytes()[:size])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "No such file"),
        (lambda path: path.mkdir(), "directory"),
        (lambda path: path.write_text("nside: 16"), "m.fits: "),
        (lambda path: path.touch(), "m.fits: "),
        (lambda path: fits.PrimaryHDU(np.zeros(12)).writeto(path), "no binary table"),
        (lambda path: cut(path, 4000), "m.fits: "),
        (lambda path: cut(path, 7000), "m.fits: "),
    ],
    ids=["missing", "folder", "text", "empty", "image", "cut in the header", "cut in the cells"],
)
def test_what_is_no_table_is_refused_naming_the_file(tmp_path: Path, make: Any, message: str) -> None:
    path = tmp_path / "m.fits"
    make(path)
    with pytest.raises(ValueError, match=r"m\.fits: ") as caught:
        SkyMap(str(path)).read()
    assert message in str(caught.value)


def test_a_map_that_was_read_keeps_a_bit_for_each_cell(tmp_path: Path) -> None:
    sky_map = SkyMap(write_map(tmp_path / "m.fits", PATTERN)).read()
    (tmp_path / "m.fits").unlink()
    assert sky_map.at((1.0, 1.0)) == expected(1.0, 1.0, nest=False)
    assert len(sky_map._cells._bits) == COUNT // 8
