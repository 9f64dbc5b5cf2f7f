# SPDX-License-Identifier: BSD-3-Clause
"""Paths of raws, in all layouts and both ways, and those that are refused."""

import datetime
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppdaemon.camera import load_camera
from ppdaemon.errors import BadMessage, ConfigError
from ppdaemon.raws.layout import PATHS, CustomLayout, Layout, SearchFolder, make_layout
from ppdaemon.raws.path import (
    ExpectedRaws,
    RawFileKind,
    RawName,
    folder_names,
    is_day_folder,
    plain_name,
    sidecar_path,
)

SERVED = {
    "LSSTCam": range(205),
    "LSSTComCam": range(9),
    "LATISS": [0],
    "DemoCam": range(9),
    "LSST-TS8": range(9),
    "LSSTCam-imSim": range(189),
    "LSSTCamSim": range(205),
    "LSSTComCamSim": range(9),
}
LAYOUTS = {name: make_layout(name, SERVED) for name in ("lsst", "imsim", "generic")}
OWN = Layout(["night{day_obs}/{group}/raw_{exposure}-{snap}_{detector:03d}"], ["LSSTCam"])
FOLDER = "LSSTCam/20251121/MC_O_20251121_000156"
STEM = f"{FOLDER}/MC_O_20251121_000156"
GROUP = "2025-11-22T03:25:16.951"
QUOTED = "2025-11-22T03%3A25%3A16.951"


def lsst(path: str) -> RawName | None:
    return LAYOUTS["lsst"].parse(path)


def assert_both_ways(layout: Layout, path: str) -> RawName:
    """Read a path; what is written of an image must be read alike."""
    name = layout.parse(path)
    assert name is not None
    if name.kind in (RawFileKind.IMAGE, RawFileKind.GUIDER):
        assert layout.parse(layout.path_of(name)) == name
    return name


def test_the_example_of_the_configuration_shows_the_paths_of_each_layout():
    shown = (Path(__file__).parents[2] / "etc" / "ppdaemon.yaml").read_text()
    for name, path in PATHS.items():
        assert f"  #   {name:8} {path}\n" in shown


def test_a_raw_contains_exposure_and_detector():
    assert lsst(f"{STEM}_R22_S11.fits") == RawName(
        RawFileKind.IMAGE,
        "LSSTCam",
        2025112100156,
        20251121,
        94,
        "MC_O_20251121_000156",
        detector_name="R22_S11",
    )


@pytest.mark.parametrize("suffix", [".fits", ".fits.fz", ".fits.gz"])
def test_compressed_raws_are_raws(suffix):
    assert lsst(f"{STEM}_R22_S11{suffix}") == lsst(f"{STEM}_R22_S11.fits")


@pytest.mark.parametrize(
    ("file", "kind", "detector"),
    [
        ("_R22_S11.json", RawFileKind.SIDECAR, 94),
        ("_R00_SW0.fits", RawFileKind.IMAGE, 191),
        ("_R04_SW1.json", RawFileKind.SIDECAR, 196),
        ("_R40_SG1.fits", RawFileKind.IMAGE, 198),
        ("_R40_SG1_guider.fits", RawFileKind.GUIDER, 198),
        ("_R40_SG1_guider.json", RawFileKind.SIDECAR, 198),
        ("_expectedSensors.json", RawFileKind.EXPECTED, None),
    ],
)
def test_the_other_files_of_an_exposure_are_recognized(file, kind, detector):
    name = assert_both_ways(LAYOUTS["lsst"], STEM + file)
    assert (name.kind, name.detector, name.exposure) == (kind, detector, 2025112100156)


def test_latiss_calls_its_detector_otherwise_in_files():
    for spelling in ("R00_S00", "RXX_S00"):
        path = f"LATISS/20251121/AT_O_20251121_000007/AT_O_20251121_000007_{spelling}.fits"
        name = assert_both_ways(LAYOUTS["lsst"], path)
        assert (name.instrument, name.detector) == ("LATISS", 0)


