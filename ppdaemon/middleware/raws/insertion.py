# SPDX-License-Identifier: BSD-3-Clause
"""Dimension records into a repo that may have some of them, or other versions of them."""

from collections.abc import Iterable

from lsst.daf.butler import Butler, DimensionRecord

from ppdaemon.middleware.raws.visits import VisitSystem, joined_visit

__all__ = ("fuller", "insert_records")


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
    What is there stays as it is, with two exceptions. The result does not
    depend on who came first.

    One detector's header may lack what another's has, such as the pointing: the
    fuller record of an exposure or visit takes the other's place.

    Of a visit of several snaps two detectors may have different ones, since a
    raw can be lost; each of their workers makes a visit of what it has. Its
    definitions add up here, and then the visit's record is made anew of all its
    exposures.
    """
    by_element: dict[str, list[DimensionRecord]] = {}
    for record in records:
        by_element.setdefault(record.definition.name, []).append(record)
    with butler.transaction():
        for element in butler.dimensions.sorted(by_element):
            butler.registry.insertDimensionData(element, *by_element[element.name], skip_existing=True)
        for element in ("exposure", "visit"):
            for record in by_element.get(element, ()):
                (stored,) = butler.query_dimension_records(element, data_id=record.dataId)
                if fuller(stored, record) is record:
                    butler.registry.syncDimensionData(element, record, update=True)
        grouped = {
            record.visit
            for record in by_element.get("visit_system_membership", ())
            if record.visit_system == VisitSystem.BY_SEQ_START_END
        }
        for visit in by_element.get("visit", ()):
            if visit.id in grouped:
                _join(butler, visit)


def fuller(one: DimensionRecord, other: DimensionRecord) -> DimensionRecord:
    """Return the record that tells more; the first, if both tell the same."""
    told = [sum(value is not None for value in record.toDict().values()) for record in (one, other)]
    return other if told[1] > told[0] else one


def _join(butler: Butler, visit: DimensionRecord) -> None:
    """Make a visit's record that of all exposures that belong to it now."""
    place = {"instrument": visit.instrument, "visit": visit.id}
    exposures = butler.query_dimension_records("exposure", data_id=place, explain=False)
    (stored,) = butler.query_dimension_records("visit", data_id=place)
    whole = joined_visit(butler.dimensions, visit.id, exposures, stored.region or visit.region)
    butler.registry.syncDimensionData("visit", whole, update=True)
