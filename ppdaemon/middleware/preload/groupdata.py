# SPDX-License-Identifier: BSD-3-Clause
"""Datasets written for each visit-detector before any image: its footprint and the preload metrics."""

from typing import Any

from lsst.daf.butler import Butler, DatasetType, DimensionUniverse
from lsst.pipe.base.utils import RegionTimeInfo

from ppdaemon.messages import Prepare
from ppdaemon.middleware.butler.timings import Timings
from ppdaemon.middleware.preload.findings import FOOTPRINT_TYPE, PreloadPlan
from ppdaemon.middleware.raws.regions import Footprint

__all__ = ("METRICS_TYPE", "put_footprint", "put_metrics", "types_of_groups")

METRICS_TYPE = "preload_metrics"
"""Dataset type of a preload's durations and counts."""

_STORAGE = {FOOTPRINT_TYPE: "RegionTimeInfo", METRICS_TYPE: "StructuredDataDict"}


def types_of_groups(universe: DimensionUniverse) -> list[DatasetType]:
    """Return the dataset types written by this module."""
    dimensions = universe.conform(("instrument", "group", "detector"))
    return [DatasetType(name, dimensions, storage) for name, storage in _STORAGE.items()]


def put_footprint(local: Butler, order: Prepare, footprint: Footprint, run: str) -> None:
    """Write region and time of the exposure for preprocessing tasks, if the position is known."""
    if footprint.region is not None:
        info = RegionTimeInfo(region=footprint.region, timespan=footprint.exposure)
        local.put(info, FOOTPRINT_TYPE, _data_id(order), run=run)


def put_metrics(local: Butler, order: Prepare, plan: PreloadPlan, timings: Timings, run: str) -> None:
    """Write the durations and counts of a preload."""
    metrics = {
        **timings.values,
        "found": {each.dataset_type.name: len(each.refs) for each in plan.found},
        "queries_ms": {each.dataset_type.name: round(each.query_ms, 1) for each in plan.found},
        "missing": sorted({each.name for missing in plan.missing.values() for each in missing}),
    }
    local.put(metrics, METRICS_TYPE, _data_id(order), run=run)


def _data_id(order: Prepare) -> dict[str, Any]:
    return {"instrument": order.visit.instrument, "group": order.visit.group, "detector": order.detector}
