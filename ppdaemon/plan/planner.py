# SPDX-License-Identifier: BSD-3-Clause
"""Plans a visit with the worker's own code; copies no dataset and runs no pipeline."""

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from logging.handlers import BufferingHandler
from pathlib import Path
from typing import Literal

import astropy.time

from ppdaemon.camera import load_camera
from ppdaemon.clock import Clock, tai_iso
from ppdaemon.config import ButlerConfig
from ppdaemon.errors import Unavailable, VisitFailed
from ppdaemon.messages import Pipelines, Prepare
from ppdaemon.middleware.butler.central import CentralReader
from ppdaemon.middleware.butler.timings import Timings
from ppdaemon.middleware.pipelines.graph import LoadedPipeline, PipelineLibrary
from ppdaemon.middleware.pipelines.provenance import hash_versions, output_run
from ppdaemon.middleware.preload.cache import SharedCache
from ppdaemon.middleware.preload.findings import PreloadPlan
from ppdaemon.middleware.preload.preload import Preload
from ppdaemon.middleware.preload.search import Found
from ppdaemon.middleware.raws.regions import (
    CameraLoader,
    Footprint,
    corners_of,
    find_camera,
    footprint_of,
    preload_corners,
)
from ppdaemon.pipelinenames import output_chain, pipeline_name
from ppdaemon.plan import models
from ppdaemon.pointing import expected_begin
from ppdaemon.selection import Selector, TargetPositions

__all__ = ("Planner",)


