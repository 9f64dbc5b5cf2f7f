# SPDX-License-Identifier: BSD-3-Clause
"""The interface of an engine: it builds a graph for the data of a visit and runs it, task by task."""

import datetime
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from lsst.daf.butler import Butler, DataCoordinate, DatasetRef
from lsst.pipe.base import QuantumSuccessCaveats, TaskMetadata

from ppdaemon.clock import TAI_MINUS_UTC_S
from ppdaemon.middleware.butler.datafiles import LocatedFile
from ppdaemon.middleware.butler.failures import describe, is_out_of_space, outcome_of, unmasked
from ppdaemon.middleware.butler.repo import LocalRepo
from ppdaemon.middleware.pipelines.graph import LoadedPipeline, UnusablePipeline
from ppdaemon.middleware.raws.ingest import VisitRaws
from ppdaemon.states import Outcome

__all__ = (
    "DataQuery",
    "Engine",
    "Job",
    "PipelineRun",
    "RunResult",
    "TakeRoom",
    "TaskFailure",
    "Unsupported",
    "Unwritten",
    "building",
)


type TakeRoom = Callable[[DatasetRef, int], bool]
"""Returns whether an image of so many bytes may be spooled uncompressed; called once for each."""


@dataclass(frozen=True, slots=True)
class DataQuery:
    """The data of a visit, as a query expression."""

    where: str
    bind: Mapping[str, Any]
    context: Mapping[str, str]
    """Added to the log records of tasks: instrument, group, detector, exposures."""
    group_id: DataCoordinate | None = None
    """Instrument, group and detector, with dimension records, if no exposure is known."""

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
    def of_group(cls, group_id: DataCoordinate) -> "DataQuery":
        """Select one detector of a group whose exposures are not known, for preprocessing."""
        instrument, group, detector = (group_id[name] for name in ("instrument", "group", "detector"))
        where = f"instrument = '{instrument}' AND detector = {detector} AND group = visit_group"
        context = _context(str(instrument), str(group), int(detector))
        return cls(where, {"visit_group": str(group)}, context, group_id)

    def literal(self) -> str:
        """Return the expression with the values inserted, for a command line.

        Raises
        ------
        ppdaemon.middleware.pipelines.graph.UnusablePipeline
            Raised for a value with an apostrophe: the query language has no escape
            for it.
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
    """Outcome of the visit."""

    @classmethod
    def of(cls, label: str, error: BaseException) -> "TaskFailure":
        """Return the failure of a task with this label that raised this exception."""
        error = unmasked(error)
        return cls(label, describe(error), outcome_of(error))

    @property
    def reason(self) -> str:
        """One sentence for the operator (`str`)."""
        return f"task {self.label}: {self.text}"


@dataclass(frozen=True, slots=True)
class Unwritten:
    """A dataset that a task has put and that cannot be written."""

    kind: Literal["output", "log", "metadata"]
    name: str
    """Dataset type."""
    label: str
    """Label of the task."""
    text: str
    """Type and first line of the exception."""

    @property
    def reason(self) -> str:
        """One sentence for the operator (`str`)."""
        return f"{self.kind} {self.name} of task {self.label} cannot be written: {self.text}"


@dataclass(frozen=True, slots=True)
class RunResult:
    """The result of running a graph."""

    failure: TaskFailure | None
    """`None` if all tasks succeeded."""
    caveats: str = ""
    """Which successful tasks lack outputs or had no work, as a sentence."""
    unwritten: tuple[Unwritten, ...] = ()
    """Datasets that are not exported because they cannot be written."""
    times: tuple[tuple[str, float, float], ...] = ()
    """Label, begin and end of each quantum that succeeded, TAI seconds."""

    def without(self, unwritten: Iterable[Unwritten]) -> "RunResult":
        """Return the result without some datasets, after all others were written."""
        return replace(self, unwritten=tuple(unwritten))

    @property
    def outcome(self) -> Outcome:
        """Outcome of the visit (`~ppdaemon.states.Outcome`); a log or metadata do not decide about it."""
        if self.failure is not None:
            return self.failure.outcome
        return Outcome.FAILED if self.failed else Outcome.SUCCEEDED

    @property
    def failed(self) -> str:
        """Why outputs are missing; empty if none is (`str`)."""
        failure = () if self.failure is None else (self.failure.reason,)
        return "; ".join((*failure, *self._reasons(True)))

    @property
    def reason(self) -> str:
        """What operators have to know, empty if all is well (`str`)."""
        return "; ".join(filter(None, (self.failed or self.caveats, *self._reasons(False))))

    def _reasons(self, is_output: bool) -> Iterable[str]:
        """Return each reason once: all snaps may have the same."""
        return dict.fromkeys(each.reason for each in self.unwritten if (each.kind == "output") is is_output)

    @classmethod
    def of(cls, failure: TaskFailure | None, succeeded: Iterable[tuple[str, TaskMetadata]]) -> "RunResult":
        """Return the result of a graph.

        Parameters
        ----------
        failure : `TaskFailure` or `None`
            The first failure of a task; `None` if all succeeded.
        succeeded : `~collections.abc.Iterable` [`tuple` [`str`, ``TaskMetadata``]]
            Label and metadata of each successful quantum, in the order of running.
        """
        partial: dict[str, None] = {}
        without_work: dict[str, None] = {}
        times: list[tuple[str, float, float]] = []
        for label, metadata in succeeded:
            # Metadata read from a file have floats instead of integers.
            quantum = metadata["quantum"]
            if "prepUtc" in quantum and "endUtc" in quantum:
                times.append((label, _tai(quantum["prepUtc"]), _tai(quantum["endUtc"])))
            flags = QuantumSuccessCaveats(int(quantum["caveats"]))
            if QuantumSuccessCaveats.PARTIAL_OUTPUTS_ERROR in flags:
                partial[label] = None
            elif QuantumSuccessCaveats.NO_WORK in flags:
                without_work[label] = None
        parts = ((partial, "partial outputs of"), (without_work, "no work for"))
        caveats = "; ".join(f"{text} {', '.join(labels)}" for labels, text in parts if labels)
        return cls(failure, caveats, times=tuple(times))


def _tai(utc: str) -> float:
    """Return the time of a task's metadata, ISO 8601 in UTC with or without an offset."""
    instant = datetime.datetime.fromisoformat(utc)
    return instant.replace(tzinfo=instant.tzinfo or datetime.UTC).timestamp() + TAI_MINUS_UTC_S


