# SPDX-License-Identifier: BSD-3-Clause
"""Finds the inputs of pipelines in the central repo, with one query per dataset type.

Decides which datasets can exist before the exposure. Copying is done by
`ppdaemon.middleware.preload.transfer`.
"""

import logging
from collections.abc import Iterable, Set
from dataclasses import dataclass, replace
from typing import Any

from lsst.daf.butler import Butler, DatasetAssociation, DatasetId, DatasetRef, DatasetType, Timespan
from lsst.sphgeom import LonLat, Region

from ppdaemon.clock import Clock

__all__ = ("NO_POSITION", "Found", "Search", "find_inputs", "requires_exposure", "unknown_before_exposure")

_LOG = logging.getLogger(__name__)

_OF_THE_EXPOSURE = frozenset({"exposure", "visit", "day_obs"})
"""Datasets with these dimensions do not exist before the exposure, and those
of other exposures are not needed."""
_OF_THE_GROUP = frozenset({"group"})
"""Datasets with this dimension are not in the central repo: preprocessing
produces them."""
NO_POSITION = "position on the sky unknown"
"""Why a spatial dataset type was not searched."""


@dataclass(frozen=True, slots=True)
class Search:
    """Constraints on the inputs of an exposure, as known before it is taken."""

    instrument: str
    detector: int
    physical_filters: tuple[str, ...]
    """Possible filters; empty means any."""
    bands: tuple[str, ...]
    """Bands of these filters."""
    skymap: str | None
    """Sky map of templates; any if `None`."""
    timespan: Timespan
    """Time within which the exposure may be taken."""
    region: Region | None
    """Padded footprint; `None` if the position on the sky is unknown."""
    calibs: tuple[str, ...]
    """Existing collections searched for calibrations, without chains."""
    inputs: tuple[str, ...]
    """Existing collections searched for all other datasets, without chains."""

    def describe(self, dataset_type: DatasetType) -> str:
        """Describe the search for a type, such as ``detector 1, filter r_03, in DemoCam/calib``."""
        dimensions = dataset_type.dimensions
        if dimensions.spatial and self.region is None:
            return NO_POSITION
        known = {"detector": self.detector, "skymap": self.skymap}
        terms = [
            f"{name} {value}"
            for name, value in known.items()
            if name in dimensions.names and value is not None
        ]
        if "physical_filter" in dimensions.names:
            terms.append(f"filter {' or '.join(self.physical_filters) or 'any'}")
        elif "band" in dimensions.names:
            terms.append(f"band {' or '.join(self.bands) or 'any'}")
        if dimensions.spatial and self.region is not None:
            center = LonLat(self.region.getBoundingCircle().getCenter())
            ra, dec = center.getLon().asDegrees(), center.getLat().asDegrees()
            terms.append(f"around RA {ra:.4f} Dec {dec:.4f}")
        if dataset_type.isCalibration():
            terms.append(f"valid in {self.timespan}")
        searched = self.calibs if dataset_type.isCalibration() else self.all_collections
        terms.append(f"in {', '.join(searched)}" if searched else "no collection to search")
        return ", ".join(terms)

    @property
    def all_collections(self) -> tuple[str, ...]:
        """Collections searched for datasets that are not calibrations (`tuple`)."""
        return (*self.inputs, *(name for name in self.calibs if name not in self.inputs))


@dataclass(frozen=True, slots=True)
class Found:
    """Datasets of one type in the central repo."""

    dataset_type: DatasetType
    refs: tuple[DatasetRef, ...]
    associations: tuple[DatasetAssociation, ...] = ()
    """Collection and validity of each calibration."""
    query_ms: float = 0.0

    def without(self, ids: Set[DatasetId]) -> "Found":
        """Return these datasets without those of the given ids."""
        return replace(
            self,
            refs=tuple(ref for ref in self.refs if ref.id not in ids),
            associations=tuple(each for each in self.associations if each.ref.id not in ids),
        )


def requires_exposure(dataset_type: DatasetType) -> bool:
    """Return whether datasets of a type, such as ``raw``, exist only after the exposure."""
    return not _OF_THE_EXPOSURE.isdisjoint(dataset_type.dimensions.names)


def unknown_before_exposure(dataset_type: DatasetType) -> bool:
    """Return whether datasets of a type belong to one exposure or group, so that no search can find them."""
    return not (_OF_THE_EXPOSURE | _OF_THE_GROUP).isdisjoint(dataset_type.dimensions.names)


def find_inputs(
    butler: Butler, dataset_types: Iterable[DatasetType], search: Search, clock: Clock
) -> list[Found]:
    """Find the datasets that an exposure's processing may read, of each type that may exist before it."""
    found, not_searched = [], []
    for dataset_type in dataset_types:
        if unknown_before_exposure(dataset_type):
            continue
        if dataset_type.dimensions.spatial and search.region is None:
            not_searched.append(dataset_type.name)
            found.append(Found(dataset_type, ()))
            continue
        start = clock.mono()
        find = _find_calibrations if dataset_type.isCalibration() else _find_plain
        each = find(butler, dataset_type, search)
        found.append(replace(each, query_ms=(clock.mono() - start) * 1e3))
    if not_searched:
        _LOG.warning(
            "the visit was announced without a position on the sky: not preloading %s",
            ", ".join(sorted(not_searched)),
        )
    return found


def _constrained(query: Any, dataset_type: DatasetType, search: Search) -> Any:
    """Return a query or its results, constrained by those dimensions that the type has."""
    dimensions = dataset_type.dimensions
    known = {"instrument": search.instrument, "detector": search.detector, "skymap": search.skymap}
    data_id = {key: value for key, value in known.items() if value is not None and key in dimensions.names}
    if data_id:
        query = query.where(**data_id)
    for dimension, allowed in (("physical_filter", search.physical_filters), ("band", search.bands)):
        if allowed and dimension in dimensions.names:
            query = query.where(f"{dimension} IN (allowed)", bind={"allowed": list(allowed)})
    for family in dimensions.spatial:
        overlap = f"{family.choose(dimensions).name}.region OVERLAPS footprint"
        query = query.where(overlap, bind={"footprint": search.region})
    return query


def _find_plain(butler: Butler, dataset_type: DatasetType, search: Search) -> Found:
    if not search.all_collections:
        return Found(dataset_type, ())
    with butler.query() as query:
        results = query.datasets(dataset_type, search.all_collections, find_first=True)
        results = _constrained(results, dataset_type, search)
        return Found(dataset_type, tuple(results.with_dimension_records()))


def _find_calibrations(butler: Butler, dataset_type: DatasetType, search: Search) -> Found:
    """Find all calibrations that are valid at some time of the search, with their validity.

    The worker's repo selects one of them later, by the time of the exposure.
    """
    name = dataset_type.name
    if not search.calibs:
        return Found(dataset_type, ())
    with butler.query() as query:
        query = query.join_dataset_search(dataset_type, search.calibs)
        valid = query.expression_factory[name].timespan.overlaps(search.timespan)
        query = _constrained(query.where(valid), dataset_type, search)
        result = query.general(
            dataset_type.dimensions,
            dataset_fields={name: {"dataset_id", "run", "collection", "timespan"}},
            find_first=False,
        ).with_dimension_records()
        associations = tuple(DatasetAssociation.from_query_result(result, dataset_type))
    refs = {association.ref.id: association.ref for association in associations}
    return Found(dataset_type, tuple(refs.values()), associations)
