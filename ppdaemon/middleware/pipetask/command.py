# SPDX-License-Identifier: BSD-3-Clause
"""Starts ``pipetask`` so that it dies with its worker, also while it imports its modules.

``python -m ppdaemon.middleware.pipetask.command WORKER SETTINGS ARGUMENT...``
has the worker's socket as its standard input. ``WORKER`` is a process id,
``SETTINGS`` the JSON of
`ppdaemon.middleware.pipetask.protocol.CommandSettings`.
"""

import os
import socket
import sys

from ppdaemon.processes import die_with_parent, disregard_group_signals

__all__ = ("main",)


def main() -> None:
    """Run one ``pipetask`` command."""
    die_with_parent()
    disregard_group_signals()  # as the worker, whose visit this is
    if os.getppid() != int(sys.argv[1]):
        return  # the worker died before die_with_parent took effect
    channel = _take_channel()

    # This import takes more than a second, in which the worker may be killed.
    from ppdaemon.middleware.pipetask.child import run
    from ppdaemon.middleware.pipetask.protocol import CommandSettings

    sys.exit(run(channel, CommandSettings.model_validate_json(sys.argv[2]), sys.argv[3:]))


def _take_channel() -> socket.socket:
    """Move the socket to `CHANNEL_FD`, so that no task or child reads it as standard input."""
    from ppdaemon.middleware.pipetask.protocol import CHANNEL_FD

    os.dup2(0, CHANNEL_FD, inheritable=False)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    return socket.socket(fileno=CHANNEL_FD)


if __name__ == "__main__":
    main()
