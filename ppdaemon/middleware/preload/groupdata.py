# SPDX-License-Identifier: BSD-3-Clause
"""Datasets that each visit-detector gets before any image: its footprint, and how its preload went."""

from typing import Any

from lsst.daf.butler import Butler, DatasetType, DimensionUniverse
from lsst.pipe.base.utils import RegionTimeInfo

from ppdaemon.messages import Prepare
from ppdaemon.middleware.butler.timings import Timings
from ppdaemon.middleware.preload.findings import FOOTPRINT_TYPE, PreloadPlan
from ppdaemon.middleware.raws.regions import Footprint

__all__ = ("METRICS_TYPE", "put_footprint", "put_metrics", "types_of_groups")

METRICS_TYPE = "preload_metrics"
"""Dataset type of what a preload took and brought."""

_STORAGE = {FOOTPRINT_TYPE: "RegionTimeInfo", METRICS_TYPE: "StructuredDataDict"}


def types_of_groups(universe: DimensionUniverse) -> list[DatasetType]:
    """Return the types that are written here.

    Parameters
    ----------
    universe : `lsst.daf.butler.DimensionUniverse`
        Dimensions of the repo.

    Returns
    -------
    dataset_types : `list` [`lsst.daf.butler.DatasetType`]
        All of instrument, group and detector.
    """
    dimensions = universe.conform(("instrument", "group", "detector"))
    return [DatasetType(name, dimensions, storage) for name, storage in _STORAGE.items()]


def put_footprint(local: Butler, order: Prepare, footprint: Footprint, run: str) -> None:
    """Write where and when the detector will look, for preprocessing tasks.

    Parameters
    ----------
    local : `lsst.daf.butler.Butler`
        The worker's repo, with the group's record and `types_of_groups`.
    order : `~ppdaemon.messages.Prepare`
        The visit-detector.
    footprint : `~ppdaemon.middleware.raws.regions.Footprint`
        Where and when; nothing is written where the place is not known.
    run : `str`
        Run that takes it.
    """
    if footprint.region is not None:
        info = RegionTimeInfo(region=footprint.region, timespan=footprint.exposure)
        local.put(info, FOOTPRINT_TYPE, _data_id(order), run=run)


def put_metrics(local: Butler, order: Prepare, plan: PreloadPlan, timings: Timings, run: str) -> None:
    """Write what the preload took and brought.

    Parameters
    ----------
    local : `lsst.daf.butler.Butler`
        The worker's repo, with the group's record and `types_of_groups`.
    order : `~ppdaemon.messages.Prepare`
        The visit-detector.
    plan : `~ppdaemon.middleware.preload.findings.PreloadPlan`
        What was found.
    timings : `~ppdaemon.middleware.butler.timings.Timings`
        Milliseconds of the phases, and counts.
    run : `str`
        Run that takes it.
    """
    metrics = {
        **timings.values,
        "found": {each.dataset_type.name: len(each.refs) for each in plan.found},
        "queries_ms": {each.dataset_type.name: round(each.query_ms, 1) for each in plan.found},
        "missing": sorted({each.name for missing in plan.missing.values() for each in missing}),
    }
    local.put(metrics, METRICS_TYPE, _data_id(order), run=run)


def _data_id(order: Prepare) -> dict[str, Any]:
    return {"instrument": order.visit.instrument, "group": order.visit.group, "detector": order.detector}
