# SPDX-License-Identifier: BSD-3-Clause
"""Raws that are not in the repo, as the ``direct`` engine takes them: expected, and when they came."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from lsst.daf.butler import Butler, DimensionRecord

from ppdaemon.middleware.direct.exposures import Exposures
from ppdaemon.middleware.raws.ingest import AnnouncedVisit, VisitRaws
from ppdaemon.middleware.raws.records import group_record, make_record

__all__ = ("MOST_EXPECTED", "arrived", "expected")

MOST_EXPECTED = 50
"""Images that are prepared for: an announcement can tell any number."""


def arrived(raws: VisitRaws, context: Mapping[str, str]) -> Exposures:
    """Return the exposures of which visits were defined, for log records with a context."""
    return _exposures(raws.announced, raws.exposures, raws.records, raws.files, context)


def expected(announced: AnnouncedVisit) -> Exposures:
    """Return what was announced, as if it had come.

    It has the first of the announced filters, ids that no exposure has, and
    never more than `MOST_EXPECTED` exposures.
    """
    universe, footprint, pointing = (
        announced.butler.dimensions,
        announced.footprint,
        announced.footprint.pointing,
    )
    name, group, day = announced.instrument.getName(), announced.visit.group, footprint.day_obs
    ids = tuple(range(1, min(max(announced.visit.nimages, 1), MOST_EXPECTED) + 1))
    likely = _likely_filter(announced.butler, name, announced.visit.filter_names)
    exposures = [
        make_record(
            universe,
            "exposure",
            instrument=name,
            id=exposure,
            obs_id=str(exposure),
            group=group,
            day_obs=day,
            physical_filter=likely,
            timespan=footprint.exposure,
            seq_num=exposure,
            seq_start=1,
            tracking_ra=None if pointing is None else pointing.ra_deg,
            tracking_dec=None if pointing is None else pointing.dec_deg,
            sky_angle=None if pointing is None else pointing.sky_angle_deg,
        )
        for exposure in ids
    ]
    records = [
        make_record(universe, "day_obs", instrument=name, id=day, timespan=None),
        group_record(universe, name, group),
        *exposures,
        *announced.visit_records(exposures),
    ]
    return _exposures(announced, ids, records, {}, {})


def _likely_filter(butler: Butler, instrument: str, names: Iterable[str]) -> str:
    """Return the first announced filter that the instrument has, or else any; blank if it has none."""
    records = butler.query_dimension_records("physical_filter", instrument=instrument, explain=False)
    known = sorted(str(record.name) for record in records)
    return next((name for name in (*names, *known) if name in known), "")


def _exposures(
    announced: AnnouncedVisit,
    ids: tuple[int, ...],
    records: Iterable[DimensionRecord],
    files: Mapping[int, Path],
    context: Mapping[str, str],
) -> Exposures:
    return Exposures(
        instrument=announced.instrument.getName(),
        detector=announced.detector,
        ids=ids,
        records=tuple(records),
        run=announced.instrument.makeDefaultRawIngestRunName(),
        formatter=announced.instrument.getRawFormatter,
        files=dict(files),
        context=context,
    )
