# SPDX-License-Identifier: BSD-3-Clause
"""Data IDs made of dimension records in memory: the rows that ``separable`` gets by a query.

A row has a value for each dimension of an independent subgraph. Rows are
joined as the database joins them: exposures with their visits if filter and day
agree, and visits with the patches, or pixels of the common sky pixelization,
that the detector overlaps. Pixels of others are no part of a row: the graph
builder, too, adds them afterwards.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from lsst.daf.butler import (
    DataCoordinate,
    DimensionElement,
    DimensionGroup,
    DimensionRecord,
    DimensionUniverse,
    SkyPixDimension,
)
from lsst.sphgeom import Region

from ppdaemon.middleware.raws.regions import regions_overlap
from ppdaemon.middleware.run.engine import Unsupported

__all__ = ("DataIds", "Row", "region_element")

type Row = Mapping[str, Any]
"""Values by dimension."""


class DataIds:
    """Data IDs with records, each made once; of two records with the same key the last is used."""

    def __init__(self, universe: DimensionUniverse, records: Iterable[DimensionRecord]):
        self._universe = universe
        self._records: dict[str, dict[tuple[Any, ...], DimensionRecord]] = defaultdict(dict)
        self._cache: dict[tuple[DimensionGroup, tuple[Any, ...]], DataCoordinate] = {}
        for record in records:
            self._records[record.definition.name][record.dataId.required_values] = record

    def of(self, dimensions: DimensionGroup, row: Row) -> DataCoordinate:
        """Return the data ID of these dimensions in a row, with records; raise `Unsupported`
        without a record.
        """
        values = tuple(row[name] for name in dimensions.data_coordinate_keys)
        key = dimensions, values
        if key not in self._cache:
            data_id = DataCoordinate.from_full_values(dimensions, values)
            found = {name: self._record(self._universe[name], row) for name in dimensions.elements}
            self._cache[key] = data_id.expanded(found)
        return self._cache[key]

    def rows(
        self, dimensions: DimensionGroup, instrument: str, detector: int, exposures: Iterable[int]
    ) -> Iterator[Row]:
        """Yield the rows of one detector of some exposures.

        They have the dimensions of exposures and detectors in any case.
        """
        for exposure in exposures:
            start = self._with_implied({"instrument": instrument, "detector": detector}, "exposure", exposure)
            for row in self._with_visits(start, dimensions) if "visit" in dimensions.names else [start]:
                for on_sky in self._with_sky(row, dimensions) if "skymap" in dimensions.names else [row]:
                    yield from self._with_common_pixels(on_sky, dimensions)

    def with_pixels(self, row: Row, dimensions: DimensionGroup) -> Iterator[Row]:
        """Add the sky pixels among these dimensions that overlap the region of the others."""
        (pixel,) = (self._universe.skypix_dimensions[name] for name in dimensions.skypix)
        element = region_element(dimensions)
        assert element is not None  # otherwise the pipeline is not supported
        region = self._record(element, row).region
        if region is None:
            raise Unsupported(f"no region of {element.name} for the pixels of {pixel.name}")
        for begin, end in pixel.pixelization.envelope(region):
            yield from ({**row, pixel.name: index} for index in range(begin, end))

    def _with_implied(self, row: Row, dimension: str, value: Any) -> dict[str, Any]:
        """Add a dimension and the values that its record implies."""
        values = {**row, dimension: value}
        element = self._universe[dimension]
        record = self._record(element, values)
        for implied in element.implied.names:
            values[implied] = record.get(implied)
            if implied == "physical_filter" and values[implied] is not None:
                values = self._with_implied(values, implied, values[implied])
        return values

    def _with_visits(self, row: Row, dimensions: DimensionGroup) -> Iterator[Row]:
        """Join the visits of an exposure that have the same filter and day."""
        for definition in list(self._records["visit_definition"].values()):
            if (definition.instrument, definition.exposure) != (row["instrument"], row["exposure"]):
                continue
            joined = self._with_implied(row, "visit", definition.visit)
            if any(joined[name] != row[name] for name in ("physical_filter", "day_obs")):
                continue
            if "visit_system" not in dimensions.names:
                yield joined
                continue
            for membership in self._records["visit_system_membership"].values():
                if (membership.instrument, membership.visit) == (joined["instrument"], joined["visit"]):
                    yield {**joined, "visit_system": membership.visit_system}

    def _with_sky(self, row: Row, dimensions: DimensionGroup) -> Iterator[Row]:
        """Join the patches, or tracts, that a detector overlaps; all of them if there is no visit."""
        element = next((name for name in ("patch", "tract") if name in dimensions.names), "skymap")
        everywhere = element == "skymap" or "visit" not in dimensions.names
        region = None if everywhere else self._detector_region(row)
        for record in self._records[element].values():
            if everywhere or regions_overlap(region, record.region, self._universe):
                yield {**row, **record.dataId.required}

    def _with_common_pixels(self, row: Row, dimensions: DimensionGroup) -> Iterator[Row]:
        """Join the pixels of the common sky pixelization that overlap a detector, patch or tract."""
        common = self._universe.commonSkyPix
        if common.name not in dimensions.names:
            yield row
            return
        if "visit" in dimensions.names:
            region = self._detector_region(row)
        else:
            element = "patch" if "patch" in dimensions.names else "tract"
            region = self._record(self._universe[element], row).region
        for begin, end in () if region is None else common.pixelization.envelope(region):
            yield from ({**row, common.name: index} for index in range(begin, end))

    def _detector_region(self, row: Row) -> Region | None:
        found = self._records["visit_detector_region"].get((row["instrument"], row["detector"], row["visit"]))
        return None if found is None else found.region

    def _record(self, element: DimensionElement, row: Row) -> DimensionRecord:
        if isinstance(element, SkyPixDimension):  # no repo stores these
            index = row[element.name]
            return element.RecordClass(id=index, region=element.pixelization.pixel(index))
        key = tuple(row[required] for required in element.minimal_group.required)
        record = self._records[element.name].get(key)
        if record is None:
            raise Unsupported(f"no record of {element.name} {key}")
        return record


def region_element(dimensions: DimensionGroup) -> DimensionElement | None:
    """Return the element that has the region of data IDs without their sky pixels, if there is one."""
    universe = dimensions.universe
    others = dimensions.difference(universe.conform(dimensions.skypix))
    return None if others.region_dimension is None else universe[others.region_dimension]
