# SPDX-License-Identifier: BSD-3-Clause
"""Decides which pipelines can run with the datasets found for a visit-detector; pure."""

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any

from lsst.daf.butler import CollectionType, DatasetId, DatasetType, Timespan

from ppdaemon.middleware.butler.datafiles import DataFile
from ppdaemon.middleware.pipelines.graph import LoadedPipeline, OverallInput
from ppdaemon.middleware.preload.search import NO_POSITION, Found, Search, requires_exposure
from ppdaemon.middleware.raws.header import ExposureHeader

__all__ = (
    "FOOTPRINT_TYPE",
    "FileSize",
    "Missing",
    "PreloadPlan",
    "filters_of",
    "missing_inputs",
    "output_types",
    "span_of",
)

_FILTERS = frozenset({"band", "physical_filter"})

FOOTPRINT_TYPE = "regionTimeInfo"
"""Dataset type of the padded footprint and the time of the exposure (storage
class `RegionTimeInfo`)."""


@dataclass(frozen=True, slots=True)
class Missing:
    """A dataset type of which no dataset was found."""

    name: str
    required: bool
    """Whether the pipeline cannot run without it."""
    sought: str
    """The search: data ID, filter, region, collections."""

    def __str__(self) -> str:
        return f"{self.name} ({self.sought})"


@dataclass(frozen=True, slots=True)
class FileSize:
    """The file of a dataset and its size; all files, if it has several."""

    uri: str
    """Of the first file."""
    size_bytes: int


@dataclass(frozen=True, slots=True)
class PreloadPlan:
    """The pipelines that can run, and the datasets to copy for them."""

    search: Search
    preprocessing: tuple[LoadedPipeline, ...]
    """Pipelines that can run, in order of preference."""
    main: tuple[LoadedPipeline, ...]
    """Pipelines that can run, in order of preference."""
    found: tuple[Found, ...]
    """Datasets in the central repo, one entry for each dataset type searched;
    includes types that only pipelines that cannot run would read."""
    needs: Mapping[str, tuple[OverallInput, ...]]
    """Inputs of each constructible pipeline, by its path."""
    missing: Mapping[str, tuple[Missing, ...]]
    """Inputs of each constructible pipeline that were not found, by its path;
    includes optional ones."""
    reasons: tuple[str, ...]
    """Why the other pipelines cannot run."""
    filters: frozenset[str]
    """Filters of the instrument that are registered in the central repo."""
    files: Mapping[DatasetId, DataFile]
    """Files of the datasets; those that are not one file have none."""
    collection_types: Mapping[str, CollectionType]
    """Types of the calibrations' collections."""
    sizes: Mapping[DatasetId, FileSize] = field(default_factory=dict)
    """The datasets' files, if requested; several datasets may be in one."""

    @classmethod
    def of(
        cls,
        preprocessing: Iterable[LoadedPipeline],
        main: Iterable[LoadedPipeline],
        reasons: Iterable[str],
        *,
        search: Search,
        found: tuple[Found, ...],
        needs: Mapping[str, tuple[OverallInput, ...]],
        **locations: Any,
    ) -> "PreloadPlan":
        """Select the pipelines whose required inputs were found or will be produced by preprocessing.

        `reasons` explains why other pipelines cannot be constructed; pipelines
        without `needs` do not fit the repo.
        """
        counts = count_datasets(found)
        missing: dict[str, tuple[Missing, ...]] = {}
        all_reasons = list(reasons)

        def usable(pipelines: Iterable[LoadedPipeline], produced: Set[str]) -> tuple[LoadedPipeline, ...]:
            selected = []
            for pipeline in pipelines:
                if pipeline.path in needs:
                    missing[pipeline.path] = missing_inputs(needs[pipeline.path], counts, produced, search)
                    if lacking := lacks(pipeline, missing[pipeline.path]):
                        all_reasons.append(lacking)
                    else:
                        selected.append(pipeline)
            return tuple(selected)

        footprint = {FOOTPRINT_TYPE} if search.region is not None else set()
        # Preprocessing first: what it will produce is no missing input of the main pipelines.
        first = usable(preprocessing, footprint)
        then = usable(main, footprint | output_types(first))
        return cls(search, first, then, found, needs, missing, tuple(all_reasons), **locations)

    @property
    def counts(self) -> dict[str, int]:
        """Number of datasets found, by type (`dict` [`str`, `int`])."""
        return count_datasets(self.found)

    @property
    def wanted(self) -> tuple[Found, ...]:
        """Datasets to copy: those that the pipelines that can run read
        (`tuple` [`~ppdaemon.middleware.preload.search.Found`]).
        """
        if not self.main:
            return ()
        read = {need.name for each in (*self.preprocessing, *self.main) for need in self.needs[each.path]}
        return tuple(each for each in self.found if each.dataset_type.name in read)

    def types_outside(self, headers: Sequence[ExposureHeader]) -> list[DatasetType]:
        """Return those types to copy that depend on time or filter, if exposures were taken at another
        time or with another filter than was searched for.
        """
        other_time = not self.search.timespan.contains(span_of(headers))
        other_filter = not set(filters_of(headers)) <= set(self.search.physical_filters)
        return [
            each.dataset_type
            for each in self.wanted
            if (other_time and each.dataset_type.isCalibration())
            or (other_filter and not _FILTERS.isdisjoint(each.dataset_type.dimensions.names))
        ]

    def missing_from(self, found: Iterable[Found]) -> tuple[Found, ...]:
        """Return datasets and validities that are not in this plan; the type of each result is in it."""
        known = {each.dataset_type.name: each for each in self.found}
        return tuple(
            replace(
                each,
                refs=tuple(ref for ref in each.refs if ref not in known[each.dataset_type.name].refs),
                associations=tuple(
                    one for one in each.associations if one not in known[each.dataset_type.name].associations
                ),
            )
            for each in found
        )

    def with_more(
        self,
        found: Iterable[Found],
        files: Mapping[DatasetId, DataFile],
        collection_types: Mapping[str, CollectionType],
    ) -> "PreloadPlan":
        """Return this plan with other datasets of its types."""
        more = {each.dataset_type.name: each for each in found}
        return replace(
            self,
            found=tuple(
                replace(
                    each,
                    refs=(*each.refs, *other.refs),
                    associations=(*each.associations, *other.associations),
                )
                if (other := more.get(each.dataset_type.name)) is not None
                else each
                for each in self.found
            ),
            files={**self.files, **files},
            collection_types={**self.collection_types, **collection_types},
        )

    def not_valid_for(self, pipeline: LoadedPipeline, headers: Iterable[ExposureHeader]) -> list[str]:
        """Return the types of those calibrations of a pipeline that the central repo has, but not for the
        time of some exposure; sorted.
        """
        read = {need.name for need in self.needs[pipeline.path]}
        return sorted(
            each.dataset_type.name
            for each in self.found
            if each.dataset_type.name in read
            and each.associations
            and any(not _is_valid(each, header) for header in headers)
        )

    def lacks(self, pipeline: LoadedPipeline, produced: Set[str]) -> str:
        """Describe the required inputs that are missing, given the types that preprocessing has
        produced; empty if there are none.
        """
        return lacks(pipeline, missing_inputs(self.needs[pipeline.path], self.counts, produced, self.search))


