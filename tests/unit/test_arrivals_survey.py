# SPDX-License-Identifier: BSD-3-Clause
"""Which folders are surveyed, and which files are found in them."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ppdaemon.clock import TAI_MINUS_UTC_S, Clock, day_obs
from ppdaemon.config import ArrivalsConfig
from ppdaemon.node.arrivals.roots import RawRoots, Sighting
from ppdaemon.node.arrivals.walk import Survey, WalkTime

NOW = 1_763_781_916.0 - TAI_MINUS_UTC_S  # 2025-11-22T03:25:16 TAI, day_obs 20251121


def touch(root: Path, path: str, age_s: float = 1.0) -> Path:
    """Make a file and the folders above it, all of one age."""
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"")
    for item in (file, *file.parents[: len(Path(path).parts) - 1]):
        os.utime(item, (NOW - age_s, NOW - age_s))
    return file


def raw(day: int = 20251121, sequence: int = 156, name: str = "R22_S11") -> str:
    obsid = f"MC_O_{day}_{sequence:06d}"
    return f"LSSTCam/{day}/{obsid}/{obsid}_{name}.fits"


def tree(*roots: Path, instruments: Any, **keys: Any) -> RawRoots:
    return RawRoots(ArrivalsConfig.model_validate({"roots": roots} | keys), instruments)


def surveying(root: Path, instruments: Any, **keys: Any) -> Survey:
    served = tree(root, instruments=instruments, **keys)
    watched: list[str] = []
    survey = Survey(served, served.roots[0], "scan", 900.0, lambda folder, identity: watched.append(folder))
    survey.watched = watched
    return survey


@pytest.fixture
def survey(tmp_path):
    return surveying(tmp_path, {"LSSTCam": range(189)})


def at(now: float = NOW, mono: float = 0.0) -> WalkTime:
    return WalkTime.by(Clock(mono=lambda: mono, tai=lambda: now + TAI_MINUS_UTC_S))


def paths(found: Iterator[list[Sighting]]) -> list[str]:
    return sorted(sighting.file.path for portion in found for sighting in portion)


def seen(survey: Survey, now: float = NOW, mono: float = 0.0) -> list[str]:
    return paths(survey.survey(at(now, mono)))


def test_raws_of_today_and_yesterday_are_found_and_nothing_else(tmp_path, survey):
    today, yesterday = touch(tmp_path, raw()), touch(tmp_path, raw(20251120))
    touch(tmp_path, raw(name="R00_SG0"))  # a detector that is not served
    touch(tmp_path, "LSSTCam/20251121/notes.txt")
    touch(tmp_path, "LATISS/20251121/AT_O_20251121_000001/AT_O_20251121_000001_R00_S00.fits")
    assert seen(survey) == sorted([str(today), str(yesterday)])


def test_only_folders_that_can_hold_new_files_are_watched(tmp_path, survey):
    exposure, replayed = touch(tmp_path, raw()).parent, touch(tmp_path, raw(20240102)).parent
    touch(tmp_path, raw(20240101), age_s=1e7)
    touch(tmp_path, raw(sequence=1), age_s=1000.0)
    os.utime(exposure.parent, (NOW, NOW))
    seen(survey)
    nights = {str(tmp_path / "LSSTCam/20251121"), str(tmp_path / "LSSTCam/20240102")}
    above = {str(tmp_path), str(tmp_path / "LSSTCam")}
    assert survey.folders == above | nights | {str(exposure), str(replayed)}
    assert set(survey.live) == nights


def test_each_folder_is_watched_before_it_is_listed(tmp_path, monkeypatch, survey):
    file = touch(tmp_path, raw())
    listed = []
    scandir = os.scandir

    def listing(folder: str) -> Any:
        assert folder in survey.watched
        listed.append(folder)
        return scandir(folder)

    monkeypatch.setattr("os.scandir", listing)
    seen(survey)
    assert listed[-1] == str(file.parent)


def test_fault_28_old_folders_are_not_listed_and_not_remembered(tmp_path, monkeypatch, survey):
    for sequence in range(1000):
        touch(tmp_path, raw(sequence=sequence), age_s=1000.0)
        touch(tmp_path, raw(20240101, sequence), age_s=1e7)
    file = touch(tmp_path, raw(sequence=2000))
    listed = []
    scandir = os.scandir
    monkeypatch.setattr("os.scandir", lambda folder: listed.append(folder) or scandir(folder))
    assert seen(survey) == [str(file)]
    night = str(tmp_path / "LSSTCam/20251121")
    assert listed == [str(tmp_path), str(tmp_path / "LSSTCam"), night, str(file.parent)]
    assert survey.folders == set(listed)


def test_files_moved_here_from_an_old_night_with_their_stamps_are_passed_over(tmp_path, survey):
    touch(tmp_path, raw(20240102))  # its change time is now, the folder's too
    os.utime(tmp_path / raw(20240102), (NOW - 1e6, NOW - 1e6))
    assert seen(survey, now=(tmp_path / raw(20240102)).stat().st_ctime) == []


def test_an_unchanged_folder_is_listed_twice_and_then_left_alone(tmp_path, survey):
    file = touch(tmp_path, raw())
    assert seen(survey, mono=0.0) == [str(file)]
    assert seen(survey, mono=2.0) == [str(file)]
    assert seen(survey, mono=4.0) == []
    other = touch(tmp_path, raw(name="R22_S12"), age_s=0.5)
    assert seen(survey, mono=6.0) == sorted([str(file), str(other)])


def test_exposures_of_earlier_in_the_night_are_not_listed(tmp_path, survey):
    touch(tmp_path, raw(sequence=1), age_s=1000.0)
    assert seen(survey) == []


def test_files_older_than_the_memory_are_passed_over(tmp_path, survey):
    # Moved here with the stamps of a year ago: when it was moved counts today.
    file = touch(tmp_path, raw(day_obs(Clock().tai())))
    later = file.stat().st_ctime + 901.0
    folder = str(file.parent)
    assert paths(survey.explore([folder], at(later - 10.0)))
    assert paths(survey.explore([folder], at(later + 10.0, 1.0))) == []


def test_a_new_folder_that_is_gone_again_is_passed_over(tmp_path, survey):
    assert paths(survey.explore([str(tmp_path / "LSSTCam/20251121/gone")], at())) == []


def test_a_folder_made_anew_is_listed_anew(tmp_path, survey):
    file = touch(tmp_path, raw())
    for mono in (0.0, 2.0):
        assert seen(survey, mono=mono) == [str(file)]
    assert seen(survey, mono=4.0) == []
    file.parent.rename(tmp_path / "away")
    touch(tmp_path, raw())
    assert seen(survey, mono=6.0) == [str(file)]


def test_a_folder_that_is_gone_is_forgotten(tmp_path, survey):
    gone = touch(tmp_path, raw()).parent
    kept = touch(tmp_path, raw(sequence=157)).parent
    seen(survey, mono=0.0)
    shutil.rmtree(gone)
    seen(survey, mono=2.0)
    assert str(gone) not in survey.folders
    assert str(kept) in survey.folders


def test_what_could_not_be_taken_is_listed_again(tmp_path, survey):
    file = touch(tmp_path, raw())
    for mono in (0.0, 2.0, 4.0):
        seen(survey, mono=mono)
    survey.relist()
    assert seen(survey, mono=6.0) == [str(file)]


def test_links_to_folders_are_not_followed(tmp_path, survey):
    file = touch(tmp_path, raw())
    (tmp_path / "ComCam").symlink_to(tmp_path / "LSSTCam")
    (tmp_path / "LSSTCam/20251121/MC_O_20251121_000157").symlink_to(file.parent)
    assert seen(survey) == [str(file)]


def test_an_alias_names_its_instrument_s_folder(tmp_path):
    survey = surveying(tmp_path, {"LSSTComCam": [4]})
    file = touch(tmp_path, raw().replace("LSSTCam/", "ComCam/"))
    assert seen(survey) == [str(file)]


def test_a_root_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(OSError, match="No such file"):
        seen(surveying(tmp_path / "gone", {"LSSTCam": [1]}))


def test_names_with_control_characters_are_counted_and_refused(tmp_path, survey):
    touch(tmp_path, raw() + "\n.fits")
    assert seen(survey) == []
    assert [error.kind for error in survey.refusals] == ["control"]


def test_the_generic_layout_is_scanned_by_served_detector(tmp_path):
    survey = surveying(tmp_path, {"LATISS": [0]}, layout="generic")
    file = touch(tmp_path, "LATISS/0/2025-11-22T03:25:16.951/0/2025112100156/r/x.fits")
    touch(tmp_path, "LATISS/1/2025-11-22T03:25:16.951/0/2025112100156/r/x.fits")
    touch(tmp_path, "LATISS/0/old/0/2025112100101/r/x.fits", age_s=1000.0)
    touch(tmp_path, "LSSTCam/0/2025-11-22T03:25:16.951/0/2025112100156/r/x.fits")
    assert seen(survey) == [str(file)]
    assert survey.live == (str(tmp_path / "LATISS/0"),)
    assert str(tmp_path / "LATISS/0/old") not in survey.folders


OWN = {"path": "{instrument}/d{day_obs}/{exposure}_{detector}"}
FLAT = {"path": "{exposure}_{detector}"}


def test_a_layout_of_one_s_own_is_scanned_as_deep_as_its_files_lie(tmp_path):
    survey = surveying(tmp_path, {"LATISS": [0]}, layout=OWN)
    file = touch(tmp_path, "LATISS/d20251121/2025112100156_0.fits")
    touch(tmp_path, "LATISS/d20250101/2025010100156_0.fits", age_s=1e7)
    touch(tmp_path, "LATISS/d20251121/deeper/2025112100157_0.fits")
    assert seen(survey) == [str(file)]
    folders = ("", "/LATISS", "/LATISS/d20251121")
    assert survey.folders == {f"{tmp_path}{folder}" for folder in folders}


def test_a_root_without_folders_is_scanned_itself(tmp_path):
    survey = surveying(tmp_path, {"LATISS": [0]}, layout=FLAT)
    file = touch(tmp_path, "2025112100156_0.fits")
    assert seen(survey) == [str(file)]
    assert survey.folders == {str(tmp_path)}
