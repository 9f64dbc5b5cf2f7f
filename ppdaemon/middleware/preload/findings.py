# SPDX-License-Identifier: BSD-3-Clause
"""What the central repo has for a visit-detector, and what is missing; pure."""

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from typing import Any

from lsst.daf.butler import CollectionType, DatasetId

from ppdaemon.middleware.butler.datafiles import DataFile
from ppdaemon.middleware.pipelines.graph import LoadedPipeline, Need
from ppdaemon.middleware.preload.search import Found, Search, comes_with_exposure

__all__ = ("FOOTPRINT_TYPE", "PreloadPlan", "Missing", "made_by", "missing_of")

FOOTPRINT_TYPE = "regionTimeInfo"
"""Dataset type of padded footprint and time (storage class `RegionTimeInfo`)."""


@dataclass(frozen=True, slots=True)
class Missing:
    """A dataset type of which nothing was found."""

    name: str
    required: bool
    """Whether the pipeline cannot run without."""
    sought: str
    """What was looked for, where: data ID, filter, region, collections."""

    def __str__(self) -> str:
        return f"{self.name} ({self.sought})"


@dataclass(frozen=True, slots=True)
class PreloadPlan:
    """What a preload would bring; nothing was copied."""

    search: Search
    """What was looked for."""
    preprocessing: tuple[LoadedPipeline, ...]
    """Those that can be constructed and lack nothing, in order of preference."""
    main: tuple[LoadedPipeline, ...]
    """Those that can be constructed and lack nothing, in order of preference."""
    found: tuple[Found, ...]
    """What the central repo has, one for each dataset type that was looked
    for; also of types that only pipelines without all they need would read."""
    needs: Mapping[str, tuple[Need, ...]]
    """What each constructible pipeline reads, by its path."""
    missing: Mapping[str, tuple[Missing, ...]]
    """What each constructible pipeline does not get, by its path; optional
    inputs too."""
    reasons: tuple[str, ...]
    """Why pipelines are not usable, in words."""
    files: Mapping[DatasetId, DataFile]
    """Where they are; datasets that are not one file have none."""
    kinds: Mapping[str, CollectionType]
    """What the collections of calibrations are."""
    sizes: Mapping[DatasetId, int] = field(default_factory=dict)
    """Bytes of the datasets' files, if they were asked for; a file that holds
    several datasets counts for each of them."""

    @classmethod
    def of(
        cls,
        preprocessing: Iterable[LoadedPipeline],
        main: Iterable[LoadedPipeline],
        reasons: Iterable[str],
        *,
        search: Search,
        found: tuple[Found, ...],
        needs: Mapping[str, tuple[Need, ...]],
        **places: Any,
    ) -> "PreloadPlan":
        """Sort out the pipelines that lack what they need.

        Parameters
        ----------
        preprocessing, main : `~collections.abc.Iterable`
            Pipelines that can be constructed; those that do not fit the repo
            have no needs.
        reasons : `~collections.abc.Iterable` [`str`]
            Why others cannot.
        search, found, needs, **places
            As the attributes.

        Returns
        -------
        plan : `PreloadPlan`
            With the pipelines that can run, if preprocessing makes what it
            can.
        """
        counts = counted(found)
        missing: dict[str, tuple[Missing, ...]] = {}
        words = list(reasons)

        def complete(pipelines: Iterable[LoadedPipeline], made: Set[str]) -> tuple[LoadedPipeline, ...]:
            chosen = []
            for pipeline in pipelines:
                if pipeline.path in needs:
                    missing[pipeline.path] = missing_of(needs[pipeline.path], counts, made, search)
                    if lacking := lacks(pipeline, missing[pipeline.path]):
                        words.append(lacking)
                    else:
                        chosen.append(pipeline)
            return tuple(chosen)

        footprint = {FOOTPRINT_TYPE} if search.region is not None else set()
        first = complete(preprocessing, footprint)
        then = complete(main, footprint | made_by(first))
        return cls(search, first, then, found, needs, missing, tuple(words), **places)

    @property
    def counts(self) -> dict[str, int]:
        """Datasets found, by type (`dict` [`str`, `int`])."""
        return counted(self.found)

    @property
    def wanted(self) -> tuple[Found, ...]:
        """What is to be brought: all that pipelines that can run read
        (`tuple` [`~ppdaemon.middleware.preload.search.Found`]).
        """
        if not self.main:
            return ()
        read = {need.name for each in (*self.preprocessing, *self.main) for need in self.needs[each.path]}
        return tuple(each for each in self.found if each.dataset_type.name in read)

    def lacks(self, pipeline: LoadedPipeline, made: Set[str]) -> str:
        """Say what a pipeline cannot do without and does not get.

        Parameters
        ----------
        pipeline : `~ppdaemon.middleware.pipelines.graph.LoadedPipeline`
            One of them.
        made : `~collections.abc.Set` [`str`]
            Types that preprocessing has made.

        Returns
        -------
        words : `str`
            Empty if it has all.
        """
        return lacks(pipeline, missing_of(self.needs[pipeline.path], self.counts, made, self.search))


def missing_of(
    needs: Iterable[Need], found: Mapping[str, int], made: Set[str], search: Search
) -> tuple[Missing, ...]:
    """Return what a pipeline reads and will not find.

    Parameters
    ----------
    needs : `~collections.abc.Iterable` [`~ppdaemon.middleware.pipelines.graph.Need`]
        What it reads.
    found : `~collections.abc.Mapping` [`str`, `int`]
        Datasets in the central repo, by type.
    made : `~collections.abc.Set` [`str`]
        Types that preprocessing makes.
    search : `~ppdaemon.middleware.preload.search.Search`
        What was looked for.

    Returns
    -------
    missing : `tuple` [`Missing`]
        Sorted by name; what comes with the exposure is not among them.
    """
    return tuple(
        Missing(need.name, need.required, _sought(need, search))
        for need in sorted(needs, key=lambda need: need.name)
        if not (found.get(need.name) or need.name in made or comes_with_exposure(need.dataset_type))
    )


def _sought(need: Need, search: Search) -> str:
    """Say what was looked for, or why it was not."""
    if need.name == FOOTPRINT_TYPE:
        return "no place on the sky"
    if "group" in need.dataset_type.dimensions.names:
        return "no preprocessing makes it"
    return search.words(need.dataset_type)


def counted(found: Iterable[Found]) -> dict[str, int]:
    """Return how many datasets there are, by type."""
    return {each.dataset_type.name: len(each.refs) for each in found}


def lacks(pipeline: LoadedPipeline, missing: Iterable[Missing]) -> str:
    """Say what a pipeline cannot do without; empty if it has all."""
    required = [str(each) for each in missing if each.required]
    return f"{pipeline.name} lacks {', '.join(required)}" if required else ""


def made_by(pipelines: Iterable[LoadedPipeline]) -> set[str]:
    """Return names of all that pipelines write."""
    return {
        edge.parent_dataset_type_name
        for pipeline in pipelines
        for task in pipeline.graph.tasks.values()
        for edge in (*task.iter_all_outputs(), *task.init.iter_all_outputs())
    }
