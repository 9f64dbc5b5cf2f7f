# SPDX-License-Identifier: BSD-3-Clause
"""What a visit-detector needs before its image: inputs from the central repo, and its footprint."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from lsst.daf.butler import Butler, DatasetType, DimensionUniverse
from lsst.pipe.base.utils import RegionTimeInfo

from ppdaemon.clock import Clock
from ppdaemon.config import ButlerConfig
from ppdaemon.errors import VisitFailed
from ppdaemon.messages import Prepare
from ppdaemon.middleware.cache import SharedCache
from ppdaemon.middleware.central import CentralReader, existing_collections, known_dataset_type
from ppdaemon.middleware.graph import LoadedPipeline, Need, UnusablePipeline, load_pipeline, needs_of
from ppdaemon.middleware.regions import Place
from ppdaemon.middleware.search import Search, find_inputs
from ppdaemon.middleware.transfer import Fetched, input_collections, transfer
from ppdaemon.states import Outcome

__all__ = ("FOOTPRINT_TYPE", "Figures", "Library", "Preload", "Preloaded", "missing_inputs", "put_footprint")

_LOG = logging.getLogger(__name__)

FOOTPRINT_TYPE = "regionTimeInfo"
"""Dataset type of padded footprint and time (storage class `RegionTimeInfo`)."""


@dataclass(slots=True)
class Figures:
    """What the parts of a preload took, for the journal."""

    clock: Clock
    values: dict[str, Any] = field(default_factory=dict)

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Note the milliseconds of a phase.

        Parameters
        ----------
        phase : `str`
            Becomes ``<phase>_ms``.
        """
        start = self.clock.mono()
        try:
            yield
        finally:
            self.values[f"{phase}_ms"] = round((self.clock.mono() - start) * 1e3, 1)


class Library:
    """Pipelines that were parsed, and what they read; kept for a worker's life.

    Parameters
    ----------
    overrides : `~collections.abc.Mapping` [`str`, `object`]
        Task configuration by ``label:field``.
    """

    def __init__(self, overrides: Mapping[str, Any]):
        self._overrides = overrides
        self._loaded: dict[str, LoadedPipeline] = {}
        self._needs: dict[str, tuple[Need, ...]] = {}

    def load(self, paths: Iterable[str]) -> tuple[list[LoadedPipeline], list[str]]:
        """Return the pipelines of some files.

        Parameters
        ----------
        paths : `~collections.abc.Iterable` [`str`]
            Pipeline files.

        Returns
        -------
        pipelines : `list` [`~ppdaemon.middleware.graph.LoadedPipeline`]
            Those that can be constructed.
        reasons : `list` [`str`]
            Why the others cannot.
        """
        pipelines, reasons = [], []
        for path in paths:
            try:
                if path not in self._loaded:
                    self._loaded[path] = load_pipeline(path, self._overrides)
                pipelines.append(self._loaded[path])
            except UnusablePipeline as error:
                _LOG.error("%s", error)
                reasons.append(str(error))
        return pipelines, reasons

    def needs(
        self,
        pipeline: LoadedPipeline,
        universe: DimensionUniverse,
        known: Callable[[str], DatasetType | None],
    ) -> tuple[Need, ...]:
        """Return what a pipeline reads; see `ppdaemon.middleware.graph.needs_of`."""
        if pipeline.path not in self._needs:
            self._needs[pipeline.path] = needs_of(pipeline, universe, known)
        return self._needs[pipeline.path]


@dataclass(frozen=True, slots=True)
class Preloaded:
    """What a preload has brought."""

    inputs: tuple[str, ...]
    """Collections of the worker's repo that hold it, in order."""
    preprocessing: tuple[LoadedPipeline, ...]
    """Usable ones."""
    main: tuple[LoadedPipeline, ...]
    """Usable ones."""
    needs: Mapping[str, tuple[Need, ...]]
    """What each reads, by the pipeline's path."""
    counts: Mapping[str, int]
    """How many datasets were found, by dataset type."""
    reasons: tuple[str, ...]
    """Why other pipelines are not usable."""


