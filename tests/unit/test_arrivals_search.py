# SPDX-License-Identifier: BSD-3-Clause
"""Which folders are searched for raws of open visits, and how often."""

import os
from pathlib import Path
from typing import Any

import pytest

from ppdaemon.clock import TAI_MINUS_UTC_S, Clock
from ppdaemon.config import ArrivalsConfig
from ppdaemon.node.arrivals.roots import RawRoots
from ppdaemon.node.arrivals.walk import RawSearch, WalkTime
from ppdaemon.raws.path import ExpectedRaws

NOW = 1_763_781_916.0 - TAI_MINUS_UTC_S  # 2025-11-22T03:25:16 TAI, day_obs 20251121
GROUP = "2025-11-22T03:25:16.951"
NAMES = {94: "R22_S11", 95: "R22_S12"}


def raw(sequence: int = 156, detector: int = 94, day: int = 20251121) -> str:
    obsid = f"MC_O_{day}_{sequence:06d}"
    return f"LSSTCam/{day}/{obsid}/{obsid}_{NAMES[detector]}.fits"


def touch(root: Path, path: str, age_s: float = 1.0) -> str:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"")
    os.utime(file.parent, (NOW - age_s, NOW - age_s))
    return str(file)


class Polled:
    """A search, and how many folders it lists."""

    def __init__(self, root: Path, instruments: Any, monkeypatch: pytest.MonkeyPatch, **keys: Any):
        tree = RawRoots(ArrivalsConfig.model_validate({"roots": [root]} | keys), instruments)
        self.search = RawSearch(tree, tree.roots[0], "poll", 900.0)
        self.listed = 0
        scandir = os.scandir

        def counted(folder: Any) -> Any:
            self.listed += 1
            return scandir(folder)

        monkeypatch.setattr("os.scandir", counted)

    def poll(
        self, *expected: ExpectedRaws, live: tuple[str, ...] = (), mono: float = 0.0, now: float = NOW
    ) -> list[str]:
        self.listed = 0
        moment = WalkTime.by(Clock(mono=lambda: mono, tai=lambda: now + TAI_MINUS_UTC_S))
        found = self.search.poll(expected, live, moment)
        return sorted(sighting.file.path for portion in found for sighting in portion)


BOTH = ExpectedRaws("LSSTCam", frozenset({94, 95}), GROUP)


@pytest.fixture
def polled(tmp_path, monkeypatch):
    return Polled(tmp_path, {"LSSTCam": range(189)}, monkeypatch)


def test_exposures_of_tonight_are_read_until_all_detectors_were_seen(tmp_path, polled):
    assert polled.poll(BOTH) == []
    first = touch(tmp_path, raw())
    assert polled.poll(BOTH, mono=0.4) == [first]
    assert polled.poll(BOTH, mono=0.8) == []
    assert polled.listed == 2  # the night and the exposure
    second = touch(tmp_path, raw(detector=95))
    assert polled.poll(BOTH, mono=1.2) == [second]
    assert polled.poll(BOTH, mono=3.0) == []
    assert polled.listed == 1  # the night, once more after its stamp's resolution
    assert polled.poll(BOTH, mono=5.0) == []
    assert polled.listed == 0


def test_what_is_old_is_not_listed(tmp_path, polled):
    for sequence in range(100):
        touch(tmp_path, raw(sequence), age_s=1000.0)
        touch(tmp_path, raw(sequence, day=20250101))
    new = touch(tmp_path, raw())
    assert polled.poll(BOTH) == [new]
    assert polled.listed == 2


def test_an_exposure_that_appears_is_read_whatever_its_stamps(tmp_path, polled):
    touch(tmp_path, raw(1))
    polled.poll(BOTH)
    file = touch(tmp_path, raw(2), age_s=5000.0)
    assert file in polled.poll(BOTH, mono=0.4)


