# SPDX-License-Identifier: BSD-3-Clause
"""The main function of processes that the supervisor starts as modules, which process no visits."""

import argparse
import os
import socket
import time
from collections.abc import Callable

from ppdaemon.worker.childsetup import ChildSettings, set_up_child

__all__ = ("run_service",)


def run_service(name: str, description: str | None, serve: Callable[[socket.socket], None]) -> None:
    """Read the command line, set this process up as a child, and serve on its channel until that returns."""
    parser = argparse.ArgumentParser(prog=f"ppdaemon-{name}", description=description)
    parser.add_argument("--channel", type=int, required=True, help="descriptor of the supervisor's socket")
    parser.add_argument("--lifeline", type=int, required=True, help="descriptor of the supervisor's pipe")
    parser.add_argument("--log", required=True, help="file for the output")
    options = parser.parse_args()
    channel = socket.socket(fileno=options.channel)
    set_up_child(
        ChildSettings(
            title=f"ppdaemon {name}",
            log=options.log,
            lifeline=options.lifeline,
            keep=(options.channel, options.lifeline),
            nice=0,
            seed=time.time_ns() ^ os.getpid(),
        )
    )
    serve(channel)