@dataclass(frozen=True, slots=True)
class Job:
    """A pipeline and the collections of its data, known before the image."""

    pipeline: LoadedPipeline
    inputs: tuple[str, ...]
    """Collections in search order."""
    run: str
    """Output run."""
    digest: str
    """Hash of all that decides the datasets of the run; part of its name,
    unless a fixed name is configured."""
    repo: LocalRepo
    """The worker's repo."""
    provenance: DatasetRef | None = None
    """Provenance graph that the run writes; `None` if it is not to be exported."""
    take_room: TakeRoom | None = None
    """`None`: all images are compressed."""

    @property
    def butler(self) -> Butler:
        """The Butler of the worker's repo, whose registry has all datasets (`lsst.daf.butler.Butler`)."""
        return self.repo.butler


class Unsupported(Exception):
    """This engine cannot run the pipeline, for the reason in the text; the next one does."""


@contextmanager
def building(job: Job) -> Iterator[None]:
    """Convert exceptions of building a graph to ``UnusablePipeline``; see `Engine.build`."""
    try:
        yield
    except Unsupported:
        raise
    except Exception as error:  # building runs code of tasks, which may raise anything
        if is_out_of_space(error) or isinstance(error, MemoryError):
            raise  # not the fault of the pipeline
        raise UnusablePipeline(f"{job.pipeline.name} cannot be built: {describe(error)}") from error


class PipelineRun(ABC):
    """A built graph with quanta."""

    in_repo: ClassVar[bool] = True
    """Whether its outputs are written into the worker's repo, with the Butler alone."""

    @abstractmethod
    def __call__(self, before_task: Callable[[str], None]) -> RunResult:
        """Run all tasks, once.

        Parameters
        ----------
        before_task : `~collections.abc.Callable` [[`str`], `None`]
            Called with the label of each task immediately before it is run. An
            engine that runs tasks in another process may call it for all tasks
            before the first one.

        Raises
        ------
        ppdaemon.errors.VisitFailed
            Raised if a process that runs tasks fails outside of them; with
            ``CRASHED`` if it ends without a result.
        """

    @property
    def outputs(self) -> Sequence[DatasetRef]:
        """Datasets that this object holds: those to be exported; of a pipeline that needs no image, all
        (`~collections.abc.Sequence` [`lsst.daf.butler.DatasetRef`]).
        """
        return ()

    def write(self, folder: Path) -> Iterator[LocatedFile]:
        """Write these outputs into a folder, one file each, named after the dataset's id; yield those that
        are written.

        At the end a dataset that cannot be written is `unwritten`, and none of `outputs`.

        Raises
        ------
        OSError
            Raised if there is no space.
        """
        yield from ()

    @property
    def unwritten(self) -> Sequence[Unwritten]:
        """Datasets that could not be written (`~collections.abc.Sequence` [`Unwritten`])."""
        return ()


class Engine(ABC):
    """Runs pipelines in a worker's repo.

    This base class ingests the raws there and keeps no state.
    """

    name: str
    """Name in the configuration."""

    def prepare(self, job: Job, raws: VisitRaws) -> Mapping[str, object]:
        """Do the work that needs no image.

        Parameters
        ----------
        job : `Job`
            What will be run, as far as it is known; its run has its init-outputs.
        raws : `~ppdaemon.middleware.raws.ingest.VisitRaws`
            Takes the raws when they arrive. An engine that reads raws from the
            repo calls its ``register``.

        Returns
        -------
        done : `~collections.abc.Mapping` [`str`, `object`]
            Numbers for the journal.

        Raises
        ------
        Unsupported
            Raised if another engine has to run it.
        ppdaemon.middleware.pipelines.graph.UnusablePipeline
            Raised if no engine can run it.
        """
        raws.register()
        return {}

    @abstractmethod
    def build(self, job: Job, query: DataQuery, raws: VisitRaws | None) -> PipelineRun:
        """Build the graph of a job.

        Parameters
        ----------
        job : `Job`
            What to run; its run has its init-outputs.
        query : `DataQuery`
            The data to run it on.
        raws : `~ppdaemon.middleware.raws.ingest.VisitRaws` or `None`
            The raws that arrived; `None` for a pipeline that needs no image.

        Raises
        ------
        Unsupported
            Raised if another engine has to run it.
        ppdaemon.middleware.pipelines.graph.UnusablePipeline
            Raised if the graph cannot be built or is empty.
        """

    def discard_inputs(self) -> None:  # noqa: B027  # an engine may have no state
        """Find the inputs again: datasets were added to the worker's repo since `prepare`."""

    def reset(self) -> None:  # noqa: B027  # an engine may have no state
        """Release the state of a visit; the worker's repo is a fresh copy now."""
