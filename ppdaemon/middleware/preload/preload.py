# SPDX-License-Identifier: BSD-3-Clause
"""Copies the inputs of a visit-detector from the central repo before its image.

`Preload.find` reads the central repo and changes nothing; `Preload.fetch`
copies the datasets found.
"""

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache

from lsst.daf.butler import Butler, CollectionType, DatasetId, DatasetType
from lsst.resources import ResourcePath

from ppdaemon.config import ButlerConfig
from ppdaemon.errors import VisitFailed
from ppdaemon.messages import Prepare
from ppdaemon.middleware.butler.central import CentralReader, existing_collections, known_dataset_type
from ppdaemon.middleware.butler.datafiles import LocationCache, without_member
from ppdaemon.middleware.butler.repo import LocalRepo
from ppdaemon.middleware.butler.timings import Timings
from ppdaemon.middleware.pipelines.graph import (
    LoadedPipeline,
    OverallInput,
    PipelineLibrary,
    UnusablePipeline,
)
from ppdaemon.middleware.preload.cache import CacheStats, SharedCache
from ppdaemon.middleware.preload.findings import FileSize, PreloadPlan, filters_of, output_types, span_of
from ppdaemon.middleware.preload.search import Found, Search, find_inputs
from ppdaemon.middleware.preload.transfer import MissingFile, add, input_collections, take_files
from ppdaemon.middleware.raws.header import ExposureHeader
from ppdaemon.middleware.raws.regions import Footprint
from ppdaemon.states import Outcome

__all__ = ("Preload", "register_command")

_LOG = logging.getLogger(__name__)


