# SPDX-License-Identifier: BSD-3-Clause
"""Runs the role of a worker process: straight-line, blocking, one visit at a time.

Covers the messages with the supervisor and the handling of exceptions. Does not cover the work
for a visit: see `ppdaemon.work`.
"""

import contextlib
import ctypes
import errno
import logging
import os
import select
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

from ppdaemon import log, messages
from ppdaemon.clock import Clock
from ppdaemon.config import NodeConfig
from ppdaemon.durable import write_durably
from ppdaemon.environment import THREAD_VARIABLES
from ppdaemon.errors import Refused, Unavailable, VisitFailed
from ppdaemon.folders import NodeFolders
from ppdaemon.states import ExitCode, Outcome, Stage
from ppdaemon.wire import encode
from ppdaemon.work import Asker, Exporter, Work, WorkerContext, WorkModule
from ppdaemon.worker.channel import Channel
from ppdaemon.worker.imports import ImportCosts, observed_imports
from ppdaemon.worker.leftovers import Leftovers, ScratchFolder

__all__ = ("Inherited", "run_role")

_LOG = logging.getLogger(__name__)

SCRATCH = "tmp"
"""Working directory of a worker, in its folder on the RAM disk."""
MAX_TAINTED = 300
"""Characters of the list of what a visit has left."""
SHORT_NOTE = 100
"""Characters about each of the 210 spools of an export, if the whole notes are too long."""
MAX_REASON = 500
"""Characters of a reason; the journal stores no more."""
NOTED_IMPORT_S = 0.2
"""Imports of a first visit that take longer are reported."""
NOTED_IMPORTS = 8
"""Number of modules that are named then."""
_LIBC = ctypes.CDLL(None)
_VISIT_FIELDS = ("instrument", "group", "detector", "attempt", "stage", "exposure")
"""Fields of the lines about a visit-detector."""


@dataclass(frozen=True, slots=True)
class Inherited:
    """What a process has before its role: from the zygote, or made by itself."""

    work: WorkModule
    leftovers: Leftovers
    warmed: Any = None
    """See `~ppdaemon.work.WorkerContext.warmed`."""


def run_role(
    order: messages.ForkWorker, end: socket.socket, config: NodeConfig, inherited: Inherited
) -> ExitCode:
    """Run one role until an order to quit, or until the supervisor has ended; return the exit status."""
    work = inherited.work
    log.set_up(
        config.log.level,
        config.log.format,
        config.log.levels,
        role=order.role,
        slot=order.slot,
        epoch=order.epoch,
    )
    end.setblocking(True)
    channel = Channel(end, messages.ORDERS)
    folders = NodeFolders.of(config)
    if order.role == "worker" and config.workers.threads > 1:
        _allow_threads(config.workers.threads)
    scratch = ScratchFolder(Path(order.repo) / SCRATCH)
    visit_loop = VisitLoop(channel, folders, scratch, inherited.leftovers, config)
    context = WorkerContext(
        config=config,
        slot=order.slot,
        epoch=order.epoch,
        repo=Path(order.repo),
        template=folders.template(order.generation),
        cache=folders.cache,
        runs=folders.runs,
        spool=folders.spool,
        ramdisk_spool=folders.ramdisk_spool,
        publish=folders.publish,
        clock=Clock(),
        warmed=inherited.warmed,
        report=visit_loop.report,
        cross=visit_loop.cross,
    )
    if order.role == "template":
        return _build_template(channel, context, work)
    if order.role == "exporter":
        exporter = work.open_exporter(context)
        channel.send(messages.Ready(pid=os.getpid()))
        return _serve_exports(channel, exporter)
    if order.role == "asker":
        return _serve_questions(channel, work.open_asker(context))
    return visit_loop.serve(work.open_work(context))


def _build_template(
    channel: Channel[messages.WorkerOrder], context: WorkerContext, work: WorkModule
) -> ExitCode:
    try:
        work.build_template(context)
    except Unavailable as error:
        channel.send(messages.NotReady(reason=str(error)))
        raise
    channel.send(messages.Ready(pid=os.getpid()))
    return ExitCode.OK


def _serve_exports(channel: Channel[messages.WorkerOrder], exporter: Exporter) -> ExitCode:
    last_reason = ""
    while True:
        match channel.receive():
            case messages.ExportSpool(spools=spools):
                try:
                    channel.send(fitting(exporter.export([Path(spool) for spool in spools])))
                    last_reason = ""
                except Exception as error:  # any error of a database: the spool stays
                    reason = _reason_of(error)
                    # The traceback once per reason: the export is tried again without end. A repo that
                    # is away is expected.
                    _LOG.error(
                        "export of %d visits failed; it is tried again: %s",
                        len(spools),
                        reason,
                        exc_info=reason != last_reason and not isinstance(error, Unavailable),
                    )
                    last_reason = reason
                    channel.send(messages.SpoolRefused(spools=spools, reason=reason))
            case messages.GiveUpImages(folders=folders, excess_bytes=excess_bytes):
                given_up = exporter.give_up_images([Path(folder) for folder in folders], excess_bytes)
                channel.send(fitting(given_up))
            case messages.MarkDatastore():
                try:
                    answer = messages.DatastoreMarked(text=exporter.mark_datastore())
                except Exception as error:
                    answer = messages.DatastoreMarked(text=_reason_of(error), refused=True)
                channel.send(answer)
            case messages.Quit() | None:
                return ExitCode.OK
            case unexpected:
                raise AssertionError(unexpected)


