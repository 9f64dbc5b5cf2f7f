# SPDX-License-Identifier: BSD-3-Clause
"""What the central repo has for visit-detectors: one query per dataset type for all that ask together."""

import itertools
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache

from lsst.daf.butler import (
    Butler,
    CollectionType,
    DatasetId,
    DatasetType,
    DimensionUniverse,
    MissingDatasetTypeError,
)
from lsst.resources import ResourcePath

from ppdaemon.clock import Clock
from ppdaemon.config import ButlerConfig
from ppdaemon.messages import Pipelines, Prepare
from ppdaemon.middleware.butler.central import existing_collections, known_dataset_type
from ppdaemon.middleware.butler.datafiles import DataFile, LocationCache, without_member
from ppdaemon.middleware.butler.timings import Timings
from ppdaemon.middleware.pipelines.graph import PipelineLibrary, UnusablePipeline
from ppdaemon.middleware.preload.findings import FileSize, filters_of, output_types, span_of
from ppdaemon.middleware.preload.search import Found, Search, find_inputs
from ppdaemon.middleware.raws.header import ExposureHeader
from ppdaemon.middleware.raws.regions import Footprint

__all__ = ("Answer", "Answers", "Question", "register_command")

_UNREGISTERED_S = 60.0
"""How long an output that the central repo does not know is not asked for again. An export registers it later
than the preparation of its visit in any case."""


@dataclass(frozen=True, slots=True)
class Question:
    """A visit-detector whose inputs are to be found."""

    order: Prepare
    footprint: Footprint


@dataclass(frozen=True, slots=True)
class Answer:
    """What the central repo has for a visit-detector; also the definitions that its pipelines need."""

    search: Search
    filters: frozenset[str]
    """Filters of the instrument that are registered."""
    unregistered: str
    """What of the visit-detector is not registered, with the command that registers it; may be empty."""
    dimensions: DimensionUniverse
    types: Mapping[str, DatasetType]
    """Those dataset types of the pipelines that the repo has, by name."""
    found: tuple[Found, ...]
    files: Mapping[DatasetId, DataFile]
    """Files of the datasets; those that are not one file have none."""
    collection_types: Mapping[str, CollectionType]
    """Types of the calibrations' collections."""
    sizes: Mapping[DatasetId, FileSize] = field(default_factory=dict)
    """The datasets' files, if requested."""

    def get_dataset_type(self, name: str) -> DatasetType:
        """Return a definition; raise ``MissingDatasetTypeError`` if there is none."""
        try:
            return self.types[name]
        except KeyError:
            raise MissingDatasetTypeError(name) from None