@pytest.mark.parametrize(
    ("folder", "obsid", "file", "instrument", "detector"),
    [
        ("ComCam", "CC_O_20261122_000012", "R22_S00", "LSSTComCam", 0),
        ("LSSTComCam", "CC_S_20261122_000012", "R22_S22", "LSSTComCam", 8),
        ("DemoCam", "DC_O_20261122_000012", "R22_S12", "DemoCam", 5),
        ("TS8", "TS_C_20261122_000012", "R10_S12", "LSST-TS8", 5),
        ("LSST-TS8", "TS_C_20261122_000012", "R22_S00", "LSST-TS8", 0),
        ("LSSTCam-imSim", "MC_O_20261122_000012", "R22_S11", "LSSTCam-imSim", 94),
        ("LSSTCamSim", "MC_S_20261122_000012", "R44_SW1", "LSSTCamSim", 204),
        ("LSSTComCamSim", "CC_S_20261122_000012", "R22_S11", "LSSTComCamSim", 4),
    ],
)
def test_aliases_and_cameras_without_a_table_of_their_own_are_known(
    folder, obsid, file, instrument, detector
):
    name = assert_both_ways(LAYOUTS["lsst"], f"{folder}/20261122/{obsid}/{obsid}_{file}.fits")
    assert (name.instrument, name.exposure, name.detector) == (instrument, 2026112200012, detector)
    assert folder in folder_names(instrument)


@pytest.mark.parametrize(
    ("obsid", "exposure"),
    [
        ("MC_O_20230101_000093", 2023010100093),
        ("MC_C_20231004_000093", 3023100400093),
        ("MC_C_20231005_000093", 2023100500093),
        ("MC_H_20240321_000093", 4024032100093),
        ("MC_H_20261128_000093", 4026112800093),
        ("CC_P_20240321_000093", 5024032100093),
        ("CC_Q_20250417_000093", 6025041700093),
        ("CC_S_20240321_000093", 7024032100093),
        ("CC_S_20250417_099999", 7025041799999),
        ("CC_S_20250418_000093", 2025041800093),
        ("CC_P_20250418_000093", 2025041800093),
        ("MC_S_20261128_000093", 2026112800093),
        ("MC_Z_20240321_000093", 2024032100093),
    ],
)
def test_a_controller_with_separate_counts_has_separate_years(obsid, exposure):
    day = int(obsid[5:13])
    folder = "ComCam" if obsid.startswith("CC") else "LSSTCam"
    name = assert_both_ways(LAYOUTS["lsst"], f"{folder}/{day}/{obsid}/{obsid}_R22_S11.fits")
    assert (name.exposure, name.day_obs) == (exposure, day)
    name = LAYOUTS["generic"].parse(f"LSSTCam/94/2024/0/{exposure}/r_03/x.fits")
    assert (name.exposure, name.day_obs) == (exposure, day)


@pytest.mark.parametrize(
    "path",
    [
        f"{FOLDER}/.MC_O_20251121_000156_R22_S11.fits.part",
        f"{FOLDER}/.MC_O_20251121_000156_R22_S11.fits",
        f"{STEM}_R22_S11.fits.tmp",
        f"{STEM}_R22_S11.FIT5",
        f"{STEM}_R99_S99.fits",
        f"{STEM}_R22_S11_extra.fits",
        f"{FOLDER}/MC_O_20251121_000157_R22_S11.fits",
        f"{FOLDER}/MC_O_20251121_000157_expectedSensors.json",
        f"{FOLDER}/deeper/MC_O_20251121_000156_R22_S11.fits",
        "LSSTCam/20251122/MC_O_20251121_000156/MC_O_20251121_000156_R22_S11.fits",
        "LSSTCam/20251340/MC_O_20251340_000156/MC_O_20251340_000156_R22_S11.fits",
        "LSSTCam/20251121/MC_O_20251121_100000/MC_O_20251121_100000_R22_S11.fits",
        "LSSTCam/20251121/M_O_20251121_000156/M_O_20251121_000156_R22_S11.fits",
        "LSSTCam//MC_O_20251121_000156/MC_O_20251121_000156_R22_S11.fits",
        "Nirvana/20251121/MC_O_20251121_000156/MC_O_20251121_000156_R22_S11.fits",
        f"LSSTCam/20251121/{'x' * 300}/{'x' * 300}_R22_S11.fits",
        "LSSTCam/20251121",
        "",
    ],
)
def test_other_files_are_no_raws(path):
    assert lsst(path) is None


@pytest.mark.parametrize("layout", [*LAYOUTS.values(), OWN])
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
def test_fault_17_dangerous_paths_are_refused_with_a_kind(layout, path, kind):
    with pytest.raises(BadMessage) as caught:
        layout.parse(path)
    assert caught.value.kind == kind
    assert not layout.admits(path, ExpectedRaws("LSSTCam", frozenset({94})))


def test_a_quoted_control_character_in_a_group_is_refused():
    with pytest.raises(BadMessage):
        LAYOUTS["generic"].parse("LSSTCam/94/a%0Ab/0/2025112100156/r_03/x.fits")


