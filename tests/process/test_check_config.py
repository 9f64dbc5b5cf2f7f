# SPDX-License-Identifier: BSD-3-Clause
"""``ppdaemon check-config`` as a user runs it, on rules that cannot be used."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from skymapfiles import write_map

from ppdaemon.states import ExitCode

CONFIG = """\
node:
  name: n1
  state_dir: {folder}/state
  ramdisk: {folder}
  control: {folder}/control
  instruments: {{DemoCam: 0-8}}
workers: {{work: ppdaemon.testing.work}}
arrivals: {{roots: ["{folder}"]}}
pipelines:
  main:
    - survey: first
      binary-map: $MAPS/map.fits
      pipelines:
        - {folder}/Ap.yaml
    - pipelines: None
    - survey: last
      pipelines: None
"""


def check(folder: Path, *, maps: Path | None) -> subprocess.CompletedProcess[str]:
    (folder / "Ap.yaml").touch()
    path = folder / "c.yaml"
    path.write_text(CONFIG.format(folder=folder))
    environment = {name: value for name, value in os.environ.items() if name != "MAPS"}
    if maps is not None:
        environment["MAPS"] = str(maps)
    command = [sys.executable, "-m", "ppdaemon.node.app", "check-config", "--config", str(path)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_a_good_map_is_good_and_a_rule_never_reached_is_a_warning(tmp_path: Path) -> None:
    write_map(tmp_path / "map.fits", np.zeros(12, dtype=np.uint8))
    done = check(tmp_path, maps=tmp_path)
    assert done.returncode == ExitCode.OK
    assert done.stdout == f"{tmp_path}/c.yaml: valid, node n1\n"
    # Tests are on a RAM disk, and the host may have less memory than the default limit.
    (warning,) = (line for line in done.stderr.splitlines() if "pipelines" in line)
    assert warning == (
        f"ppdaemon: warning: {tmp_path}/c.yaml:16: pipelines.main.2: never used: "
        "pipelines.main.1 matches all its visits"
    )


def test_a_bad_map_ends_with_the_line_of_its_rule(tmp_path: Path) -> None:
    write_map(tmp_path / "map.fits", np.full(12, 7, dtype=np.uint8))
    done = check(tmp_path, maps=tmp_path)
    assert done.returncode == ExitCode.CONFIG
    message = f"{tmp_path}/map.fits: cell 0 is 7, not 0, 1 or 16"
    assert done.stderr == f"ppdaemon: {tmp_path}/c.yaml:12: pipelines.main.0.binary-map: {message}\n"


def test_a_variable_that_is_not_set_ends_with_the_line_of_its_rule(tmp_path: Path) -> None:
    done = check(tmp_path, maps=None)
    assert done.returncode == ExitCode.CONFIG
    assert f"{tmp_path}/c.yaml:12: pipelines.main.0.binary-map: $MAPS/map.fits" in done.stderr
    assert "'MAPS' is not set" in done.stderr
