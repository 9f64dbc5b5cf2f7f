# SPDX-License-Identifier: BSD-3-Clause
"""What is measured: central repos, raws, and the workers that are compared."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from enginebench.camera import make_central, write_pipeline
from enginebench.context import DETECTOR, Setup
from ppdaemon.demo.central import make_apdb, make_central_repo
from ppdaemon.demo.geometry import CAMERA_NAME
from ppdaemon.demo.raws import detector_names, encode_blank, publish, raw_path
from ppdaemon.demo.rules import DemoRule, main_rules, preprocessing_rules
from ppdaemon.demo.services import Places, node_config
from ppdaemon.demo.telescope import SimulatedCamera
from ppdaemon.demo.visits import Cadence, VisitPlan, plan_visits

__all__ = ("SECTIONS", "Ground", "Section", "plan", "prepare")

_BEGIN_TAI_S = 1795317880.0
"""2026-11-22T03:24:40 TAI; the night is long enough for any number of visits."""
_CLASS = "enginebench.camera.BlankCam"
_SMALL = {"image0:rows": 500, "image0:columns": 509}


@dataclass(frozen=True, slots=True)
class Section:
    """Workers that do the same visits."""

    name: str
    pipeline: str
    """A pipeline of `enginebench.camera`, or the demo's ``ApPipe``."""
    task_count: int
    exported: Mapping[str, tuple[str, ...]]
    """Suffix of the names of the figures, and dataset types."""
    engines: tuple[str, ...]
    """``direct_2`` is ``direct`` with two processes."""
    snaps: int = 1

    @property
    def is_idle(self) -> bool:
        """Whether the tasks do nothing (`bool`)."""
        return self.name in ("empty", "twenty")

    @property
    def blank(self) -> bool:
        """Whether raws are not rendered (`bool`)."""
        return self.pipeline != "ApPipe"

    @property
    def workers(self) -> dict[str, tuple[str, tuple[str, ...]]]:
        """Engine and exported types of each worker by name (`dict`)."""
        return {
            "floor" if engine == "floor" else engine + suffix: (engine, types)
            for suffix, types in self.exported.items()
            for engine in self.engines
        }


_ALL = (".*",)
_METADATA = (".*_metadata",)
SECTIONS: Mapping[str, Section] = {
    each.name: each
    for each in (
        Section("empty", "Five", 5, {"": _ALL}, ("direct", "separable", "pipetask")),
        Section("twenty", "Twenty", 20, {"_20": _ALL}, ("direct", "separable")),
        Section(
            "images",
            "Images",
            5,
            {"_images": _METADATA, "_images_export": (*_METADATA, "image_4")},
            ("direct", "separable"),
        ),
        Section("appipe", "ApPipe", 6, {"_appipe": ()}, ("direct", "floor", "separable")),
        Section("snaps", "ApPipe", 12, {"_snaps": ()}, ("direct", "direct_2"), snaps=2),
    )
}
"""By name, in the order of measuring."""


@dataclass(frozen=True, slots=True)
class Ground:
    """Where a section is measured."""

    disk: Path
    ramdisk: Path
    quick: bool = False
    """Whether images are small."""

    @property
    def raws(self) -> Path:
        """Where raws lie (`pathlib.Path`)."""
        return self.disk / "raws"


def plan(count: int, snaps: int) -> list[VisitPlan]:
    """Return the visits that all workers do.

    Parameters
    ----------
    count : `int`
        How many.
    snaps : `int`
        Exposures in each.

    Returns
    -------
    visits : `list` [`~ppdaemon.demo.visits.VisitPlan`]
        In order.
    """
    return plan_visits(count, _BEGIN_TAI_S, Cadence(every_s=35.0 * snaps), snaps=snaps)


def prepare(
    section: Section, ground: Ground, visits: Sequence[VisitPlan], progress: Callable[[str], None]
) -> dict[str, Setup]:
    """Make central repos and raws; takes most of a minute for rendered ones.

    Parameters
    ----------
    section : `Section`
        What is measured.
    ground : `Ground`
        Where.
    visits : `~collections.abc.Sequence` [`~ppdaemon.demo.visits.VisitPlan`]
        The visits.
    progress : `~collections.abc.Callable`
        Called with a line for each step.

    Returns
    -------
    setups : `dict` [`str`, `~enginebench.context.Setup`]
        By name of the worker. Each has a central repo and an alert database
        of its own, so that none does what another has done.
    """
    _write_raws(section, ground.raws, visits)
    progress(f"{len(visits)} raws")
    central = ground.disk / "central"
    if section.blank:
        make_central(central)
    else:
        bands = sorted({visit.exposures[0].physical_filter.split("_")[0] for visit in visits})
        make_central_repo(central, bands=bands, detectors=[DETECTOR], progress=progress)
    make = _blank_setup if section.blank else _demo_setup
    return {name: make(section, ground, name, *worker) for name, worker in section.workers.items()}


def _write_raws(section: Section, root: Path, visits: Sequence[VisitPlan]) -> None:
    camera = SimulatedCamera(CAMERA_NAME, [DETECTOR])
    root.mkdir()
    for visit in visits:
        for exposure in visit.exposures:
            name = detector_names(CAMERA_NAME)[DETECTOR][0]
            if section.blank:
                path, (image, sidecar) = raw_path(exposure, name), encode_blank(exposure, DETECTOR, name)
            else:
                ((_, path, image, sidecar),) = camera.read_out(exposure)
            publish((root / path).with_suffix(".json"), sidecar)
            publish(root / path, image)


def _places(ground: Ground, name: str) -> Places:
    """Give a worker its own folders, and copies of the central repo."""
    places = Places(ground.disk / name, ground.ramdisk / name)
    shutil.copytree(ground.disk / "central", places.central)
    return places


def _config(places: Places, ground: Ground, engine: str) -> dict[str, Any]:
    config = node_config(places, 1)
    config["arrivals"]["roots"] = [str(ground.raws)]
    kind, _, processes = engine.partition("_")
    config["engine"] |= {"kind": "direct" if kind == "floor" else kind, "processes": int(processes or 1)}
    del config["workers"]["memory"]  # the defaults, for real detectors
    return config


def _blank_setup(section: Section, ground: Ground, name: str, engine: str, types: tuple[str, ...]) -> Setup:
    places = _places(ground, name)
    pipeline = write_pipeline(places.scratch, section.pipeline)
    config = _config(places, ground, engine)
    config["engine"]["no_return"] = []
    config["butler"] |= {"instrument_class": {CAMERA_NAME: _CLASS}, "skymap": None}
    small = _SMALL if section.pipeline == "Images" and ground.quick else {}
    config["pipelines"] = {"main": [{"pipelines": [pipeline]}], "overrides": small}
    config["export"]["types"] = list(types)
    return Setup(config, places.ramdisk, places.scratch / "spool", (pipeline,))


def _demo_setup(section: Section, ground: Ground, name: str, engine: str, types: tuple[str, ...]) -> Setup:
    """Set up the demo as it is; it says itself what is exported."""
    places = _places(ground, name)
    for left in places.central.glob("apdb.*"):
        left.unlink()
    make_apdb(places.central)
    places.alerts.mkdir()
    alert_map = places.central / "alert_map.fits"
    main = main_rules(alert_map)[list(DemoRule).index(DemoRule.IN_MAP)]["pipelines"][:1]
    before = preprocessing_rules(alert_map)[0]["pipelines"]
    config = _config(places, ground, engine)
    return Setup(
        config,
        places.ramdisk,
        places.scratch / "spool",
        tuple(main),
        tuple(before),
        by_hand=engine == "floor",
    )
