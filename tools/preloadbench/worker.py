# SPDX-License-Identifier: BSD-3-Clause
"""One worker of the bench: a process with its own repo and the host's cache."""

import gc
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import signature
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import astropy.time
from lsst.daf.butler import Butler

from ppdaemon.clock import Clock
from ppdaemon.config import ButlerConfig
from ppdaemon.messages import Pipelines, Prepare
from ppdaemon.middleware.butler.central import CentralReader
from ppdaemon.middleware.butler.repo import LocalRepo, make_template
from ppdaemon.middleware.butler.timings import Timings
from ppdaemon.middleware.pipelines.graph import PipelineLibrary, dataset_types_of, load_pipeline
from ppdaemon.middleware.preload.cache import SharedCache
from ppdaemon.middleware.preload.preload import Preload
from ppdaemon.middleware.raws.regions import footprint_of
from ppdaemon.middleware.work import set_up_libraries
from ppdaemon.visit import read_next_visit
from preloadbench.repo import COLLECTIONS, DEC_DEG, RA_DEG, SKYMAP
from preloadbench.survey import CAMERA, OBSERVED, SurveyCam, load_survey_camera

GENERATION = 1
"""Of the configuration."""

_BEGIN_TAI = astropy.time.Time("2026-11-23T03:25:16", scale="tai").unix_tai
_CACHE_MAX = 100_000_000_000


@dataclass(frozen=True, slots=True)
class Host:
    """The folders and pipelines that the workers of one host share."""

    central: Path
    ramdisk: Path
    """A node's folder: cache, template and repos; empty at the start."""
    pipelines: tuple[str, ...]
    detectors: int
    image_bytes: int = 0
    """Size of a calibration image or a template."""

    @property
    def template(self) -> Path:
        """Folder of the template repo."""
        return self.ramdisk / f"template-{GENERATION}"

    @property
    def butler(self) -> dict[str, Any]:
        """The section ``butler`` of the configuration."""
        return {
            "central": str(self.central),
            "instrument_class": {CAMERA: f"{SurveyCam.__module__}.{SurveyCam.__name__}"},
            "skymap": SKYMAP,
            "inputs": COLLECTIONS,
        }


def build_template(host: Host) -> None:
    """Make the repo that workers copy."""
    with Butler.from_config(str(host.central), writeable=False) as central:
        types = {
            each.name: each
            for path in host.pipelines
            for each in dataset_types_of(load_pipeline(path, {}), central)
        }
        instrument = SurveyCam(detectors=host.detectors)
        make_template(host.template, central.dimensions, [instrument], types.values(), "bench")


def run_worker(
    host: Host,
    cache: str,
    detector: int,
    fields: Sequence[float],
    wait: Callable[[], Any],
    answers: Connection,
    library: PipelineLibrary | None = None,
) -> None:
    """Preload field after field, as one worker does for visit after visit.

    `cache` is the name of the cache's folder on the RAM disk. `fields` has the
    distance of each visit from the center of the templates in right ascension,
    in degrees. `wait` returns when a visit may begin. `library` has the
    pipelines that were parsed before the process was forked. The answer has the
    measurements of each visit; ``preload_ms`` is from the order until all
    inputs are in the worker's repo, ``grown_bytes`` the growth of the peak of
    resident memory until then.
    """
    set_up_libraries()
    repo = LocalRepo(host.template, host.ramdisk / f"{cache}-{detector}")
    config = ButlerConfig.model_validate(host.butler)
    central = CentralReader(config.source)
    shared = SharedCache(host.ramdisk / cache, _CACHE_MAX)
    # Earlier builds have no such parameter, and no asker.
    generation = {"generation": host.template.name} if "generation" in signature(Preload).parameters else {}
    preload = Preload(config, central, shared, library or PipelineLibrary({}), **generation)
    camera = load_survey_camera(host.detectors)
    samples = []
    for number, field in enumerate(fields):
        order = _order(host, detector, number, field)
        gc.collect()  # as a worker does between visits
        wait()
        timings = Timings(Clock())
        start, start_cpu, start_bytes = time.perf_counter(), time.process_time(), _peak_bytes()
        footprint = footprint_of(
            order.visit, detector, camera, padding_arcsec=30.0, image_deadline_s=100.0, now_tai=_BEGIN_TAI
        )
        preload.fetch(preload.find(order, footprint, timings), repo, timings)
        spent = {
            "preload_ms": (time.perf_counter() - start) * 1e3,
            "cpu_ms": (time.process_time() - start_cpu) * 1e3,
            "grown_bytes": _peak_bytes() - start_bytes,
        }
        samples.append(timings.values | spent)
        repo.renew()
    answers.send(samples)
    repo.close()
    central.close()


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _order(host: Host, detector: int, number: int, field: float) -> Prepare:
    sal = {
        "groupId": f"2026-11-23T03:25:{number:06.3f}",
        "instrument": CAMERA,
        "coordinateSystem": 2,
        "position": [RA_DEG + field, DEC_DEG],
        "startTime": _BEGIN_TAI,
        "rotationSystem": 2,
        "cameraAngle": 30.0,
        "filters": OBSERVED,
        "duration": 35.0,
        "nimages": 1,
    }
    pipelines = Pipelines(main=host.pipelines)
    return Prepare(visit=read_next_visit(sal), detector=detector, attempt=1, pipelines=pipelines)
