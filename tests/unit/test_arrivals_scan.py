# SPDX-License-Identifier: BSD-3-Clause
"""Which folders are looked through, and what is found in them."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ppdaemon.clock import TAI_MINUS_UTC_S, Clock, day_obs
from ppdaemon.config import ArrivalsConfig
from ppdaemon.node.arrivals.scan import Moment, Scanner
from ppdaemon.node.arrivals.tree import RawTree, Sighting

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


def tree(*roots: Path, instruments: Any, **keys: Any) -> RawTree:
    return RawTree(ArrivalsConfig.model_validate({"roots": roots} | keys), instruments)


def scanning(root: Path, instruments: Any, **keys: Any) -> Scanner:
    served = tree(root, instruments=instruments, **keys)
    watched: list[str] = []
    scanner = Scanner(served, served.roots[0], "scan", 900.0, lambda folder, identity: watched.append(folder))
    scanner.watched = watched
    return scanner


@pytest.fixture
def scanner(tmp_path):
    return scanning(tmp_path, {"LSSTCam": range(189)})


def at(now: float = NOW, mono: float = 0.0) -> Moment:
    return Moment.by(Clock(mono=lambda: mono, tai=lambda: now + TAI_MINUS_UTC_S))


def paths(found: Iterator[list[Sighting]]) -> list[str]:
    return sorted(sighting.place.path for portion in found for sighting in portion)


def seen(scanner: Scanner, now: float = NOW, mono: float = 0.0) -> list[str]:
    return paths(scanner.survey(at(now, mono)))


def test_raws_of_today_and_yesterday_are_found_and_nothing_else(tmp_path, scanner):
    today, yesterday = touch(tmp_path, raw()), touch(tmp_path, raw(20251120))
    touch(tmp_path, raw(name="R00_SG0"))  # a detector that is not served
    touch(tmp_path, "LSSTCam/20251121/notes.txt")
    touch(tmp_path, "LATISS/20251121/AT_O_20251121_000001/AT_O_20251121_000001_R00_S00.fits")
    assert seen(scanner) == sorted([str(today), str(yesterday)])


def test_only_folders_that_can_hold_new_files_are_watched(tmp_path, scanner):
    exposure, replayed = touch(tmp_path, raw()).parent, touch(tmp_path, raw(20240102)).parent
    touch(tmp_path, raw(20240101), age_s=1e7)
    touch(tmp_path, raw(sequence=1), age_s=1000.0)
    os.utime(exposure.parent, (NOW, NOW))
    seen(scanner)
    nights = {str(tmp_path / "LSSTCam/20251121"), str(tmp_path / "LSSTCam/20240102")}
    above = {str(tmp_path), str(tmp_path / "LSSTCam")}
    assert scanner.folders == above | nights | {str(exposure), str(replayed)}
    assert set(scanner.live) == nights


def test_each_folder_is_watched_before_it_is_listed(tmp_path, monkeypatch, scanner):
    file = touch(tmp_path, raw())
    listed = []
    scandir = os.scandir

    def listing(folder: str) -> Any:
        assert folder in scanner.watched
        listed.append(folder)
        return scandir(folder)

    monkeypatch.setattr("os.scandir", listing)
    seen(scanner)
    assert listed[-1] == str(file.parent)


def test_fault_28_old_folders_are_not_listed_and_not_remembered(tmp_path, monkeypatch, scanner):
    for sequence in range(1000):
        touch(tmp_path, raw(sequence=sequence), age_s=1000.0)
        touch(tmp_path, raw(20240101, sequence), age_s=1e7)
    file = touch(tmp_path, raw(sequence=2000))
    listed = []
    scandir = os.scandir
    monkeypatch.setattr("os.scandir", lambda folder: listed.append(folder) or scandir(folder))
    assert seen(scanner) == [str(file)]
    night = str(tmp_path / "LSSTCam/20251121")
    assert listed == [str(tmp_path), str(tmp_path / "LSSTCam"), night, str(file.parent)]
    assert scanner.folders == set(listed)


def test_files_moved_here_from_an_old_night_with_their_stamps_are_passed_over(tmp_path, scanner):
    touch(tmp_path, raw(20240102))  # its change time is now, the folder's too
    os.utime(tmp_path / raw(20240102), (NOW - 1e6, NOW - 1e6))
    assert seen(scanner, now=(tmp_path / raw(20240102)).stat().st_ctime) == []


def test_an_unchanged_folder_is_listed_twice_and_then_left_alone(tmp_path, scanner):
    file = touch(tmp_path, raw())
    assert seen(scanner, mono=0.0) == [str(file)]
    assert seen(scanner, mono=2.0) == [str(file)]
    assert seen(scanner, mono=4.0) == []
    other = touch(tmp_path, raw(name="R22_S12"), age_s=0.5)
    assert seen(scanner, mono=6.0) == sorted([str(file), str(other)])


def test_exposures_of_earlier_in_the_night_are_not_listed(tmp_path, scanner):
    touch(tmp_path, raw(sequence=1), age_s=1000.0)
    assert seen(scanner) == []


def test_files_older_than_the_memory_are_passed_over(tmp_path, scanner):
    # Moved here with the stamps of a year ago: when it was moved counts today.
    file = touch(tmp_path, raw(day_obs(Clock().tai())))
    later = file.stat().st_ctime + 901.0
    folder = str(file.parent)
    assert paths(scanner.explore([folder], at(later - 10.0)))
    assert paths(scanner.explore([folder], at(later + 10.0, 1.0))) == []


def test_a_new_folder_that_is_gone_again_is_passed_over(tmp_path, scanner):
    assert paths(scanner.explore([str(tmp_path / "LSSTCam/20251121/gone")], at())) == []


def test_a_folder_made_anew_is_listed_anew(tmp_path, scanner):
    file = touch(tmp_path, raw())
    for mono in (0.0, 2.0):
        assert seen(scanner, mono=mono) == [str(file)]
    assert seen(scanner, mono=4.0) == []
    file.parent.rename(tmp_path / "away")
    touch(tmp_path, raw())
    assert seen(scanner, mono=6.0) == [str(file)]


def test_what_could_not_be_taken_is_listed_again(tmp_path, scanner):
    file = touch(tmp_path, raw())
    for mono in (0.0, 2.0, 4.0):
        seen(scanner, mono=mono)
    scanner.unsettle()
    assert seen(scanner, mono=6.0) == [str(file)]


def test_links_to_folders_are_not_followed(tmp_path, scanner):
    file = touch(tmp_path, raw())
    (tmp_path / "ComCam").symlink_to(tmp_path / "LSSTCam")
    (tmp_path / "LSSTCam/20251121/MC_O_20251121_000157").symlink_to(file.parent)
    assert seen(scanner) == [str(file)]


def test_an_alias_names_its_instrument_s_folder(tmp_path):
    scanner = scanning(tmp_path, {"LSSTComCam": [4]})
    file = touch(tmp_path, raw().replace("LSSTCam/", "ComCam/"))
    assert seen(scanner) == [str(file)]


def test_a_root_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(OSError, match="No such file"):
        seen(scanning(tmp_path / "gone", {"LSSTCam": [1]}))


def test_names_with_control_characters_are_counted_and_refused(tmp_path, scanner):
    touch(tmp_path, raw() + "\n.fits")
    assert seen(scanner) == []
    assert [error.kind for error in scanner.refusals()] == ["control"]
    assert scanner.refusals() == []


def test_the_generic_layout_is_scanned_by_served_detector(tmp_path):
    scanner = scanning(tmp_path, {"LATISS": [0]}, layout="generic")
    file = touch(tmp_path, "LATISS/0/2025-11-22T03:25:16.951/0/2025112100156/r/x.fits")
    touch(tmp_path, "LATISS/1/2025-11-22T03:25:16.951/0/2025112100156/r/x.fits")
    touch(tmp_path, "LATISS/0/old/0/2025112100101/r/x.fits", age_s=1000.0)
    touch(tmp_path, "LSSTCam/0/2025-11-22T03:25:16.951/0/2025112100156/r/x.fits")
    assert seen(scanner) == [str(file)]
    assert scanner.live == (str(tmp_path / "LATISS/0"),)
    assert str(tmp_path / "LATISS/0/old") not in scanner.folders


OWN = {"path": "{instrument}/d{day_obs}/{exposure}_{detector}"}
FLAT = {"path": "{exposure}_{detector}"}


def test_a_layout_of_one_s_own_is_scanned_as_deep_as_its_files_lie(tmp_path):
    scanner = scanning(tmp_path, {"LATISS": [0]}, layout=OWN)
    file = touch(tmp_path, "LATISS/d20251121/2025112100156_0.fits")
    touch(tmp_path, "LATISS/d20250101/2025010100156_0.fits", age_s=1e7)
    touch(tmp_path, "LATISS/d20251121/deeper/2025112100157_0.fits")
    assert seen(scanner) == [str(file)]
    folders = ("", "/LATISS", "/LATISS/d20251121")
    assert scanner.folders == {f"{tmp_path}{folder}" for folder in folders}


def test_a_root_without_folders_is_scanned_itself(tmp_path):
    scanner = scanning(tmp_path, {"LATISS": [0]}, layout=FLAT)
    file = touch(tmp_path, "2025112100156_0.fits")
    assert seen(scanner) == [str(file)]
    assert scanner.folders == {str(tmp_path)}
