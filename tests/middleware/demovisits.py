# SPDX-License-Identifier: BSD-3-Clause
"""Observing with DemoCam in tests: render, ingest, run a pipeline, all by hand."""

from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import astropy.time
import astropy.units as u
from astro_metadata_translator import ObservationInfo
from lsst.daf.butler import Butler, DatasetRef, DatasetType, FileDataset, Timespan
from lsst.pipe.base import Pipeline
from lsst.pipe.base.separable_pipeline_executor import SeparablePipelineExecutor
from lsst.pipe.base.utils import RegionTimeInfo

from ppdaemon.demo.geometry import detector_corners, detector_name
from ppdaemon.demo.instrument import DemoCam
from ppdaemon.demo.plan import ExposurePlan, ImageType, primary_header
from ppdaemon.demo.rawformatter import DemoCamRawFormatter
from ppdaemon.demo.raws import write_raw
from ppdaemon.demo.render import render_raw
from ppdaemon.demo.sky import DEFAULT_DEC_DEG, DEFAULT_RA_DEG, Sky
from ppdaemon.demo.skymap import polygon_from_degrees

BEGIN_TAI_S = 1795317916.0
"""2026-11-22T03:25:16 TAI, in the second epoch of the calibrations."""
OLD_BEGIN_TAI_S = BEGIN_TAI_S - 500 * 86400.0
"""In the first epoch."""


def plan_exposure(seq_num: int, **changes: Any) -> ExposurePlan:
    """Plan a science exposure of the demo field; anything can be changed."""
    usual: dict[str, Any] = {
        "seq_num": seq_num,
        "group": f"2026-11-22T03:25:{seq_num % 60:02d}.000",
        "physical_filter": "r_03",
        "ra_deg": DEFAULT_RA_DEG,
        "dec_deg": DEFAULT_DEC_DEG,
        "rotpa_deg": 25.0,
        "begin_tai_s": BEGIN_TAI_S + 40.0 * seq_num,
    }
    return ExposurePlan(**(usual | changes))


def plan_calibration(seq_num: int, image_type: ImageType, **changes: Any) -> ExposurePlan:
    """Plan a bias, dark or flat."""
    exposure_s = {ImageType.BIAS: 0.0, ImageType.DARK: 30.0, ImageType.FLAT: 5.0}[image_type]
    usual: dict[str, Any] = {"image_type": image_type, "exposure_s": exposure_s, "rotpa_deg": None}
    return plan_exposure(seq_num, **(usual | {"ra_deg": None, "dec_deg": None} | changes))


def observe(root: Path, raw_root: Path, plan: ExposurePlan, detector: int, sky: Sky) -> int:
    """Render a raw, insert its records, ingest it; return the exposure's ID."""
    path = write_raw(raw_root, plan, detector, render_raw(plan, detector, sky))
    with Butler.from_config(root, writeable=True) as butler:
        insert_records(butler, plan, detector)
        data_id = butler.registry.expandDataId(
            instrument="DemoCam", exposure=plan.exposure_id, detector=detector
        )
        ref = DatasetRef(butler.get_dataset_type("raw"), data_id, run="DemoCam/raw/all")
        butler.ingest(FileDataset(path=path, refs=[ref], formatter=DemoCamRawFormatter), transfer="direct")
    return plan.exposure_id


def insert_records(butler: Butler, plan: ExposurePlan, detector: int) -> None:
    """Insert group, exposure, visit and footprint from the header."""
    header = primary_header(plan, detector, detector_name(detector))
    info = ObservationInfo(header, quiet=True)
    camera, timespan = {"instrument": "DemoCam"}, Timespan(info.datetime_begin, _after(info))
    shared = camera | {
        "id": info.exposure_id,
        "physical_filter": info.physical_filter,
        "day_obs": info.observing_day,
        "timespan": timespan,
        "exposure_time": info.exposure_time_requested.to_value(u.s),
        "observation_reason": info.observation_reason,
        "science_program": info.science_program,
        "target_name": info.object,
        "seq_num": info.observation_counter,
    }
    exposure = {
        "obs_id": info.observation_id,
        "group": info.exposure_group,
        "observation_type": info.observation_type,
        "seq_start": info.group_counter_start,
        "seq_end": info.group_counter_end,
        "dark_time": info.dark_time.to_value(u.s),
        "tracking_ra": plan.ra_deg,
        "tracking_dec": plan.dec_deg,
        "sky_angle": plan.rotpa_deg,
        "has_simulated": True,
        "can_see_sky": info.can_see_sky,
    }
    sync = butler.registry.syncDimensionData
    with butler.transaction():
        sync("day_obs", camera | {"id": info.observing_day, "timespan": None})
        sync("group", camera | {"name": info.exposure_group})
        sync("exposure", shared | exposure)
        if not info.can_see_sky:
            return
        visit = camera | {"visit": info.visit_id}
        region = footprint(plan, detector)
        sync("visit", shared | {"name": info.observation_id, "region": region})
        sync("visit_definition", visit | {"exposure": info.exposure_id})
        sync("visit_system_membership", visit | {"visit_system": 0})
        sync("visit_detector_region", visit | {"detector": detector, "region": region})


def _after(info: ObservationInfo) -> astropy.time.Time:
    """Return the end; a bias lasts a millisecond, as an empty timespan overlaps nothing."""
    return max(info.datetime_end, info.datetime_begin + 0.001 * u.s)


def footprint(plan: ExposurePlan, detector: int) -> Any:
    """Return the footprint of a detector."""
    return polygon_from_degrees(detector_corners(plan.ra_deg, plan.dec_deg, plan.rotpa_deg, detector))


def put_region_time(root: Path, plan: ExposurePlan, detector: int, run: str) -> None:
    """Write what the preprocessing pipeline starts from."""
    begin = astropy.time.Time(plan.begin_tai_s, format="unix_tai", scale="tai")
    info = RegionTimeInfo(
        region=footprint(plan, detector), timespan=Timespan(begin, begin + plan.exposure_s * u.s)
    )
    with Butler.from_config(root, writeable=True, run=run) as butler:
        butler.registry.registerDatasetType(
            DatasetType(
                "regionTimeInfo",
                ("instrument", "group", "detector"),
                "RegionTimeInfo",
                universe=butler.dimensions,
            )
        )
        sync = butler.registry.syncDimensionData
        sync("group", {"instrument": "DemoCam", "name": plan.group})
        butler.put(info, "regionTimeInfo", instrument="DemoCam", group=plan.group, detector=detector)


def run_pipeline(
    root: Path,
    name: str,
    where: str,
    run: str,
    *,
    inputs: Iterable[str] = (),
    config: Mapping[str, Mapping[str, Any]] | None = None,
) -> int:
    """Run one of the demo's pipelines as pipetask would; return the number of quanta."""
    pipeline = Pipeline.from_uri(str(files("ppdaemon.demo").joinpath("pipelines", f"{name}.yaml")))
    for label, fields in (config or {}).items():
        for key, value in fields.items():
            pipeline.addConfigOverride(label, key, value)
    with Butler.from_config(root, writeable=True) as butler:
        DemoCam.importAll(butler.registry)
        butler = butler.clone(collections=[*inputs, "DemoCam/defaults"], run=run)
        executor = SeparablePipelineExecutor(butler)
        graph = executor.build_quantum_graph(pipeline, where=where)
        executor.pre_execute_qgraph(graph, register_dataset_types=True, save_versions=False)
        executor.run_pipeline(graph)
        return len(graph)
