# SPDX-License-Identifier: BSD-3-Clause
"""A ``pipetask`` command at work: unchanged, but it waits at a gate and tells the worker how it fares."""

import logging
import socket
import uuid
from collections.abc import Mapping, Sequence

import click
import networkx
import structlog
from lsst.ctrl.mpexec.cli.pipetask import cli
from lsst.daf.butler import DataCoordinate
from lsst.daf.butler.cli.utils import catch_and_exit
from lsst.daf.butler.logging import ButlerMDC
from lsst.pipe.base.execution_graph_fixup import ExecutionGraphFixup
from lsst.pipe.base.mp_graph_executor import MPGraphExecutor

from ppdaemon import log
from ppdaemon.middleware.butler.failures import describe, outcome_of
from ppdaemon.middleware.pipetask.arguments import CHANNEL, GO, PACKET, Broken, Built, Ended, Failed, Setting
from ppdaemon.middleware.run.engine import TaskFailure
from ppdaemon.pointing import keep_astropy_offline
from ppdaemon.wire import encode

__all__ = ("Gate", "run")


class Gate(ExecutionGraphFixup):
    """Stands between building and running: pipetask calls it as ``--graph-fixup``."""

    def fixup_graph(
        self, xgraph: networkx.DiGraph, quanta_by_task: Mapping[str, Mapping[DataCoordinate, uuid.UUID]]
    ) -> None:
        """Change nothing; wait until the worker lets the tasks run.

        Parameters
        ----------
        xgraph : `networkx.DiGraph`
            The quanta.
        quanta_by_task : `~collections.abc.Mapping`
            The quanta by label.

        Raises
        ------
        RuntimeError
            Raised if the worker does not want them to run.
        """
        with socket.socket(fileno=socket.dup(CHANNEL)) as channel:
            built = Built(labels=tuple(label for label, quanta in quanta_by_task.items() if quanta))
            channel.send(encode(built))
            if channel.recv(PACKET) != GO:
                raise RuntimeError("the worker does not want these tasks to run")


class _Witness(logging.Handler):
    """Sees the exceptions that the command logs and does not raise."""

    def __init__(self, channel: socket.socket):
        super().__init__(logging.ERROR)
        self._channel = channel
        self._told = False

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1] is not None:
            self.note(record.exc_info[1])

    def note(self, error: BaseException) -> None:
        """Tell the worker of the first failure; the others follow from it or come too late."""
        if self._told:
            return
        self._told = True
        # An exception that leaves a task's execution carries its log context.
        label = str(getattr(error, "mdc", {}).get("LABEL", "")).partition(":")[0]
        if label:
            failure = TaskFailure.of(label, error)
            self._channel.send(encode(Failed(label=label, text=failure.text, outcome=failure.outcome)))
        else:
            self._channel.send(encode(Broken(text=describe(error), outcome=outcome_of(error))))


def run(channel: socket.socket, setting: Setting, arguments: Sequence[str]) -> int:
    """Run a command.

    Parameters
    ----------
    channel : `socket.socket`
        To the worker; its descriptor is `CHANNEL`.
    setting : `~ppdaemon.middleware.pipetask.arguments.Setting`
        For logs.
    arguments : `~collections.abc.Sequence` [`str`]
        Of ``pipetask``.

    Returns
    -------
    status : `int`
        The command's exit status.
    """
    log.set_up(setting.level, setting.form)
    structlog.contextvars.bind_contextvars(**setting.bound)
    for key, value in setting.context.items():
        ButlerMDC.MDC(key, value)
    keep_astropy_offline()
    witness = _Witness(channel)
    for source in (MPGraphExecutor, catch_and_exit):  # both log what they catch
        logging.getLogger(source.__module__).addHandler(witness)
    try:
        status = cli.main(args=list(arguments), prog_name="pipetask", standalone_mode=False)
    except click.Abort as error:  # how click calls a KeyboardInterrupt
        witness.note(error.__cause__ or error)
        return 1
    except BaseException as error:  # such as the SystemExit of a task
        witness.note(error)
        return 1
    if not status:
        channel.send(encode(Ended()))
    return status or 0
