# SPDX-License-Identifier: BSD-3-Clause
"""What an engine is: it builds a graph for the data of a visit and runs it, one task after the other."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lsst.daf.butler import Butler, DatasetRef
from lsst.pipe.base import QuantumSuccessCaveats, TaskMetadata

from ppdaemon.middleware.butler.datafiles import LocatedFile
from ppdaemon.middleware.butler.failures import describe, is_out_of_space, outcome_of, unmasked
from ppdaemon.middleware.pipelines.graph import LoadedPipeline, UnusablePipeline
from ppdaemon.middleware.raws.ingest import VisitRaws
from ppdaemon.states import Outcome

__all__ = (
    "DataQuery",
    "Engine",
    "Job",
    "PipelineRun",
    "RunResult",
    "TaskFailure",
    "Unsupported",
    "build_errors",
)


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
        """Select one detector of some exposures, for the main pipelines."""
        listed = ", ".join(str(exposure) for exposure in exposures)
        return cls(
            f"instrument = '{instrument}' AND detector = {detector} AND exposure IN ({listed})",
            {},
            _context(instrument, group, detector) | {"EXPOSURE": listed},
        )

    @classmethod
    def of_group(cls, instrument: str, group: str, detector: int) -> "DataQuery":
        """Select one detector of a group whose exposures are not known, for preprocessing."""
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

    @classmethod
    def of(cls, failure: TaskFailure | None, succeeded: Iterable[tuple[str, TaskMetadata]]) -> "RunResult":
        """Say what became of a graph.

        Parameters
        ----------
        failure : `TaskFailure` or `None`
            The first failure.
        ended : `~collections.abc.Iterable` [`tuple`]
            Label and metadata of each quantum that was successful, in order.

        Returns
        -------
        result : `RunResult`
            Without caveats if each had work and did all of it.
        """
        partial: dict[str, None] = {}
        without_work: dict[str, None] = {}
        for label, metadata in succeeded:
            flags = QuantumSuccessCaveats(metadata["quantum"]["caveats"])
            if QuantumSuccessCaveats.PARTIAL_OUTPUTS_ERROR in flags:
                partial[label] = None
            elif QuantumSuccessCaveats.NO_WORK in flags:
                without_work[label] = None
        parts = ((partial, "partial outputs of"), (without_work, "no work for"))
        return cls(failure, "; ".join(f"{text} {', '.join(labels)}" for labels, text in parts if labels))


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
    butler: Butler
    """The worker's repo."""


class Unsupported(Exception):
    """This engine does not handle it; the next one does."""


@contextmanager
def build_errors(job: Job) -> Iterator[None]:
    """Hold against a pipeline what building its graph raises; see `Engine.build`."""
    try:
        yield
    except Unsupported:
        raise
    except Exception as error:  # building runs the tasks' own code: anything may come out
        if is_out_of_space(error) or isinstance(error, MemoryError):
            raise
        raise UnusablePipeline(f"{job.pipeline.name} cannot be built: {describe(error)}") from error


class PipelineRun(ABC):
    """A graph that was built, with quanta."""

    @abstractmethod
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
        result : `RunResult`
            What became of it.

        Raises
        ------
        ppdaemon.errors.VisitFailed
            Raised if a process with the tasks has failed outside of them;
            with ``CRASHED`` if it has ended without a word.
        """

    @property
    def outputs(self) -> Sequence[DatasetRef]:
        """Datasets to be exported that it holds itself. If there are any, it
        has written none into the worker's repo.
        """
        return ()

    def write(self, folder: Path) -> list[LocatedFile]:
        """Write these outputs, one file each, named after the dataset's id."""
        return []


class Engine(ABC):
    """Runs pipelines in a worker's repo; this one has raws put there, and keeps nothing itself."""

    name: str
    """As in the configuration."""

    def prepare(self, job: Job, raws: VisitRaws) -> Mapping[str, object]:
        """Do what needs no image.

        Parameters
        ----------
        job : `Job`
            What will be run, as far as it is known; the run has its
            init-outputs.
        raws : `~ppdaemon.middleware.raws.ingest.VisitRaws`
            Takes what will come. An engine that reads raws from the repo has
            them put there.

        Returns
        -------
        done : `~collections.abc.Mapping`
            What was done, in numbers for the journal.

        Raises
        ------
        Unsupported
            Raised, saying why, if another engine has to run it.
        ppdaemon.middleware.pipelines.graph.UnusablePipeline
            Raised if no engine can.
        """
        raws.register()
        return {}

    @abstractmethod
    def build(self, job: Job, query: DataQuery, raws: VisitRaws | None) -> PipelineRun:
        """Build the graph of a job.

        Parameters
        ----------
        job : `Job`
            What to run; the run has its init-outputs.
        query : `DataQuery`
            On which data.
        raws : `~ppdaemon.middleware.raws.ingest.VisitRaws` or `None`
            What came; `None` for a pipeline that needs no image.

        Returns
        -------
        run : `PipelineRun`
            Runs it.

        Raises
        ------
        Unsupported
            Raised, saying why, if another engine has to run it.
        ppdaemon.middleware.pipelines.graph.UnusablePipeline
            Raised, saying why, if there is no graph or an empty one.
        """

    def reset(self) -> None:  # noqa: B027  # an engine may have nothing to forget
        """Go on with a repo that has nothing yet."""
