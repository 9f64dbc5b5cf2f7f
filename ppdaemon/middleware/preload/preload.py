# SPDX-License-Identifier: BSD-3-Clause
"""Copies the inputs of a visit-detector from the central repo before its image.

`Preload.find` reads the central repo and changes nothing; `Preload.fetch`
copies the datasets found.
"""

import logging
from collections.abc import Callable, Iterable, Sequence, Set
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import Self

from lsst.daf.butler import Butler

from ppdaemon.config import ButlerConfig
from ppdaemon.errors import VisitFailed
from ppdaemon.messages import Prepare
from ppdaemon.middleware.butler.central import CentralReader, Definitions, observed_databases
from ppdaemon.middleware.butler.repo import LocalRepo
from ppdaemon.middleware.butler.timings import Timings
from ppdaemon.middleware.pipelines.graph import (
    LoadedPipeline,
    OverallInput,
    PipelineLibrary,
    UnusablePipeline,
)
from ppdaemon.middleware.preload.answers import Answer, Answers, Question
from ppdaemon.middleware.preload.cache import CacheStats, SharedCache
from ppdaemon.middleware.preload.findings import PreloadPlan
from ppdaemon.middleware.preload.questions import HostQuestions, Turn
from ppdaemon.middleware.preload.search import Found, warn_of_unsearched
from ppdaemon.middleware.preload.transfer import (
    MissingFile,
    add,
    copy_datasets,
    input_collections,
    take_files,
)
from ppdaemon.middleware.raws.header import ExposureHeader
from ppdaemon.middleware.raws.regions import Footprint
from ppdaemon.states import Outcome
from ppdaemon.visit import NextVisit
from ppdaemon.work import WorkerContext

__all__ = ("Preload",)

_LOG = logging.getLogger(__name__)


class Preload:
    """Finds and copies the inputs of visits.

    With `any_filter`, an image may have another filter than its visit. Workers ask together that have the
    same `generation`: an answer depends on the configuration.
    """

    def __init__(
        self,
        config: ButlerConfig,
        central: CentralReader,
        cache: SharedCache,
        library: PipelineLibrary,
        *,
        any_filter: bool = False,
        generation: str = "0",
    ):
        self._central = central
        self._cache = cache
        self._library = library
        self._answers = Answers(config, library, any_filter=any_filter)
        self._questions = HostQuestions[Question, Answer](cache.questions(generation))
        self._answered = self._questions.version

    @classmethod
    def of(
        cls, context: WorkerContext, config: ButlerConfig, central: CentralReader, library: PipelineLibrary
    ) -> Self:
        """Return that of a process."""
        return cls(
            config,
            central,
            SharedCache(context.cache, context.config.preload.cache_max),
            library,
            any_filter=context.config.exposures.filter == "ignore",
            generation=context.template.name,
        )

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
        answer = self._ask(Question(order, footprint), timings, sizes=sizes)
        if answer.unregistered:
            preprocessing, main, reasons = [], [], [answer.unregistered]
        _warn_of_filters(order.visit, answer.filters)
        warn_of_unsearched(answer.found, answer.search)
        needs = self._needs([*preprocessing, *main], answer, reasons)
        return PreloadPlan.of(
            preprocessing,
            main,
            reasons,
            search=answer.search,
            found=answer.found,
            needs=needs,
            filters=answer.filters,
            files=answer.files,
            collection_types=answer.collection_types,
            sizes=answer.sizes,
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
        with self._central.reading(timings) as central:
            types = plan.types_outside(headers)
            found = plan.missing_from(self._answers.find_again(central, plan.search, types, headers, timings))
            with timings.timed("locate"):
                found, files, collection_types = self._answers.locate(central, found)
        more = plan.with_more(found, files, collection_types)
        stats = CacheStats()
        self._copy(found, more, repo, timings, stats)
        timings.values |= {"datasets": sum(len(each.refs) for each in found)} | asdict(stats)
        return more

    def doorbell(self) -> AbstractContextManager[int]:
        """Return a context with a descriptor that becomes readable when a worker of this host has a
        question.
        """
        return self._questions.doorbell()

    def connect(self, timings: Timings) -> None:
        """Open the central repo; raise `~ppdaemon.errors.VisitFailed` if it cannot be read."""
        with self._central.reading(timings):
            pass

    def rehearse(self, question: Question, timings: Timings) -> None:
        """Ask the central repo, for nobody; raise `~ppdaemon.errors.VisitFailed` if it cannot be read."""
        self._find([question], Turn(), timings)

    def answer_all(self, doorbell: int, timings: Timings, report: Callable[[Sequence[float]], None]) -> None:
        """Answer the questions of the workers of this host that are there; log errors. `report` is called
        after each batch of them, with how long each had waited, in seconds.
        """

        def find(turn: Turn[Question]) -> list[Answer]:
            return self._find((), turn, timings)

        self._questions.answer_all(doorbell, find, timings.clock, report)

    def _copy(
        self, found: Sequence[Found], plan: PreloadPlan, repo: LocalRepo, timings: Timings, stats: CacheStats
    ) -> None:
        """Copy datasets."""
        refs = list({ref.id: ref for each in found for ref in each.refs}.values())
        rest = [ref for ref in refs if ref.id not in plan.files]

        def copy_rest(butler: Butler) -> None:
            if rest:
                with self._central.copying(timings) as central:
                    copy_datasets(rest, central, butler)

        try:
            with timings.timed("cache"):
                files = take_files(refs, plan.files, self._cache, repo.files, stats)
            with timings.timed("register"):
                add(repo, found, files, plan.collection_types, copy_rest)
                if rest:
                    repo.write_registry()  # now: the central repo may be away when it is needed
        except MissingFile:
            # The worker that has found the location, also for others, is to query it again.
            self._questions.renew()
            raise

    def _needs(
        self, pipelines: Iterable[LoadedPipeline], repo: Definitions, reasons: list[str]
    ) -> dict[str, tuple[OverallInput, ...]]:
        needs = {}
        for pipeline in pipelines:
            try:
                needs[pipeline.path] = self._library.needs(pipeline, repo)
            except UnusablePipeline as error:
                _LOG.error("%s", error)
                reasons.append(str(error))
        return needs

    def _ask(self, question: Question, timings: Timings, *, sizes: bool) -> Answer:
        """Ask the central repo, for the detectors of other workers, too, or let another worker ask."""

        def find(turn: Turn[Question]) -> list[Answer]:
            return self._find([question], turn, timings, sizes=sizes)

        timings.values["asked_for"] = 0
        return find(Turn())[0] if sizes else self._questions.ask(question, find, timings)

    def _find(
        self, own: Sequence[Question], turn: Turn[Question], timings: Timings, *, sizes: bool = False
    ) -> list[Answer]:
        """Ask the central repo for a worker and for others."""
        with observed_databases(turn.progressed), self._central.reading(timings) as central:
            # Connected: more workers have a question by now.
            questions = [*own, *turn.others()]
            timings.values["asked_for"] = len(questions)
            if self._answered != (version := self._questions.version):
                self._answers.forget_locations()
                self._answered = version
            return self._answers.find(central, questions, timings, sizes=sizes)


def _warn_of_filters(visit: NextVisit, registered: Set[str]) -> None:
    """Log the announced filters that are not registered, or that none is known."""
    if unknown := [name for name in visit.filter_names if name not in registered]:
        _LOG.warning(
            "the announced filter %s is not one of %s in the central repo, it is ignored",
            ", ".join(unknown),
            visit.instrument,
        )
    if len(unknown) == len(visit.filter_names):
        _LOG.info("the filter is not known before the image: preloading for all %d", len(registered))


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
