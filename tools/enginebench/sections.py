# SPDX-License-Identifier: BSD-3-Clause
"""The sections of the bench: central repos, raws, and the workers that are compared."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benching.cli import progress

from enginebench import fieldsize, fullsize
from enginebench.camera import make_central, write_pipeline
from enginebench.worker import DETECTOR, Setup
from ppdaemon.demo.central import make_apdb, make_central_repo
from ppdaemon.demo.geometry import CAMERA_NAME, FILTER_BANDS
from ppdaemon.demo.plan import ExposurePlan
from ppdaemon.demo.raws import detector_names, encode_blank, publish, raw_path
from ppdaemon.demo.rules import DemoRule, main_rules, preprocessing_rules
from ppdaemon.demo.services import DemoPaths, node_config
from ppdaemon.demo.telescope import SimulatedCamera
from ppdaemon.demo.visits import Cadence, VisitPlan, plan_visits

_BEGIN_TAI_S = 1795317880.0
"""2026-11-22T03:24:40 TAI; the night is long enough for any number of visits."""
_FULL_SIZE = {"Detector": fullsize.TASKS, "Field": fieldsize.TASKS}
"""Tasks of the pipelines that read whole detectors."""
_CLASSES = {
    **dict.fromkeys(_FULL_SIZE, "enginebench.fullsize.FullSizeCam"),
    **dict.fromkeys(("Five", "Twenty", "Images"), "enginebench.camera.BlankCam"),
}
"""Instrument classes by pipeline; the demo has its own."""


@dataclass(frozen=True, slots=True)
class Section:
    """Workers that do the same visits."""

    name: str
    pipeline: str
    """A pipeline of `enginebench.camera`, ``Detector``, ``Field``, or the demo's ``ApPipe``."""
    task_count: int
    exported: Mapping[str, tuple[str, ...]]
    """Exported dataset types by suffix of the workers' names."""
    engines: tuple[str, ...]
    """``direct_2`` is ``direct`` with two processes."""
    snaps: int = 1

    @property
    def is_idle(self) -> bool:
        """Whether the tasks do nothing."""
        return self.name in ("empty", "twenty")

    @property
    def blank(self) -> bool:
        """Whether raws are not rendered."""
        return self.pipeline != "ApPipe"

    @property
    def workers(self) -> dict[str, tuple[str, tuple[str, ...]]]:
        """Engine and exported types of each worker by name."""
        return {
            engine + suffix: (engine, types)
            for suffix, types in self.exported.items()
            for engine in self.engines
        }


_ALL = (".*",)
_METADATA = (".*_metadata",)
SECTIONS: Mapping[str, Section] = {
    each.name: each
    for each in (
        Section("empty", "Five", 5, {"": _ALL}, ("direct", "floor", "separable", "pipetask")),
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
        Section(
            "detector",
            "Detector",
            4,
            {"_detector": (*_METADATA, "difference", "sources")},
            ("direct", "floor"),
        ),
        Section(
            "field",
            "Field",
            10,
            {"_field": (*_METADATA, "difference_image", "dia_source_apdb", "alerts")},
            ("direct", "floor", "separable"),
        ),
    )
}
"""By name, in the order of measuring."""


@dataclass(frozen=True, slots=True)
class SectionFolders:
    """The folders of a section."""

    disk: Path
    ramdisk: Path
    small: bool = False
    """Whether images are small, to test the bench."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of a detector's image, but for the demo's."""
        return fullsize.SMALL if self.small else fullsize.SHAPE

    @property
    def raws(self) -> Path:
        """The raw root."""
        return self.disk / "raws"


def plan(count: int, snaps: int) -> list[VisitPlan]:
    """Return the visits that all workers do."""
    return plan_visits(count, _BEGIN_TAI_S, Cadence(every_s=35.0 * snaps), snaps=snaps)


def prepare(section: Section, folders: SectionFolders, visits: Sequence[VisitPlan]) -> dict[str, Setup]:
    """Make central repos and raws; return the setup of each worker by name.

    Each worker has its own central repo and alert database, so that none finds
    what another has stored. Rendering the raws takes most of a minute.
    """
    _write_raws(section, folders, visits)
    progress(f"{len(visits)} raws")
    central = folders.disk / "central"
    filters = sorted({visit.exposures[0].physical_filter for visit in visits})
    if section.pipeline in _FULL_SIZE:
        fullsize.make_central(central, DETECTOR, filters, folders.shape)
    elif section.blank:
        make_central(central)
    else:
        bands = [FILTER_BANDS[name] for name in filters]
        make_central_repo(central, bands=bands, detectors=[DETECTOR], progress=progress)
    make = _blank_setup if section.blank else _demo_setup
    return {name: make(section, folders, name, *worker) for name, worker in section.workers.items()}


