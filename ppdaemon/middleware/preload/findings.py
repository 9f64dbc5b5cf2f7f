# SPDX-License-Identifier: BSD-3-Clause
"""Decides which pipelines can run with the datasets found for a visit-detector; pure."""

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from typing import Any

from lsst.daf.butler import CollectionType, DatasetId

from ppdaemon.middleware.butler.datafiles import DataFile
from ppdaemon.middleware.pipelines.graph import LoadedPipeline, OverallInput
from ppdaemon.middleware.preload.search import NO_POSITION, Found, Search, requires_exposure

__all__ = ("FOOTPRINT_TYPE", "FileSize", "Missing", "PreloadPlan", "missing_inputs", "output_types")

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

    def lacks(self, pipeline: LoadedPipeline, produced: Set[str]) -> str:
        """Describe the required inputs that are missing, given the types that preprocessing has
        produced; empty if there are none.
        """
        return lacks(pipeline, missing_inputs(self.needs[pipeline.path], self.counts, produced, self.search))


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