days = st.dates(datetime.date(2020, 1, 1), datetime.date(2039, 12, 31)).map(lambda d: f"{d:%Y%m%d}")
suffixes = st.sampled_from([".fits", ".fits.fz", ".fits.gz"])
letters = st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ", min_size=2, max_size=2)


@given(
    st.sampled_from(sorted(set(SERVED) - {"LSST-TS8", "LSSTCam-imSim"})),
    days,
    st.integers(0, 99_999),
    st.data(),
    suffixes,
    st.sampled_from("OSCPHQ"),
    st.sampled_from(["AT", "CC", "MC", "TS"]) | letters,
)
def test_lsst_paths_go_both_ways(instrument, day, sequence, data, suffix, controller, code):
    camera = load_camera(instrument)
    detector = data.draw(st.sampled_from(sorted(camera.detectors)))
    obsid = f"{code}_{controller}_{day}_{sequence:06d}"
    name_in_files = camera.detectors[detector].name.replace("RXX", "R00")
    folder = data.draw(st.sampled_from(folder_names(instrument)))
    path = f"{folder}/{day}/{obsid}/{obsid}_{name_in_files}{suffix}"
    name = assert_both_ways(LAYOUTS["lsst"], path)
    exposure = name.exposure
    assert exposure % 10**12 == (int(day) * 100_000 + sequence) % 10**12, "but for a controller's years"
    assert (name.instrument, name.day_obs) == (instrument, int(day))
    assert (name.detector, name.obsid) == (detector, obsid)
    sidecar = assert_both_ways(LAYOUTS["lsst"], sidecar_path(path))
    assert (sidecar.kind, sidecar.exposure, sidecar.detector) == (RawFileKind.SIDECAR, exposure, detector)


@given(days, st.integers(1, 10**13), st.integers(0, 188), suffixes)
def test_imsim_paths_go_both_ways(day, exposure, detector, suffix):
    detector_name = load_camera("LSSTCam").detectors[detector].name
    path = f"LSSTCam-imSim/{day}/{exposure}/{exposure}_i_sim_1.4_{detector}_{detector_name}{suffix}"
    name = assert_both_ways(LAYOUTS["imsim"], path)
    assert (name.instrument, name.exposure, name.day_obs) == ("LSSTCam-imSim", exposure, int(day))
    assert (name.detector, name.filter) == (detector, "i_sim_1.4")


def test_an_imsim_name_that_contradicts_the_table_is_no_raw():
    path = "LSSTCam/20251121/5/5_r_93_R22_S11.fits"
    assert LAYOUTS["imsim"].parse(path) is None
    assert make_layout("imsim", {"Hubble": [93]}).parse(path.replace("LSSTCam", "Hubble")) is not None


groups = st.text(st.characters(exclude_categories=("C",)), min_size=1, max_size=20).filter(
    lambda group: group not in (".", "..")
) | st.from_regex(r"2025-1[12]-[0-3]\dT0\d:25:16\.951(#\d)?", fullmatch=True)


@given(groups, st.integers(0, 204), st.integers(0, 9), days, st.integers(0, 99_999), suffixes)
def test_generic_paths_go_both_ways(group, detector, snap, day, sequence, suffix):
    exposure = int(day) * 100_000 + sequence
    path = f"LSSTCam/{detector}/{quote(group, safe='')}/{snap}/{exposure}/r_03/any name{suffix}"
    name = assert_both_ways(LAYOUTS["generic"], path)
    assert (name.group, name.detector, name.snap) == (group, detector, snap)
    assert (name.exposure, name.day_obs) == (exposure, int(day))


@given(groups, st.integers(0, 204), st.integers(0, 9), days, st.integers(0, 10**15), suffixes)
def test_paths_of_an_own_layout_go_both_ways(group, detector, snap, day, exposure, suffix):
    path = f"night{day}/{quote(group, safe='')}/raw_{exposure}-{snap}_{detector:03d}{suffix}"
    name = assert_both_ways(OWN, path)
    assert (name.instrument, name.day_obs, name.exposure) == ("LSSTCam", int(day), exposure)
    assert (name.group, name.detector, name.snap) == (group, detector, snap)


def test_a_name_longer_than_a_filesystem_takes_is_no_raw():
    folder = "LSSTCam/94/1/0/2025112100156/r_03"
    assert LAYOUTS["generic"].parse(f"{folder}/{'x' * 250}.fits") is not None
    assert LAYOUTS["generic"].parse(f"{folder}/{'x' * 251}.fits") is None


