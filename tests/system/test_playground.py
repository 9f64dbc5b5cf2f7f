# SPDX-License-Identifier: BSD-3-Clause
"""``ppctl demo --stay``, as a person uses it: visits are taken until Ctrl-C, and nothing is left."""

import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from ppdaemon.ctl.client import Daemon
from ppdaemon.testing.waiting import wait_until


@pytest.mark.slow
def test_a_playground_takes_visits_until_it_is_interrupted(demo_central, tmp_path):
    output = tmp_path / "playground"
    shutil.copytree(demo_central, output / "central")
    printed = tmp_path / "printed"
    with printed.open("wb") as stream:
        play = subprocess.Popen(
            [sys.executable, "-m", "ppdaemon.demo", "--stay", "--workers", "9", "--output", output],
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    try:
        wait_until(
            lambda: play.poll() is not None or "of 9 detectors done" in printed.read_text(),
            90,
            printed.read_text,
        )
        assert play.poll() is None, printed.read_text()
        control = Path(re.search(r"--socket (\S+) top$", printed.read_text(), re.MULTILINE)[1])
        status = Daemon(control).status()
        children = psutil.Process(play.pid).children(recursive=True)
    finally:
        play.send_signal(signal.SIGTERM)  # as Ctrl-C, which a process in the background may ignore
        code = play.wait(90)
    assert code == 0, printed.read_text()
    assert status.relay.startswith("connected")
    assert "left over" not in printed.read_text()
    assert not [child for child in children if child.is_running()]
    assert not control.parent.exists()
    assert {"central", "alerts", "node", "relay", "ppdaemon.log", "pprelay.log"} <= {
        each.name for each in output.iterdir()
    }
    assert not (output / "raw").exists()
