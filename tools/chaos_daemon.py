#!/usr/bin/env python
# SPDX-License-Identifier: BSD-3-Clause
"""The daemon with a clock that a chaos run can set: each SIGUSR1 changes it.

Each signal uses the next of `JUMPS_S`. Only the clock of time stamps jumps, as
after a change of the computer's time; the monotonic clock is the system's.
"""

import asyncio
import itertools
import os
import signal
import sys
from functools import partial
from pathlib import Path

from ppdaemon import log
from ppdaemon.clock import Clock
from ppdaemon.configfile import ConfigFile
from ppdaemon.node.supervisor import Supervisor
from ppdaemon.notify import Notifier
from ppdaemon.processes import set_title

JUMPS_S = (3600.0, 0.0, -3600.0, 0.0)
"""Offsets of the clock of time stamps after each signal."""


class JumpingClock:
    """TAI seconds, correct until the first jump."""

    def __init__(self) -> None:
        self._true_clock = Clock()
        self._jumps = itertools.cycle(JUMPS_S)
        self._offset_s = 0.0

    def tai(self) -> float:
        """Return TAI seconds since 1970 plus the offset."""
        return self._true_clock.tai() + self._offset_s

    def jump(self) -> None:
        """Change the offset."""
        self._offset_s = next(self._jumps)


async def run(file: ConfigFile) -> None:
    """Run the daemon until SIGTERM or SIGINT."""
    clock = JumpingClock()
    supervisor = Supervisor(
        file,
        partial(ConfigFile.read, file.path, os.environ),
        os.environ,
        Clock(tai=clock.tai),
        Notifier(None),
        None,
    )
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, supervisor.stop)
    loop.add_signal_handler(signal.SIGHUP, supervisor.reload)
    loop.add_signal_handler(signal.SIGUSR1, clock.jump)
    await supervisor.run()


def main() -> None:
    """Run with the configuration file that is the only argument."""
    file = ConfigFile.read(Path(sys.argv[1]), os.environ)
    config = file.config
    log.set_up(config.log.level, config.log.format, config.log.levels, node=config.node.name)
    set_title(f"ppdaemon supervisor {config.node.name}")
    asyncio.run(run(file))


if __name__ == "__main__":
    main()
