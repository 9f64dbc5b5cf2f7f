# SPDX-License-Identifier: BSD-3-Clause
"""Work that notes when the order to ingest came, and does nothing else.

It does so in ``state_dir/ingested``, by the clock of all processes of a host.
"""

import os
import time

from poolbench.idle_work import IdleWork, build_template, open_exporter, set_up_libraries

from ppdaemon.messages import Ingested, Raw
from ppdaemon.work import Seat

__all__ = ("NotingWork", "build_template", "open_exporter", "open_work", "set_up_libraries")


class NotingWork(IdleWork):
    """Notes exposure, detector and monotonic seconds.

    Parameters
    ----------
    seat : `~ppdaemon.work.Seat`
        Names the state directory.
    """

    def __init__(self, seat: Seat):
        super().__init__(seat)
        notes = seat.config.node.state_dir / "ingested"
        self._ingested = os.open(notes, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)

    def ingest(self, raw: Raw) -> Ingested:
        """Note the time."""
        now = time.monotonic()
        os.write(self._ingested, f"{raw.exposure} {raw.detector} {now!r}\n".encode())
        return super().ingest(raw)


def open_work(seat: Seat) -> NotingWork:
    """Be ready for visits.

    Parameters
    ----------
    seat : `~ppdaemon.work.Seat`
        The seat.

    Returns
    -------
    work : `NotingWork`
        Its work.
    """
    return NotingWork(seat)
