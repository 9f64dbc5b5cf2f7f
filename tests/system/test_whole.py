# SPDX-License-Identifier: BSD-3-Clause
"""The real programs with the demo camera's pipelines, used as people use them."""

import json
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import zmq

from ppdaemon.clock import Clock
from ppdaemon.ctl.client import Daemon
from ppdaemon.demo.delivery import Delivery
from ppdaemon.demo.night import NIGHT, PlannedVisit
from ppdaemon.demo.rules import SURVEYS, DemoRule
from ppdaemon.demo.services import DemoPaths, running
from ppdaemon.demo.telescope import SimulatedCamera
from ppdaemon.demo.visits import Cadence, plan_visits
from ppdaemon.errors import Unavailable
from ppdaemon.states import Outcome, Stage
from ppdaemon.testing.waiting import wait_until

# The first one makes the central repo, too.
pytestmark = pytest.mark.timeout(400)

ROOT = Path(__file__).parents[2]
DETECTOR = 4
TIMEOUT_S = 90.0
CADENCE = Cadence(every_s=60.0, lead_s=1.0, exposure_s=4.0, readout_s=0.5)
PLAIN = PlannedVisit(DemoRule.COMMISSIONING, "SingleFrame", "r_03")
ALERTING = PlannedVisit(DemoRule.IN_MAP, "ApPipe", "r_03", snaps=2)


@pytest.fixture
def places(tmp_path, socket_dir, demo_central):
    """Give the folders of a deployment with a copy of the central repo."""
    from ppdaemon.demo.keptcentral import copy_central_repo

    places = DemoPaths(tmp_path, socket_dir)
    copy_central_repo(demo_central, places.central)
    return places


class Observatory:
    """Announces and exposes, one visit after the other."""

    def __init__(self, places):
        self._places = places
        self._camera = SimulatedCamera(detectors=(DETECTOR,))
        self._delivery = Delivery(places.raws, Clock().tai)
        self._seq_num = 1
        self.daemon = Daemon(places.control)

    def plan(self, kind=PLAIN):
        """Plan a visit that was exposed just now."""
        (visit,) = plan_visits(
            1,
            Clock().tai() - 6.0,
            CADENCE,
            snaps=kind.snaps,
            filters=(kind.physical_filter,),
            pointing=kind.pointing,
            image_type=kind.image_type,
            program=SURVEYS[kind.rule],
            group=f"2026-11-22T03:25:{self._seq_num:02d}.000",
            first_seq_num=self._seq_num,
        )
        self._seq_num += kind.snaps
        return replace(visit, filter_announced=kind.filter_announced)

    def announce(self, fields):
        """Send an event as any program can: JSON over a plain REQ socket."""
        data = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
        with zmq.Context() as context, context.socket(zmq.REQ) as socket:
            socket.linger = 0
            socket.connect(self._places.submit)
            socket.send(data)
            assert socket.poll(30_000), "the relay does not answer"
            return json.loads(socket.recv())

    def expose(self, visit, spoil=lambda image: image):
        for plan in visit.exposures:
            for detector, path, image, sidecar in self._camera.read_out(plan):
                self._delivery.deliver(path, spoil(image), sidecar, detector)

    def connected(self):
        try:
            return self.daemon.status().relay.startswith("connected")
        except Unavailable:
            return False

    def row(self, visit):
        """Wait for the visit's outcome, and its export if there is one."""
        return wait_until(lambda: self._ended(visit), TIMEOUT_S, lambda: self.daemon.status())

    def _ended(self, visit):
        rows = [row for row in self.daemon.visits(100) if row.group == visit.group]
        last = max(rows, key=lambda row: row.attempt, default=None)
        if last is None or last.outcome is None:
            return None
        return last if last.outcome != Outcome.SUCCEEDED or Stage.CENTRAL in last.stages else None


def butler(*words):
    """Run the butler command as a user would."""
    program = Path(sys.executable).with_name("butler")
    return subprocess.run([program, *map(str, words)], capture_output=True, text=True, check=True).stdout


def test_one_configuration_gives_each_visit_of_a_night_its_pipeline(places):
    # Those of the demonstration, but for alerts only the visit with two snaps.
    kinds = [ALERTING, *(kind for kind in NIGHT if kind.pipeline != ALERTING.pipeline)]
    with running(places, 3, "test", detectors=str(DETECTOR)):
        telescope = Observatory(places)
        visits = [telescope.plan(kind) for kind in kinds]
        for visit in visits:
            reply = telescope.announce(visit.next_visit(Clock().tai()))
            assert (reply["status"], reply["detectors"]) == ("accepted", 1)
            assert telescope.announce(visit.next_visit(Clock().tai()))["status"] == "duplicate"
        for visit in visits:
            telescope.expose(visit)
        rows = [telescope.row(visit) for visit in visits]
        notes = [worker.note for worker in telescope.daemon.workers()]
        assert not any(notes), f"a pipeline changed its process: {notes}"
    for kind, row in zip(kinds, rows, strict=True):
        assert (row.outcome, Path(row.pipeline).stem) == (Outcome.SUCCEEDED, kind.pipeline), row
        assert ("ApPipe" in row.reason, kind.reason in row.reason) == (bool(kind.reason), True), row
        assert set(row.stages) == set(Stage), row
    assert len(rows[0].exposures) == 2
    day = str(visits[0].exposures[0].day_obs)
    chain = f"DemoCam/prompt/output-{day[:4]}-{day[4:6]}-{day[6:]}"
    for dataset_type, pipeline, count in (
        ("difference_image", "ApPipe", 2),
        ("visit_metrics", "SingleFrame", 3),
        ("calibration_residuals", "Calibration", 1),
    ):
        found = butler(
            "query-datasets",
            places.central,
            dataset_type,
            "--collections",
            chain,
            "--where",
            "instrument='DemoCam' and detector=4",
        )
        assert found.count(f"{chain}/{pipeline}/") == count, found
    assert len(list(places.alerts.glob("*.avro"))) == 2
    assert not list(places.ramdisk.glob("ppdaemon-*"))


