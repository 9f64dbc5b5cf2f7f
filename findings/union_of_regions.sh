#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# A visit whose region is a union can never be synchronized: two equal unions are not equal.
#
# Package:  lsst-daf-butler 30.2026.4300, lsst-sphgeom 30.2026.4000, with Python 3.13. Date: 2026-11-30.
# Where:    Registry.syncDimensionData("visit", ...) with the union of the regions of its detectors, which the Butler
#           stores, reads and finds in queries; transfers and tests that compare records.
# Expected: as with a polygon, circle or box: a clone, and what is decoded from its bytes, equal the region; the
#           first call inserts the record, and the second finds it.
# Seen:     UnionRegion and IntersectionRegion equal only the same object. The first call inserts the row, reads
#           it back, finds it to differ and rolls back: RuntimeError "Conflict ... in sync after successful insert".
#           A row that insertDimensionData has made ends in DatabaseConflictError, and with update=True it is
#           updated in each call. The same record, read twice, is not equal. Compare encode(), or give a
#           visit its convex hull.
#
# Exit status: 0 if this is still so, 1 if the behavior has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    lsst-daf-butler==30.2026.4300 lsst-sphgeom==30.2026.4000
"$work/venv/bin/python" -W ignore - "$work/repo" <<'PY'
import sys
from collections.abc import Callable

from lsst.daf.butler import Butler
from lsst.sphgeom import (
    Angle,
    Box,
    Circle,
    ConvexPolygon,
    IntersectionRegion,
    LonLat,
    Region,
    UnionRegion,
    UnitVector3d,
)


def square(ra: float) -> ConvexPolygon:
    corners = (ra, 1), (ra + 1, 1), (ra + 1, 2), (ra, 2)
    return ConvexPolygon([UnitVector3d(LonLat.fromDegrees(*corner)) for corner in corners])


REGIONS = {
    "polygon": square(10),
    "circle": Circle(UnitVector3d(LonLat.fromDegrees(10, 1)), Angle.fromDegrees(1)),
    "box": Box.fromDegrees(10, 1, 11, 2),
    "union": UnionRegion(square(10), square(11)),
    "intersection": IntersectionRegion(square(10), square(10.5)),
}
CAM = {"instrument": "Cam"}
Butler.makeRepo(sys.argv[1])
butler = Butler.from_config(sys.argv[1], writeable=True)
registry = butler.registry
registry.insertDimensionData("instrument", {"name": "Cam"})
registry.insertDimensionData("physical_filter", CAM | {"name": "r", "band": "r"})
registry.insertDimensionData("day_obs", CAM | {"id": 20260101})


def result(action: Callable[[], object]) -> object:
    try:
        return action()
    except Exception as error:
        return type(error).__name__


def visit(number: int, region: Region) -> dict[str, object]:
    names = {"id": number, "name": str(number), "physical_filter": "r", "day_obs": 20260101}
    return CAM | names | {"region": region}


def stored(number: int) -> object:
    return butler.query_dimension_records("visit", instrument="Cam", visit=number)[0]


def in_registry(number: int, region: Region) -> tuple[object, ...]:
    """Return the results of two synchronizations, of one after an insertion, and whether two reads are equal."""
    first, second = (
        result(lambda: registry.syncDimensionData("visit", visit(number, region))) for _ in (1, 2)
    )
    other = visit(number + 100, region)
    registry.insertDimensionData("visit", other)
    again = result(lambda: registry.syncDimensionData("visit", other))
    updated = bool(registry.syncDimensionData("visit", other, update=True))
    return first, second, again, updated, stored(number + 100) == stored(number + 100)


seen = {
    name: (region == region.clone(), Region.decode(region.encode()) == region, *in_registry(number, region))
    for number, (name, region) in enumerate(REGIONS.items())
}
for name, value in seen.items():
    print(f"{name}: {value}")
equal = (True, True, True, False, False, False, True)
differing = (False, False, "RuntimeError", "RuntimeError", "DatabaseConflictError", True, False)
compound = "union", "intersection"
sys.exit(0 if seen == {name: differing if name in compound else equal for name in REGIONS} else 1)
PY
