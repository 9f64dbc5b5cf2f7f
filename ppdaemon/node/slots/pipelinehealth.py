# SPDX-License-Identifier: BSD-3-Clause
"""Which pipelines end their workers, and are set aside for the next one of their rule. Pure.

A worker that ends by itself in the midst of a visit was ended by its pipeline, or by the host. The
pipeline is the cause if workers of others live, or if nothing is known of others and there is another
one to try; the host may be if the workers of all end. Does not cover workers that were stopped for a
limit, or killed by others.
"""

import logging
from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass

from ppdaemon.messages import Pipelines
from ppdaemon.node.slots.assignment import Assignment
from ppdaemon.pipelinenames import pipeline_name

__all__ = ("PipelineHealth",)

_LOG = logging.getLogger(__name__)

VISITS = 3
"""The worker of a single visit may end because of its images; a few detectors of it count once."""
SLOTS = 2
"""On one slot only, the slot may be the cause."""
WINDOW_S = 1800.0
"""Deaths longer ago do not count: the sky and the pipelines have changed."""
MAX_DEATHS = 1000
"""Some visits of all detectors of a host."""


@dataclass(frozen=True, slots=True)
class _Death:
    """One worker that ended by itself while it had a visit-detector."""

    pipeline: str
    visit: tuple[str, str]
    detector: int
    slot: int
    at: float


def _is_pattern(deaths: Iterable[_Death]) -> bool:
    """Return whether deaths are too many for a coincidence."""
    deaths = list(deaths)
    return len({death.visit for death in deaths}) >= VISITS and len({death.slot for death in deaths}) >= SLOTS


class PipelineHealth:
    """Counts the deaths of workers by pipeline file. All times are monotonic seconds."""

    def __init__(self) -> None:
        self.host_problem = ""
        """Why the host may be the cause of deaths, or blank."""
        self._deaths: defaultdict[str, deque[_Death]] = defaultdict(lambda: deque(maxlen=MAX_DEATHS))
        """By pipeline, since a worker of it lived."""
        self._all: deque[_Death] = deque(maxlen=MAX_DEATHS)
        """Since a worker of any pipeline lived, or a pipeline was set aside."""
        self._lived: dict[str, float] = {}
        self._aside: dict[str, str] = {}
        """The problem with each pipeline that is set aside."""
        self._next_try: dict[str, float] = {}

    @property
    def problems(self) -> tuple[str, ...]:
        """Problems for operators."""
        return (*self._aside.values(), *filter(None, (self.host_problem,)))

    @property
    def set_aside(self) -> int:
        """How many pipelines are set aside."""
        return len(self._aside)

    def choose(self, pipelines: Pipelines, now: float, retry_s: float) -> Pipelines:
        """Return the pipelines for one visit-detector: without those that are set aside, unless it is the
        turn of one to be tried. The last one always stays.
        """
        main = pipelines.main
        aside = {pipeline for pipeline in main[:-1] if pipeline in self._aside}
        if not aside:
            return pipelines
        for pipeline in main:
            if pipeline not in aside:
                break
            if now >= self._next_try[pipeline]:
                self._next_try[pipeline] = now + retry_s
                aside.remove(pipeline)
                break
        left = tuple(pipeline for pipeline in main if pipeline not in aside)
        return pipelines.model_copy(update={"main": left})

    def lived(self, assignment: Assignment, now: float) -> None:
        """Note that a worker has outlived its pipeline."""
        if pipeline := _pipeline_of(assignment):
            self._lived[pipeline] = now
            self._deaths.pop(pipeline, None)
            self._all.clear()
            self.host_problem = ""
            if self._aside.pop(pipeline, None):
                _LOG.warning("pipeline %s is used again: its worker has lived", pipeline_name(pipeline))

    def died(self, assignment: Assignment, slot: int, how: str, now: float, retry_s: float) -> None:
        """Note that a worker has ended by itself; `how` is a text for operators."""
        if not (pipeline := _pipeline_of(assignment)):
            return
        death = _Death(pipeline, assignment.key[:2], assignment.key.detector, slot, now)
        # A pipeline that is set aside is known to end workers: it shows nothing of the host.
        for deaths in (self._deaths[pipeline], *([] if pipeline in self._aside else [self._all])):
            deaths.append(death)
            while now - deaths[0].at > WINDOW_S:
                deaths.popleft()
        if self.host_problem:
            return
        others = pipeline not in assignment.pipelines.main[-1:]
        if pipeline not in self._aside and self._is_cause(pipeline, others=others):
            then = (
                "its rule's next one is used" if others else "its rule has no other, it is used nevertheless"
            )
            text = f"pipeline {pipeline_name(pipeline)} is set aside, {then}"
            retry = f"one visit-detector every {retry_s:g} s tries it" if others else "correct it"
            self._aside[pipeline] = f"{text}: {_described(self._deaths[pipeline])}, last: {how}; {retry}"
            self._next_try[pipeline] = now + retry_s
            # The next pipeline shows whether the host is the cause.
            self._all.clear()
            _LOG.error("%s", self._aside[pipeline])
        elif _is_pattern(self._all):
            names = ", ".join(sorted({pipeline_name(each.pipeline) for each in self._all}))
            self.host_problem = (
                f"the host may be faulty, fewer visits are accepted: {_described(self._all)}, whatever the"
                f" pipeline ({names}), last: {how}"
            )
            self._aside.clear()
            _LOG.error("%s", self.host_problem)

    def _is_cause(self, pipeline: str, *, others: bool) -> bool:
        deaths = self._deaths[pipeline]
        if not _is_pattern(deaths):
            return False
        since = deaths[0].at
        if any(at >= since for other, at in self._lived.items() if other != pipeline):
            return True
        return others and all(death.pipeline == pipeline for death in self._all if death.at >= since)


def _pipeline_of(assignment: Assignment) -> str:
    """Return the main pipeline that the worker has prepared, or would have; blank if there is none."""
    main = assignment.pipelines.main
    prepared = (pipeline for pipeline in main if pipeline_name(pipeline) == assignment.pipeline)
    return next(prepared, main[0] if main else "")


def _described(deaths: Iterable[_Death]) -> str:
    detectors = {(death.visit, death.detector) for death in deaths}
    visits = {visit for visit, _ in detectors}
    return f"workers ended by themselves in {len(detectors)} visit-detectors of {len(visits)} visits"
