# SPDX-License-Identifier: BSD-3-Clause
"""Paths of raws, in all layouts, and those that are refused."""

import datetime
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppdaemon.camera import load_camera
from ppdaemon.errors import BadMessage
from ppdaemon.rawpath import Kind, RawName, folder_names, is_day_folder, parse, sidecar_path

CAMERAS = {name: load_camera(name) for name in ("LSSTCam", "LSSTComCam", "LATISS", "DemoCam")}
FOLDER = "LSSTCam/20251121/MC_O_20251121_000156"
STEM = f"{FOLDER}/MC_O_20251121_000156"


def lsst(path: str) -> RawName | None:
    return parse(path, "lsst", CAMERAS)


def test_a_raw_says_exposure_and_detector():
    assert lsst(f"{STEM}_R22_S11.fits") == RawName(
        Kind.IMAGE, "LSSTCam", 2025112100156, 20251121, 94, "MC_O_20251121_000156"
    )


@pytest.mark.parametrize("suffix", [".fits", ".fits.fz", ".fits.gz"])
def test_compressed_raws_are_raws(suffix):
    assert lsst(f"{STEM}_R22_S11{suffix}") == lsst(f"{STEM}_R22_S11.fits")


@pytest.mark.parametrize(
    ("file", "kind", "detector"),
    [
        ("_R22_S11.json", Kind.SIDECAR, 94),
        ("_R00_SW0.fits", Kind.IMAGE, 191),
        ("_R04_SW1.json", Kind.SIDECAR, 196),
        ("_R40_SG1.fits", Kind.IMAGE, 198),
        ("_R40_SG1_guider.fits", Kind.GUIDER, 198),
        ("_R40_SG1_guider.json", Kind.SIDECAR, 198),
        ("_expectedSensors.json", Kind.EXPECTED, None),
    ],
)
def test_the_other_files_of_an_exposure_are_recognised(file, kind, detector):
    name = lsst(STEM + file)
    assert name is not None
    assert (name.kind, name.detector, name.exposure) == (kind, detector, 2025112100156)


def test_latiss_calls_its_detector_otherwise_in_files():
    name = lsst("LATISS/20251121/AT_O_20251121_000007/AT_O_20251121_000007_R00_S00.fits")
    assert name is not None
    assert (name.instrument, name.detector) == ("LATISS", 0)


@pytest.mark.parametrize(
    ("folder", "code", "instrument"), [("ComCam", "CC", "LSSTComCam"), ("DemoCam", "DC", "DemoCam")]
)
def test_aliases_and_the_demo_camera_are_known(folder, code, instrument):
    obsid = f"{code}_O_20261122_000012"
    name = lsst(f"{folder}/20261122/{obsid}/{obsid}_R22_S00.fits")
    assert name is not None
    assert (name.instrument, name.exposure, name.detector) == (instrument, 2026112200012, 0)
    assert folder in folder_names(instrument)


@pytest.mark.parametrize(
    "path",
    [
        f"{FOLDER}/.MC_O_20251121_000156_R22_S11.fits.part",
        f"{FOLDER}/.MC_O_20251121_000156_R22_S11.fits",
        f"{STEM}_R22_S11.fits.tmp",
        f"{STEM}_R22_S11.FITS",
        f"{STEM}_R99_S99.fits",
        f"{STEM}_R22_S11_extra.fits",
        f"{FOLDER}/MC_O_20251121_000157_R22_S11.fits",
        f"{FOLDER}/deeper/MC_O_20251121_000156_R22_S11.fits",
        "LSSTCam/20251122/MC_O_20251121_000156/MC_O_20251121_000156_R22_S11.fits",
        "LSSTCam/20251340/MC_O_20251340_000156/MC_O_20251340_000156_R22_S11.fits",
        "LSSTCam/20251121/MC_O_20251121_100000/MC_O_20251121_100000_R22_S11.fits",
        "LSSTCam/20251121/M_O_20251121_000156/M_O_20251121_000156_R22_S11.fits",
        "LSSTCam//MC_O_20251121_000156/MC_O_20251121_000156_R22_S11.fits",
        "Nirvana/20251121/MC_O_20251121_000156/MC_O_20251121_000156_R22_S11.fits",
        "LSSTCam/20251121",
        "",
    ],
)
def test_other_files_are_no_raws(path):
    assert lsst(path) is None


