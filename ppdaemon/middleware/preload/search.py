# SPDX-License-Identifier: BSD-3-Clause
"""Finding in the central repo what pipelines will need: one query per dataset type.

Decides what can exist before the exposure does. Copying is
`ppdaemon.middleware.preload.transfer`'s.
"""

import logging
from collections.abc import Iterable, Set
from dataclasses import dataclass, replace
from typing import Any

from lsst.daf.butler import Butler, DatasetAssociation, DatasetId, DatasetRef, DatasetType, Timespan
from lsst.sphgeom import LonLat, Region

from ppdaemon.clock import Clock

__all__ = ("Found", "Search", "comes_with_exposure", "find_inputs", "unknown_before_exposure")

_LOG = logging.getLogger(__name__)

_OF_THE_EXPOSURE = frozenset({"exposure", "visit", "day_obs"})
"""Datasets with these dimensions do not exist before the exposure, and those
of other exposures are of no use."""
_OF_THE_GROUP = frozenset({"group"})
"""Datasets with this one are made here, by preprocessing."""


@dataclass(frozen=True, slots=True)
class Search:
    """What is known of an exposure before it is taken."""

    instrument: str
    detector: int
    physical_filters: tuple[str, ...]
    """Filters it may be taken with; empty means any."""
    bands: tuple[str, ...]
    """Bands of these filters."""
    skymap: str | None
    """Sky map of templates; any if it is not configured."""
    timespan: Timespan
    """When it may be taken."""
    region: Region | None
    """Padded footprint, if the place on the sky is known."""
    calibs: tuple[str, ...]
    """Existing collections searched for calibrations, without chains."""
    inputs: tuple[str, ...]
    """Existing collections searched for everything else, without chains."""

    def words(self, dataset_type: DatasetType) -> str:
        """Say what is looked for.

        Parameters
        ----------
        dataset_type : `lsst.daf.butler.DatasetType`
            Of what.

        Returns
        -------
        words : `str`
            For instance ``detector 1, filter r_03, in DemoCam/calib``.
        """
        dimensions = dataset_type.dimensions
        if dimensions.spatial and self.region is None:
            return "no place on the sky"
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
        searched = self.calibs if dataset_type.isCalibration() else self.everywhere
        terms.append(f"in {', '.join(searched)}" if searched else "no collection to search")
        return ", ".join(terms)

    @property
    def everywhere(self) -> tuple[str, ...]:
        """Collections searched for what is no calibration (`tuple`)."""
        return (*self.inputs, *(name for name in self.calibs if name not in self.inputs))


@dataclass(frozen=True, slots=True)
class Found:
    """Datasets of one type."""

    dataset_type: DatasetType
    refs: tuple[DatasetRef, ...]
    associations: tuple[DatasetAssociation, ...] = ()
    """Of calibrations: where and from when to when each is valid."""
    query_ms: float = 0.0
    """What finding them took."""

    def without(self, ids: Set[DatasetId]) -> "Found":
        """Return the others.

        Parameters
        ----------
        ids : `~collections.abc.Set`
            Ids of datasets that are of no use.

        Returns
        -------
        found : `Found`
            Without them.
        """
        return replace(
            self,
            refs=tuple(ref for ref in self.refs if ref.id not in ids),
            associations=tuple(each for each in self.associations if each.ref.id not in ids),
        )


def comes_with_exposure(dataset_type: DatasetType) -> bool:
    """Tell whether datasets of a type exist only once the exposure does.

    Parameters
    ----------
    dataset_type : `lsst.daf.butler.DatasetType`
        A pipeline's input, such as ``raw``.

    Returns
    -------
    comes : `bool`
        Whether their absence before the exposure means nothing.
    """
    return not _OF_THE_EXPOSURE.isdisjoint(dataset_type.dimensions.names)


def unknown_before_exposure(dataset_type: DatasetType) -> bool:
    """Tell whether datasets of a type belong to single exposures.

    Parameters
    ----------
    dataset_type : `lsst.daf.butler.DatasetType`
        A pipeline's input, such as ``raw``.

    Returns
    -------
    unknown : `bool`
        Whether looking for them is pointless.
    """
    return not (_OF_THE_EXPOSURE | _OF_THE_GROUP).isdisjoint(dataset_type.dimensions.names)


def find_inputs(
    butler: Butler, dataset_types: Iterable[DatasetType], search: Search, clock: Clock
) -> list[Found]:
    """Find the datasets that an exposure's processing may read.

    Parameters
    ----------
    butler : `lsst.daf.butler.Butler`
        The central repo.
    dataset_types : `~collections.abc.Iterable` [`lsst.daf.butler.DatasetType`]
        Types that are registered there.
    search : `Search`
        What is known of the exposure.
    clock : `~ppdaemon.clock.Clock`
        For how long each query takes.

    Returns
    -------
    found : `list` [`Found`]
        One for each type that may exist before the exposure.
    """
    found, placeless = [], []
    for dataset_type in dataset_types:
        if unknown_before_exposure(dataset_type):
            continue
        if dataset_type.dimensions.spatial and search.region is None:
            placeless.append(dataset_type.name)
            found.append(Found(dataset_type, ()))
            continue
        start = clock.mono()
        find = _find_calibrations if dataset_type.isCalibration() else _find_plain
        each = find(butler, dataset_type, search)
        found.append(replace(each, query_ms=(clock.mono() - start) * 1e3))
    if placeless:
        _LOG.warning("no place on the sky: no %s is preloaded", ", ".join(sorted(placeless)))
    return found


def _constrained(query: Any, dataset_type: DatasetType, search: Search) -> Any:
    """Return a query or its results, constrained by the type's own dimensions."""
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
    if not search.everywhere:
        return Found(dataset_type, ())
    with butler.query() as query:
        results = query.datasets(dataset_type, search.everywhere, find_first=True)
        results = _constrained(results, dataset_type, search)
        return Found(dataset_type, tuple(results.with_dimension_records()))


def _find_calibrations(butler: Butler, dataset_type: DatasetType, search: Search) -> Found:
    """Find all that are valid at some time of the search, with their validity.

    Which one counts is decided by the exposure's own time, later.
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
