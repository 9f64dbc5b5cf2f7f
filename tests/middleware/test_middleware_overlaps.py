# SPDX-License-Identifier: BSD-3-Clause
"""Hosts that record one visit with different regions: it is found in the stored region alone."""

import threading
from collections.abc import Iterable
from typing import Any

import sqlalchemy
from centrals import ON_POSTGRES, Central
from lsst.daf.butler import Butler, DimensionRecord, DimensionUniverse
from lsst.sphgeom import ConvexPolygon
from test_middleware_rivals import TIMEOUT_S, waiting_for_locks
from toycam import DEC, FILTERS, NAME, RA, box

from ppdaemon.middleware.raws.records import make_record
from ppdaemon.middleware.raws.visits import insert_records
from ppdaemon.testing.waiting import wait_until

pytest_plugins = ("toyfixtures", "dbfixtures")

HERE = box(RA, DEC, RA + 0.2, DEC + 0.2)
THERE = box(RA + 40.0, DEC, RA + 40.2, DEC + 0.2)


def records(
    universe: DimensionUniverse, region: ConvexPolygon | None, detectors: Iterable[int] = (1,), **values: Any
) -> list[DimensionRecord]:
    """Make the records of a visit and its detectors."""
    day = {"instrument": NAME, "day_obs": 20261122}
    values = {"physical_filter": next(iter(FILTERS)), "region": region} | values
    found = [
        make_record(universe, "day_obs", instrument=NAME, id=20261122),
        make_record(universe, "visit", **({"id": 7, "name": "seven"} | day | values)),
    ]
    if region is not None:
        where = {"instrument": NAME, "visit": found[-1].id, "region": region}
        found += [
            make_record(universe, "visit_detector_region", detector=each, **where) for each in detectors
        ]
    return found


def pixels(central: Central, element: str, detector: int | None = None) -> set[int]:
    """Return the sky pixels in which the database looks for a visit or for one of its detectors."""
    url = (
        f"sqlite:///{central.root}/gen3.sqlite3"
        if central.server is None
        else central.server.url(central.database)
    )
    query = f"SELECT skypix_index FROM {element}_skypix_overlap"
    if detector is not None:
        query += f" WHERE detector = {detector}"
    with sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool).connect() as connection:
        return set(connection.scalars(sqlalchemy.text(query)))


def expected(butler: Butler, region: ConvexPolygon) -> set[int]:
    ranges = butler.dimensions.commonSkyPix.pixelization.envelope(region).ranges()
    return {pixel for begin, end in ranges for pixel in range(begin, end)}


def test_a_visit_of_another_host_keeps_region_and_pixels(central: Central) -> None:
    with Butler.from_config(str(central.root), writeable=True) as butler:
        insert_records(butler, records(butler.dimensions, HERE))
        insert_records(butler, records(butler.dimensions, THERE, detectors=(1, 2)))
        here, there = expected(butler, HERE), expected(butler, THERE)
        assert pixels(central, "visit") == here
        assert pixels(central, "visit_detector_region", 1) == here
        assert pixels(central, "visit_detector_region", 2) == there, "it was not stored before"
        (visit,) = butler.query_dimension_records("visit", instrument=NAME)
        assert visit.region == HERE


def test_a_region_that_replaces_none_has_its_pixels(central: Central) -> None:
    with Butler.from_config(str(central.root), writeable=True) as butler:
        insert_records(butler, records(butler.dimensions, None))
        insert_records(butler, records(butler.dimensions, HERE))
        insert_records(butler, records(butler.dimensions, None))
        assert pixels(central, "visit") == expected(butler, HERE)


def test_a_more_complete_record_replaces_region_and_pixels(central: Central) -> None:
    with Butler.from_config(str(central.root), writeable=True) as butler:
        insert_records(butler, records(butler.dimensions, HERE))
        insert_records(butler, records(butler.dimensions, THERE, exposure_time=30.0))
        (visit,) = butler.query_dimension_records("visit", instrument=NAME)
        assert (visit.region, visit.exposure_time) == (THERE, 30.0)
        assert pixels(central, "visit") == expected(butler, THERE)
        assert pixels(central, "visit_detector_region") == expected(butler, HERE)


def test_a_visits_filter_may_be_registered_while_the_repo_is_open(central: Central) -> None:
    with Butler.from_config(str(central.root), writeable=True) as butler:
        assert butler.query_dimension_records("physical_filter", instrument=NAME)
        insert_records(butler, records(butler.dimensions, HERE))
        with Butler.from_config(str(central.root), writeable=True) as other:
            new = make_record(other.dimensions, "physical_filter", instrument=NAME, name="new", band="r")
            other.registry.insertDimensionData("physical_filter", new)
        insert_records(butler, records(butler.dimensions, HERE, id=8, name="eight", physical_filter="new"))
        names = {visit.physical_filter for visit in butler.query_dimension_records("visit", instrument=NAME)}
        assert names == {next(iter(FILTERS)), "new"}


def test_a_more_complete_record_without_a_region_does_not_remove_it(central: Central) -> None:
    with Butler.from_config(str(central.root), writeable=True) as butler:
        insert_records(butler, records(butler.dimensions, HERE))
        insert_records(butler, records(butler.dimensions, None, exposure_time=30.0, target_name="field"))
        (visit,) = butler.query_dimension_records("visit", instrument=NAME)
        assert visit.region == HERE
        assert pixels(central, "visit") == expected(butler, HERE)


@ON_POSTGRES
def test_two_hosts_that_insert_a_visit_at_once_leave_the_pixels_of_the_stored_region(
    central: Central,
) -> None:
    with (
        Butler.from_config(str(central.root), writeable=True) as first,
        Butler.from_config(str(central.root), writeable=True) as second,
    ):
        thread = threading.Thread(
            target=lambda: insert_records(second, records(second.dimensions, THERE, detectors=(1, 2)))
        )
        with first.transaction():
            insert_records(first, records(first.dimensions, HERE))
            thread.start()
            wait_until(lambda: waiting_for_locks(central), TIMEOUT_S)
        thread.join(TIMEOUT_S)
        assert not thread.is_alive()
        here = expected(first, HERE)
        assert pixels(central, "visit") == here
        assert pixels(central, "visit_detector_region", 1) == here
        assert pixels(central, "visit_detector_region", 2) == expected(first, THERE)
