# SPDX-License-Identifier: BSD-3-Clause
"""What a visit-detector needs from the central repo before its image.

`Preload.find` reads the central repo and changes nothing, `Preload.fetch`
copies what was found.
"""

import logging
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict

from lsst.daf.butler import Butler, CollectionType, DatasetId, DatasetType

from ppdaemon.config import ButlerConfig
from ppdaemon.errors import VisitFailed
from ppdaemon.messages import Prepare
from ppdaemon.middleware.butler.central import CentralReader, existing_collections, known_dataset_type
from ppdaemon.middleware.butler.datafiles import DataFile, KnownFiles
from ppdaemon.middleware.butler.repo import LocalRepo
from ppdaemon.middleware.butler.timings import Timings
from ppdaemon.middleware.pipelines.graph import Library, LoadedPipeline, Need, UnusablePipeline
from ppdaemon.middleware.preload.cache import CacheStats, SharedCache
from ppdaemon.middleware.preload.findings import PreloadPlan, made_by
from ppdaemon.middleware.preload.search import Found, Search, find_inputs
from ppdaemon.middleware.preload.transfer import Absent, cache_names, input_collections, register, take_files
from ppdaemon.middleware.raws.regions import Footprint
from ppdaemon.states import Outcome

__all__ = ("Preload",)

_LOG = logging.getLogger(__name__)


class Preload:
    """Finds and copies inputs of visits.

    Parameters
    ----------
    config : `~ppdaemon.config.ButlerConfig`
        Collections to search.
    central : `~ppdaemon.middleware.butler.central.CentralReader`
        The central repo.
    cache : `~ppdaemon.middleware.preload.cache.SharedCache`
        Files shared between workers.
    library : `~ppdaemon.middleware.pipelines.graph.Library`
        Pipelines.
    """

    def __init__(self, config: ButlerConfig, central: CentralReader, cache: SharedCache, library: Library):
        self._config = config
        self._central = central
        self._cache = cache
        self._library = library
        self._files = KnownFiles()
        self._last: list[Hashable] = []

    def find(
        self, order: Prepare, footprint: Footprint, timings: Timings, *, sizes: bool = False
    ) -> PreloadPlan:
        """Find what the selected pipelines will read; change nothing.

        Parameters
        ----------
        order : `~ppdaemon.messages.Prepare`
            The visit-detector and its pipelines.
        footprint : `~ppdaemon.middleware.raws.regions.Footprint`
            Where and when, as announced.
        timings : `~ppdaemon.middleware.butler.timings.Timings`
            Takes how long it took.
        sizes : `bool`, optional
            Also ask for the sizes of files, one by one.

        Returns
        -------
        plan : `~ppdaemon.middleware.preload.findings.PreloadPlan`
            What is there and what is missing. It is no error if no pipeline
            can run.

        Raises
        ------
        ppdaemon.errors.VisitFailed
            Raised with ``PRELOAD_FAILED``, to be tried again, if the central
            repo cannot be read.
        """
        with timings.timed("pipelines"):
            preprocessing, reasons = self._library.load(order.pipelines.preprocessing)
            main, more = self._library.load(order.pipelines.main)
            reasons += more
        with self._central.reading(timings) as central:
            with timings.timed("query"):
                needs = self._needs([*preprocessing, *main], central, reasons)
                search = self._search(order, central, footprint)
                wanted = _wanted(central, needs.values(), preprocessing)
                found = tuple(find_inputs(central, wanted, search, timings.clock))
            with timings.timed("locate"):
                files, lost = self._files.locate(central, (ref for each in found for ref in each.refs))
                if lost:
                    found = tuple(each.without(lost) for each in found)
                kinds = _kinds(central, found)
                measured = _sizes(central, found) if sizes else {}
        return PreloadPlan.of(
            preprocessing,
            main,
            reasons,
            search=search,
            found=found,
            needs=needs,
            files=files,
            kinds=kinds,
            sizes=measured,
        )

    def fetch(self, plan: PreloadPlan, repo: LocalRepo, timings: Timings) -> tuple[str, ...]:
        """Copy what was found, as far as pipelines that can run read it.

        Parameters
        ----------
        plan : `~ppdaemon.middleware.preload.findings.PreloadPlan`
            What was found.
        repo : `~ppdaemon.middleware.butler.repo.LocalRepo`
            The worker's repo, as renewed. What has no place on the sky is
            kept there for later visits, and what has one too if the last
            visit had the same; those that need exactly that again find it in
            place.
        timings : `~ppdaemon.middleware.butler.timings.Timings`
            Takes what was copied and how long it took.

        Returns
        -------
        inputs : `tuple` [`str`]
            Collections of the worker's repo that hold it now, in order.

        Raises
        ------
        ppdaemon.errors.VisitFailed
            Raised with ``NO_PIPELINE``, before anything is copied, if no main
            pipeline can run; with ``PRELOAD_FAILED``, to be tried again, if
            the central repo cannot be read; with ``RAMDISK_FULL``.
        """
        if not plan.main:
            raise VisitFailed(Outcome.NO_PIPELINE, "no pipeline can run: " + "; ".join(plan.reasons))
        _warn_of_missing(plan)
        found = plan.wanted
        stats = CacheStats()
        self._fill(_layers(found), plan, repo, timings, stats)
        timings.values |= {"datasets": sum(len(each.refs) for each in found)} | asdict(stats)
        return input_collections(found, plan.search)

    def _fill(
        self,
        layers: Sequence[Sequence[Found]],
        plan: PreloadPlan,
        repo: LocalRepo,
        timings: Timings,
        stats: CacheStats,
    ) -> None:
        """Bring what the repo has not kept; keep what will be needed again."""
        keys = [_key(layer) for layer in layers]
        there = 0
        while there < min(len(repo.kept), len(keys)) and repo.kept[there] == keys[there]:
            there += 1
        if there < len(repo.kept):
            with timings.timed("renew"):
                repo.drop_kept(beyond=there)
                repo.renew()
        with timings.timed("cache"):
            self._touch((each for layer in layers[:there] for each in layer), plan.files, stats)
        for number in range(there, len(layers)):
            self._bring(layers[number], plan, repo, timings, stats)
            # The first layer is a detector's calibrations. Of the second, a
            # place on the sky, only what comes twice may come again: falling
            # back from a layer takes 50 ms, bringing one 25.
            if number == 0 or keys == self._last:
                with timings.timed("keep"):
                    repo.keep(keys[number])
        self._last = keys

    def _touch(self, found: Iterable[Found], files: Mapping[DatasetId, DataFile], stats: CacheStats) -> None:
        """Note that kept files are used."""
        for name, file in cache_names((ref for each in found for ref in each.refs), files).items():
            self._cache.touch(name)
            stats.hit(file.size_bytes or 0)

    def _bring(
        self, found: Sequence[Found], plan: PreloadPlan, repo: LocalRepo, timings: Timings, stats: CacheStats
    ) -> None:
        """Copy datasets and register them."""
        refs = list({ref.id: ref for each in found for ref in each.refs}.values())
        with timings.timed("cache"):
            try:
                files = take_files(refs, plan.files, self._cache, repo.incoming, stats)
            except Absent as error:
                self._files.forget(error.refs)
                raise
        rest = [ref for ref in refs if ref.id not in plan.files]

        def bring_rest() -> None:
            if rest:
                with self._central.lending(timings) as central:
                    repo.butler.transfer_from(central, rest, transfer="copy")

        with timings.timed("register"):
            register(repo.butler, found, files, plan.kinds, bring_rest)

    def _needs(
        self, pipelines: Iterable[LoadedPipeline], central: Butler, reasons: list[str]
    ) -> dict[str, tuple[Need, ...]]:
        needs = {}
        for pipeline in pipelines:
            try:
                needs[pipeline.path] = self._library.needs(pipeline, central)
            except UnusablePipeline as error:
                _LOG.error("%s", error)
                reasons.append(str(error))
        return needs

    def _search(self, order: Prepare, central: Butler, footprint: Footprint) -> Search:
        instrument = order.visit.instrument
        filters = _known_filters(central, instrument, order.visit.filter_names)

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