class Preload:
    """Finds and copies the inputs of visits.

    With `any_filter`, an image may have another filter than its visit.
    """

    def __init__(
        self,
        config: ButlerConfig,
        central: CentralReader,
        cache: SharedCache,
        library: PipelineLibrary,
        *,
        any_filter: bool = False,
    ):
        self._config = config
        self._any_filter = any_filter
        self._central = central
        self._cache = cache
        self._library = library
        self._locations = LocationCache()
        self._bands: dict[str, Mapping[str, str]] = {}
        """Bands by filter of each instrument, as last queried."""
        self._registered: set[tuple[str, int]] = set()
        """Instruments and detectors that the central repo has."""

    def find(
        self, order: Prepare, footprint: Footprint, timings: Timings, *, sizes: bool = False
    ) -> PreloadPlan:
        """Find the inputs of the selected pipelines in the central repo; change nothing.

        It is not an error if no pipeline can run. None can if the central repo
        has no record of the instrument, detector or filter: it would refuse the
        outputs. `sizes` also requests the sizes of the files, one by one. Raises
        `~ppdaemon.errors.VisitFailed` (``PRELOAD_FAILED``, retriable) if the
        central repo cannot be read.
        """
        with timings.timed("pipelines"):
            preprocessing, reasons = self._library.load(order.pipelines.preprocessing)
            main, more = self._library.load(order.pipelines.main)
            reasons += more
        with self._central.reading(timings) as central:
            with timings.timed("query"):
                bands = self._bands_of(order, central)
                search = self._search(order, central, footprint, bands)
                if unknown := self._unregistered(order, central, bands):
                    preprocessing, main, reasons = [], [], [unknown]
                needs = self._needs([*preprocessing, *main], central, reasons)
                types = _searched_types(central, needs.values(), preprocessing)
                found = tuple(find_inputs(central, types, search, timings.clock))
            with timings.timed("locate"):
                refs = (ref for each in found for ref in each.refs)
                files, not_stored = self._locations.locate(central, refs)
                if not_stored:
                    found = tuple(each.without(not_stored) for each in found)
                collection_types = _collection_types(central, found)
                measured = _sizes(central, found) if sizes else {}
        return PreloadPlan.of(
            preprocessing,
            main,
            reasons,
            search=search,
            found=found,
            needs=needs,
            filters=frozenset(bands),
            files=files,
            collection_types=collection_types,
            sizes=measured,
        )

    def fetch(self, plan: PreloadPlan, repo: LocalRepo, timings: Timings) -> tuple[str, ...]:
        """Copy the datasets that the pipelines that can run read; return the collections that have them.

        The repo must have been renewed. Raises `~ppdaemon.errors.VisitFailed`: ``NO_PIPELINE``,
        before anything is copied, if no main pipeline can run;
        ``PRELOAD_FAILED``, retriable, if the central repo cannot be read;
        ``RAMDISK_FULL``.
        """
        if not plan.main:
            raise VisitFailed(Outcome.NO_PIPELINE, "no pipeline can run: " + "; ".join(plan.reasons))
        _warn_of_missing(plan)
        found = plan.wanted
        stats = CacheStats()
        self._copy(found, plan, repo, timings, stats)
        timings.values |= {"datasets": sum(len(each.refs) for each in found)} | asdict(stats)
        return input_collections(found, plan.search)

    def fetch_more(
        self,
        plan: PreloadPlan,
        headers: Sequence[ExposureHeader],
        repo: LocalRepo,
        timings: Timings,
    ) -> PreloadPlan:
        """Search again for those datasets that depend on time or filter, at the time and filter of
        exposures; copy what the repo does not have, and return the plan with it.

        For exposures outside of the first search. Raises as `fetch`.
        """
        filters = filters_of(headers)
        with self._central.reading(timings) as central:
            with timings.timed("query"):
                bands = _bands(central, plan.search.instrument)
                search = replace(
                    plan.search,
                    timespan=span_of(headers),
                    physical_filters=filters,
                    bands=tuple(sorted({bands[name] for name in filters if name in bands})),
                )
                types = plan.types_outside(headers)
                found = plan.missing_from(find_inputs(central, types, search, timings.clock))
            with timings.timed("locate"):
                refs = (ref for each in found for ref in each.refs)
                files, not_stored = self._locations.locate(central, refs)
                found = tuple(each.without(not_stored) for each in found)
                collection_types = _collection_types(central, found)
        more = plan.with_more(found, files, collection_types)
        stats = CacheStats()
        self._copy(found, more, repo, timings, stats)
        timings.values |= {"datasets": sum(len(each.refs) for each in found)} | asdict(stats)
        return more

    def _copy(
        self, found: Sequence[Found], plan: PreloadPlan, repo: LocalRepo, timings: Timings, stats: CacheStats
    ) -> None:
        """Copy datasets."""
        refs = list({ref.id: ref for each in found for ref in each.refs}.values())
        with timings.timed("cache"):
            try:
                files = take_files(refs, plan.files, self._cache, repo.files, stats)
            except MissingFile as error:
                self._locations.discard(error.refs)
                raise
        rest = [ref for ref in refs if ref.id not in plan.files]

        def copy_rest(butler: Butler) -> None:
            if rest:
                with self._central.copying(timings) as central:
                    butler.transfer_from(central, rest, transfer="copy")

        with timings.timed("register"):
            add(repo, found, files, plan.collection_types, copy_rest)
            if rest:
                repo.write_registry()  # now: the central repo may be away when it is needed

    def _needs(
        self, pipelines: Iterable[LoadedPipeline], central: Butler, reasons: list[str]
    ) -> dict[str, tuple[OverallInput, ...]]:
        needs = {}
        for pipeline in pipelines:
            try:
                needs[pipeline.path] = self._library.needs(pipeline, central)
            except UnusablePipeline as error:
                _LOG.error("%s", error)
                reasons.append(str(error))
        return needs

    def _bands_of(self, order: Prepare, central: Butler) -> Mapping[str, str]:
        """Return the bands of an instrument's filters, queried again for a filter that was not known."""
        instrument = order.visit.instrument
        known = self._bands.get(instrument, {})
        if not known or not known.keys() >= set(order.visit.filter_names):
            known = self._bands[instrument] = _bands(central, instrument)
        return known

    def _unregistered(self, order: Prepare, central: Butler, bands: Collection[str]) -> str:
        """Return what of a visit-detector is not registered in the central repo, with the command that
        registers it; empty if all is.
        """
        instrument, names = order.visit.instrument, order.visit.filter_names
        data_id = {"instrument": instrument, "detector": order.detector}
        key = instrument, order.detector
        if key in self._registered or central.query_dimension_records(
            "detector", data_id=data_id, explain=False
        ):
            self._registered.add(key)  # a record is never deleted
            if self._any_filter or not names or not set(names).isdisjoint(bands):
                return ""
            what = f"filter {' or '.join(names)} of {instrument}"
        elif central.query_dimension_records("instrument", instrument=instrument, explain=False):
            what = f"detector {order.detector} of {instrument}"
        else:
            what = f"instrument {instrument}"
        return f"the central repo has no record of the {what}: {register_command(self._config, instrument)}"

    def _search(
        self, order: Prepare, central: Butler, footprint: Footprint, bands: Mapping[str, str]
    ) -> Search:
        instrument = order.visit.instrument
        filters = _known_filters(bands, instrument, order.visit.filter_names)

        def existing(names: Sequence[str]) -> tuple[str, ...]:
            return existing_collections(central, [name.format(instrument=instrument) for name in names])

        return Search(
            instrument=instrument,
            detector=order.detector,
            physical_filters=tuple(filters),
            bands=tuple(sorted(set(filters.values()))),
            skymap=self._config.skymap,
            timespan=footprint.validity,
            region=footprint.region,
            calibs=existing(self._config.calibs),
            inputs=existing(self._config.inputs),
        )