@pytest.mark.parametrize("layout", ["lsst", "imsim", "generic"])
@pytest.mark.parametrize(
    ("path", "kind"),
    [
        (f"{FOLDER}/../../x.fits", "escape"),
        ("..", "escape"),
        (f"/{STEM}_R22_S11.fits", "absolute"),
        (f"{STEM}_R22_S11.fits\n", "control"),
        (f"{FOLDER}/\x1b[31m.fits", "control"),
        (f"{FOLDER}/\udcff.fits", "control"),
        ("x/" * 600, "size"),
    ],
)
def test_dangerous_paths_are_refused_with_a_kind(layout, path, kind):
    with pytest.raises(BadMessage) as caught:
        parse(path, layout, CAMERAS)
    assert caught.value.kind == kind


def test_a_quoted_control_character_in_a_group_is_refused():
    with pytest.raises(BadMessage):
        parse("LSSTCam/94/a%0Ab/0/2025112100156/r_03/x.fits", "generic", CAMERAS)


days = st.dates(datetime.date(2020, 1, 1), datetime.date(2039, 12, 31)).map(lambda d: f"{d:%Y%m%d}")
suffixes = st.sampled_from([".fits", ".fits.fz", ".fits.gz"])


@given(
    st.sampled_from(sorted(CAMERAS)),
    days,
    st.integers(0, 99_999),
    st.data(),
    suffixes,
    st.sampled_from("OSCP"),
)
def test_lsst_paths_round_trip(instrument, day, sequence, data, suffix, controller):
    camera = CAMERAS[instrument]
    detector = data.draw(st.sampled_from(sorted(camera.detectors)))
    code = data.draw(st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ", min_size=2, max_size=2))
    obsid = f"{code}_{controller}_{day}_{sequence:06d}"
    name_in_files = camera.detectors[detector].name.replace("RXX", "R00")
    folder = data.draw(st.sampled_from(folder_names(instrument)))
    path = f"{folder}/{day}/{obsid}/{obsid}_{name_in_files}{suffix}"
    expected = RawName(Kind.IMAGE, instrument, int(day) * 100_000 + sequence, int(day), detector, obsid)
    assert lsst(path) == expected
    sidecar = lsst(sidecar_path(path))
    assert sidecar is not None
    assert (sidecar.kind, sidecar.exposure, sidecar.detector) == (Kind.SIDECAR, expected.exposure, detector)


@given(days, st.integers(1, 10**13), st.sampled_from(sorted(CAMERAS["LSSTCam"].detectors)), suffixes)
def test_imsim_paths_round_trip(day, exposure, detector, suffix):
    name = CAMERAS["LSSTCam"].detectors[detector].name
    path = f"LSSTCam-imSim/{day}/{exposure}/{exposure}_i_sim_1.4_{detector}_{name}{suffix}"
    assert parse(path, "imsim", {}) == RawName(Kind.IMAGE, "LSSTCam-imSim", exposure, int(day), detector)


def test_an_imsim_name_that_contradicts_the_table_is_no_raw():
    path = "LSSTCam/20251121/5/5_r_93_R22_S11.fits"
    assert parse(path, "imsim", {}) is not None
    assert parse(path, "imsim", CAMERAS) is None


groups = st.text(st.characters(exclude_categories=("C",)), min_size=1, max_size=40).filter(
    lambda group: group not in (".", "..")
)


@given(groups, st.integers(0, 300), st.integers(0, 9), days, st.integers(0, 99_999), suffixes)
def test_generic_paths_round_trip(group, detector, snap, day, sequence, suffix):
    exposure = int(day) * 100_000 + sequence
    path = f"LATISS/{detector}/{quote(group, safe='')}/{snap}/{exposure}/SDSSr_65mm/any name{suffix}"
    assert parse(path, "generic", {}) == RawName(
        Kind.IMAGE, "LATISS", exposure, int(day), detector, group=group, snap=snap
    )


def test_a_group_with_colons_need_not_be_quoted():
    name = parse("LSSTCam/94/2025-11-22T03:25:16.951#1/0/2025112100156/r_03/x.fits", "generic", {})
    assert name is not None
    assert name.group == "2025-11-22T03:25:16.951#1"


@given(st.text(max_size=80), st.sampled_from(["lsst", "imsim", "generic"]))
def test_any_text_is_a_raw_or_none_or_refused(text, layout):
    try:
        name = parse(text, layout, CAMERAS)
    except BadMessage:
        return
    assert name is None or name.instrument


@pytest.mark.parametrize("path", ["/a/b.json", "b.fits.xz", ""])
def test_only_images_have_sidecars(path):
    with pytest.raises(ValueError, match="does not end in"):
        sidecar_path(path)


@pytest.mark.parametrize(
    ("name", "is_day"), [("20251121", True), ("20250230", False), ("2025112", False), ("٢٠٢٥١١٢١", False)]
)
def test_day_folders_are_dates(name, is_day):
    assert is_day_folder(name) is is_day
