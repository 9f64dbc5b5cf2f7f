# SPDX-License-Identifier: BSD-3-Clause
"""The demo's pipeline rules, and the sky map that one of them uses."""

import enum
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import hpgeom
import numpy as np
from astropy.io import fits

from ppdaemon.demo.sky import Sky

__all__ = (
    "ALERT_MAP",
    "PIPELINES",
    "SURVEYS",
    "DemoRule",
    "main_rules",
    "preprocessing_rules",
    "write_alert_map",
)

ALERT_MAP = "alert_map.fits"
"""File name of the map below the central repo's root."""

_NSIDE = 64
"""Cells of 0.9 degrees."""
_RADIUS_DEG = 0.5
"""The map has each cell this close to the center of the field: more than the camera sees."""


class DemoRule(enum.StrEnum):
    """The rules for main pipelines, in order."""

    IN_MAP = "alerts, in the map"
    ELSEWHERE = "alerts, elsewhere"
    COMMISSIONING = "commissioning"
    CALIBRATION = "calibration images"


SURVEYS: Mapping[DemoRule, str] = {
    DemoRule.IN_MAP: "BLOCK-365",
    DemoRule.ELSEWHERE: "BLOCK-365",
    DemoRule.COMMISSIONING: "BLOCK-T60",
    DemoRule.CALIBRATION: "BLOCK-295",
}
"""The survey of the visits that each rule applies to."""

PIPELINES: Mapping[DemoRule, tuple[str, ...]] = {
    DemoRule.IN_MAP: ("ApPipe", "SingleFrame"),
    DemoRule.ELSEWHERE: ("SingleFrame",),
    DemoRule.COMMISSIONING: ("SingleFrame",),
    DemoRule.CALIBRATION: ("Calibration",),
}
"""Pipelines in order of preference."""


def main_rules(alert_map: Path) -> list[dict[str, Any]]:
    """Return ``pipelines.main`` of the daemon's configuration, one rule per `DemoRule`."""
    surveys = {rule: {"survey": survey} for rule, survey in SURVEYS.items()}
    conditions: Mapping[DemoRule, dict[str, Any]] = surveys | {
        DemoRule.IN_MAP: surveys[DemoRule.IN_MAP] | {"binary-map": str(alert_map)},
        DemoRule.CALIBRATION: surveys[DemoRule.CALIBRATION] | {"image-type": "calibration"},
    }
    return [conditions[rule] | {"pipelines": _files(*PIPELINES[rule])} for rule in DemoRule]


def preprocessing_rules(alert_map: Path) -> list[dict[str, Any]]:
    """Return ``pipelines.preprocessing``: one rule, for visits that may produce alerts."""
    condition = {"survey": SURVEYS[DemoRule.IN_MAP], "binary-map": str(alert_map)}
    return [condition | {"pipelines": _files("Preprocess")}]


def _files(*names: str) -> list[str]:
    folder = resources.files("ppdaemon.demo") / "pipelines"
    return [str(folder / f"{name}.yaml") for name in names]


def write_alert_map(path: Path, sky: Sky) -> None:
    """Write a HEALPix map, in the format of healpy, of the area in which alerts are made."""
    cells = np.zeros(hpgeom.nside_to_npixel(_NSIDE), dtype=np.uint8)
    cells[hpgeom.query_circle(_NSIDE, sky.ra_deg, sky.dec_deg, _RADIUS_DEG, inclusive=True)] = 1
    table = fits.BinTableHDU.from_columns([fits.Column("ALERTS", "B", array=cells)])
    table.header.update(
        PIXTYPE="HEALPIX",
        ORDERING="NESTED",
        COORDSYS="C",
        NSIDE=_NSIDE,
        FIRSTPIX=0,
        LASTPIX=len(cells) - 1,
        INDXSCHM="IMPLICIT",
        OBJECT="FULLSKY",
    )
    table.writeto(path)