def span_of(headers: Sequence[ExposureHeader]) -> Timespan:
    """Return the time of exposures, with that between them."""
    return Timespan(min(header.begin for header in headers), max(header.end for header in headers))


def filters_of(headers: Iterable[ExposureHeader]) -> tuple[str, ...]:
    """Return the filters of exposures, sorted."""
    return tuple(sorted({header.physical_filter for header in headers}))


def _is_valid(found: Found, header: ExposureHeader) -> bool:
    """Return whether a calibration is valid for an exposure."""
    span, by_filter = span_of([header]), "physical_filter" in found.dataset_type.dimensions.names
    return any(
        each.timespan is None or each.timespan.overlaps(span)
        for each in found.associations
        if not by_filter or each.ref.dataId["physical_filter"] == header.physical_filter
    )


def missing_inputs(
    needs: Iterable[OverallInput], found: Mapping[str, int], produced: Set[str], search: Search
) -> tuple[Missing, ...]:
    """Return the inputs of a pipeline that it will not find, sorted by name.

    Inputs that exist only after the exposure, such as raws, are not missing.
    """
    return tuple(
        Missing(need.name, need.required, _sought(need, search))
        for need in sorted(needs, key=lambda need: need.name)
        if not (found.get(need.name) or need.name in produced or requires_exposure(need.dataset_type))
    )


def _sought(need: OverallInput, search: Search) -> str:
    """Describe the search for an input, or why there was none."""
    if need.name == FOOTPRINT_TYPE:
        return NO_POSITION
    if "group" in need.dataset_type.dimensions.names:
        return "no preprocessing pipeline produces it"
    return search.describe(need.dataset_type)


def count_datasets(found: Iterable[Found]) -> dict[str, int]:
    """Return the number of datasets by type."""
    return {each.dataset_type.name: len(each.refs) for each in found}


def lacks(pipeline: LoadedPipeline, missing: Iterable[Missing]) -> str:
    """Describe the required inputs that are missing; empty if there are none."""
    required = [str(each) for each in missing if each.required]
    return f"{pipeline.name} lacks {', '.join(required)}" if required else ""


def output_types(pipelines: Iterable[LoadedPipeline]) -> set[str]:
    """Return the names of all dataset types that pipelines write."""
    return {
        edge.parent_dataset_type_name
        for pipeline in pipelines
        for task in pipeline.graph.tasks.values()
        for edge in (*task.iter_all_outputs(), *task.init.iter_all_outputs())
    }
