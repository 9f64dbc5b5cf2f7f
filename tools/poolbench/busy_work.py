# SPDX-License-Identifier: BSD-3-Clause
"""Work that boots as the real one does, and then spins: a saturated host."""

from typing import NoReturn

from ppdaemon.messages import Done, Ingested, Prepare, Process, Raw
from ppdaemon.middleware.work import build_template, open_exporter, set_up_libraries
from ppdaemon.middleware.work import open_work as open_real_work
from ppdaemon.work import Work, WorkerContext

__all__ = ("build_template", "open_exporter", "open_work", "set_up_libraries")


class BusyWork:
    """Has an open Butler, and never ends what it begins."""

    def __init__(self, real: Work):
        self._real = real

    def prepare(self, order: Prepare) -> NoReturn:
        """Loop in Python code."""
        while True:
            pass

    def ingest(self, raw: Raw) -> Ingested:
        """Refuse: no visit gets there."""
        raise AssertionError(raw)

    def process(self, order: Process) -> Done:
        """Refuse: no visit gets there."""
        raise AssertionError(order)

    def reset(self) -> None:
        """Do as the real work does."""
        self._real.reset()


def open_work(context: WorkerContext) -> BusyWork:
    """Copy the template and open it."""
    return BusyWork(open_real_work(context))
