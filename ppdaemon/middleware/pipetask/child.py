# SPDX-License-Identifier: BSD-3-Clause
"""Runs an unchanged ``pipetask`` command that waits between building and running and reports its result."""

import importlib
import logging
import socket
import uuid
from collections.abc import Mapping, Sequence

import click
import networkx
from lsst.ctrl.mpexec.cli.pipetask import cli
from lsst.daf.butler import DataCoordinate
from lsst.daf.butler.cli.utils import catch_and_exit
from lsst.daf.butler.logging import ButlerMDC
from lsst.pipe.base.execution_graph_fixup import ExecutionGraphFixup
from lsst.pipe.base.mp_graph_executor import MPGraphExecutor

from ppdaemon import log
from ppdaemon.middleware.butler.failures import describe, outcome_of
from ppdaemon.middleware.pipetask import protocol
from ppdaemon.middleware.run.engine import TaskFailure
from ppdaemon.middleware.run.executor import EncodingExecutor
from ppdaemon.pointing import disable_astropy_downloads
from ppdaemon.wire import encode

__all__ = ("Gate", "run")

_SCRIPT = "lsst.ctrl.mpexec.cli.script.run"
"""Module that creates the executor; its package has a function of the same name."""


class Gate(ExecutionGraphFixup):
    """Waits between building and running; ``pipetask`` calls it as ``--graph-fixup``."""

    def fixup_graph(
        self, xgraph: networkx.DiGraph, quanta_by_task: Mapping[str, Mapping[DataCoordinate, uuid.UUID]]
    ) -> None:
        """Wait until the worker allows the tasks to run; change nothing.

        `RuntimeError` is raised if the worker closes the channel instead.
        """
        with socket.socket(fileno=socket.dup(protocol.CHANNEL_FD)) as channel:
            built = protocol.GraphBuilt(
                labels=tuple(label for label, quanta in quanta_by_task.items() if quanta)
            )
            channel.send(encode(built))
            if channel.recv(protocol.MAX_PACKET_BYTES) != protocol.GO:
                raise RuntimeError("the worker closed the channel: these tasks are not run")


class _FailureReporter(logging.Handler):
    """Reports exceptions that the command logs and does not raise."""

    def __init__(self, channel: socket.socket):
        super().__init__(logging.ERROR)
        self._channel = channel
        self._reported = False

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1] is not None:
            self.report(record.exc_info[1])

    def report(self, error: BaseException) -> None:
        """Send the first failure to the worker; others follow from it or come too late."""
        if self._reported:
            return
        self._reported = True
        # An exception raised while a task is executed has its log context.
        label = str(getattr(error, "mdc", {}).get("LABEL", "")).partition(":")[0]
        if label:
            failure = TaskFailure.of(label, error)
            self._channel.send(
                encode(protocol.TaskFailed(label=label, text=failure.text, outcome=failure.outcome))
            )
        else:
            self._channel.send(
                encode(protocol.CommandFailed(text=describe(error), outcome=outcome_of(error)))
            )


def run(channel: socket.socket, settings: protocol.CommandSettings, arguments: Sequence[str]) -> int:
    """Run a command and return its exit status; the descriptor of `channel` is `protocol.CHANNEL_FD`."""
    log.set_up(settings.level, settings.form, settings.levels)
    log.bind(**settings.bound)
    for key, value in settings.context.items():
        ButlerMDC.MDC(key, value)
    disable_astropy_downloads()
    # No option of the command replaces its executor.
    importlib.import_module(_SCRIPT).SingleQuantumExecutor = EncodingExecutor  # type: ignore[attr-defined]
    reporter = _FailureReporter(channel)
    for source in (MPGraphExecutor, catch_and_exit):  # both log exceptions and do not raise them
        logging.getLogger(source.__module__).addHandler(reporter)
    try:
        status = cli.main(args=list(arguments), prog_name="pipetask", standalone_mode=False)
    except click.Abort as error:  # click's form of KeyboardInterrupt
        reporter.report(error.__cause__ or error)
        return 1
    except BaseException as error:  # such as the SystemExit of a task
        reporter.report(error)
        return 1
    if not status:
        channel.send(encode(protocol.Succeeded()))
    return status or 0
