# SPDX-License-Identifier: BSD-3-Clause
"""A child process as the supervisor holds it: started or taken over, signaled, reaped.

What a worker has detached from itself comes to its zygote when the worker
ends, and to the supervisor when that zygote ends.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from ppdaemon.messages import Forked
from ppdaemon.processes import children, end_orphans

__all__ = ("ENVIRONMENT", "Child", "Lifeline", "adopt", "end_children", "launch", "reap", "wipe")

PAUSE_S = 0.01

ENVIRONMENT = {
    # One thread is left after the imports only with these, and only a process
    # of one thread can be forked; they also keep 60 workers from 60 x N threads.
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


class Lifeline:
    """A pipe that only the supervisor holds open: its end kills all workers."""

    def __init__(self) -> None:
        self.read_end, self._write_end = os.pipe2(os.O_CLOEXEC)

    def close(self) -> None:
        """Let go: every process that has armed the read end is killed."""
        os.close(self._write_end)
        os.close(self.read_end)


@dataclass(slots=True)
class Child:
    """A process, with its channel and pidfd, which are owned here."""

    pid: int
    channel: socket.socket
    pidfd: int
    slot: int = -1
    """Of a worker; below 0 for a process without one."""
    own: bool = False
    """Whether it is a child of this process, which has to reap it."""

    def send(self, message: bytes) -> bool:
        """Send a packet without waiting; `False` if the process is gone, or does not read."""
        try:
            self.channel.send(message)
        except OSError:
            return False
        return True

    def has_message(self) -> bool:
        """Return whether there is a message to be read; the end of the channel is none."""
        while True:
            try:
                return bool(self.channel.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
            except BlockingIOError:
                return False
            except ConnectionResetError:
                continue  # it died with orders unread: this comes once, before its last messages

    def signal(self, number: int) -> None:
        """Signal the process, never another one of the same pid."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, number)

    def reap(self) -> int | None:
        """Return the dead process's status, or minus its signal; `None` if another process is its
        parent, or the sweep of orphans was first.
        """
        if self.own:
            with contextlib.suppress(ChildProcessError):
                # At once: the pidfd says that there is something to be reaped.
                return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return None

    def close(self) -> None:
        """Close the descriptors, and kill what a forked process has left."""
        if not self.own:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
        self.channel.close()
        os.close(self.pidfd)


def adopt(message: Forked, descriptors: list[int]) -> Child:
    """Own the channel and the pidfd that came with a `~ppdaemon.messages.Forked`."""
    channel = socket.socket(fileno=descriptors[0])
    channel.setblocking(False)
    return Child(message.pid, channel, descriptors[1], message.slot)


def launch(
    module: str, arguments: list[str], lifeline: Lifeline, environment: Mapping[str, str], log: Path
) -> Child:
    """Start a module in a fresh interpreter, as a child of this process.

    Raises
    ------
    OSError
        Raised if the process cannot be started.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-m", module, "--channel", str(theirs.fileno())]
    command += ["--lifeline", str(lifeline.read_end), *arguments]
    try:
        # What goes wrong before the process opens its log by itself is there, too.
        with theirs, log.open("ab") as output:
            popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=(theirs.fileno(), lifeline.read_end),
                env={**environment, **ENVIRONMENT},
            )
        try:
            pidfd = os.pidfd_open(popen.pid)
        except OSError:
            popen.kill()
            popen.wait()
            raise
    except OSError:
        ours.close()
        raise
    popen.returncode = 0  # it is reaped by its pid, and `popen` need not warn that it was not
    ours.setblocking(False)
    return Child(popen.pid, ours, pidfd, own=True)


def wipe(folder: Path) -> None:
    """Delete a folder with everything in it; a missing one is fine.

    Raises
    ------
    OSError
        Raised if something in it cannot be deleted.
    """
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(folder)


def reap(pids: Collection[int]) -> None:
    """Reap those children, which nobody else waits for, that have ended."""
    for pid in pids:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


async def end_children(mono: Callable[[], float], limit_s: float) -> None:
    """Kill all children, and theirs as they come, until none is left or the time is over."""
    until = mono() + limit_s
    while (left := children()) and mono() < until:
        end_orphans(())
        reap(left)
        await asyncio.sleep(PAUSE_S)
