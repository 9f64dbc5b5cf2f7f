# SPDX-License-Identifier: BSD-3-Clause
"""The zygote's process, seen from the supervisor."""

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from ppdaemon.errors import BadMessage
from ppdaemon.messages import (
    PACKET_LIMIT,
    ZYGOTE_WORDS,
    Forked,
    ForkFailed,
    ForkWorker,
    Reaped,
    ZygoteReady,
)
from ppdaemon.wire import decode, encode

__all__ = ("Forker", "Lifeline", "ZygoteGone")

_LOG = logging.getLogger(__name__)

ENVIRONMENT = {
    # One thread is left after the imports only with these (see the note in
    # README on forking); they also keep 60 workers from 60 x N threads.
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "ARROW_IO_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    # Memory goes back to the system after a visit.
    "MALLOC_ARENA_MAX": "2",
}


class ZygoteGone:
    """The zygote has ended; its workers live on."""


class Lifeline:
    """A pipe that only the supervisor holds open: its end kills all workers."""

    def __init__(self) -> None:
        self.read_end, self._write_end = os.pipe2(os.O_CLOEXEC)

    def close(self) -> None:
        """Let go: every process that has armed the read end is killed."""
        os.close(self._write_end)
        os.close(self.read_end)


class Forker:
    """Starts a zygote, asks it for processes, hears what it says.

    Parameters
    ----------
    settings : `pathlib.Path`
        The configuration as JSON.
    lifeline : `Lifeline`
        Ends the workers with the supervisor.
    environment : `~collections.abc.Mapping` [`str`, `str`]
        Of the zygote and its children, beside `ENVIRONMENT`.
    log : `pathlib.Path`
        Takes the zygote's standard output and error.
    hear : `~collections.abc.Callable`
        Called in the event loop with each message, and with the channel and
        pidfd of a `~ppdaemon.messages.Forked`; the callee owns them.
    """

    def __init__(
        self,
        settings: Path,
        lifeline: Lifeline,
        environment: Mapping[str, str],
        log: Path,
        hear: Callable[[ZygoteReady | Forked | ForkFailed | Reaped | ZygoteGone, list[int]], None],
    ):
        self._hear = hear
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.setblocking(False)
        command = [sys.executable, "-m", "ppdaemon.worker.zygote", "--config", str(settings)]
        command += ["--control", str(theirs.fileno()), "--lifeline", str(lifeline.read_end)]
        with theirs, log.open("ab") as output:
            # An exec'd process of its own; the supervisor itself never forks.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=(theirs.fileno(), lifeline.read_end),
                env={**environment, **ENVIRONMENT},
            )
        self._pidfd = os.pidfd_open(self._process.pid)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._control, self._read)
        self._loop.add_reader(self._pidfd, self._ended)

    @property
    def pid(self) -> int:
        """The zygote's process id (`int`)."""
        return self._process.pid

    def ask(self, order: ForkWorker) -> bool:
        """Ask for a process.

        Parameters
        ----------
        order : `~ppdaemon.messages.ForkWorker`
            What for.

        Returns
        -------
        asked : `bool`
            `False` if the zygote does not take orders now.
        """
        try:
            self._control.send(encode(order))
        except OSError as error:
            _LOG.warning("the zygote takes no order: %s", error)
            return False
        return True

    def close(self) -> None:
        """End the zygote."""
        if self._pidfd >= 0:
            self._let_go()
            self._control.close()
            self._process.kill()
            self._process.wait()

    def _let_go(self) -> None:
        self._loop.remove_reader(self._control)
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = -1

    def _read(self) -> None:
        """Hear everything that is there."""
        while self._pidfd >= 0:
            try:
                packet, descriptors, _, _ = socket.recv_fds(self._control, PACKET_LIMIT, 2)
            except BlockingIOError:
                return
            except OSError:
                packet, descriptors = b"", []
            if not packet:
                self._loop.remove_reader(self._control)
                return
            try:
                self._hear(decode(packet, ZYGOTE_WORDS, limit=PACKET_LIMIT), descriptors)
            except BadMessage as error:
                _LOG.error("the zygote said nonsense: %s", error)

    def _ended(self) -> None:
        self._read()
        self._let_go()
        self._control.close()
        status = self._process.wait()
        manner = signal.Signals(-status).name if status < 0 else f"status {status}"
        _LOG.error("the zygote ended with %s", manner)
        self._hear(ZygoteGone(), [])
