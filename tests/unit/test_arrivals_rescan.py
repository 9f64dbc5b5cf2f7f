# SPDX-License-Identifier: BSD-3-Clause
"""Where a final rescan finds raws, and what it passes over."""

import os
from pathlib import Path

import pytest

from ppdaemon.config import ArrivalsConfig
from ppdaemon.node.arrivals.roots import RawRoots
from ppdaemon.node.arrivals.unrecognized import UnrecognizedFiles
from ppdaemon.node.arrivals.walk import RawSearch, WalkTime
from ppdaemon.raws.path import ExpectedRaws

ANNOUNCED = 1_763_781_879.0
GROUP = "2025-11-22T03:25:16.951"
NAMES = {94: "R22_S11", 95: "R22_S12"}
BOTH = ExpectedRaws("LSSTCam", frozenset(NAMES), GROUP)


def raw(sequence: int = 156, detector: int = 94, day: int = 20251121) -> str:
    obsid = f"MC_O_{day}_{sequence:06d}"
    return f"LSSTCam/{day}/{obsid}/{obsid}_{NAMES[detector]}.fits"


def put(root: Path, path: str, at: float = ANNOUNCED + 30) -> None:
    """Write a file; its folder and the one above changed then."""
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"")
    for folder in (file.parent, file.parent.parent):
        os.utime(folder, (at, at))


def found(root: Path, expected: ExpectedRaws = BOTH, layout: str | dict[str, str] = "lsst") -> list[str]:
    config = ArrivalsConfig.model_validate({"roots": [root], "layout": layout})
    tree = RawRoots(config, {"LSSTCam": [94, 95]})
    search = RawSearch(tree, tree.roots[0], "final rescan", 900.0)
    sightings = search.rescan(expected, ANNOUNCED - 900.0, WalkTime(0.0, ANNOUNCED + 60.0, frozenset()))
    return sorted(sighting.file.path.removeprefix(f"{root}/") for sighting in sightings)


def test_images_of_the_detectors_are_found_whatever_their_age(tmp_path):
    for path in (raw(detector=94), raw(detector=95), raw(157), raw().replace(".fits", ".json")):
        put(tmp_path, path)
    assert found(tmp_path) == [raw(detector=94), raw(detector=95), raw(157)]
    assert found(tmp_path, ExpectedRaws("LSSTCam", frozenset({95}), GROUP)) == [raw(detector=95)]


def test_exposures_and_days_from_before_the_announcement_are_not_opened(tmp_path, monkeypatch):
    put(tmp_path, raw(1, day=20251120), ANNOUNCED - 80_000)
    put(tmp_path, raw(1), ANNOUNCED - 5_000)
    put(tmp_path, raw(2))
    opened, opening = [], os.open
    monkeypatch.setattr(os, "open", lambda path, *args: opened.append(path) or opening(path, *args))
    assert found(tmp_path) == [raw(2)]
    names = [Path(folder).name for folder in opened if str(folder).startswith(str(tmp_path))]
    assert names == ["LSSTCam", "20251121", "MC_O_20251121_000002"]


def test_a_day_of_the_past_into_which_exposures_come_is_listed(tmp_path):
    put(tmp_path, raw(7, day=20240101))
    assert found(tmp_path) == [raw(7, day=20240101)]


def test_above_the_folders_of_exposures_none_is_too_old(tmp_path):
    """What comes into a detector's folder changes the time of no day's folder."""
    path = "LSSTCam/20251121/94/2025112100156/x.fits"
    put(tmp_path, path)
    os.utime(tmp_path / "LSSTCam/20251121", (ANNOUNCED - 50_000, ANNOUNCED - 50_000))
    layout = {"path": "{instrument}/{day_obs}/{detector}/{exposure}/{label}"}
    assert found(tmp_path, layout=layout) == [path]


def test_where_the_path_has_the_group_the_age_of_the_folder_does_not_matter(tmp_path):
    path = f"LSSTCam/94/{GROUP}/0/2025112100156/r/x.fits"
    put(tmp_path, path, ANNOUNCED - 50_000)
    put(tmp_path, path.replace(GROUP, "other"))
    assert found(tmp_path, layout="generic") == [path]


@pytest.mark.parametrize("hazard", ["link", "control"])
def test_what_is_not_to_be_opened_is_passed_over(tmp_path, hazard):
    put(tmp_path, raw())
    folder = (tmp_path / raw()).parent
    if hazard == "link":
        (folder.parent / "MC_O_20251121_000157").symlink_to("/etc")
    else:
        (folder / "MC_O_20251121_000156_R22\n_S12.fits").touch()
    assert found(tmp_path) == [raw()]


