# SPDX-License-Identifier: BSD-3-Clause
"""What an operator would read in an open journal."""

from ppdaemon import journalfile
from ppdaemon.reports import LateRequest, VisitsRequest


def rows_of(journal, limit=100, **selected):
    """Return visit-detectors, the newest first."""
    return journalfile.visit_detectors(journal._db, VisitsRequest(limit=limit, **selected))


def visit_of(journal, group):
    """Return all attempts of a group."""
    return journalfile.visit(journal._db, group)


def late_of(journal, limit=100):
    """Return late raws, the newest first."""
    return journalfile.late_raws(journal._db, LateRequest(limit=limit))
