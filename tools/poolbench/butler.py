# SPDX-License-Identifier: BSD-3-Clause
"""A small central repo, and the configuration of workers with the work of the Butler."""

from importlib import resources
from pathlib import Path
from typing import Any

INSTRUMENT = "DemoCam"
PRELOAD = tuple(
    f"ppdaemon.demo.tasks.{name}"
    for name in ("isr", "calibrate", "subtract", "detect", "associate", "alerts", "metrics")
)


def make_central(root: Path) -> None:
    """Make a central repo that contains only its instrument."""
    # Imported only here: the other measurements are of processes without LSST code.
    from lsst.daf.butler import Butler

    from ppdaemon.demo.instrument import DemoCam

    with Butler.from_config(Butler.makeRepo(root), writeable=True) as butler:
        DemoCam().register(butler.registry)


def butler_parts(central: Path) -> dict[str, Any]:
    """Return the parts of a configuration that work with the Butler needs.

    The template repo gets the dataset types of a complete alert pipeline.
    """
    pipeline = resources.files("ppdaemon.demo") / "pipelines" / "ApPipe.yaml"
    return {
        "butler": {
            "central": str(central),
            "instrument_class": {INSTRUMENT: "ppdaemon.demo.instrument.DemoCam"},
        },
        "pipelines": {"main": [{"pipelines": [str(pipeline)]}]},
    }