def _write_raws(section: Section, folders: SectionFolders, visits: Sequence[VisitPlan]) -> None:
    folders.raws.mkdir()
    name = detector_names(CAMERA_NAME)[DETECTOR][0]
    encode = _encoder(section, folders)
    for visit in visits:
        for exposure in visit.exposures:
            image, sidecar = encode(exposure, DETECTOR, name)
            path = folders.raws / raw_path(exposure, name)
            publish(path.with_suffix(".json"), sidecar)
            publish(path, image)


def _encoder(
    section: Section, folders: SectionFolders
) -> Callable[[ExposurePlan, int, str], tuple[bytes, bytes]]:
    """Return the function that makes raw and sidecar of a detector."""
    if section.pipeline in _FULL_SIZE:
        return fullsize.FullSizeRaws(folders.shape).encode
    if section.blank:
        return encode_blank
    camera = SimulatedCamera(CAMERA_NAME, [DETECTOR])

    def render(plan: ExposurePlan, _detector: int, _name: str) -> tuple[bytes, bytes]:
        ((_, _, image, sidecar),) = camera.read_out(plan)
        return image, sidecar

    return render


def _worker_paths(folders: SectionFolders, name: str) -> DemoPaths:
    """Return the folders of a worker, with a copy of the central repo."""
    paths = DemoPaths(folders.disk / name, folders.ramdisk / name)
    shutil.copytree(folders.disk / "central", paths.central)
    return paths


def _config(paths: DemoPaths, folders: SectionFolders, engine: str) -> dict[str, Any]:
    config = node_config(paths, 1)
    config["arrivals"]["roots"] = [str(folders.raws)]
    kind, _, processes = engine.partition("_")
    config["engine"] |= {"kind": "direct" if kind == "floor" else kind, "processes": int(processes or 1)}
    del config["workers"]["memory"]  # the defaults, for real detectors
    # A worker reports the times of its tasks if there are traces, which nothing here sends.
    config["traces"] = {"endpoint": "http://127.0.0.1:9/v1/traces"}
    return config


def _blank_setup(
    section: Section, folders: SectionFolders, name: str, engine: str, types: tuple[str, ...]
) -> Setup:
    paths = _worker_paths(folders, name)
    tasks = _FULL_SIZE.get(section.pipeline, ())
    pipeline = write_pipeline(paths.scratch, section.pipeline, tasks)
    config = _config(paths, folders, engine)
    config["engine"]["no_return"] = []
    skymap = fullsize.SKYMAP if tasks else None
    config["butler"] |= {"instrument_class": {CAMERA_NAME: _CLASSES[section.pipeline]}, "skymap": skymap}
    size = dict(zip(("image0:rows", "image0:columns"), folders.shape, strict=True))
    overrides = size if section.pipeline == "Images" else {}
    config["pipelines"] = {"main": [{"pipelines": [pipeline]}], "overrides": overrides}
    config["export"]["types"] = list(types)
    return Setup(config, paths.ramdisk, paths.scratch / "spool", (pipeline,), tasks_only=engine == "floor")


def _demo_setup(
    section: Section, folders: SectionFolders, name: str, engine: str, types: tuple[str, ...]
) -> Setup:
    """Set up a worker for the demo's pipelines, exports and overrides."""
    paths = _worker_paths(folders, name)
    for database_file in paths.central.glob("apdb.*"):
        database_file.unlink()
    make_apdb(paths.central)
    paths.alerts.mkdir()
    alert_map = paths.central / "alert_map.fits"
    main = main_rules(alert_map)[list(DemoRule).index(DemoRule.IN_MAP)]["pipelines"][:1]
    preprocessing = preprocessing_rules(alert_map)[0]["pipelines"]
    config = _config(paths, folders, engine)
    return Setup(
        config,
        paths.ramdisk,
        paths.scratch / "spool",
        tuple(main),
        tuple(preprocessing),
        tasks_only=engine == "floor",
    )