def test_a_group_with_colons_need_not_be_quoted():
    name = assert_both_ways(LAYOUTS["generic"], f"LSSTCam/94/{GROUP}#1/0/2025112100156/r_03/x.fits")
    assert name.group == f"{GROUP}#1"


@pytest.mark.parametrize("layout", ["lsst", "generic"])
def test_what_a_path_needs_and_is_missing_gives_no_path(layout):
    with pytest.raises(KeyError):
        LAYOUTS[layout].path_of(RawName(RawFileKind.IMAGE, "LSSTCam", 2025112100156, 20251121, 94))


def test_an_image_is_written_under_the_names_of_today():
    name = lsst(f"{STEM}_R22_S11.fits.fz")
    assert name is not None
    assert LAYOUTS["lsst"].path_of(name) == f"{STEM}_R22_S11.fits"
    unnamed = replace(name, detector_name=None)
    assert LAYOUTS["lsst"].path_of(unnamed) == f"{STEM}_R22_S11.fits"
    guider = lsst(f"{STEM}_R40_SG1_guider.fits")
    assert guider is not None
    assert LAYOUTS["lsst"].path_of(guider) == f"{STEM}_R40_SG1_guider.fits"
    quoted = LAYOUTS["generic"].parse("LSSTCam/94/a%2Fb/0/2025112100156/r_03/x.fits")
    assert quoted is not None
    assert LAYOUTS["generic"].path_of(quoted) == "LSSTCam/94/a%2Fb/0/2025112100156/r_03/x.fits"


@given(st.text(max_size=80), st.sampled_from(sorted(LAYOUTS)))
def test_any_text_is_a_raw_or_none_or_refused(text, layout):
    try:
        name = LAYOUTS[layout].parse(text)
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


# --- what is waited for ---


def expected(*detectors: int, instrument: str = "LSSTComCam", group: str | None = GROUP) -> ExpectedRaws:
    return ExpectedRaws(instrument, frozenset(detectors), group, frozenset({20251121}))


def test_raws_of_an_unknown_exposure_are_searched_below_their_day():
    for layout in ("lsst", "imsim"):
        assert LAYOUTS[layout].folders(expected(3, 4)) == (
            SearchFolder("LSSTComCam/20251121", below=1),
            SearchFolder("ComCam/20251121", below=1),
        )


def test_raws_of_a_known_group_are_searched_in_its_folders():
    found = LAYOUTS["generic"].folders(expected(0, instrument="LATISS"))
    assert {folder.below for folder in found} == {3}
    assert [folder.path for folder in found if folder.path.startswith("LATISS/0/")] == [
        f"LATISS/0/{GROUP}",
        f"LATISS/0/{QUOTED}",
        f"LATISS/0/{GROUP}#1",
        f"LATISS/0/{QUOTED}%231",
        f"LATISS/0/{GROUP}#2",
        f"LATISS/0/{QUOTED}%232",
    ]


def test_free_text_in_a_folder_s_name_is_searched_and_ignored():
    layout = Layout(["{instrument}/{label}/{exposure}/{label}_{detector}"], ["LATISS"])
    waited_for = expected(0, instrument="LATISS")
    assert layout.folders(waited_for) == (SearchFolder("LATISS", below=2),)
    assert layout.admits("LATISS/science run", waited_for)
    assert layout.admits("LATISS/science run/2025112100156", waited_for)
    name = layout.parse("LATISS/science run/2025112100156/x_y_0.fits")
    assert name is not None
    assert (name.exposure, name.detector) == (2025112100156, 0)
    assert waited_for.matches(name)


def test_where_nothing_is_known_before_the_exposure_the_root_is_searched():
    layout = Layout(["{exposure}/{detector}"], ["LATISS"])
    assert layout.folders(expected(0, instrument="LATISS")) == (SearchFolder("", below=1),)


@pytest.mark.parametrize(
    ("layout", "folder", "admitted"),
    [
        ("lsst", "ComCam", True),
        ("lsst", "LSSTCam", False),
        ("lsst", "ComCam/20251121", True),
        ("lsst", "ComCam/20251122", False),
        ("lsst", "ComCam/2025112", False),
        ("lsst", "ComCam/20251121/CC_O_20251121_000001", True),
        ("lsst", "ComCam/20251121/CC_O_20251120_000001", True),  # judged by its day, then by its files
        ("lsst", "ComCam/20251121/lost+found", False),
        ("lsst", "ComCam/20251121/CC_O_20251121_000001/deeper", False),
        ("generic", "LSSTComCam/3", True),
        ("generic", "LSSTComCam/5", False),
        ("generic", f"LSSTComCam/3/{QUOTED}", True),
        ("generic", f"LSSTComCam/3/{GROUP}#7/0/2025112100001/r_03", True),
        ("generic", "LSSTComCam/3/other", False),
    ],
)
def test_folders_on_the_way_to_an_expected_raw_are_admitted(layout, folder, admitted):
    assert LAYOUTS[layout].admits(folder, expected(3, 4)) is admitted


