# SPDX-License-Identifier: BSD-3-Clause
"""Datasets written for each visit-detector before any image: its footprint and the preload metrics.

The times of a preload are written twice: with all counts for people, and as the bundle of metrics
that LSST's own service writes, under its names, for the programs that read those.
"""

import json
import uuid
from typing import Any

from lsst.daf.butler import Butler, DatasetRef, DatasetType, DimensionUniverse
from lsst.pipe.base.utils import RegionTimeInfo

from ppdaemon.messages import Prepare
from ppdaemon.middleware.butler.datafiles import LocatedFile
from ppdaemon.middleware.butler.repo import LocalRepo
from ppdaemon.middleware.butler.timings import Timings
from ppdaemon.middleware.preload.findings import FOOTPRINT_TYPE, PreloadPlan
from ppdaemon.middleware.raws.regions import Footprint

__all__ = ("BUNDLE_TYPE", "METRICS_TYPE", "put_bundle", "put_footprint", "put_metrics", "types_of_groups")

METRICS_TYPE = "preload_metrics"
"""Dataset type of a preload's durations and counts."""

BUNDLE_TYPE = "promptPreload_metrics"
"""Dataset type of a preload's durations as a bundle of metrics."""

_STORAGE = {
    FOOTPRINT_TYPE: "RegionTimeInfo",
    METRICS_TYPE: "StructuredDataDict",
    BUNDLE_TYPE: "MetricMeasurementBundle",
}
_ACTION = "prepButlerTimeMetric"
_METRICS = {
    "prep_butlerTotalTime": "total_ms",
    "prep_butlerSearchTime": "search_ms",
    "prep_butlerTransferTime": "transfer_ms",
    "prep_butlerPreprocessTime": "preprocess_ms",
}
"""Names of the metrics, all of which a bundle must have: its readers derive a schema from it."""
_IDENTIFIER = "Live"
"""What distinguishes metrics of visits from those of reprocessing."""
_FORMATTER = "lsst.daf.butler.formatters.json.JsonFormatter"


def types_of_groups(universe: DimensionUniverse) -> list[DatasetType]:
    """Return the dataset types written by this module."""
    dimensions = universe.conform(("instrument", "group", "detector"))
    return [DatasetType(name, dimensions, storage) for name, storage in _STORAGE.items()]


def put_footprint(local: Butler | LocalRepo, order: Prepare, footprint: Footprint, run: str) -> None:
    """Write region and time of the exposure for preprocessing tasks, if the position is known."""
    if footprint.region is not None:
        info = RegionTimeInfo(region=footprint.region, timespan=footprint.exposure)
        local.put(info, FOOTPRINT_TYPE, _data_id(order), run=run)


def put_metrics(local: LocalRepo, order: Prepare, plan: PreloadPlan, timings: Timings, run: str) -> None:
    """Write the durations and counts of a preload."""
    metrics = {
        **timings.values,
        "found": {each.dataset_type.name: len(each.refs) for each in plan.found},
        "queries_ms": {each.dataset_type.name: round(each.query_ms, 1) for each in plan.found},
        "missing": sorted({each.name for missing in plan.missing.values() for each in missing}),
    }
    local.put(metrics, METRICS_TYPE, _data_id(order), run=run)


def put_bundle(local: LocalRepo, order: Prepare, timings: Timings, run: str) -> None:
    """Write the durations of a preload as a bundle of metrics.

    The file is composed here: the class of the bundle is in ``lsst.analysis.tools``, which is not needed
    to write one.
    """
    definition = local.get_dataset_type(BUNDLE_TYPE)
    ref = DatasetRef(definition, local.expand(definition.dimensions, _data_id(order)), run=run)
    path = local.files / f"{ref.id}.json"
    path.write_text(json.dumps(_bundle(timings)))
    local.add_files([LocatedFile(path, _FORMATTER, (ref,))])


def _bundle(timings: Timings) -> dict[str, Any]:
    measurements = [
        {
            "metric": metric,
            "identifier": uuid.uuid4().hex,
            "value": timings.values[phase] / 1e3,
            "unit": "s",
            "blob_refs": [],
        }
        for metric, phase in _METRICS.items()
    ]
    return {_ACTION: measurements, "__dataset_identifier": _IDENTIFIER, "__metricNamePrefix": ""}


def _data_id(order: Prepare) -> dict[str, Any]:
    return {"instrument": order.visit.instrument, "group": order.visit.group, "detector": order.detector}
