# SPDX-License-Identifier: BSD-3-Clause
"""A work module that starts as the real one does and then loops, to keep all cores busy."""

from typing import NoReturn

from ppdaemon.messages import Done, Ingested, Prepare, Process, Raw
from ppdaemon.middleware.work import build_template, open_exporter, set_up_libraries, warm_up
from ppdaemon.middleware.work import open_work as open_real_work
from ppdaemon.work import Work, WorkerContext

__all__ = ("build_template", "open_exporter", "open_work", "set_up_libraries", "warm_up")


class BusyWork:
    """Never returns from its prepare step."""

    def __init__(self, real: Work):
        self._real = real

    def prepare(self, order: Prepare) -> NoReturn:
        """Loop in Python code without end."""
        while True:
            pass

    def ingest(self, raw: Raw) -> Ingested:
        """Raise `AssertionError`: no visit gets this far."""
        raise AssertionError(raw)

    def process(self, order: Process) -> Done:
        """Raise `AssertionError`: no visit gets this far."""
        raise AssertionError(order)

    def reset(self) -> None:
        """Reset the real work."""
        self._real.reset()


def open_work(context: WorkerContext) -> BusyWork:
    """Return the work."""
    return BusyWork(open_real_work(context))
