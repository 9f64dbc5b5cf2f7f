# SPDX-License-Identifier: BSD-3-Clause
"""Rules about the sky in a running daemon: per detector, and anew at a reload."""

import numpy as np
import pytest
from node import running
from skymapfiles import write_map

from ppdaemon.ctl.client import Daemon
from ppdaemon.errors import ConfigError
from ppdaemon.reports import ReloadRequest
from ppdaemon.states import Outcome
from ppdaemon.testing.waiting import TIMEOUT_S

NORTH = np.array([1] * 4 + [16] * 4 + [0] * 4, dtype=np.uint8)
ON_SKY = {"coordinateSystem": 2, "rotationSystem": 2}


@pytest.mark.slow
def test_a_map_selects_detectors_and_is_read_again_at_a_reload(tmp_path, socket_dir):
    sky_map = tmp_path / "map.fits"
    write_map(sky_map, NORTH)
    with running(tmp_path, socket_dir) as node:
        rule = {"binary-map": str(sky_map), "pipelines": [str(tmp_path / "Sky.yaml")]}
        (tmp_path / "Sky.yaml").touch()
        node.rewrite(pipelines={"main": [rule]})
        reload(node.daemon)
        # At this right ascension the equator is the border; the middle of
        # detector 1 is 0.06 degrees south of that of detector 4.
        node.relay.reserve("g1", detectors=(1, 4), position=[45.0, 0.03], **ON_SKY)
        node.land("g1", detector=4)
        assert node.relay.outcome("g1", 4).outcome == Outcome.SUCCEEDED
        ignored = node.relay.outcome("g1", 1)
        assert ignored.outcome == Outcome.IGNORED
        assert ignored.reason.startswith("no rule matches (survey '', filters '', ra 45.0000, dec -0.029")

        sky_map.unlink()
        write_map(sky_map, 1 - np.minimum(NORTH, 1))
        reload(node.daemon)
        node.relay.reserve("g2", position=[45.0, 60.0], **ON_SKY)
        assert node.relay.outcome("g2").outcome == Outcome.IGNORED

        sky_map.write_bytes(b"no map")
        refusal = refused(node.daemon)
        assert "pipelines.main.0.binary-map" in refusal
        node.relay.reserve("g3", position=[45.0, -60.0], **ON_SKY)
        node.land("g3", number=3)
        assert node.relay.outcome("g3").outcome == Outcome.SUCCEEDED


@pytest.mark.slow
def test_a_position_that_cannot_be_converted_is_recorded_in_the_journal(tmp_path, socket_dir):
    with running(tmp_path, socket_dir) as node:
        node.rewrite(pipelines={"main": [{"dec": {"min": -90, "max": 90}, "pipelines": []}]})
        reload(node.daemon)
        node.relay.reserve("g1", coordinateSystem=3, position=[120.0, 60.0], startTime=1763781946.0)
        outcome = node.relay.outcome("g1")
        # The simulated camera has no site.
        assert (outcome.outcome, outcome.reason) == (
            Outcome.IGNORED,
            "no rule matches (survey '', filters '', OBSERVED position 120, 60)",
        )


def reload(daemon: Daemon) -> None:
    daemon.ask(ReloadRequest(), timeout_s=TIMEOUT_S)


def refused(daemon: Daemon) -> str:
    try:
        reload(daemon)
    except ConfigError as error:
        return str(error)
    return ""
