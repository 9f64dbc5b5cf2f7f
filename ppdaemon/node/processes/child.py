# SPDX-License-Identifier: BSD-3-Clause
"""A child process of the node: started or taken over, signaled, reaped.

Processes that a worker has detached become children of its zygote when the worker ends, and of
the supervisor when that zygote ends.
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

from ppdaemon.environment import CHILD_ENVIRONMENT
from ppdaemon.messages import Forked
from ppdaemon.privatefiles import open_private
from ppdaemon.processes import children, kill_orphans

__all__ = ("REAPED_WAIT_S", "ChildProcess", "Lifeline", "adopt", "end_children", "launch", "reap", "wipe")

PAUSE_S = 0.01
"""Between two rounds of killing: dying children leave orphans to this process."""
REAPED_WAIT_S = 1.0
"""How long a dead process waits for the zygote's `~ppdaemon.messages.Reaped`, which has the exit status. On
a busy host the zygote may get no core for tenths of a second; without the status nobody knows why it has
died."""


class Lifeline:
    """A pipe whose write end only the supervisor holds: the kernel kills all workers when it is closed."""

    def __init__(self) -> None:
        self.read_end, self._write_end = os.pipe2(os.O_CLOEXEC)

    def close(self) -> None:
        """Close the pipe: every process that has armed the read end is killed."""
        os.close(self._write_end)
        os.close(self.read_end)


@dataclass(slots=True)
class ChildProcess:
    """A process with its channel and pidfd; closes both."""

    pid: int
    channel: socket.socket
    pidfd: int
    slot: int = -1
    """Slot of a worker; below 0 for other processes."""
    is_direct_child: bool = False
    """Whether this process has started it, and has to reap it."""

    def send(self, message: bytes) -> bool:
        """Send a packet without waiting; return `False` if the process has ended, or does not read."""
        try:
            self.channel.send(message)
        except OSError:
            return False
        return True

    def has_message(self) -> bool:
        """Return whether there is a message to read; the end of the channel does not count."""
        while True:
            try:
                return bool(self.channel.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
            except BlockingIOError:
                return False
            except ConnectionResetError:
                continue  # it ended with unread orders: reported once, before its last messages

    def signal(self, number: int) -> None:
        """Signal the process; a pidfd cannot reach another process that reuses the pid."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, number)

    def reap(self) -> int | None:
        """Return the dead process's exit status, or minus its signal; `None` if its zygote
        reaps it, or the cleanup of orphans has reaped it.
        """
        with contextlib.suppress(ChildProcessError):
            # This process is also the parent of those whose zygote has ended.
            if (end := os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOHANG)) is not None:
                return end.si_status if end.si_code == os.CLD_EXITED else -end.si_status
        return None

    def close(self) -> None:
        """Close the descriptors, and kill the process group of a forked process."""
        if not self.is_direct_child:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
        self.channel.close()
        os.close(self.pidfd)


def adopt(message: Forked, descriptors: list[int]) -> ChildProcess:
    """Take over the channel and the pidfd that were received with a `~ppdaemon.messages.Forked`."""
    channel = socket.socket(fileno=descriptors[0])
    channel.setblocking(False)
    return ChildProcess(message.pid, channel, descriptors[1], message.slot)


def launch(
    module: str, arguments: list[str], lifeline: Lifeline, environment: Mapping[str, str], log: Path
) -> ChildProcess:
    """Start a module in a fresh interpreter, as a child of this process. Raise `OSError` if it
    cannot be started.
    """
    parent_end, child_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-m", module, "--channel", str(child_end.fileno())]
    command += ["--lifeline", str(lifeline.read_end), *arguments]
    try:
        # Errors before the process opens its log by itself are written there, too.
        with child_end, open(log, "ab", opener=open_private) as output:
            popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=(child_end.fileno(), lifeline.read_end),
                # Last: with other values the process may have several threads.
                env={**environment, **CHILD_ENVIRONMENT},
            )
        try:
            pidfd = os.pidfd_open(popen.pid)
        except OSError:
            popen.kill()
            popen.wait()
            raise
    except OSError:
        parent_end.close()
        raise
    popen.returncode = 0  # it is reaped by its pid; prevents the ResourceWarning of `popen`
    parent_end.setblocking(False)
    return ChildProcess(popen.pid, parent_end, pidfd, is_direct_child=True)


def wipe(folder: Path) -> None:
    """Delete a folder with its content, if it exists. Raise `OSError` if something in it cannot
    be deleted.
    """
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(folder)


def reap(pids: Collection[int]) -> None:
    """Reap those of these children that have ended; no other code may wait for them."""
    for pid in pids:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


async def end_children(mono: Callable[[], float], limit_s: float) -> None:
    """Kill all children, and orphans that become children meanwhile, until there are none or the
    time limit passes.
    """
    until = mono() + limit_s
    while (left := children()) and mono() < until:
        kill_orphans(())
        reap(left)
        await asyncio.sleep(PAUSE_S)