def _serve_questions(channel: Channel[messages.WorkerOrder], asker: Asker) -> ExitCode:
    """Serve until the supervisor ends this process, which it also does if there is no report for long."""

    def report(waited_s: Sequence[float]) -> None:
        channel.send(messages.Asked(waited_s=tuple(waited_s)))

    channel.send(messages.Ready(pid=os.getpid()))
    asker.prepare(report)
    while True:
        channel.send(messages.Asked(idle=True))
        descriptors = [channel.fileno(), asker.fileno()]
        ready, _, _ = select.select(descriptors, [], [], messages.ASKER_REPORT_S)
        if channel.fileno() in ready:
            match channel.receive():
                case messages.Quit() | None:
                    return ExitCode.OK
                case unexpected:
                    raise AssertionError(unexpected)
        if asker.fileno() in ready:
            asker.answer(report)


def fitting[Report: (messages.Exported, messages.ImagesGivenUp)](report: Report) -> Report:
    """Return a report that fits into one packet: with shorter notes, if there are very many long ones."""
    if len(encode(report)) <= messages.PACKET_LIMIT:
        return report
    notes = {name: value for name, value in report if isinstance(value, dict)}
    return report.model_copy(
        update={
            name: {
                spool: note if len(note) <= SHORT_NOTE else f"{note[:SHORT_NOTE]} ..."
                for spool, note in by_spool.items()
            }
            for name, by_spool in notes.items()
        }
    )


def _first_line(error: BaseException) -> str:
    text = _text_of(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}"[:MAX_REASON]


def _reason_of(error: Exception) -> str:
    return (
        str(error)[:MAX_REASON]
        if isinstance(error, VisitFailed | Refused | Unavailable)
        else _first_line(error)
    )


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # the class is foreign code
        return ""


def _outcome_of(error: Exception) -> Outcome:
    if isinstance(error, VisitFailed):
        return error.outcome
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Outcome.RAMDISK_FULL
    if isinstance(error, MemoryError):
        return Outcome.OUT_OF_MEMORY
    return Outcome.FAILED