class Preload:
    """Copies inputs of visits from the central repo.

    Parameters
    ----------
    config : `~ppdaemon.config.ButlerConfig`
        Collections to search.
    central : `~ppdaemon.middleware.central.CentralReader`
        The central repo.
    cache : `~ppdaemon.middleware.cache.SharedCache`
        Files shared between workers.
    library : `Library`
        Pipelines.
    """

    def __init__(self, config: ButlerConfig, central: CentralReader, cache: SharedCache, library: Library):
        self._config = config
        self._central = central
        self._cache = cache
        self._library = library

    def run(self, order: Prepare, local: Butler, place: Place, figures: Figures) -> Preloaded:
        """Copy what the selected pipelines read.

        Parameters
        ----------
        order : `~ppdaemon.messages.Prepare`
            The visit-detector and its pipelines.
        local : `lsst.daf.butler.Butler`
            The worker's repo.
        place : `Place`
            Where and when, as announced.
        figures : `Figures`
            Takes what was copied and how long it took.

        Returns
        -------
        preloaded : `Preloaded`
            What there is now.

        Raises
        ------
        ppdaemon.errors.VisitFailed
            Raised with ``PRELOAD_FAILED`` if the central repo cannot be read,
            with ``NO_PIPELINE`` if no main pipeline can be constructed.
        """
        with figures.timed("pipelines"):
            preprocessing, _ = self._library.load(order.pipelines.preprocessing)
            main, reasons = self._library.load(order.pipelines.main)
        with self._central.reading() as central:
            with figures.timed("connect"):
                central.registry.refresh()
            with figures.timed("query"):
                needs = self._needs([*preprocessing, *main], central, reasons)
                main = [pipeline for pipeline in main if pipeline.path in needs]
                if not main:
                    raise VisitFailed(
                        Outcome.NO_PIPELINE, "no main pipeline is usable: " + "; ".join(reasons)
                    )
                search = self._search(order, local, central, place)
                found = find_inputs(
                    central, _wanted(central, needs.values(), _made_by(preprocessing)), search
                )
            with figures.timed("copy"):
                fetched = transfer(central, local, found, self._cache)
        figures.values |= _counts(fetched)
        return Preloaded(
            inputs=input_collections(found, search),
            preprocessing=tuple(pipeline for pipeline in preprocessing if pipeline.path in needs),
            main=tuple(main),
            needs=needs,
            counts={each.dataset_type.name: len(each.refs) for each in found},
            reasons=tuple(reasons),
        )

    def _needs(
        self, pipelines: Iterable[LoadedPipeline], central: Butler, reasons: list[str]
    ) -> dict[str, tuple[Need, ...]]:
        needs = {}
        for pipeline in pipelines:
            try:
                needs[pipeline.path] = self._library.needs(
                    pipeline, central.dimensions, lambda name: known_dataset_type(central, name)
                )
            except UnusablePipeline as error:
                _LOG.error("%s", error)
                reasons.append(str(error))
        return needs

    def _search(self, order: Prepare, local: Butler, central: Butler, place: Place) -> Search:
        instrument = order.visit.instrument
        filters = _known_filters(local, instrument, order.visit.filter_names)

        def existing(names: Sequence[str]) -> tuple[str, ...]:
            return existing_collections(central, [name.format(instrument=instrument) for name in names])

        return Search(
            instrument=instrument,
            detector=order.detector,
            physical_filters=tuple(filters),
            bands=tuple(sorted(set(filters.values()))),
            skymap=self._config.skymap,
            timespan=place.validity,
            region=place.region,
            calibs=existing(self._config.calibs),
            inputs=existing(self._config.inputs),
        )


def put_footprint(local: Butler, order: Prepare, place: Place, run: str) -> None:
    """Write where and when the detector will look, for preprocessing tasks.

    Parameters
    ----------
    local : `lsst.daf.butler.Butler`
        The worker's repo, with the group's record.
    order : `~ppdaemon.messages.Prepare`
        The visit-detector.
    place : `~ppdaemon.middleware.regions.Place`
        Where and when; nothing is written where the place is not known.
    run : `str`
        Run that takes it.
    """
    if place.region is None:
        return
    local.registry.registerDatasetType(
        DatasetType(
            FOOTPRINT_TYPE, ("instrument", "group", "detector"), "RegionTimeInfo", universe=local.dimensions
        )
    )
    info = RegionTimeInfo(region=place.region, timespan=place.exposure)
    data_id = {"instrument": order.visit.instrument, "group": order.visit.group, "detector": order.detector}
    local.put(info, FOOTPRINT_TYPE, data_id, run=run)


def missing_inputs(needs: Iterable[Need], counts: Mapping[str, int], local: Butler, run: str) -> list[str]:
    """Return what a pipeline cannot do without and what is not there.

    Parameters
    ----------
    needs : `~collections.abc.Iterable` [`~ppdaemon.middleware.graph.Need`]
        What it reads.
    counts : `~collections.abc.Mapping` [`str`, `int`]
        Datasets that were copied, by type.
    local : `lsst.daf.butler.Butler`
        The worker's repo.
    run : `str`
        Run of footprint and preprocessing outputs.

    Returns
    -------
    missing : `list` [`str`]
        Names of dataset types; what comes with the exposure is not among
        them.
    """
    made = local.collections.get_info(run, include_summary=True).dataset_types or frozenset()
    return sorted(
        need.name
        for need in needs
        if need.required
        and not need.dataset_type.dimensions.names & {"exposure", "visit"}
        and not counts.get(need.name)
        and need.name not in made
    )


def _made_by(pipelines: Iterable[LoadedPipeline]) -> set[str]:
    """Return names of all that pipelines write."""
    return {
        edge.parent_dataset_type_name
        for pipeline in pipelines
        for task in pipeline.graph.tasks.values()
        for edge in (*task.iter_all_outputs(), *task.init.iter_all_outputs())
    }


def _wanted(central: Butler, needs: Iterable[Sequence[Need]], made: set[str]) -> list[DatasetType]:
    """Return the types to search for, as the central repo defines them."""
    names = {need.name for each in needs for need in each} - made - {FOOTPRINT_TYPE}
    return [found for name in sorted(names) if (found := known_dataset_type(central, name)) is not None]


def _known_filters(local: Butler, instrument: str, announced: Sequence[str]) -> dict[str, str]:
    """Return the bands of the announced filters, of all if none is known."""
    records = local.query_dimension_records("physical_filter", instrument=instrument)
    every = {record.name: record.band for record in records}
    chosen = {name: every[name] for name in announced if name in every}
    if unknown := [name for name in announced if name not in every]:
        _LOG.warning("%s has no filter %s", instrument, ", ".join(unknown))
    if not chosen:
        _LOG.info("the filter is not known before the image: preloading for all %d", len(every))
    return chosen or every


def _counts(fetched: Fetched) -> dict[str, int]:
    return {
        "datasets": sum(len(file.refs) for file in fetched.files) + len(fetched.others),
        "bytes": fetched.total_bytes,
        "fetched_bytes": fetched.fetched_bytes,
    }
