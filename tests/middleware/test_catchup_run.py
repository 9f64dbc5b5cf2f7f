# SPDX-License-Identifier: BSD-3-Clause
"""``ppctl catchup run`` as operators use it: with a daemon, with ``bps``, with ``pipetask``, and ended."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from catchuptasks import write_pipelines
from demovisits import plan_exposure
from lsst.daf.butler import Butler

from ppdaemon.catchup import run_of
from ppdaemon.demo.raws import write_raw
from ppdaemon.demo.render import render_raw
from ppdaemon.demo.sky import demo_skies
from ppdaemon.node.slots.assignment import Key
from ppdaemon.node.visits.journal import Journal
from ppdaemon.node.visits.model import Accept, JournalEntry, Reserved, Update
from ppdaemon.pipelinenames import output_chain
from ppdaemon.processes import process_tree, processes_with_variable
from ppdaemon.reports import JOURNAL_NAME
from ppdaemon.states import Outcome, Stage
from ppdaemon.testing.node import NodeProcess, node_config
from ppdaemon.testing.waiting import wait_until
from ppdaemon.visit import read_next_visit

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

NAME = "DemoCam"
GOOD, WITHOUT_RAW, PERMANENT = 4, 5, 6
"""Detectors: the central repo has calibrations of the first."""
PLAN = plan_exposure(1)
DAY, GROUP = PLAN.day_obs, PLAN.group
CHAIN = output_chain(NAME, DAY)
RUN = run_of(CHAIN, "Measure")
MARK = "PPDAEMON_TEST_CATCHUP"
LIMIT_S = 600.0
"""Alone, a run takes 40 s; on a loaded machine five minutes were seen."""


class Site:
    """A node whose journal has three failed detectors of a visit; one has a raw, one has none, and one has
    passed the point of no return.
    """

    def __init__(self, folder: Path, sockets: Path, central: Path):
        self.folder = folder
        self.central = folder / "central"
        shutil.copytree(central, self.central)
        self.variables = {"PYTHONPATH": str(Path(__file__).parent), MARK: str(folder)}
        config = node_config(folder, sockets)
        config["butler"] = {
            "central": str(self.central),
            "instrument_class": {NAME: "ppdaemon.demo.instrument.DemoCam"},
            "skymap": "demo",
        }
        config["workers"]["environment"] = self.variables
        before, main = write_pipelines(folder)
        config["pipelines"] = {
            "preprocessing": [{"pipelines": [before]}],
            "main": [{"pipelines": [main]}],
            "overrides": {"measure:folder": str(folder)},
        }
        self.node = NodeProcess(folder, config, environment={"PYTHONPATH": self.variables["PYTHONPATH"]})
        self._fill_journal()
        for detector in (GOOD, PERMANENT):
            write_raw(folder / "raw", PLAN, detector, render_raw(PLAN, detector, demo_skies()[0]))

    def _fill_journal(self) -> None:
        state = self.node.state
        state.mkdir(exist_ok=True)
        sal = {
            "groupId": GROUP,
            "instrument": NAME,
            "coordinateSystem": 2,
            "position": [PLAN.ra_deg, PLAN.dec_deg],
            "startTime": PLAN.begin_tai_s,
            "rotationSystem": 2,
            "cameraAngle": PLAN.rotpa_deg,
            "filters": PLAN.physical_filter,
            "duration": 35.0,
            "nimages": 1,
        }
        tai = PLAN.begin_tai_s
        entries = []
        for detector in (GOOD, WITHOUT_RAW, PERMANENT):
            key = Key(NAME, GROUP, detector, 1)
            entry = JournalEntry(key, read_next_visit(sal), received_tai=tai, stages={Stage.ACCEPTED: tai})
            entries.append(entry)
        journal = Journal(state / JOURNAL_NAME)
        journal.write(Accept(Reserved(None, {}), tuple(entries)))  # type: ignore[arg-type]
        for entry in entries:
            entry.outcome, entry.reason, entry.final, entry.ended_tai = Outcome.CRASHED, "SIGSEGV", True, tai
        entries[2].no_return = "alert database"
        journal.write(Update(tuple(entries)))
        journal.close()

    def command(self, *words: str) -> list[str]:
        return [str(Path(sys.executable).with_name("ppctl")), "--config", str(self.node.path), *words]

    def ppctl(self, *words: str) -> tuple[int, str, str]:
        done = subprocess.run(
            self.command(*words), capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
        return done.returncode, done.stdout, done.stderr

    def catchup(self, *words: str) -> tuple[int, dict[int, dict[str, Any]]]:
        """Return exit code and row of each detector."""
        config = ("--config", str(self.node.path))
        code, out, err = self.ppctl("catchup", *words, *config, "--night", str(DAY), "--json")
        assert out, err
        return code, {row["detector"]: row for row in json.loads(out)["rows"]}

    def outputs(self) -> dict[str, list[int]]:
        """Return the detectors of each type in the run of the catch-up, and find them in the day's chain."""
        with Butler.from_config(str(self.central)) as butler:
            found = {}
            for name in ("measured", "measure_metadata"):
                refs = butler.query_datasets(name, collections=CHAIN, explain=False)
                assert {ref.run for ref in refs} <= {RUN}
                found[name] = [ref.dataId["detector"] for ref in refs]
            return found

    def again(self) -> dict[int, str]:
        """Return what ``ppctl failed`` has in its column."""
        lines = self.ppctl("failed", "--format", "csv")[1].splitlines()
        names = lines[0].split(",")
        rows = [dict(zip(names, line.split(","), strict=False)) for line in lines[1:]]
        return {int(row["detector"]): row["again"] for row in rows}

    def left(self) -> set[int]:
        """Return the processes that the catch-up has started, and nothing else has."""
        workers = processes_with_variable(MARK, str(self.folder))
        return {pid for pid in workers if b"ppdaemon zygote" not in _title(pid)} - self._of_node()

    def _of_node(self) -> set[int]:
        return set(process_tree(self.node.pid)) if self.node.running else set()