class VisitLoop:
    """Carries out the orders of one visit after the other."""

    def __init__(
        self,
        channel: Channel[messages.WorkerOrder],
        folders: NodeFolders,
        scratch: ScratchFolder,
        leftovers: Leftovers,
        config: NodeConfig,
    ):
        self._channel = channel
        self._folders = folders
        self._scratch = scratch
        self._leftovers = leftovers
        self._config = config.workers
        self._restored: set[str] = set()
        """What was restored at least once."""
        self._imports = ImportCosts()
        self._observation = contextlib.ExitStack()
        """Within it the imports of the first visit are measured."""
        self._visit_number = 0
        self._order: messages.Prepare | None = None
        self._crossed: str | None = None
        """What the supervisor has allowed in the present visit: a task, a blank for the spool only,
        or nothing (`None`)."""

    def report(self, fact: messages.Fact) -> None:
        """Send a fact of the present visit to the supervisor at once."""
        if isinstance(fact, messages.Done) and fact.nothing_permanent and self._order is not None:
            self._mark(self._order).unlink(missing_ok=True)
        match fact:
            case messages.StageReached(stage=stage):
                log.bind(stage=stage)
            case messages.Prepared():
                log.bind(stage=Stage.PREPARED)
        self._channel.send(fact.model_copy(update={"visit_number": self._visit_number}))

    def cross(self, what: str) -> None:
        """Wait until the supervisor allows a step that must be done on one node only; see
        `~ppdaemon.work.WorkerContext.cross`.
        """
        # Once for all tasks that must not be repeated, which includes the spool.
        if self._order is None or self._crossed or self._crossed == what:
            return
        self.report(messages.MayCross(what=what))
        match self._channel.receive():
            case messages.Cross():
                self._crossed = what
            case None:
                raise SystemExit(ExitCode.OK)
            case unexpected:
                raise AssertionError(unexpected)
        # On disk before the step: if the journal is lost, the mark tells that the step was allowed.
        if what:
            write_durably(self._mark(self._order), what)

    def _mark(self, order: messages.Prepare) -> Path:
        visit = order.visit
        return self._folders.mark(visit.instrument, visit.group, order.detector, order.attempt)

    def serve(self, work: Work) -> ExitCode:
        """Serve until an order to quit, or until the supervisor has ended. An exception ends a
        visit, not the process.
        """
        self._scratch.use_for_temporary_files()
        self._scratch.enter()
        # Before the first visit: the state after each visit is compared with this one.
        self._leftovers.begin()
        self._channel.send(messages.Ready(pid=os.getpid()))
        with observed_imports(self._leftovers.around):
            return self._serve(work)

    def _serve(self, work: Work) -> ExitCode:
        if self._config.start == "fork":
            self._observation.enter_context(observed_imports(self._imports.around))
        while True:
            match self._channel.receive():
                case messages.Prepare() as order:
                    self._visit_number, self._order, self._crossed = order.visit_number, order, None
                    _bind(order)
                    self._attempt(partial(work.prepare, order), work)
                case messages.Ingest(raw=raw):
                    log.bind(stage=Stage.ARRIVED, exposure=raw.exposure)
                    try:
                        self.report(work.ingest(raw))
                    except Exception as error:
                        self._send_refused(raw.exposure, error)
                case messages.Process() as order:
                    log.bind(stage=Stage.INGESTED, exposure=min(order.exposures, default=None))
                    self._attempt(partial(work.process, order), work)
                case messages.GiveUp(reason=reason):
                    # The supervisor logs the outcome: a line of all workers would delay the last one.
                    _LOG.debug("the visit is given up: %s", reason)
                    self._forget(work)
                case messages.Quit() | None:
                    return ExitCode.OK
                case unexpected:
                    raise AssertionError(unexpected)

    def _attempt(self, step: Callable[[], messages.Fact], work: Work) -> None:
        """Run one step of a visit; an exception ends the visit, not the worker."""
        try:
            fact = step()
        except Exception as error:
            failed = isinstance(error, VisitFailed)
            level = logging.WARNING if failed else logging.ERROR
            _LOG.log(level, "the visit ends with an error: %s", error, exc_info=not failed)
            retriable = isinstance(error, VisitFailed) and error.retriable
            fact = messages.Done(outcome=_outcome_of(error), reason=_reason_of(error), retriable=retriable)
        # Also after the preparation: a main pipeline is not to see what the preprocessing has changed.
        ran_tasks = isinstance(fact, messages.Done) or (
            isinstance(fact, messages.Prepared) and fact.ran_tasks
        )
        if ran_tasks and (tainted := self._restore()):
            fact = fact.model_copy(update={"tainted": tainted})
        if isinstance(fact, messages.Done):
            self._report_imports()
        # Sent before the cleanup, which may take long.
        self.report(fact)
        if isinstance(fact, messages.Done):
            self._forget(work)

    def _restore(self) -> str:
        """Restore what tasks have changed in this process; return what only a new process does not
        have, such as ``thread monitor``, or a blank.
        """
        restored, remaining = self._leftovers.restore()
        if new := [name for name in restored if name not in self._restored]:
            _LOG.warning("a task has changed this process; restored: %s", ", ".join(new))
            self._restored.update(new)
        return ", ".join(remaining)[:MAX_TAINTED]

    def _report_imports(self) -> None:
        """Report what the first visit has imported, if that took long; later ones find it imported."""
        self._observation.close()
        costs, self._imports = self._imports, ImportCosts()
        if (seconds := sum(costs.seconds.values())) > NOTED_IMPORT_S:
            modules = tuple(costs.slowest(NOTED_IMPORTS))
            self.report(
                messages.ImportsMeasured(modules=modules, seconds=seconds, memory_bytes=costs.memory_bytes)
            )

    def _forget(self, work: Work) -> None:
        work.reset()
        self._scratch.enter()
        trim_memory()
        log.bind(**dict.fromkeys(_VISIT_FIELDS))

    def _send_refused(self, exposure: int, error: Exception) -> None:
        failed = isinstance(error, VisitFailed)
        _LOG.log(
            logging.WARNING if failed else logging.ERROR, "a raw is refused: %s", error, exc_info=not failed
        )
        outcome, reason = _outcome_of(error), _reason_of(error)
        self.report(messages.RawRefused(exposure=exposure, outcome=outcome, reason=reason))


def trim_memory() -> None:
    """Return memory that a visit has freed to the system.

    Once per visit: a low ``MALLOC_TRIM_THRESHOLD_`` would do it at every large ``free``
    instead, and the next array would have to fault its pages in again.
    """
    _LIBC.malloc_trim(0)


def _bind(order: messages.Prepare) -> None:
    visit = order.visit
    values = (visit.instrument, visit.group, order.detector, order.attempt, Stage.ASSIGNED, None)
    log.bind(**dict(zip(_VISIT_FIELDS, values, strict=True)))


def _allow_threads(number: int) -> None:
    """Let numerical libraries of this process use some threads, after the fork; also those that are
    imported later, and in its children.
    """
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(number)))
    threadpool_limits(number)  # BLAS and OpenMP, as far as they are loaded
    if "pyarrow" in sys.modules:
        sys.modules["pyarrow"].set_cpu_count(number)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(number)