class Planner:
    """Finds the pipelines and datasets that the detectors of one visit would get.

    `config` is the Butler part of the order's configuration. `scratch` is an empty
    folder for the preload cache, which stays empty because nothing is copied.
    """

    def __init__(
        self,
        order: models.PlanOrder,
        config: ButlerConfig,
        scratch: Path,
        clock: Clock,
        cameras: CameraLoader = load_camera,
    ):
        self._order = order
        self._config = config
        self._clock = clock
        self._visit = order.visit
        self._notes: dict[str, None] = {}
        with _log_messages() as messages:
            self._camera = find_camera(cameras, order.visit.instrument)
            self._aim = TargetPositions(order.visit, cameras)
            self._boresight = self._aim.at("boresight", order.detectors[0])
        self._notes.update(dict.fromkeys(messages))
        age_s, expiry_s = order.visit.age_s(order.now_tai), order.config.node.expiry_s
        if age_s > expiry_s:
            note = f"announced {age_s:.0f} s ago: a node would refuse it now (node.expiry_s {expiry_s:g})"
            self._notes[note] = None
        self._rules = order.config.pipelines
        self._selector = Selector(self._rules.preprocessing, self._rules.main, cameras)
        self._library = PipelineLibrary(order.config.pipelines.overrides)
        self._central = CentralReader(config.source)
        self._preload = Preload(
            config,
            self._central,
            SharedCache(scratch, order.config.preload.cache_max),
            self._library,
            any_filter=order.config.exposures.filter == "ignore",
        )
        self._versions = "" if config.deployment else hash_versions()

    def close(self) -> None:
        """Disconnect from the central repo."""
        self._central.close()

    def plan(self, progress: Callable[[int], None]) -> models.Plan:
        """Plan all detectors of the order.

        `progress` is called after each detector with the number of detectors done.
        Raises `~ppdaemon.errors.Unavailable` if the central repo cannot be read.
        """
        plans = []
        for number, detector in enumerate(self._order.detectors, 1):
            plans.append(self._detector(detector))
            progress(number)
        footprint = self._footprint(self._order.detectors[0])
        distinct = {each.id: each for plan in plans for each in plan.datasets}
        return models.Plan(
            node=self._order.config.node.name,
            config=str(self._order.config_path),
            central=self._config.central,
            visit=self._visit,
            begin=_tai(footprint.exposure.begin),
            begin_from=expected_begin(self._visit, self._order.now_tai)[1],
            valid_begin=_tai(footprint.validity.begin),
            valid_end=_tai(footprint.validity.end),
            day_obs=footprint.day_obs,
            boresight=self._boresight,
            sky_angle_deg=footprint.pointing and footprint.pointing.sky_angle_deg,
            chain=output_chain(self._visit.instrument, footprint.day_obs),
            detectors=tuple(plans),
            distinct_datasets=len(distinct),
            distinct_bytes=models.distinct_bytes(distinct.values()),
            fallbacks=tuple(models.find_fallbacks(plans)),
            notes=tuple(self._notes),
        )

    def _detector(self, detector: int) -> models.DetectorPlan:
        with _log_messages() as messages:
            footprint = self._footprint(detector)
            chosen = self._selector.choose(self._visit, [detector])[detector]
            plan = models.DetectorPlan(
                detector=detector,
                name=self._name(detector),
                outcome="ignored",
                reason=chosen.reason,
                footprint=self._footprint_plan(detector, footprint),
                preprocessing=models.choice_of(self._rules.preprocessing, self._aim, detector),
                main=models.choice_of(self._rules.main, self._aim, detector),
            )
            if not chosen.pipelines.main:
                return plan
            timings = Timings(self._clock)
            preload_plan = self._find(detector, chosen.pipelines, footprint, timings)
        reported = (*preload_plan.reasons, *self._notes)
        return plan.model_copy(
            update={
                "outcome": "would_run" if preload_plan.main else "no_pipeline",
                "reason": "" if preload_plan.main else "; ".join(preload_plan.reasons),
                "pipelines": tuple(self._pipelines(chosen.pipelines, preload_plan, footprint)),
                "queries": tuple(_query(found, preload_plan) for found in preload_plan.found),
                "datasets": tuple(
                    dataset for found in preload_plan.wanted for dataset in _datasets(found, preload_plan)
                ),
                "missing": tuple(_missing(chosen.pipelines, preload_plan)),
                "phases_ms": timings.values,
                "notes": tuple(dict.fromkeys(text for text in messages if text not in reported)),
            }
        )

    def _find(
        self, detector: int, pipelines: Pipelines, footprint: Footprint, timings: Timings
    ) -> PreloadPlan:
        order = Prepare(visit=self._visit, detector=detector, pipelines=pipelines)
        try:
            return self._preload.find(order, footprint, timings, sizes=True)
        except VisitFailed as error:
            raise Unavailable(str(error)) from error

    def _footprint(self, detector: int) -> Footprint:
        config = self._order.config
        return footprint_of(
            self._visit,
            detector,
            self._camera,
            padding_arcsec=config.preload.padding_arcsec,
            image_deadline_s=config.arrivals.image_deadline_s(self._visit),
            now_tai=self._order.now_tai,
        )

    def _name(self, detector: int) -> str | None:
        known = self._camera.detectors.get(detector) if self._camera is not None else None
        return known.name if known is not None else None

    def _footprint_plan(self, detector: int, footprint: Footprint) -> models.FootprintPlan | None:
        if footprint.region is None or footprint.pointing is None or self._camera is None:
            return None
        padding_arcsec = self._order.config.preload.padding_arcsec
        aim = footprint.pointing.ra_deg, footprint.pointing.dec_deg, footprint.pointing.sky_angle_deg
        return models.FootprintPlan(
            center=self._camera.center(detector, *aim),
            corners=self._camera.footprint(detector, *aim),
            padded=preload_corners(self._camera, detector, footprint.pointing, padding_arcsec),
            padding_arcsec=max(padding_arcsec, self._camera.visit_padding_arcsec),
        )

    def _pipelines(
        self, chosen: Pipelines, preload_plan: PreloadPlan, footprint: Footprint
    ) -> Iterator[models.PipelinePlan]:
        """Yield each selected pipeline with its state and output run."""
        first = {each.path: each for each in preload_plan.preprocessing}
        then = {each.path: each for each in preload_plan.main}
        for path in chosen.preprocessing:
            run = self._run(first[path].name, [first[path]], footprint) if path in first else None
            yield _pipeline("preprocessing", path, list(first), preload_plan, run)
        for path in chosen.main:
            run = self._run(then[path].name, [then[path]], footprint) if path in then else None
            yield _pipeline("main", path, list(then), preload_plan, run)

    def _run(self, name: str, pipelines: Sequence[LoadedPipeline], footprint: Footprint) -> str:
        instrument, day = self._visit.instrument, footprint.day_obs
        return output_run(self._order.config, instrument, self._versions, pipelines, day, name)