@given(st.sampled_from(sorted(LAYOUTS)), st.sets(st.integers(0, 8), min_size=1), groups)
def test_what_is_searched_is_always_admitted(layout, detectors, group):
    wanted = ExpectedRaws("LSSTComCam", frozenset(detectors), group, frozenset({20251121}))
    found = LAYOUTS[layout].folders(wanted)
    assert found
    if "#" not in group:  # the group of a visit, not of a supplement
        assert all(LAYOUTS[layout].admits(folder.path, wanted) for folder in found)


def test_only_files_of_the_visit_are_wanted():
    name = LAYOUTS["generic"].parse(f"LSSTComCam/3/{QUOTED}%231/0/2025112100156/r_03/x.fits")
    assert name is not None
    assert expected(3).matches(name)
    assert expected(3, group=None).matches(name)
    assert not expected(4).matches(name)
    assert not expected(3, group="other").matches(name)
    assert not expected(3, instrument="LATISS").matches(name)


# --- layouts that cannot work ---


@pytest.mark.parametrize(
    ("instruments", "message"),
    [
        ({"Hubble": [0]}, "no focal-plane table for 'Hubble'"),
        ({"LSSTCam": [0], "Hubble": [0]}, "no focal-plane table for 'Hubble'"),
    ],
)
def test_an_instrument_without_a_table_is_refused_in_the_layout_that_needs_it(instruments, message):
    with pytest.raises(ConfigError, match=message):
        make_layout("lsst", instruments)
    make_layout("imsim", instruments)
    make_layout("generic", instruments)


def test_a_layout_without_the_instrument_serves_one():
    name = Layout(["{exposure}_{detector}"], ["LATISS"]).parse("2025112100156_0.fits")
    assert name is not None
    assert (name.instrument, name.day_obs) == ("LATISS", 20251121)
    with pytest.raises(ConfigError, match="names no instrument, and the node serves LATISS, LSSTCam"):
        Layout(["{exposure}_{detector}"], ["LATISS", "LSSTCam"])


# --- several paths ---

BOTH = Layout(
    ["{instrument}/{day_obs}/{exposure}_s{snap}_{detector}", "{instrument}/{group}/{exposure}-{detector}"],
    ["LATISS"],
)


def test_of_several_paths_the_first_that_reads_it_counts():
    first = assert_both_ways(BOTH, "LATISS/20251121/5_s2_0.fits")
    assert (first.day_obs, first.snap, first.group) == (20251121, 2, None)
    second = BOTH.parse(f"LATISS/{QUOTED}/5-0.fits")
    assert second is not None
    assert (second.snap, second.group) == (None, GROUP)
    assert BOTH.parse("LATISS/20251121/5_0.fits") is None


def test_raws_are_searched_in_the_folders_of_all_paths():
    waited_for = expected(0, instrument="LATISS")
    found = BOTH.folders(waited_for)
    assert [folder.path for folder in found][:3] == ["LATISS/20251121", f"LATISS/{GROUP}", f"LATISS/{QUOTED}"]
    assert all(BOTH.admits(folder.path, waited_for) for folder in found)


def test_a_layout_has_the_fields_of_all_its_paths():
    assert BOTH.fields == {"instrument", "exposure", "detector"}
    assert (BOTH.depth, BOTH.steady_depth) == (2, 1)


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["{exposure}_{detector}", "{day_obs}/{exposure}_{detector}"], "0 folders in one path, 1 in another"),
        ([], "at least 1 item"),
        (["{exposure}_{detector}", "{exposure}"], "nothing names the detector"),
    ],
)
def test_paths_that_do_not_go_together_are_refused(paths, message):
    with pytest.raises(ValueError, match=message):
        CustomLayout(path=paths)


def test_a_pattern_is_refused_and_the_error_has_the_replacement():
    with pytest.raises(ValueError, match=r"pattern is no longer supported.*\{instrument\}/\{day_obs\}"):
        CustomLayout.model_validate(
            {"pattern": r"(?P<exposure>\d+)_(?P<detector>\d+)", "path": "{exposure}_{detector}"}
        )


