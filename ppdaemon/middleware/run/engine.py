# SPDX-License-Identifier: BSD-3-Clause
"""What an engine is: it builds a graph for the data of a visit and runs it, one task after the other."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from lsst.daf.butler import Butler
from lsst.pipe.base import QuantumSuccessCaveats, TaskMetadata

from ppdaemon.middleware.butler.failures import describe, outcome_of, unmasked
from ppdaemon.middleware.pipelines.graph import LoadedPipeline, UnusablePipeline
from ppdaemon.states import Outcome

__all__ = ("Engine", "Job", "RunResult", "PipelineRun", "DataQuery", "TaskFailure", "describe_caveats")


@dataclass(frozen=True, slots=True)
class DataQuery:
    """The data of a visit, as a query expression."""

    where: str
    bind: Mapping[str, Any]
    context: Mapping[str, str]
    """What the log records of tasks tell of the visit."""

    @classmethod
    def of_exposures(
        cls, instrument: str, group: str, detector: int, exposures: Sequence[int]
    ) -> "DataQuery":
        """Select one detector of some exposures.

        Parameters
        ----------
        instrument : `str`
            Short name.
        group : `str`
            The group that was announced.
        detector : `int`
            Id of the detector.
        exposures : `~collections.abc.Sequence` [`int`]
            Ids of the exposures.

        Returns
        -------
        selection : `DataQuery`
            For the main pipelines.
        """
        listed = ", ".join(str(exposure) for exposure in exposures)
        return cls(
            f"instrument = '{instrument}' AND detector = {detector} AND exposure IN ({listed})",
            {},
            _context(instrument, group, detector) | {"EXPOSURE": listed},
        )

    @classmethod
    def of_group(cls, instrument: str, group: str, detector: int) -> "DataQuery":
        """Select one detector of a group whose exposures are not known.

        Parameters
        ----------
        instrument : `str`
            Short name.
        group : `str`
            The group.
        detector : `int`
            Id of the detector.

        Returns
        -------
        selection : `DataQuery`
            For preprocessing pipelines.
        """
        where = f"instrument = '{instrument}' AND detector = {detector} AND group = visit_group"
        return cls(where, {"visit_group": group}, _context(instrument, group, detector))

    def literal(self) -> str:
        """Return the expression with the values in place.

        Returns
        -------
        where : `str`
            For a command line.

        Raises
        ------
        ppdaemon.middleware.pipelines.graph.UnusablePipeline
            Raised for a value with an apostrophe: the language has no way to
            write one.
        """
        where = self.where
        for name, value in self.bind.items():
            if "'" in str(value):
                raise UnusablePipeline(f"{value!r} cannot be written in a query on the command line")
            where = where.replace(name, f"'{value}'")
        return where


def _context(instrument: str, group: str, detector: int) -> dict[str, str]:
    return {"INSTRUMENT": instrument, "GROUP": group, "DETECTOR": str(detector)}


@dataclass(frozen=True, slots=True)
class TaskFailure:
    """The first task that failed, and how."""

    label: str
    text: str
    """Type and first line of the exception."""
    outcome: Outcome
    """What it makes of the visit."""

    @classmethod
    def of(cls, label: str, error: BaseException) -> "TaskFailure":
        """Judge what a task has raised.

        Parameters
        ----------
        label : `str`
            The task.
        error : `BaseException`
            What came out of it.

        Returns
        -------
        failure : `TaskFailure`
            The judgement.
        """
        error = unmasked(error)
        return cls(label, describe(error), outcome_of(error))

    @property
    def reason(self) -> str:
        """One sentence for the operator (`str`)."""
        return f"task {self.label}: {self.text}"


@dataclass(frozen=True, slots=True)
class RunResult:
    """What became of a graph that was run."""

    failure: TaskFailure | None
    """`None` if all succeeded."""
    caveats: str = ""
    """What successful tasks did not make, in words."""


@dataclass(frozen=True, slots=True)
class Job:
    """A pipeline and where its data are: what is known before any image."""

    pipeline: LoadedPipeline
    inputs: tuple[str, ...]
    """Collections in the order of search."""
    run: str
    """Output run."""
    digest: str
    """Of all that decides what the run's datasets are; part of its name,
    unless a fixed name is configured."""


class PipelineRun(Protocol):
    """A graph that was built, with quanta."""

    def __call__(self, before_task: Callable[[str], None]) -> RunResult:
        """Run all tasks.

        Parameters
        ----------
        before_task : `~collections.abc.Callable`
            Called with the label of each task before it is run: right
            before, or, by an engine that cannot tell, for all tasks before
            the first of them.

        Returns
        -------
        ran : `RunResult`
            What became of it.

        Raises
        ------
        ppdaemon.errors.VisitFailed
            Raised if a process with the tasks has failed outside of them;
            with ``CRASHED`` if it has ended without a word.
        """


class Engine(Protocol):
    """Runs pipelines in a worker's repo."""

    name: str
    """As in the configuration."""

    def build(self, job: Job, data: DataQuery, butler: Butler) -> PipelineRun:
        """Build the graph of a job.

        Parameters
        ----------
        job : `Job`
            What to run; the run has its init-outputs.
        data : `DataQuery`
            On which data.
        butler : `lsst.daf.butler.Butler`
            The worker's repo.

        Returns
        -------
        run : `PipelineRun`
            Runs it.

        Raises
        ------
        ppdaemon.middleware.pipelines.graph.UnusablePipeline
            Raised, saying why, if there is no graph or an empty one.
        """


def describe_caveats(ended: Iterable[tuple[str, TaskMetadata]]) -> str:
    """Say what successful quanta did not make.

    Parameters
    ----------
    ended : `~collections.abc.Iterable` [`tuple`]
        Label and metadata of each quantum, in order.

    Returns
    -------
    text : `str`
        Empty if each had work and did all of it.
    """
    partial: dict[str, None] = {}
    idle: dict[str, None] = {}
    for label, metadata in ended:
        flags = QuantumSuccessCaveats(metadata["quantum"]["caveats"])
        if QuantumSuccessCaveats.PARTIAL_OUTPUTS_ERROR in flags:
            partial[label] = None
        elif QuantumSuccessCaveats.NO_WORK in flags:
            idle[label] = None
    parts = ((partial, "partial outputs of"), (idle, "no work for"))
    return "; ".join(f"{words} {', '.join(labels)}" for labels, words in parts if labels)