def _pipeline(
    part: Literal["preprocessing", "main"],
    path: str,
    usable: Sequence[str],
    preload_plan: PreloadPlan,
    run: str | None,
) -> models.PipelinePlan:
    name = pipeline_name(path)
    if path in usable:
        state: Literal["first", "fallback"] = "first" if path == usable[0] else "fallback"
        return models.PipelinePlan(part=part, name=name, path=path, state=state, run=run)
    missing = [each.name for each in preload_plan.missing.get(path, ()) if each.required]
    if missing:
        why = f"lacks {', '.join(missing)}"
    else:
        why = next((reason for reason in preload_plan.reasons if reason.startswith(f"{path} ")), "")
    return models.PipelinePlan(part=part, name=name, path=path, state="dropped", why=why)


def _query(found: Found, preload_plan: PreloadPlan) -> models.QueryPlan:
    dataset_type = found.dataset_type
    return models.QueryPlan(
        dataset_type=dataset_type.name,
        dimensions=tuple(dataset_type.dimensions.required),
        calibration=dataset_type.isCalibration(),
        datasets=len(found.refs),
        size_bytes=models.distinct_bytes(_datasets(found, preload_plan)),
        query_ms=round(found.query_ms, 1),
        read_by=tuple(
            pipeline_name(path)
            for path, needs in preload_plan.needs.items()
            if any(need.name == dataset_type.name for need in needs)
        ),
        preloaded=found in preload_plan.wanted,
    )


def _datasets(found: Found, preload_plan: PreloadPlan) -> Iterator[models.DatasetPlan]:
    for ref in found.refs:
        yield models.DatasetPlan(
            dataset_type=ref.datasetType.name,
            id=str(ref.id),
            data_id=dict(ref.dataId.required),
            run=ref.run,
            file=preload_plan.sizes[ref.id].uri,
            size_bytes=preload_plan.sizes[ref.id].size_bytes,
            validity=tuple(
                models.Validity(
                    collection=each.collection,
                    begin=_bound(each.timespan.begin),
                    end=_bound(each.timespan.end),
                )
                for each in found.associations
                if each.ref.id == ref.id and each.timespan is not None
            ),
            region=corners_of(ref.dataId.region) if ref.datasetType.dimensions.spatial else None,
        )


def _missing(chosen: Pipelines, preload_plan: PreloadPlan) -> Iterator[models.MissingPlan]:
    for path in (*chosen.preprocessing, *chosen.main):
        for each in preload_plan.missing.get(path, ()):
            yield models.MissingPlan(
                dataset_type=each.name,
                pipeline=pipeline_name(path),
                required=each.required,
                sought=each.sought,
            )


def _tai(instant: astropy.time.Time) -> str:
    return tai_iso(instant.unix_tai)


def _bound(instant: astropy.time.Time | None) -> str | None:
    return None if instant is None else _tai(instant)


@contextmanager
def _log_messages() -> Iterator[list[str]]:
    """Collect what a worker would log: warnings of all libraries, and INFO of ppdaemon."""
    root, ppdaemon = logging.getLogger(), logging.getLogger("ppdaemon")
    handler, level, messages = BufferingHandler(sys.maxsize), ppdaemon.level, list[str]()
    root.addHandler(handler)
    ppdaemon.setLevel(logging.INFO)
    try:
        yield messages
    finally:
        ppdaemon.setLevel(level)
        root.removeHandler(handler)
        messages += [
            record.getMessage()
            for record in handler.buffer
            if record.levelno >= (logging.INFO if record.name.startswith("ppdaemon.") else logging.WARNING)
        ]
