# SPDX-License-Identifier: BSD-3-Clause
"""Dimension records into a repo that may have some of them, or other versions of them."""

from collections.abc import Iterable

from lsst.daf.butler import Butler, DimensionRecord

from ppdaemon.middleware.raws.visits import VisitSystem, joined_visit

__all__ = ("insert_records",)


def insert_records(butler: Butler, records: Iterable[DimensionRecord]) -> None:
    """Insert records that may be there already, in one transaction.

    Parameters
    ----------
    butler : `lsst.daf.butler.Butler`
        The repo.
    records : `~collections.abc.Iterable` [`lsst.daf.butler.DimensionRecord`]
        Any records; the order does not matter.

    Notes
    -----
    What is there stays as it is, with one exception. Of a visit of several
    snaps two detectors may have different ones, since a raw can be lost; each
    of their workers makes a visit of what it has. Its definitions add up here,
    and then the visit's record is made anew of all its exposures. The result
    does not depend on who came first.
    """
    by_element: dict[str, list[DimensionRecord]] = {}
    for record in records:
        by_element.setdefault(record.definition.name, []).append(record)
    with butler.transaction():
        for element in butler.dimensions.sorted(by_element):
            butler.registry.insertDimensionData(element, *by_element[element.name], skip_existing=True)
        grouped = {
            record.visit
            for record in by_element.get("visit_system_membership", ())
            if record.visit_system == VisitSystem.BY_SEQ_START_END
        }
        for visit in by_element.get("visit", ()):
            if visit.id in grouped:
                _join(butler, visit)


def _join(butler: Butler, visit: DimensionRecord) -> None:
    """Make a visit's record that of all exposures that belong to it now."""
    place = {"instrument": visit.instrument, "visit": visit.id}
    exposures = butler.query_dimension_records("exposure", data_id=place, explain=False)
    (stored,) = butler.query_dimension_records("visit", data_id=place)
    whole = joined_visit(butler.dimensions, visit.id, exposures, stored.region or visit.region)
    butler.registry.syncDimensionData("visit", whole, update=True)