def _wanted(
    central: Butler, needs: Iterable[Sequence[Need]], preprocessing: Iterable[LoadedPipeline]
) -> list[DatasetType]:
    """Return the types to search for, as the central repo defines them."""
    names = {need.name for each in needs for need in each} - made_by(preprocessing)
    return [found for name in sorted(names) if (found := known_dataset_type(central, name)) is not None]


def _known_filters(central: Butler, instrument: str, announced: Sequence[str]) -> dict[str, str]:
    """Return the bands of the announced filters, of all if none is known."""
    records = central.query_dimension_records("physical_filter", instrument=instrument, explain=False)
    every = {record.name: record.band for record in records}
    chosen = {name: every[name] for name in announced if name in every}
    if unknown := [name for name in announced if name not in every]:
        _LOG.warning("%s has no filter %s", instrument, ", ".join(unknown))
    if not chosen:
        _LOG.info("the filter is not known before the image: preloading for all %d", len(every))
    return chosen or every


def _kinds(central: Butler, found: Iterable[Found]) -> dict[str, CollectionType]:
    """Return what the collections of associations are."""
    names = sorted({association.collection for each in found for association in each.associations})
    return {info.name: info.type for info in central.collections.query_info(names)} if names else {}


def _layers(found: Iterable[Found]) -> tuple[list[Found], list[Found]]:
    """Return what has no place on the sky, and what has one."""
    lasting: list[Found] = []
    passing: list[Found] = []
    for each in found:
        (passing if each.dataset_type.dimensions.spatial else lasting).append(each)
    return lasting, passing


def _key(found: Iterable[Found]) -> Hashable:
    """Return what tells whether datasets and their validities are the same."""
    return frozenset(
        (each.dataset_type, frozenset(ref.id for ref in each.refs), frozenset(each.associations))
        for each in found
    )


def _warn_of_missing(plan: PreloadPlan) -> None:
    """Tell what optional inputs are missing."""
    optional = {
        str(each)
        for pipeline in (*plan.preprocessing, *plan.main)
        for each in plan.missing[pipeline.path]
        if not each.required
    }
    if optional:
        _LOG.warning("going without %s", "; ".join(sorted(optional)))


def _sizes(central: Butler, found: Iterable[Found]) -> dict[DatasetId, int]:
    """Return the bytes of each dataset's files."""
    refs = [ref for each in found for ref in each.refs]
    sizes = {}
    for ref, uris in central.get_many_uris(refs).items():
        files = [uris.primaryURI] if uris.primaryURI is not None else list(uris.componentURIs.values())
        sizes[ref.id] = sum(uri.size() for uri in files)
    return sizes
