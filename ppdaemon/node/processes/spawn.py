# SPDX-License-Identifier: BSD-3-Clause
"""Processes without a zygote: each one a fresh interpreter.

Speaks as `ppdaemon.node.processes.zygote.Forker` does, so that nobody else needs to
know. Here the supervisor is the parent: it reaps, by pidfd and without
waiting.
"""

import asyncio
import logging
import os
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Mapping
from pathlib import Path

from ppdaemon.messages import Forked, ForkFailed, ForkWorker, Reaped, ZygoteReady
from ppdaemon.node.processes.zygote import ENVIRONMENT, Hear, Lifeline
from ppdaemon.wire import encode

__all__ = ("Spawner",)

_LOG = logging.getLogger(__name__)


class Spawner:
    """Starts processes, says when they are there and when they are gone.

    Parameters
    ----------
    settings : `pathlib.Path`
        The configuration as JSON.
    lifeline : `~ppdaemon.node.processes.zygote.Lifeline`
        Ends the processes with the supervisor.
    environment : `~collections.abc.Mapping` [`str`, `str`]
        Of the processes, beside `~ppdaemon.node.processes.zygote.ENVIRONMENT`.
    log : `pathlib.Path`
        Not used: each process has a log of its own.
    hear : `~ppdaemon.node.processes.zygote.Hear`
        Hears what becomes of orders and processes.
    """

    def __init__(
        self,
        settings: Path,
        lifeline: Lifeline,
        environment: Mapping[str, str],
        log: Path,
        hear: Hear,
    ):
        self._settings = settings
        self._lifeline = lifeline
        self._environment = {**environment, **ENVIRONMENT}
        self._hear = hear
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = self._loop.create_future()
        """Done when it is closed and all its processes are reaped."""
        self._orders: deque[ForkWorker] = deque()
        self._processes: dict[int, subprocess.Popen[bytes]] = {}  # by pidfd
        self._closed = False
        self._loop.call_soon(self._say_ready)

    @property
    def pid(self) -> int:
        """The parent's process id (`int`): this one's."""
        return os.getpid()

    def ask(self, order: ForkWorker) -> bool:
        """Ask for a process.

        Parameters
        ----------
        order : `~ppdaemon.messages.ForkWorker`
            What for.

        Returns
        -------
        asked : `bool`
            `False` after `close`.
        """
        if self._closed:
            return False
        self._orders.append(order)
        if len(self._orders) == 1:
            self._loop.call_soon(self._spawn_next)
        return True

    def kill(self) -> None:
        """Do nothing: there is no process between."""

    def close(self) -> None:
        """Start no more processes and hear nothing more; those there are live
        on, and are reaped when they end.
        """
        self._closed = True
        self._orders.clear()
        self._end()

    def _say_ready(self) -> None:
        if not self._closed:
            self._hear(ZygoteReady(pid=self.pid, import_s=0.0, modules=0), [])

    def _spawn_next(self) -> None:
        """Start one process for each turn of the loop: it takes some
        milliseconds, and others have something to say, too.
        """
        if not self._orders:
            return
        order = self._orders.popleft()
        if self._orders:
            self._loop.call_soon(self._spawn_next)
        try:
            self._spawn(order)
        except OSError as error:
            _LOG.warning("%s %d is not spawned: %s", order.role, order.slot, error)
            self._hear(ForkFailed(role=order.role, slot=order.slot, epoch=order.epoch, reason=str(error)), [])

    def _spawn(self, order: ForkWorker) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            process = self._popen(order, theirs)
            pidfds: list[int] = []
            try:
                pidfds += [os.pidfd_open(process.pid), os.pidfd_open(process.pid)]
                channel = os.dup(ours.fileno())
            except OSError:
                for pidfd in pidfds:
                    os.close(pidfd)
                process.kill()
                process.wait()
                raise
        mine, theirs_to_watch = pidfds
        self._processes[mine] = process
        words = Forked(role=order.role, slot=order.slot, epoch=order.epoch, pid=process.pid)
        self._hear(words, [channel, theirs_to_watch])
        self._loop.add_reader(mine, self._died, mine)

    def _popen(self, order: ForkWorker, channel: socket.socket) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "ppdaemon.worker.spawn", "--config", str(self._settings)]
        command += ["--channel", str(channel.fileno()), "--lifeline", str(self._lifeline.read_end)]
        command += ["--order", encode(order).decode()]
        # What goes wrong before the process opens its log by itself is there, too.
        with open(order.log, "ab") as output:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=(channel.fileno(), self._lifeline.read_end),
                env=self._environment,
            )

    def _died(self, pidfd: int) -> None:
        self._loop.remove_reader(pidfd)
        os.close(pidfd)
        process = self._processes.pop(pidfd)
        # At once: the pidfd says that there is something to be reaped.
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if not self._closed:
            self._hear(
                Reaped(
                    pid=process.pid,
                    status=process.returncode,
                    max_rss_bytes=usage.ru_maxrss * 1024,
                    cpu_s=usage.ru_utime + usage.ru_stime,
                ),
                [],
            )
        self._end()

    def _end(self) -> None:
        if self._closed and not self._processes and not self.ended.done():
            self.ended.set_result(None)