@pytest.mark.parametrize(
    "ending",
    [".fits", ".fit", ".fts", ".FITS", ".fz", ".gz", ".fits.fz", ".fit.gz", ".FITS.FZ", ".Fits.gz", ".FZ"],
)
def test_raws_have_the_endings_of_other_cameras_too(ending):
    name = assert_both_ways(LAYOUTS["lsst"], f"{STEM}_R22_S11{ending}")
    assert (name.kind, name.detector) == (RawFileKind.IMAGE, 94)
    assert sidecar_path(f"/raw/{STEM}_R22_S11{ending}") == f"/raw/{STEM}_R22_S11.json"
    compressed = next((each for each in (".fz", ".gz") if ending.lower().endswith(each)), "")
    assert plain_name(f"x{ending}") == f"x.fits{compressed}"


@pytest.mark.parametrize(
    "ending", [".tar.gz", ".json.gz", ".JSON.GZ", ".fits.tmp", ".fitsx", ".fits.bz2", ".gz.part"]
)
def test_other_files_are_not_raws(ending):
    assert LAYOUTS["generic"].parse(f"LSSTCam/94/{GROUP}/0/2025112100156/r_03/x{ending}") is None
    assert not is_image(f"x{ending}")


def is_image(file: str) -> bool:
    try:
        return bool(sidecar_path(file))
    except ValueError:
        return False


def test_leading_zeros_are_kept_where_a_path_is_written_again():
    layout = LAYOUTS["generic"]
    for path in (
        f"LSSTCam/042/{GROUP}/00/2025112100156/r_03/x.fits",
        f"LSSTCam/42/{GROUP}/0/2025112100156/r_03/x.fits",
        f"LSSTCam/007/{GROUP}/1/0002025112100156/r_03/x.fits",
    ):
        name = layout.parse(path)
        assert name is not None
        assert layout.path_of(name) == path
    name = layout.parse(f"LSSTCam/042/{GROUP}/00/2025112100156/r_03/x.fits")
    assert name is not None
    assert (name.detector, name.snap, str(name.exposure)) == (42, 0, "2025112100156")
    assert OWN.path_of(replace(name, label=None)).endswith("_042.fits"), "a configured width decides"
    imsim = "LSSTCam-imSim/20251121/000567/000567_r_094_R22_S11.fits"
    read = LAYOUTS["imsim"].parse(imsim)
    assert read is not None
    assert LAYOUTS["imsim"].path_of(read) == imsim


def test_folders_of_detectors_with_leading_zeros_are_searched():
    found = LAYOUTS["generic"].folders(ExpectedRaws("LSSTCam", frozenset({7}), GROUP))
    assert {folder.path.split("/")[1] for folder in found} == {"7", "07", "007"}


# --- files that hold all detectors ----------------------------------------------

WHOLE = {"path": "{instrument}/{day_obs}/{group}/{exposure}", "detector_keyword": "CCDNUM"}


def whole() -> Layout:
    return make_layout(CustomLayout.model_validate(WHOLE), {"Hubble": [1, 2]})


def test_a_file_of_all_detectors_names_none():
    path = "Hubble/20261121/g1/2026112100007.fits.fz"
    name = whole().parse(path)
    assert name is not None
    assert (name.kind, name.detector, name.exposure, name.group) == (
        RawFileKind.IMAGE,
        None,
        2026112100007,
        "g1",
    )
    assert whole().path_of(name) == path.removesuffix(".fz")
    expected = ExpectedRaws("Hubble", frozenset({2}), "g1", frozenset({20261121}))
    assert expected.matches(name)
    assert whole().admits("Hubble/20261121/g1", expected)
    assert not whole().admits("Hubble/20261121/g2", expected)
    assert next(folder.path for folder in whole().folders(expected)) == "Hubble/20261121/g1"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"detector_keyword": None}, "nothing names the detector"),
        ({"path": "{exposure}_{detector}"}, "the path names a detector"),
        ({"path": "{exposure}_{raft}_{slot}"}, "the path names a detector"),
        ({"detector_keyword": "ccd num"}, "String should match"),
        ({"detector_keyword": ""}, "String should match"),
    ],
)
def test_a_path_has_a_detector_or_the_file_has_all(change, reason):
    with pytest.raises(pydantic.ValidationError, match=reason):
        CustomLayout.model_validate(WHOLE | change)
