# SPDX-License-Identifier: BSD-3-Clause
"""Read a night from a node's journal, beside the daemon or without it."""

from pathlib import Path

from ppdaemon import journalfile
from ppdaemon.clock import Clock, day_obs, night_limits
from ppdaemon.night.report import NightReport, NightTotals
from ppdaemon.reports import LateRequest
from ppdaemon.sqlitereader import reading

__all__ = ("read_night",)

LONGEST_S = 120.0
"""200,000 visit-detectors take some seconds; a busy host needs longer."""


def read_night(path: Path, day: int | None, clock: Clock) -> NightReport:
    """Return the report of a night; without its day_obs, that of the newest visit.

    Raises `~ppdaemon.errors.Unavailable` if the journal cannot be read.
    """
    with reading(path, longest_s=LONGEST_S) as db:
        if day is None:
            newest = journalfile.newest_tai(db)
            day = day_obs(clock.tai() if newest is None else newest)
        begin_tai, end_tai = night_limits(day)
        totals = NightTotals()
        for row in journalfile.last_attempts(db, begin_tai, end_tai):
            totals.add_last(row)
        late = LateRequest(since_tai=begin_tai, until_tai=end_tai)
        return NightReport(
            day_obs=day,
            late_raws=journalfile.count_late_raws(db, late),
            recycled=journalfile.recycled(db, day),
            **totals.fields(),
        )
