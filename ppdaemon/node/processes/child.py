# SPDX-License-Identifier: BSD-3-Clause
"""A forked process as the supervisor holds it: channel, pidfd, folder."""

import contextlib
import os
import select
import shutil
import signal
import socket
from dataclasses import dataclass
from pathlib import Path

from ppdaemon.messages import Forked, Role

__all__ = ("Child", "adopt", "wipe")


@dataclass(slots=True)
class Child:
    """A forked process: who owns its channel and pidfd."""

    role: Role
    slot: int
    epoch: int
    pid: int
    channel: socket.socket
    pidfd: int

    def send(self, message: bytes) -> bool:
        """Send without waiting; tell whether it went.

        Parameters
        ----------
        message : `bytes`
            One packet.

        Returns
        -------
        sent : `bool`
            `False` if the process does not read, or is gone.
        """
        try:
            self.channel.send(message)
        except OSError:
            return False
        return True

    def has_words(self) -> bool:
        """Tell whether something is left to be heard.

        Returns
        -------
        some : `bool`
            `False` also at the end of the channel.
        """
        poll = select.poll()
        poll.register(self.channel, select.POLLIN)
        return any(mask & select.POLLIN for _, mask in poll.poll(0)) and bool(
            self.channel.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        )

    def signal(self, number: int) -> None:
        """Signal the process, never another one of the same pid.

        Parameters
        ----------
        number : `int`
            Signal.
        """
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, number)

    def close(self) -> None:
        """Kill what the dead process has left, and let go of it."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self.channel.close()
        os.close(self.pidfd)


def adopt(words: Forked, descriptors: list[int]) -> Child:
    """Own the descriptors that came with a `~ppdaemon.messages.Forked`.

    Parameters
    ----------
    words : `~ppdaemon.messages.Forked`
        What the zygote said.
    descriptors : `list` [`int`]
        Channel and pidfd.

    Returns
    -------
    child : `Child`
        The process.
    """
    channel = socket.socket(fileno=descriptors[0])
    channel.setblocking(False)
    return Child(words.role, words.slot, words.epoch, words.pid, channel, descriptors[1])


def wipe(folder: Path) -> None:
    """Delete a folder with everything in it; a missing one is fine.

    Parameters
    ----------
    folder : `pathlib.Path`
        What is to go.

    Raises
    ------
    OSError
        Raised if something in it cannot be deleted.
    """
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(folder)
