# SPDX-License-Identifier: BSD-3-Clause
"""What a worker process can be made to do: the interface of its inner part.

`ppdaemon.worker` speaks with the supervisor and calls this; the module named
by ``workers.work`` offers `WorkModule`'s functions.
`ppdaemon.middleware.work` is the real one; tests bring scripted ones.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ppdaemon import messages
from ppdaemon.clock import Clock
from ppdaemon.config import NodeConfig

__all__ = ("Exporter", "WorkerContext", "Work", "WorkModule")


@dataclass(frozen=True, slots=True)
class WorkerContext:
    """Where a forked process sits, and how it is heard."""

    config: NodeConfig
    slot: int
    epoch: int
    repo: Path
    """The process's own folder on the RAM disk; exists and is empty."""
    template: Path
    """Folder of the template repo, beside all others on the RAM disk."""
    cache: Path
    """Folder of files shared by hard link between the workers of a host."""
    runs: Path
    """Folder of what each output run has once; shared in the same way."""
    spool: Path
    """Folder of finished outputs that wait for export."""
    clock: Clock
    report: Callable[[messages.StageReached | messages.PointOfNoReturn], None]
    """Tells the supervisor at once."""


class Work(Protocol):
    """One worker's work: prepare, ingest, process; then reset.

    Each method may raise `~ppdaemon.errors.VisitFailed`, which ends the
    visit and not the worker; any other exception ends the visit as failed.
    """

    def prepare(self, order: messages.Prepare) -> messages.Prepared:
        """Do all that needs no pixels."""

    def ingest(self, raw: messages.Raw) -> messages.Ingested:
        """Take a complete raw; a bad one raises with ``BAD_RAW``."""

    def process(self, order: messages.Process) -> messages.Done:
        """Run the pipeline, spool what is to be exported."""

    def reset(self) -> None:
        """Forget the visit: the repo is as new afterwards."""


class Exporter(Protocol):
    """Registers spooled outputs in the central repo."""

    def export(self, spools: Sequence[Path]) -> messages.Exported:
        """Export in one central transaction and delete the spools.

        Already registered ones are not registered again, and those that
        cannot be are set apart. Any exception leaves the others as they are.
        """


class WorkModule(Protocol):
    """What the module named by ``workers.work`` has."""

    def set_up_libraries(self) -> None:
        """Prepare imported libraries in the zygote; opens nothing."""

    def build_template(self, context: WorkerContext) -> None:
        """Make ``context.template``, once per configuration."""

    def open_work(self, context: WorkerContext) -> Work:
        """Copy the template, open it, be ready for visits."""

    def open_exporter(self, context: WorkerContext) -> Exporter:
        """Be ready for exports; the central repo may be down."""
