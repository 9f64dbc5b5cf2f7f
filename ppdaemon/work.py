# SPDX-License-Identifier: BSD-3-Clause
"""Interface of the work that a worker process does.

`ppdaemon.worker` exchanges messages with the supervisor and calls this; the module named by
``workers.work`` has the functions of `WorkModule`. `ppdaemon.middleware.work` is used in
production; tests have scripted ones.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ppdaemon import messages
from ppdaemon.clock import Clock
from ppdaemon.config import NodeConfig

__all__ = ("Asker", "Exporter", "WorkerContext", "Work", "WorkModule")


@dataclass(frozen=True, slots=True)
class WorkerContext:
    """Settings and folders of one worker process, and its way to report."""

    config: NodeConfig
    """The node's configuration."""
    slot: int
    """Number of the slot; below 0 for exporter, asker and template."""
    epoch: int
    """Number of the process within its slot, from 1."""
    repo: Path
    """This process's folder on the RAM disk; exists and has only the working directory ``tmp``."""
    template: Path
    """Folder of the template repo, on the same RAM disk."""
    cache: Path
    """Folder of files that the workers of a host share by hard link."""
    runs: Path
    """Folder of files that each output run needs once; shared by hard link."""
    spool: Path
    """Folder of finished outputs that are not exported yet, on a disk."""
    ramdisk_spool: Path
    """The same on the RAM disk."""
    publish: Path
    """Folder of metrics that are not published yet; exists if anything is published."""
    clock: Clock
    report: Callable[[messages.StageReached | messages.Connecting], None]
    """Sends a fact to the supervisor at once; raises `OSError` if the supervisor has ended."""
    cross: Callable[[str], None]
    """Waits until the next step may be done: a task that must not be repeated, by its label, or, with
    a blank, the rename that completes the spool. To be called before each such step; returns at once
    if it was allowed before."""
    warmed: Any = None
    """What `WorkModule.warm_up` has returned in the process that forked this one."""


class Work(Protocol):
    """The work of one process: prepare, ingest, process; then reset. One instance serves many
    visits, one at a time.

    Each method may raise `~ppdaemon.errors.VisitFailed`, which ends the visit and not the
    worker; any other exception ends the visit as failed.
    """

    def prepare(self, order: messages.Prepare) -> messages.Prepared:
        """Do everything that needs no pixels: choose the pipeline, load its inputs. Return ``ran_tasks`` as
        `False` if no code of tasks has run: the process need not be compared with its state before.
        """

    def ingest(self, raw: messages.Raw) -> messages.Ingested:
        """Ingest a complete raw; raise `~ppdaemon.errors.VisitFailed` with ``BAD_RAW`` if it is unusable."""

    def process(self, order: messages.Process) -> messages.Done:
        """Run the pipeline on the ingested exposures, and spool the outputs for export."""

    def reset(self) -> None:
        """Delete everything of the visit: the repo is as before `prepare`."""


class Exporter(Protocol):
    """Registers spooled outputs in the central repo."""

    def export(self, spools: Sequence[Path]) -> messages.Exported:
        """Export these spools together, then delete them.

        Spools that are registered already are not registered again, and those that cannot be
        registered are moved away and returned as refused. Any exception leaves the others
        unchanged; they are passed again later.
        """

    def give_up_images(self, folders: Sequence[Path], excess_bytes: int) -> messages.ImagesGivenUp:
        """Delete images of about this size, those of the oldest spools in these folders first."""

    def mark_datastore(self) -> str:
        """Mark the central repo's datastore as its own, where outputs may be written; return what was done.

        Any exception means that nothing was done.
        """


class Asker(Protocol):
    """Asks for all workers of a host what otherwise each would ask by itself.

    One that is late, or has ended, must cost the workers nothing but time.
    """

    def fileno(self) -> int:
        """Return a descriptor that becomes readable when a worker has a question."""

    def prepare(self, report: Callable[[Sequence[float]], None]) -> None:
        """Do what can be done before the first question. `report` is to be called after each part of it, with
        nothing; see `answer`.
        """

    def answer(self, report: Callable[[Sequence[float]], None]) -> None:
        """Answer the questions that are there; any exception ends the process, and another one starts.

        `report` is to be called after each part of the work, with how long each of the questions that are
        answered had waited, in seconds. A process that does not call it for 60 s is killed.
        """


class WorkModule(Protocol):
    """Functions of the module named by ``workers.work``."""

    def set_up_libraries(self) -> None:
        """Prepare imported libraries in the zygote; open no file, socket or thread."""

    def warm_up(self, config: NodeConfig) -> Any:
        """Do in the zygote, before any fork, what otherwise the first visit of each worker would do first;
        return what workers get as ``context.warmed``. Leave no file, socket, thread, process or Butler
        open. Any exception means that workers start without it.
        """

    def build_template(self, context: WorkerContext) -> None:
        """Create ``context.template``, once per configuration, in a separate process.

        Reports a `~ppdaemon.messages.Connecting` before a query that may not be answered: then the
        process is late because of a database, and a restart would not help.
        """

    def open_work(self, context: WorkerContext) -> Work:
        """Return the work of a worker, ready to serve visits."""

    def open_exporter(self, context: WorkerContext) -> Exporter:
        """Return an exporter; the central repo may be unavailable at this time."""

    def open_asker(self, context: WorkerContext) -> Asker:
        """Return an asker; called if there is a ``butler`` section."""

    def resolve_names(
        self, config: NodeConfig
    ) -> Iterable[messages.Resolving | messages.NameFinding | messages.TaskNamesResolved]:
        """Yield what is wrong with the names in a configuration, in a process without a slot.

        Yields a `~ppdaemon.messages.Resolving` before each query that may not be answered, and a
        `~ppdaemon.messages.TaskNamesResolved` when the findings about ``engine.no_return`` are
        complete: a node that starts assigns no visit before.
        """