class Answers:
    """Finds answers in the central repo; caches what never changes there.

    With `any_filter`, an image may have another filter than its visit.
    """

    def __init__(self, config: ButlerConfig, library: PipelineLibrary, *, any_filter: bool):
        self._config = config
        self._any_filter = any_filter
        self._library = library
        self._locations = LocationCache()
        self._bands: dict[str, Mapping[str, str]] = {}
        """Bands by filter of each instrument, as last queried."""
        self._registered: set[tuple[str, int]] = set()
        """Instruments and detectors that the central repo has."""
        self._unregistered_outputs: dict[str, float] = {}
        """Dataset types that only pipelines have, each with the time when to ask again."""

    def find(
        self, central: Butler, questions: Sequence[Question], timings: Timings, *, sizes: bool = False
    ) -> list[Answer]:
        """Return the answer to each question; `sizes` also requests the sizes of the files, one by one."""
        with timings.timed("query"):
            answers = self._search_all(central, questions, timings)
        with timings.timed("locate"):
            return self._locate_all(central, answers, sizes=sizes)

    def find_again(
        self,
        central: Butler,
        search: Search,
        dataset_types: Iterable[DatasetType],
        headers: Sequence[ExposureHeader],
        timings: Timings,
    ) -> tuple[Found, ...]:
        """Search at the time and filter of exposures."""
        filters = filters_of(headers)
        with timings.timed("query"):
            bands = _bands(central, search.instrument)
            search = replace(
                search,
                timespan=span_of(headers),
                physical_filters=filters,
                bands=tuple(sorted({bands[name] for name in filters if name in bands})),
            )
            (found,) = find_inputs(central, dataset_types, [search], timings.clock)
        return tuple(found)

    def locate(
        self, central: Butler, found: Sequence[Found]
    ) -> tuple[tuple[Found, ...], dict[DatasetId, DataFile], dict[str, CollectionType]]:
        """Return the datasets that the datastore has, their files, and the types of the associations'
        collections.
        """
        files, not_stored = self._locations.locate(central, (ref for each in found for ref in each.refs))
        stored = tuple(each.without(not_stored) for each in found) if not_stored else tuple(found)
        return stored, files, _collection_types(central, stored)

    def forget_locations(self) -> None:
        """Query the locations of all files again."""
        self._locations = LocationCache()

    def _search_all(self, central: Butler, questions: Sequence[Question], timings: Timings) -> list[Answer]:
        existing = cache(lambda names: existing_collections(central, names))
        types_of = cache(lambda pipelines: self._types(pipelines, central, timings.clock))
        self._register(central, questions)
        answers: list[Answer] = []
        groups: dict[tuple[Hashable, tuple[str, ...]], list[int]] = defaultdict(list)
        for number, question in enumerate(questions):
            bands = self._bands_of(question.order, central)
            search = self._search(question, existing, bands)
            unregistered = self._unregistered(question.order, central, bands)
            types, searched = types_of(question.order.pipelines)
            answers.append(
                Answer(search, frozenset(bands), unregistered, central.dimensions, types, (), {}, {})
            )
            if not unregistered:
                groups[search.common, searched].append(number)
        for (_, searched), numbers in groups.items():
            first, searches = answers[numbers[0]], [answers[number].search for number in numbers]
            parts = find_inputs(central, (first.types[name] for name in searched), searches, timings.clock)
            for number, part in zip(numbers, parts, strict=True):
                answers[number] = replace(answers[number], found=tuple(part))
        return answers

    def _locate_all(self, central: Butler, answers: Sequence[Answer], *, sizes: bool) -> list[Answer]:
        found, files, types = self.locate(central, [each for answer in answers for each in answer.found])
        parts, located = iter(found), []
        for answer in answers:
            own = tuple(itertools.islice(parts, len(answer.found)))
            located.append(
                replace(
                    answer,
                    found=own,
                    files={ref.id: files[ref.id] for each in own for ref in each.refs if ref.id in files},
                    collection_types={name: types[name] for name in _collections(own)},
                    sizes=_sizes(central, own) if sizes else {},
                )
            )
        return located

    def _types(
        self, pipelines: Pipelines, central: Butler, clock: Clock
    ) -> tuple[dict[str, DatasetType], tuple[str, ...]]:
        """Return those types in pipelines that the central repo has, and the names of those to search for."""
        preprocessing, _ = self._library.load(pipelines.preprocessing)
        main, _ = self._library.load(pipelines.main)
        names: set[str] = set()
        read: set[str] = set()
        for pipeline in (*preprocessing, *main):
            names.update(pipeline.graph.dataset_types)
            with suppress(UnusablePipeline):  # its own worker logs the reason
                read.update(need.name for need in self._library.needs(pipeline, central))
        searched = read - output_types(preprocessing)
        known = {}
        for name in names:
            # A Butler queries the database for each type that it does not know.
            if name not in searched and clock.mono() < self._unregistered_outputs.get(name, 0.0):
                continue
            if (found := known_dataset_type(central, name)) is not None:
                known[name] = found
            elif name not in searched:
                self._unregistered_outputs[name] = clock.mono() + _UNREGISTERED_S
        return known, tuple(sorted(searched & known.keys()))

    def _bands_of(self, order: Prepare, central: Butler) -> Mapping[str, str]:
        """Return the bands of an instrument's filters, queried again for a filter that was not known."""
        instrument = order.visit.instrument
        known = self._bands.get(instrument, {})
        if not known or not known.keys() >= set(order.visit.filter_names):
            known = self._bands[instrument] = _bands(central, instrument)
        return known

    def _register(self, central: Butler, questions: Iterable[Question]) -> None:
        """Query which of the detectors the central repo has."""
        unknown: dict[str, set[int]] = defaultdict(set)
        for order in (question.order for question in questions):
            if (order.visit.instrument, order.detector) not in self._registered:
                unknown[order.visit.instrument].add(order.detector)
        for instrument, detectors in unknown.items():
            records = central.query_dimension_records(
                "detector",
                instrument=instrument,
                where="detector IN (detectors)",
                bind={"detectors": list(detectors)},
                explain=False,
            )
            # A record is never deleted.
            self._registered.update((instrument, record.id) for record in records)

    def _unregistered(self, order: Prepare, central: Butler, bands: Collection[str]) -> str:
        """Return what of a visit-detector is not registered in the central repo, with the command that
        registers it; empty if all is.
        """
        instrument, names = order.visit.instrument, order.visit.filter_names
        if (instrument, order.detector) in self._registered:
            if self._any_filter or not names or not set(names).isdisjoint(bands):
                return ""
            what = f"filter {' or '.join(names)} of {instrument}"
        elif central.query_dimension_records("instrument", instrument=instrument, explain=False):
            what = f"detector {order.detector} of {instrument}"
        else:
            what = f"instrument {instrument}"
        return f"the central repo has no record of the {what}: {register_command(self._config, instrument)}"

    def _search(
        self,
        question: Question,
        existing: Callable[[tuple[str, ...]], tuple[str, ...]],
        bands: Mapping[str, str],
    ) -> Search:
        visit = question.order.visit
        filters = _known_filters(bands, visit.filter_names)

        def searched(names: Iterable[str]) -> tuple[str, ...]:
            return existing(tuple(name.format(instrument=visit.instrument) for name in names))

        return Search(
            instrument=visit.instrument,
            detector=question.order.detector,
            physical_filters=tuple(filters),
            bands=tuple(sorted(set(filters.values()))),
            skymap=self._config.skymap,
            timespan=question.footprint.validity,
            region=question.footprint.region,
            calibs=searched(self._config.calibs),
            inputs=searched(self._config.inputs),
        )


def register_command(config: ButlerConfig, instrument: str) -> str:
    """Return the command that registers what an instrument has in the central repo."""
    return f"butler register-instrument {config.central} {config.instrument_class[instrument]} --update"


def _known_filters(bands: Mapping[str, str], announced: Sequence[str]) -> Mapping[str, str]:
    """Return the bands of the announced filters, by filter; of all filters if none is known."""
    return {name: bands[name] for name in announced if name in bands} or bands


def _bands(central: Butler, instrument: str) -> dict[str, str]:
    """Return the bands of an instrument's filters, by filter."""
    records = central.query_dimension_records("physical_filter", instrument=instrument, explain=False)
    return {record.name: record.band for record in records}


def _collections(found: Iterable[Found]) -> list[str]:
    """Return the names of the associations' collections, sorted."""
    return sorted({association.collection for each in found for association in each.associations})


def _collection_types(central: Butler, found: Iterable[Found]) -> dict[str, CollectionType]:
    names = _collections(found)
    return {info.name: info.type for info in central.collections.query_info(names)} if names else {}


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
