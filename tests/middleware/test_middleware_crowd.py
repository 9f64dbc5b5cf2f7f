# SPDX-License-Identifier: BSD-3-Clause
"""All workers of a host in the central repo at once, and its exporter too."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from centrals import Central, make_few, outputs
from postgres import PostgresServer, running_server

from ppdaemon.environment import CHILD_ENVIRONMENT

pytest_plugins = ("toyfixtures", "dbfixtures")

DETECTORS_OF_LSSTCAM = 205
CORES_FOR_ALL = 8
"""205 preloads are about a minute of one core's work."""


def crowd(central: Central, folder: Path, workers: int, *spools: Path) -> dict[str, Any]:
    """Run `crowd.py`; return its result."""
    here = Path(__file__).parent
    path = os.pathsep.join(map(str, (here.parents[1], here.parent, here)))
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, here / "crowd.py", central.root, folder, str(workers), *spools],
        env=os.environ | CHILD_ENVIRONMENT | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_exporter_and_20_preloading_workers_do_not_lock_each_other_out(
    central: Central, spools: list[Path], tmp_path: Path
) -> None:
    result = crowd(central, tmp_path / "crowd", 20, *spools)
    assert result["errors"] == []
    assert result["prepared"] == 20
    assert len(result["exports"][0]) == len(spools)
    assert [detector for detector, _ in outputs(central, "toy_image")] == [1, 2]


@pytest.mark.slow
def test_workers_that_wait_for_images_hold_no_connection(tmp_path: Path) -> None:
    """A host has more workers than a server has connections: here 15 and 10."""
    with running_server(max_connections=10) as server:
        result = crowd(make_few(tmp_path / "central", server), tmp_path / "crowd", 15)
        assert result["errors"] == []
        assert result["prepared"] == 15


@pytest.mark.skipif(
    (os.cpu_count() or 1) < CORES_FOR_ALL, reason=f"205 preloads at once take {CORES_FOR_ALL} cores"
)
def test_all_detectors_of_lsstcam_preload_at_once(
    central: Central, server: PostgresServer | None, tmp_path: Path
) -> None:
    result = crowd(central, tmp_path / "crowd", DETECTORS_OF_LSSTCAM)
    assert result["errors"] == []
    assert result["prepared"] == DETECTORS_OF_LSSTCAM
