# SPDX-License-Identifier: BSD-3-Clause
"""Which folders are looked through, and what is found in them."""

import os
from pathlib import Path

import pytest

from ppdaemon.clock import TAI_MINUS_UTC_S
from ppdaemon.errors import BadMessage, ConfigError
from ppdaemon.node.arrivals.scan import Scanner
from ppdaemon.node.arrivals.tree import RawTree

NOW_TAI = 1_763_781_916.0  # 2025-11-22T03:25:16, day_obs 20251121
NOW = NOW_TAI - TAI_MINUS_UTC_S


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


@pytest.fixture
def scanner(tmp_path):
    return Scanner(RawTree([tmp_path], "lsst", {"LSSTCam": range(189)}), str(tmp_path), "scan", 900.0)


def seen(scanner: Scanner, now: float = NOW, mono: float = 0.0) -> list[str]:
    scanner.folders(now + TAI_MINUS_UTC_S, now)
    return sorted(sighting.place.path for sighting in scanner.scan(now, mono))


def test_raws_of_today_and_yesterday_are_found_and_nothing_else(tmp_path, scanner):
    today, yesterday = touch(tmp_path, raw()), touch(tmp_path, raw(20251120))
    touch(tmp_path, raw(name="R00_SG0"))  # a detector that is not served
    touch(tmp_path, "LSSTCam/20251121/notes.txt")
    touch(tmp_path, "LATISS/20251121/AT_O_20251121_000001/AT_O_20251121_000001_R00_S00.fits")
    assert seen(scanner) == sorted([str(today), str(yesterday)])


def test_only_folders_that_can_hold_new_files_are_watched(tmp_path, scanner):
    touch(tmp_path, raw())
    touch(tmp_path, raw(20240101), age_s=1e7)
    touch(tmp_path, raw(20240102))  # an old night that is being replayed
    assert scanner.folders(NOW_TAI, NOW) == {
        str(tmp_path): False,
        str(tmp_path / "LSSTCam"): False,
        str(tmp_path / "LSSTCam/20251121"): True,
        str(tmp_path / "LSSTCam/20240102"): True,
    }


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
    file = touch(tmp_path, raw())
    later = file.stat().st_ctime + 901.0
    folder = str(file.parent)
    assert scanner.scan_folder(folder, later - 10.0)
    assert scanner.scan_folder(folder, later) == []


def test_links_to_folders_are_not_followed(tmp_path, scanner):
    file = touch(tmp_path, raw())
    (tmp_path / "ComCam").symlink_to(tmp_path / "LSSTCam")
    (tmp_path / "LSSTCam/20251121/MC_O_20251121_000157").symlink_to(file.parent)
    assert seen(scanner) == [str(file)]


def test_an_alias_names_its_instrument_s_folder(tmp_path):
    scanner = Scanner(RawTree([tmp_path], "lsst", {"LSSTComCam": [4]}), str(tmp_path), "scan", 900.0)
    file = touch(tmp_path, raw().replace("LSSTCam/", "ComCam/"))
    assert seen(scanner) == [str(file)]


def test_a_root_that_is_not_there_is_an_error(tmp_path):
    tree = RawTree([tmp_path / "gone"], "lsst", {"LSSTCam": [1]})
    with pytest.raises(OSError, match="No such file"):
        Scanner(tree, tree.roots[0], "scan", 900.0).folders(NOW_TAI, NOW)


def test_names_with_control_characters_are_counted_and_refused(tmp_path, scanner):
    touch(tmp_path, raw() + "\n.fits")
    assert seen(scanner) == []
    assert scanner.refused == 1


def test_the_generic_layout_is_scanned_by_served_detector(tmp_path):
    scanner = Scanner(RawTree([tmp_path], "generic", {"LATISS": [0]}), str(tmp_path), "scan", 900.0)
    file = touch(tmp_path, "LATISS/0/2025-11-22T03:25:16.951/0/2025112100156/r/x.fits")
    touch(tmp_path, "LATISS/1/2025-11-22T03:25:16.951/0/2025112100156/r/x.fits")
    touch(tmp_path, "LATISS/0/old/0/2025112100101/r/x.fits", age_s=1000.0)
    assert scanner.folders(NOW_TAI, NOW) == {str(tmp_path): False, str(tmp_path / "LATISS"): True}
    assert [sighting.place.path for sighting in scanner.scan(NOW, 0.0)] == [str(file)]


def test_paths_outside_all_roots_are_refused(tmp_path):
    tree = RawTree([tmp_path / "a", tmp_path / "b"], "lsst", {"LSSTCam": [94]})
    for path in ("/etc/passwd", f"{tmp_path}/abc/{raw()}", f"{tmp_path}/a", "relative"):
        with pytest.raises(BadMessage) as caught:
            tree.locate(path)
        assert caught.value.kind == "outside"
    with pytest.raises(BadMessage) as caught:
        tree.locate(f"{tmp_path}/a/../../{raw()}")
    assert caught.value.kind == "escape"


def test_a_key_can_be_below_any_root(tmp_path):
    tree = RawTree([tmp_path / "a", tmp_path / "b"], "lsst", {"LSSTCam": [94]})
    places = tree.spell_out(raw())
    assert places == (f"{tmp_path}/a/{raw()}", f"{tmp_path}/b/{raw()}")
    assert all(tree.locate(place) is not None for place in places)
    assert tree.spell_out("/x/y") == ("/x/y",)


def test_an_instrument_without_a_table_is_refused_in_the_layout_that_needs_it(tmp_path):
    with pytest.raises(ConfigError, match="Hubble"):
        RawTree([tmp_path], "lsst", {"Hubble": [0]})
    RawTree([tmp_path], "generic", {"Hubble": [0]})
