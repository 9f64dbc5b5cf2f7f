# SPDX-License-Identifier: BSD-3-Clause
"""The ``pipetask`` engine: the command-line program in a separate process.

One command builds and runs. In between it waits until the worker has checked
that the graph has quanta and has reported points of no return.
"""

import logging
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from lsst.pipe.base import TaskMetadata

from ppdaemon import log
from ppdaemon.config import LogConfig
from ppdaemon.errors import VisitFailed
from ppdaemon.middleware.butler.failures import describe
from ppdaemon.middleware.pipelines.graph import UnusablePipeline
from ppdaemon.middleware.pipetask import protocol
from ppdaemon.middleware.raws.ingest import VisitRaws
from ppdaemon.middleware.run.engine import DataQuery, Engine, Job, PipelineRun, RunResult, TaskFailure
from ppdaemon.processes import describe_end
from ppdaemon.states import Outcome

__all__ = ("PipetaskEngine",)

_LOG = logging.getLogger(__name__)


class PipetaskEngine(Engine):
    """Runs ``pipetask run`` on the worker's repo.

    `folder` takes the files that the command reads and writes; it is deleted
    after each command. `log` is the configuration of the worker's log, which
    gets the command's output.
    """

    name = "pipetask"

    def __init__(self, repo: Path, folder: Path, log: LogConfig):
        self._repo = repo
        self._folder = folder
        self._log = log

    def build(self, job: Job, query: DataQuery, raws: VisitRaws | None) -> PipelineRun:
        """Start a command that builds its graph; see `~ppdaemon.middleware.run.engine.Engine`.

        `VisitFailed` is raised if the command ends without a message, or lacks
        space or memory.
        """
        if raws is not None:
            raws.register()
        job.repo.write_registry()
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir()
        command = _Command(self._arguments(job, query), self._settings(query), self._folder)
        match command.receive():
            case protocol.GraphBuilt(labels=labels):
                return _PipetaskRun(job, command, labels)
            case protocol.CommandFailed(text=text, outcome=Outcome.FAILED):
                command.wait()
                raise UnusablePipeline(f"{job.pipeline.name} cannot be built: {text}")
            case protocol.CommandFailed(text=text, outcome=outcome):
                command.wait()
                raise VisitFailed(outcome, f"{job.pipeline.name} cannot be built: {text}", retriable=True)
            case None:
                raise command.crashed()
            case unexpected:
                raise AssertionError(unexpected)

    def _arguments(self, job: Job, query: DataQuery) -> list[str]:
        """Return the command line; the worker's log levels are used."""
        pipeline = self._folder / f"{job.pipeline.name}.yaml"
        pipeline.write_text(job.pipeline.text)
        levels = {".": self._log.level, "lsst": self._log.level, **self._log.levels}
        options = {
            "--butler-config": str(self._repo),
            "--pipeline": str(pipeline),
            "--input": ",".join(job.inputs),
            "--output-run": job.run,
            "--data-query": query.literal(),
            "--graph-fixup": "ppdaemon.middleware.pipetask.child.Gate",
        }
        return [
            *(f"--log-level={name}={level}" for name, level in levels.items()),
            "run",
            *(part for option in options.items() for part in option),
            # The run exists and has its init-outputs.
            *("--extend-run", "--skip-init-writes", "--no-raise-on-partial-outputs"),
        ]

    def _settings(self, query: DataQuery) -> protocol.CommandSettings:
        bound = {key: value for key, value in log.bound().items() if isinstance(value, str | int)}
        return protocol.CommandSettings(
            level=self._log.level,
            form=self._log.format,
            levels=dict(self._log.levels),
            bound=bound,
            context=dict(query.context),
        )


class _Command:
    """A running command, which dies with the worker, and the worker's end of its channel."""

    def __init__(self, arguments: list[str], settings: protocol.CommandSettings, folder: Path):
        self._folder = folder
        self._channel, command_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with command_end:
            self._process = subprocess.Popen(
                [
                    # -P: modules are not imported from the current folder.
                    *(sys.executable, "-P", "-m", "ppdaemon.middleware.pipetask.command"),
                    *(str(os.getpid()), settings.model_dump_json(), *arguments),
                ],
                stdin=command_end.fileno(),
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
                    "DAF_BUTLER_CACHE_DIRECTORY_IF_UNSET": str(folder / "cache"),
                    # A graph contains its user's name; the password database may
                    # not have the dynamic user of a service.
                    "LOGNAME": "ppdaemon",
                },
            )

    def receive(self) -> protocol.Message | None:
        """Return its next message; `None` if it has ended."""
        packet = self._channel.recv(protocol.MAX_PACKET_BYTES)
        return protocol.MESSAGES.validate_json(packet) if packet else None

    def start_tasks(self) -> None:
        """Let it run its tasks."""
        self._channel.send(protocol.GO)

    def wait(self) -> str:
        """Wait for its end; return how it ended."""
        # Before the wait: a command that has not got `GO` ends when the channel is closed.
        self._channel.close()
        status = self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)
        return describe_end(status)

    def crashed(self) -> VisitFailed:
        """Return the failure of a visit whose command has ended without a message."""
        return VisitFailed(
            Outcome.CRASHED,
            f"pipetask {self.wait()} without reporting a result",
            retriable=True,
        )


class _PipetaskRun(PipelineRun):
    """A command that waits with its graph."""

    def __init__(self, job: Job, command: _Command, labels: tuple[str, ...]):
        self._job = job
        self._command = command
        self._labels = labels

    def __call__(self, before_task: Callable[[str], None]) -> RunResult:
        # The command does not wait between its tasks: all are reported now.
        for label in self._labels:
            before_task(label)
        self._command.start_tasks()
        failure = self._wait()
        # The command has registered collections and dataset types in another process.
        self._job.butler.registry.refresh()
        return RunResult.of(failure, self._task_metadata())

    def _wait(self) -> TaskFailure | None:
        match self._command.receive():
            case protocol.Succeeded():
                self._command.wait()
                return None
            case protocol.TaskFailed(label=label, text=text, outcome=outcome):
                self._command.wait()
                return TaskFailure(label, text, outcome)
            case protocol.CommandFailed(text=text, outcome=outcome):
                reason = f"pipetask failed outside of tasks (it {self._command.wait()}): {text}"
                raise VisitFailed(outcome, reason, retriable=outcome != Outcome.FAILED)
            case None:
                raise self._command.crashed()
            case unexpected:
                raise AssertionError(unexpected)

    def _task_metadata(self) -> Iterator[tuple[str, TaskMetadata]]:
        """Yield the metadata of all quanta that have succeeded."""
        for label in self._labels:
            for ref in self._job.butler.query_datasets(
                f"{label}_metadata", collections=self._job.run, find_first=False, explain=False, limit=None
            ):
                try:
                    yield label, self._job.butler.get(ref)
                except Exception as error:  # such as an integer that is no float; its task has succeeded
                    _LOG.warning("caveats of task %s are unknown: %s", label, describe(error))
