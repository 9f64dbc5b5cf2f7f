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
from dataclasses import dataclass
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
from ppdaemon.processes import signal_name
from ppdaemon.wire import decode, encode

__all__ = ("ENVIRONMENT", "Forker", "Hear", "Lifeline", "ZygoteGone")

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
    # Titles of processes leave their environment readable, by which tests and
    # operators know whose they are.
    "SPT_NOENV": "1",
}


@dataclass(frozen=True, slots=True)
class ZygoteGone:
    """The zygote has ended; its workers live on."""

    manner: str
    """Such as ``ended with status 1``."""


type Hear = Callable[[ZygoteReady | Forked | ForkFailed | Reaped | ZygoteGone, list[int]], None]
"""Called in the event loop with each message, and with the channel and pidfd
of a `~ppdaemon.messages.Forked`; the callee owns them."""


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
    hear : `Hear`
        Hears what the zygote says.

    Raises
    ------
    OSError
        Raised if the process cannot be started.
    """

    def __init__(
        self,
        settings: Path,
        lifeline: Lifeline,
        environment: Mapping[str, str],
        log: Path,
        hear: Hear,
    ):
        self._hear = hear
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = self._loop.create_future()
        """Done when the process is reaped."""
        self._closed = False
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.setblocking(False)
        command = [sys.executable, "-m", "ppdaemon.worker.zygote", "--config", str(settings)]
        command += ["--control", str(theirs.fileno()), "--lifeline", str(lifeline.read_end)]
        try:
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
            self._pidfd = _pidfd_of(self._process)
        except OSError:
            self._control.close()
            raise
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

    def kill(self) -> None:
        """Kill the zygote; that it is gone is heard as usual."""
        self._process.kill()

    def close(self) -> None:
        """End the zygote and hear nothing more; its children live on."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._control)
            self._control.close()
            # Reaped when its pidfd says so: one that cannot be killed must
            # not stop the supervisor.
            self._process.kill()

    def _read(self) -> None:
        """Hear everything that is there."""
        while not self._closed:
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
                words = decode(packet, ZYGOTE_WORDS, limit=PACKET_LIMIT)
            except BadMessage as error:
                _LOG.error("the zygote said nonsense: %s", error)
                _close_all(descriptors)
                continue
            if isinstance(words, Forked) and len(descriptors) != 2:
                words, descriptors = _disown(words, descriptors), []
            self._hear(words, descriptors)

    def _ended(self) -> None:
        self._read()
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        status = self._process.wait()
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._control)
            self._control.close()
            manner = f"was killed by {signal_name(-status)}" if status < 0 else f"ended with status {status}"
            _LOG.error("the zygote %s", manner)
            self._hear(ZygoteGone(manner), [])
        self.ended.set_result(None)


def _pidfd_of(process: "subprocess.Popen[bytes]") -> int:
    try:
        return os.pidfd_open(process.pid)
    except OSError:
        process.kill()
        process.wait()
        raise


def _close_all(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _disown(words: Forked, descriptors: list[int]) -> ForkFailed:
    """Refuse a process whose descriptors did not all come: this process has
    no room for them, and the kernel has dropped the others.
    """
    _close_all(descriptors)
    try:
        # By number, since there is no pidfd: it was forked a moment ago, and
        # a number is not used again before all others were.
        os.kill(words.pid, signal.SIGKILL)
    except ProcessLookupError:
        _LOG.debug("process %d has ended already", words.pid)
    return ForkFailed(
        role=words.role, slot=words.slot, epoch=words.epoch, reason="too many open files in the supervisor"
    )