def _title(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@pytest.fixture
def site(tmp_path: Path, socket_dir: Path, demo_central: Path) -> Iterator[Site]:
    site = Site(tmp_path, socket_dir, demo_central)
    with site.node.start():
        yield site


def test_bps_processes_what_failed_and_failed_shows_it_as_done(site: Site) -> None:
    assert site.again() == {GOOD: "may fail again", WITHOUT_RAW: "may fail again", PERMANENT: "needs --force"}
    (site.folder / "fail").touch()
    code, rows = site.catchup("run", "--cores", "2")
    assert code == 1
    assert (rows[GOOD]["state"], rows[GOOD]["text"]) == ("failed", "measure: RuntimeError: no stars: 0 found")
    assert (rows[WITHOUT_RAW]["state"], rows[PERMANENT]["state"]) == ("no_raw", "refused")
    assert "alert database" in rows[PERMANENT]["text"]
    assert site.again()[GOOD] == "may fail again"
    assert not site.left()

    (site.folder / "fail").unlink()
    code, rows = site.catchup("run", "--cores", "2")
    assert (rows[GOOD]["state"], rows[GOOD]["text"], rows[GOOD]["new_raws"]) == ("done", "", 0), rows
    assert site.outputs() == {"measured": [GOOD], "measure_metadata": [GOOD]}
    assert site.again()[GOOD] == "done by the catch-up"
    assert not site.left()

    code, out, _ = site.ppctl("retry", GROUP, str(GOOD))
    assert code == 1
    assert f"the catch-up has processed it (run {RUN})" in " ".join(out.split())
    assert site.catchup("check")[1][GOOD]["state"] == "done"


def test_pipetask_does_the_same(site: Site) -> None:
    code, rows = site.catchup("run", "--with", "pipetask", "--cores", "2", "--detector", str(GOOD))
    assert (code, rows[GOOD]["state"]) == (0, "done"), rows
    assert site.outputs() == {"measured": [GOOD], "measure_metadata": [GOOD]}
    assert site.again()[GOOD] == "done by the catch-up"

    # Of another detector the central repo has no calibrations: there is no graph.
    code, rows = site.catchup("run", "--with", "pipetask", "--force", "--detector", str(PERMANENT))
    assert (code, rows[PERMANENT]["state"], rows[PERMANENT]["new_raws"]) == (1, "not_run", 1)
    assert "isr has not run: FileNotFoundError: Not enough datasets (0)" in rows[PERMANENT]["text"]


@pytest.mark.parametrize("kind", ["bps", "pipetask"])
def test_after_term_nothing_is_left_and_the_daemon_may_retry(site: Site, kind: str) -> None:
    (site.folder / "wait").touch()
    words = ("catchup", "run", "--with", kind, "--cores", "1", "--detector", str(GOOD))
    words += ("--config", str(site.node.path))
    with subprocess.Popen(site.command(*words), stderr=subprocess.PIPE, text=True) as running:
        try:
            wait_until(lambda: list(site.folder.glob("began-*")), LIMIT_S)
            assert site.again()[GOOD] == "in the catch-up"
            code, out, _ = site.ppctl("retry", GROUP, str(GOOD))
            assert (code, "the catch-up has it" in " ".join(out.split())) == (1, True)
            os.kill(running.pid, signal.SIGTERM)
            assert running.stderr is not None
            assert "ended by SIGTERM" in running.stderr.read()
            assert running.wait(LIMIT_S) == 1
        finally:
            running.kill()
    assert not site.left()
    assert site.again()[GOOD] == "may fail again"
    (site.folder / "wait").unlink()
    assert site.catchup("run", "--with", "pipetask", "--detector", str(GOOD))[1][GOOD]["state"] == "done"