def _searched_types(
    central: Butler, needs: Iterable[Sequence[OverallInput]], preprocessing: Iterable[LoadedPipeline]
) -> list[DatasetType]:
    """Return the types to search for, as the central repo defines them."""
    names = {need.name for each in needs for need in each} - output_types(preprocessing)
    return [found for name in sorted(names) if (found := known_dataset_type(central, name)) is not None]


def register_command(config: ButlerConfig, instrument: str) -> str:
    """Return the command that registers what an instrument has in the central repo."""
    return f"butler register-instrument {config.central} {config.instrument_class[instrument]} --update"


def _known_filters(bands: Mapping[str, str], instrument: str, announced: Sequence[str]) -> Mapping[str, str]:
    """Return the bands of the announced filters, by filter; of all filters if none is known."""
    known = {name: bands[name] for name in announced if name in bands}
    if unknown := [name for name in announced if name not in bands]:
        _LOG.warning(
            "the announced filter %s is not one of %s in the central repo, it is ignored",
            ", ".join(unknown),
            instrument,
        )
    if not known:
        _LOG.info("the filter is not known before the image: preloading for all %d", len(bands))
    return known or bands


def _bands(central: Butler, instrument: str) -> dict[str, str]:
    """Return the bands of an instrument's filters, by filter."""
    records = central.query_dimension_records("physical_filter", instrument=instrument, explain=False)
    return {record.name: record.band for record in records}


def _collection_types(central: Butler, found: Iterable[Found]) -> dict[str, CollectionType]:
    """Return the types of the associations' collections."""
    names = sorted({association.collection for each in found for association in each.associations})
    return {info.name: info.type for info in central.collections.query_info(names)} if names else {}


def _warn_of_missing(plan: PreloadPlan) -> None:
    """Log the optional inputs that are missing."""
    optional = {
        str(each)
        for pipeline in (*plan.preprocessing, *plan.main)
        for each in plan.missing[pipeline.path]
        if not each.required
    }
    if optional:
        _LOG.warning(
            "optional inputs are not in the central repo, processing continues without: %s",
            "; ".join(sorted(optional)),
        )


def _sizes(central: Butler, found: Iterable[Found]) -> dict[DatasetId, FileSize]:
    """Return the files of each dataset and their size."""

    @cache  # an archive with many of the datasets is queried once
    def size_of(file: ResourcePath) -> int:
        return file.size()

    sizes = {}
    for ref, uris in central.get_many_uris([ref for each in found for ref in each.refs]).items():
        found_uris = [uris.primaryURI] if uris.primaryURI is not None else uris.componentURIs.values()
        files = [without_member(uri) for uri in found_uris]
        sizes[ref.id] = FileSize(str(files[0]), sum(size_of(file) for file in files))
    return sizes
