# SPDX-License-Identifier: BSD-3-Clause
"""What an engine is: it builds a graph for the data of a visit and runs it, one task after the other.

Falling back is here: a pipeline that cannot be built gives way to the next
one; what happens while tasks run never does.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from lsst.daf.butler import Butler

from ppdaemon.errors import VisitFailed
from ppdaemon.middleware.graph import LoadedPipeline, UnusablePipeline
from ppdaemon.states import Outcome

__all__ = ("Engine", "Job", "RunJob", "Selection", "TaskFailure", "build_first")

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Selection:
    """The data of a visit, as a query expression."""

    where: str
    bind: Mapping[str, Any]

    @classmethod
    def of_exposures(cls, instrument: str, detector: int, exposures: Sequence[int]) -> "Selection":
        """Select one detector of some exposures.

        Parameters
        ----------
        instrument : `str`
            Short name.
        detector : `int`
            Id of the detector.
        exposures : `~collections.abc.Sequence` [`int`]
            Ids of the exposures.

        Returns
        -------
        selection : `Selection`
            For the main pipelines.
        """
        listed = ", ".join(str(exposure) for exposure in exposures)
        return cls(f"instrument = '{instrument}' AND detector = {detector} AND exposure IN ({listed})", {})

    @classmethod
    def of_group(cls, instrument: str, detector: int, group: str) -> "Selection":
        """Select one detector of a group whose exposures are not known.

        Parameters
        ----------
        instrument : `str`
            Short name.
        detector : `int`
            Id of the detector.
        group : `str`
            The group.

        Returns
        -------
        selection : `Selection`
            For preprocessing pipelines.
        """
        where = f"instrument = '{instrument}' AND detector = {detector} AND group = visit_group"
        return cls(where, {"visit_group": group})


@dataclass(frozen=True, slots=True)
class TaskFailure:
    """The first task that failed, and how."""

    label: str
    text: str
    """Type and first line of the exception."""
    out_of_space: bool
    """Whether a full disk was the cause."""


@dataclass(frozen=True, slots=True)
class Job:
    """A pipeline to be built, and where its data are."""

    pipeline: LoadedPipeline
    selection: Selection
    inputs: tuple[str, ...]
    """Collections in the order of search."""
    run: str
    """Output run."""


class RunJob(Protocol):
    """A graph that was built, with quanta."""

    def __call__(self, before_task: Callable[[str], None]) -> TaskFailure | None:
        """Run all tasks.

        Parameters
        ----------
        before_task : `~collections.abc.Callable`
            Called with the label of each task right before it is run.

        Returns
        -------
        failure : `TaskFailure` or `None`
            `None` if all succeeded.
        """


class Engine(Protocol):
    """Runs pipelines in a worker's repo."""

    name: str
    """As in the configuration."""

    def build(self, job: Job, butler: Butler) -> RunJob:
        """Build the graph of a job.

        Parameters
        ----------
        job : `Job`
            What to run.
        butler : `lsst.daf.butler.Butler`
            The worker's repo.

        Returns
        -------
        run : `RunJob`
            Runs it.

        Raises
        ------
        ppdaemon.middleware.graph.UnusablePipeline
            Raised, saying why, if there is no graph or an empty one.
        """


def build_first(engine: Engine, jobs: Sequence[Job], butler: Butler) -> tuple[Job, RunJob]:
    """Build the first job that can be built.

    Parameters
    ----------
    engine : `Engine`
        Builds.
    jobs : `~collections.abc.Sequence` [`Job`]
        In order of preference.
    butler : `lsst.daf.butler.Butler`
        The worker's repo.

    Returns
    -------
    job : `Job`
        The one.
    run : `RunJob`
        Runs it.

    Raises
    ------
    ppdaemon.errors.VisitFailed
        Raised with ``NO_PIPELINE`` and all reasons if none is left.
    """
    reasons = []
    for job in jobs:
        try:
            return job, engine.build(job, butler)
        except UnusablePipeline as error:
            _LOG.warning("falling back: %s", error)
            reasons.append(str(error))
    raise VisitFailed(Outcome.NO_PIPELINE, "no pipeline can be built: " + "; ".join(reasons))