def test_a_file_server_whose_clock_is_behind_hides_nothing(tmp_path, polled):
    file = touch(tmp_path, raw(), age_s=7200.0)
    touch(tmp_path, raw(1), age_s=7200.0 + 1000.0)
    assert polled.poll(BOTH) == [file]


def test_an_exposure_into_which_nothing_comes_is_left_to_the_scan(tmp_path, polled):
    touch(tmp_path, raw())
    polled.poll(BOTH)
    assert polled.poll(BOTH, mono=100.0) == []
    assert polled.listed == 2
    polled.poll(BOTH, mono=200.0)
    polled.poll(BOTH, mono=200.4)
    assert polled.listed == 0


def test_a_night_that_is_replayed_is_listed_where_files_arrive(tmp_path, polled):
    file = touch(tmp_path, raw(day=20240102))
    assert polled.poll(BOTH) == []
    assert polled.poll(BOTH, live=(str(tmp_path / "LSSTCam/20240102"),)) == [file]


def test_in_the_generic_layout_only_the_groups_own_folders_are_listed(tmp_path, monkeypatch):
    polled = Polled(tmp_path, {"LATISS": [0, 1]}, monkeypatch, layout="generic")
    for number in range(100):
        touch(tmp_path, f"LATISS/0/other{number}/0/2025112100156/r/x.fits")
    expected = ExpectedRaws("LATISS", frozenset({0}), GROUP)
    assert polled.poll(expected) == []
    assert polled.listed == 0
    files = [
        touch(tmp_path, f"LATISS/0/{GROUP}/0/2025112100156/r/x.fits"),
        touch(tmp_path, f"LATISS/0/{GROUP}#1/0/2025112100157/r/x.fits"),
    ]
    touch(tmp_path, f"LATISS/1/{GROUP}/0/2025112100156/r/x.fits")
    assert polled.poll(expected, mono=0.4) == sorted(files)


def test_where_exposures_share_a_folder_each_is_found(tmp_path, monkeypatch):
    flat = {"path": "{day_obs}/{exposure}-{detector}"}
    polled = Polled(tmp_path, {"LSSTCam": range(189)}, monkeypatch, layout=flat)
    for number in range(1, 4):
        files = [touch(tmp_path, f"20251121/202511210000{number}-{detector}.fits") for detector in (94, 95)]
        assert polled.poll(BOTH, mono=0.4 * number) == files


def test_folders_whose_names_cannot_be_known_are_listed(tmp_path, monkeypatch):
    labeled = {"path": "{day_obs}/{label}/{exposure}-{detector}"}
    polled = Polled(tmp_path, {"LSSTCam": range(189)}, monkeypatch, layout=labeled)
    assert polled.poll(BOTH) == []
    for number in range(1, 4):
        folder = f"20251121/run {number}"
        files = [touch(tmp_path, f"{folder}/202511210000{number}-{detector}.fits") for detector in (94, 95)]
        assert polled.poll(BOTH, mono=0.4 * number) == files


def test_a_folder_that_cannot_be_listed_is_a_problem_and_the_others_are_searched(
    tmp_path, monkeypatch, polled
):
    refused = touch(tmp_path, raw())
    other = touch(tmp_path, raw(day=20251120))
    opening = os.open

    def refusing(path: Any, *args: Any, **keys: Any) -> int:
        if str(path).endswith("20251121"):
            raise PermissionError(13, "Permission denied", path)
        return opening(path, *args, **keys)

    with monkeypatch.context() as patch:
        patch.setattr("os.open", refusing)
        assert polled.poll(BOTH) == [other]
        assert polled.search.problem == f"{tmp_path}/LSSTCam/20251121: Permission denied"
    assert polled.poll(BOTH) == [refused]
    assert polled.search.problem == ""


def test_a_name_that_is_not_to_be_opened_is_passed_over(tmp_path, polled):
    touch(tmp_path, raw() + "\n.fits")
    file = touch(tmp_path, raw())
    assert polled.poll(BOTH) == [file]