def test_bad_input_gets_a_clear_answer_and_stops_nothing(places):
    with running(places, 3, "test", detectors=str(DETECTOR), image_timeout_s=8.0):
        telescope = Observatory(places)
        good = telescope.plan().next_visit(Clock().tai())
        for junk, word in (
            (b"not JSON", "JSON"),
            (b"\xff\xfe", "UTF-8"),
            (good | {"instrument": "OtherCam"}, "OtherCam"),
            (good | {"detector": "two"}, "detector"),
        ):
            reply = telescope.announce(junk)
            assert reply["status"] == "rejected"
            assert word in reply["reason"], reply
        cut = telescope.plan()
        telescope.announce(cut.next_visit(Clock().tai()))
        telescope.expose(cut, spoil=lambda image: image[:-5000])
        row = telescope.row(cut)
        assert row.outcome == Outcome.BAD_RAW
        assert row.reason
        missing = telescope.plan()
        telescope.announce(missing.next_visit(Clock().tai()) | {"duration": 0.0})
        assert telescope.row(missing).outcome == Outcome.NO_IMAGE
        cancelled = telescope.plan()
        telescope.announce(cancelled.next_visit(Clock().tai()))
        assert telescope.announce(cancelled.cancellation(Clock().tai()))["status"] == "accepted"
        assert telescope.row(cancelled).outcome == Outcome.CANCELLED
        send = [
            sys.executable,
            ROOT / "tools" / "send_visit.py",
            "--relay",
            places.submit,
            "--instrument",
            "DemoCam",
        ]
        send += ["--survey", "unknown", "--wait", "--json"]
        waited = subprocess.run(send, capture_output=True, text=True, timeout=TIMEOUT_S)
        assert "ignored" in waited.stdout, waited
        last = telescope.plan()
        telescope.announce(last.next_visit(Clock().tai()))
        telescope.expose(last)
        assert telescope.row(last).outcome == Outcome.SUCCEEDED


@contextmanager
def programs(*commands):
    """Run programs, and stop them in the reverse order."""
    running = []
    try:
        for command in commands:
            running.append(subprocess.Popen([sys.executable, "-m", *map(str, command)], cwd=ROOT))
        yield running
    finally:
        for process in reversed(running):
            process.terminate()
            assert process.wait(30) == 0


def test_the_configurations_in_etc_run_with_only_their_paths_changed(places):
    changes = {
        "/etc/ppdaemon/pipelines": ROOT / "ppdaemon" / "demo" / "pipelines",
        "/var/lib/ppdaemon": places.scratch / "lib",
        "/run/ppdaemon/control.sock": places.control,
        "/run/ppramdisk": places.ramdisk,
        "/data/raw": places.raws,
        "/srv/ppdaemon/repo": places.central,
        "/srv/ppdaemon/alerts": places.alerts,
        "tcp://127.0.0.1:5570": places.submit,
        "tcp://127.0.0.1:5571": f"ipc://{places.ramdisk}/nodes.sock",
    }
    for folder in (places.raws, places.alerts):
        folder.mkdir()
    files = {}
    for name in ("pprelay", "ppdaemon"):
        text = (ROOT / "etc" / f"{name}.yaml").read_text()
        for old, new in changes.items():
            text = text.replace(old, str(new))
        files[name] = places.scratch / f"{name}.yaml"
        files[name].write_text(text)
    with programs(
        ("ppdaemon.relay.app", "run", "--config", files["pprelay"]),
        ("ppdaemon.node.app", "run", "--config", files["ppdaemon"]),
    ):
        telescope = Observatory(places)
        wait_until(telescope.connected, TIMEOUT_S)
        visit = telescope.plan(replace(ALERTING, snaps=1))
        assert telescope.announce(visit.next_visit(Clock().tai()))["status"] == "accepted"
        wait_until(lambda: len(telescope.daemon.visits(100)) == 9, TIMEOUT_S)
        telescope.expose(visit)

        def mine():
            return next(row for row in telescope.daemon.visits(100) if row.detector == DETECTOR)

        wait_until(lambda: Stage.CENTRAL in mine().stages, TIMEOUT_S, lambda: mine())
        assert (mine().outcome, Path(mine().pipeline).stem) == (Outcome.SUCCEEDED, "ApPipe")


def test_a_configuration_without_a_key_ends_with_its_name(tmp_path):
    path = tmp_path / "node.yaml"
    path.write_text("node: {name: n}\narrivals: {roots: [/tmp]}\n")
    done = subprocess.run(
        [sys.executable, "-m", "ppdaemon.node.app", "check-config", "--config", path],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 78
    assert f"{path}:1: node: missing keys state_dir, ramdisk, " in done.stderr
    assert f"{path}:1: pipelines: missing key" in done.stderr