def test_a_root_that_is_not_there_has_nothing(tmp_path):
    assert found(tmp_path / "nowhere") == []


# --- files that are not raws -------------------------------------------------


def unrecognized(
    root: Path, expected: ExpectedRaws = BOTH, layout: object = "lsst", **config: object
) -> dict[str, tuple[str, int | None]]:
    """Return reason and detector of each unrecognized file, by its name."""
    arrivals = ArrivalsConfig.model_validate({"roots": [root], "layout": layout} | config)
    tree = RawRoots(arrivals, {"LSSTCam": [94, 95]})
    search = RawSearch(tree, tree.roots[0], "final rescan", 900.0)
    search.rescan(expected, ANNOUNCED - 900.0, WalkTime(0.0, ANNOUNCED + 60.0, frozenset()))
    files = UnrecognizedFiles(tree.roots[0], expected, ANNOUNCED - 900.0)
    found = [each for folder in search.folders_of_files for each in files.in_folder(folder)]
    return {Path(each.path).name: (each.reason, each.detector) for each in found}


BASE = Path(raw()).name.removesuffix(".fits")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (f"{BASE}.fits.part", "its name ends in .fits.part"),
        (f"{BASE}.fits.fz.aB12cd", "its name ends in .aB12cd"),
        (f".{BASE}.fits.aB12cd", "its name begins with a dot"),
        (f".{BASE}.fits", "its name begins with a dot"),
        (BASE, "its name has no ending"),
        (f"{BASE}.fits.bz2", "its name ends in .bz2"),
        (f"{BASE}.tmp", "its name ends in .tmp"),
    ],
)
def test_a_raw_under_the_name_of_its_writer_is_of_its_detector(tmp_path, name, reason):
    put(tmp_path, f"{Path(raw()).parent}/{name}")
    reason = reason.replace(".fits.part", ".part")
    assert unrecognized(tmp_path) == {name: (f"not complete, or no raw: {reason}", 94)}
    assert unrecognized(tmp_path, ExpectedRaws("LSSTCam", frozenset({95}), GROUP)) == {}


def test_what_the_layout_does_not_have_is_of_no_detector(tmp_path):
    folder = Path(raw()).parent
    put(tmp_path, f"{folder}/x.txt")
    put(tmp_path, f"{folder}/{Path(raw(157)).name}")  # of another exposure
    (tmp_path / folder / "more").mkdir()
    assert unrecognized(tmp_path) == {
        "x.txt": ("no name of the layout", None),
        Path(raw(157)).name: ("no name of the layout", None),
        "more": ("a folder", None),
    }


def test_files_of_other_detectors_and_lists_are_not_unrecognized(tmp_path):
    for name in (raw(), raw().replace(".fits", ".json"), raw().replace("S11", "S00")):
        put(tmp_path, name)
    put(tmp_path, raw().replace("_R22_S11.fits", "_expectedSensors.json"))
    put(tmp_path, raw().replace("_R22_S11.fits", "_R40_SG0_guider.fits"))
    put(tmp_path, raw().replace("S11", "S00") + ".part")
    assert unrecognized(tmp_path) == {}


def test_a_sidecar_without_its_image_is_named(tmp_path):
    put(tmp_path, raw().replace(".fits", ".json"))
    put(tmp_path, raw(detector=95).replace(".fits", ".json"))
    put(tmp_path, raw(detector=95) + ".fz")
    assert unrecognized(tmp_path) == {f"{BASE}.json": ("a sidecar without its image", 94)}


@pytest.mark.parametrize("done", [".done", "{obsid}.complete"])
def test_markers_are_not_unrecognized(tmp_path, done):
    put(tmp_path, raw())
    marker = raw() + done if done == ".done" else str(Path(raw()).parent / "MC_O_20251121_000156.complete")
    put(tmp_path, marker)
    assert unrecognized(tmp_path, done=done) == {}


def test_old_files_of_unknown_meaning_are_not_named_where_exposures_share_a_folder(tmp_path):
    layout = {"path": "{instrument}/{day_obs}/{exposure}_{detector:03d}"}
    put(tmp_path, "LSSTCam/20251121/2025112100156_094.fits.part")
    put(tmp_path, "LSSTCam/20251121/notes.txt")
    os.utime(tmp_path / "LSSTCam/20251121/notes.txt", (ANNOUNCED - 5000, ANNOUNCED - 5000))
    name = "2025112100156_094.fits.part"
    now = unrecognized(tmp_path, layout=layout)
    assert now.keys() == {name, "notes.txt"}, "it was placed after the announcement"
    assert now[name] == ("not complete, or no raw: its name ends in .part", 94)
