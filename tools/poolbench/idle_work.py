# SPDX-License-Identifier: BSD-3-Clause
"""Work that does nothing, without LSST: what is left is the daemon's own.

The visit's survey says when it ends: ``prepare`` at once, anything else with
its raw. Who is told to prepare notes the time in ``state_dir/prepared``.
"""

import os
import time
from collections.abc import Sequence
from pathlib import Path

from ppdaemon.messages import Done, Exported, Ingested, Prepare, Prepared, Process, Raw
from ppdaemon.states import Outcome
from ppdaemon.work import Seat

__all__ = ("build_template", "open_exporter", "open_work", "set_up_libraries")


def set_up_libraries() -> None:
    """Nothing is imported that would need it."""


def build_template(seat: Seat) -> None:
    """Make an empty template.

    Parameters
    ----------
    seat : `~ppdaemon.work.Seat`
        Names its place.
    """
    seat.template.mkdir()


class IdleWork:
    """Notes when it is told to prepare; else it does nothing.

    Parameters
    ----------
    seat : `~ppdaemon.work.Seat`
        Names the state directory.
    """

    def __init__(self, seat: Seat):
        notes = seat.config.node.state_dir / "prepared"
        self._notes = os.open(notes, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)

    def prepare(self, order: Prepare) -> Prepared | Done:
        """Note the time; end the visit if it says so."""
        os.write(self._notes, f"{order.visit.group} {order.detector} {time.monotonic()!r}\n".encode())
        if order.visit.survey == "prepare":
            return Done(outcome=Outcome.SUCCEEDED)
        return Prepared()

    def ingest(self, raw: Raw) -> Ingested:
        """Pretend."""
        return Ingested(exposure=raw.exposure)

    def process(self, order: Process) -> Done:
        """Pretend."""
        return Done(outcome=Outcome.SUCCEEDED)

    def reset(self) -> None:
        """Nothing to forget."""


class NoExporter:
    """Is never asked: nothing is spooled."""

    def export(self, spools: Sequence[Path]) -> Exported:
        """Refuse."""
        raise AssertionError(spools)


def open_work(seat: Seat) -> IdleWork:
    """Be ready for visits.

    Parameters
    ----------
    seat : `~ppdaemon.work.Seat`
        The seat.

    Returns
    -------
    work : `IdleWork`
        Its work.
    """
    return IdleWork(seat)


def open_exporter(seat: Seat) -> NoExporter:
    """Be there.

    Parameters
    ----------
    seat : `~ppdaemon.work.Seat`
        The seat.

    Returns
    -------
    exporter : `NoExporter`
        For no exports.
    """
    return NoExporter()
