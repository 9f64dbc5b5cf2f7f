# SPDX-License-Identifier: BSD-3-Clause
"""Finds the inputs of pipelines in the central repo, with one query per dataset type for any number of
detectors.

Decides which datasets can exist before the exposure. Copying is done by
`ppdaemon.middleware.preload.transfer`.
"""

import logging
from collections.abc import Hashable, Iterable, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

from lsst.daf.butler import (
    Butler,
    DataCoordinate,
    DatasetAssociation,
    DatasetId,
    DatasetRef,
    DatasetType,
    SkyPixDimension,
    Timespan,
)
from lsst.daf.butler.queries.expression_factory import ExpressionFactory
from lsst.sphgeom import LonLat, Region, UnionRegion

from ppdaemon.clock import Clock
from ppdaemon.middleware.raws.regions import regions_overlap

__all__ = (
    "NO_POSITION",
    "Found",
    "Search",
    "find_inputs",
    "requires_exposure",
    "unknown_before_exposure",
    "warn_of_unsearched",
)

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
    def common(self) -> Hashable:
        """What the searches of one query have in common: all but detector, region and time."""
        names = self.instrument, self.physical_filters, self.bands, self.skymap, self.calibs, self.inputs
        return names, self.region is None

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
    butler: Butler, dataset_types: Iterable[DatasetType], searches: Sequence[Search], clock: Clock
) -> list[list[Found]]:
    """Find the datasets that the processing of each search may read, of each type that may exist before the
    exposure.

    All searches must have the same `Search.common`.
    """
    parts: list[list[Found]] = [[] for _ in searches]
    for dataset_type in dataset_types:
        if unknown_before_exposure(dataset_type):
            continue
        start = clock.mono()
        if _is_searched(dataset_type, searches[0]):
            find = _find_calibrations if dataset_type.isCalibration() else _find_plain
            found = find(butler, dataset_type, searches)
        else:
            found = Found(dataset_type, ())
        found = replace(found, query_ms=(clock.mono() - start) * 1e3)
        for part, search in zip(parts, searches, strict=True):
            part.append(found if len(searches) == 1 else _part(found, search))
    return parts


def warn_of_unsearched(found: Iterable[Found], search: Search) -> None:
    """Log the types that were not searched because the position is unknown."""
    if names := [each.dataset_type.name for each in found if not _is_searched(each.dataset_type, search)]:
        _LOG.warning(
            "the visit was announced without a position on the sky: not preloading %s",
            ", ".join(sorted(names)),
        )


def _is_searched(dataset_type: DatasetType, search: Search) -> bool:
    return search.region is not None or not dataset_type.dimensions.spatial


def _part(found: Found, search: Search) -> Found:
    """Return those datasets that the query of one search alone would find."""
    associations = tuple(
        each
        for each in found.associations
        if (each.timespan is None or each.timespan.overlaps(search.timespan))
        and _concerns(each.ref.dataId, search)
    )
    if found.associations:
        refs = {each.ref.id: each.ref for each in associations}
        return replace(found, refs=tuple(refs.values()), associations=associations)
    return replace(found, refs=tuple(ref for ref in found.refs if _concerns(ref.dataId, search)))


def _concerns(data_id: DataCoordinate, search: Search) -> bool:
    """Return whether a dataset is of a search's detector, and in its region as the registry decides it."""
    dimensions = data_id.dimensions
    if "detector" in dimensions.names and data_id["detector"] != search.detector:
        return False
    for family in dimensions.spatial:
        element = dimensions.universe[family.choose(dimensions).name]
        if isinstance(element, SkyPixDimension):
            pixels = element.pixelization.envelope(search.region)
            if not pixels.contains(data_id[element.name]):
                return False
        elif not regions_overlap(
            getattr(data_id.records[element.name], "region", None), search.region, dimensions.universe
        ):
            return False
    return True


def _constrained(
    query: Any, dataset_type: DatasetType, searches: Sequence[Search], x: ExpressionFactory
) -> Any:
    """Return a query or its results, constrained by those dimensions that the type has."""
    dimensions, first = dataset_type.dimensions, searches[0]
    detectors = {search.detector for search in searches}
    known: dict[str, Any] = {"instrument": first.instrument, "skymap": first.skymap}
    if len(detectors) == 1:
        known |= {"detector": first.detector}
    data_id = {key: value for key, value in known.items() if value is not None and key in dimensions.names}
    # Not as text: to parse it takes as long as some queries.
    terms = [
        getattr(x, dimension).in_iterable(allowed)
        for dimension, allowed in (
            ("detector", detectors if len(detectors) > 1 else ()),
            ("physical_filter", first.physical_filters),
            ("band", first.bands),
        )
        if allowed and dimension in dimensions.names
    ]
    terms += [
        getattr(x, family.choose(dimensions).name).region.overlaps(_together(searches))
        for family in dimensions.spatial
    ]
    return query.where(*terms, **data_id) if terms or data_id else query


def _together(searches: Sequence[Search]) -> Region:
    """Return the region of all searches."""
    regions = [search.region for search in searches if search.region is not None]
    return regions[0] if len(regions) == 1 else UnionRegion(*regions)


def _find_plain(butler: Butler, dataset_type: DatasetType, searches: Sequence[Search]) -> Found:
    collections = searches[0].all_collections
    if not collections:
        return Found(dataset_type, ())
    with butler.query() as query:
        results = query.datasets(dataset_type, collections, find_first=True)
        results = _constrained(results, dataset_type, searches, query.expression_factory)
        return Found(dataset_type, tuple(results.with_dimension_records()))


def _find_calibrations(butler: Butler, dataset_type: DatasetType, searches: Sequence[Search]) -> Found:
    """Find all calibrations that are valid at some time of a search, with their validity.

    The worker's repo selects one of them later, by the time of the exposure.
    """
    name, calibs = dataset_type.name, searches[0].calibs
    if not calibs:
        return Found(dataset_type, ())
    with butler.query() as query:
        query = query.join_dataset_search(dataset_type, calibs)
        expressions = query.expression_factory
        spans = dict.fromkeys(search.timespan for search in searches)
        valid = expressions.any(*(expressions[name].timespan.overlaps(span) for span in spans))
        query = _constrained(query.where(valid), dataset_type, searches, expressions)
        result = query.general(
            dataset_type.dimensions,
            dataset_fields={name: {"dataset_id", "run", "collection", "timespan"}},
            find_first=False,
        ).with_dimension_records()
        associations = tuple(DatasetAssociation.from_query_result(result, dataset_type))
    refs = {association.ref.id: association.ref for association in associations}
    return Found(dataset_type, tuple(refs.values()), associations)
