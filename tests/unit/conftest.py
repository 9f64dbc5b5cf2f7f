# SPDX-License-Identifier: BSD-3-Clause
"""A node's configuration for tests that start nothing."""

import pytest

from ppdaemon.config import NodeConfig


@pytest.fixture
def config(tmp_path):
    return NodeConfig.model_validate(
        {
            "node": {
                "name": "n1",
                "state_dir": tmp_path,
                "ramdisk": tmp_path,
                "control": tmp_path / "control",
                "instruments": {"DemoCam": "0-8"},
            },
            "arrivals": {"roots": [tmp_path]},
            "workers": {"work": "scripted"},
            "pipelines": {"main": [{"survey": "new", "pipelines": ["/p/Any.yaml"]}]},
        }
    )
