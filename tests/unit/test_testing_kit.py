# SPDX-License-Identifier: BSD-3-Clause
"""The test kit's parts that start nothing."""

import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest

from ppdaemon import testing
from ppdaemon.clock import Clock
from ppdaemon.folders import NodeFolders
from ppdaemon.raws.fitsblocks import read_header, structure
from ppdaemon.testing.raws import RawWriter, fits_header, small_fits
from ppdaemon.testing.waiting import wait_until
from ppdaemon.testing.work import FAULTS, STEPS, WorkerFault, open_exporter

FOLDER = Path(testing.__file__).parent


def test_a_worker_fault_is_read_as_it_is_written():
    for detector, attempt in product((None, 0, 3), (None, 1)):
        fault = WorkerFault("hang", "process", detector, attempt)
        assert WorkerFault.read(str(fault)) == fault
    assert str(WorkerFault("hang", "process", 3, 1)) == "process:hang@1/3"
    assert str(WorkerFault("hang", "process")) == "process:hang"


def test_a_worker_fault_concerns_its_step_detector_and_attempt_only():
    fault = WorkerFault.read("process:hang@1/3")
    assert fault.concerns("process", 3, 1)
    assert not any(
        fault.concerns(*other) for other in (("ingest", 3, 1), ("process", 4, 1), ("process", 3, 2))
    )
    assert all(WorkerFault.read("process:hang").concerns("process", 8, attempt) for attempt in (1, 2))


def test_all_faults_and_steps_have_names_that_a_survey_can_have():
    assert all(name.isidentifier() for name in (*FAULTS, *STEPS))


def test_the_scripted_exporter_continues_where_a_killed_one_has_registered_and_deleted(tmp_path, config):
    exporter = open_exporter(SimpleNamespace(config=config, clock=Clock()))
    folders = NodeFolders.of(config)
    spools = [folders.spooled("DemoCam", "g1", detector, 1) for detector in range(3)]
    _, half, whole = spools
    (half.with_name(f"{half.name}.done") / "dataset").mkdir(parents=True)
    whole.mkdir()
    (whole / "manifest.json").write_text("{}")
    exported = exporter.export(spools)
    assert exported.spools == (str(whole),)
    assert set(exported.gone) == {str(spool) for spool in spools[:2]}
    assert list(folders.spool.iterdir()) == []
    assert [path.name for path in (folders.state / "exported").iterdir()] == [whole.name]


def test_a_small_raw_is_a_whole_fits_file_with_its_cards(tmp_path):
    path = tmp_path / "x.fits"
    path.write_bytes(small_fits(*(f"KEY{number:<5}= {number:>20}" for number in range(50)), "GROUPID = 'g1'"))
    with path.open("rb") as stream:
        found = structure(stream)
        assert (found.whole, found.hdus, found.data_bytes) == (True, 1, 2880)
        assert read_header(stream)["GROUPID"] == "g1"
    assert len(fits_header()) == 2880


def test_an_exposure_is_written_in_the_layout_of_lsst_cameras(tmp_path):
    camera = RawWriter(tmp_path, "LSSTCam", "MC")
    first, second = camera.land("g1", (0, 188), 7, snap=2, snaps=3)
    assert first == camera.path(7)
    sidecar = json.loads(second.with_suffix(".json").read_text())
    assert (sidecar["GROUPID"], sidecar["CURINDEX"], sidecar["MAXINDEX"], sidecar["SEQNUM"]) == (
        "g1",
        2,
        3,
        7,
    )
    assert camera.exposure(7) == camera.day * 100_000 + 7
    assert not list(tmp_path.rglob(".*"))


def test_a_wait_that_fails_reports_the_story():
    assert wait_until(lambda: 3) == 3
    with pytest.raises(AssertionError, match="the story so far"):
        wait_until(lambda: False, 0.0, lambda: "the story so far")


def test_no_part_of_the_kit_needs_lsst_code_or_pytest():
    names = [f"ppdaemon.testing.{path.stem}" for path in FOLDER.glob("*.py") if path.stem != "__init__"]
    check = f"""
import importlib, sys
for name in {names}:
    importlib.import_module(name)
print(sorted({{"lsst", "pytest"}} & sys.modules.keys()))
"""
    done = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert done.stdout.strip() == "[]"
