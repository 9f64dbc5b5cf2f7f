#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# The bounding box of a polygon that crosses or touches RA 0 has all right ascensions.
#
# Package:  lsst-sphgeom 30.2026.4000, with Python 3.13. Date: 2026-11-30.
# Where:    ConvexPolygon.getBoundingBox of a detector or visit, to select catalogs, orbits or templates that
#           are ordered by RA and Dec; and that of a union with such a polygon.
# Expected: a box as narrow as that of any other polygon of the size: boxes may wrap, as those of circles do.
# Seen:     a detector of 0.2 degrees at RA 0 has a box of 360 degrees, 1800 times as wide, and what is on the other
#           side of the sky is inside; also if it only begins or ends at RA 0.
#           getBoundingCircle().getBoundingBox() is narrow.
#
# Exit status: 0 if this is still so, 1 if the behavior has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check lsst-sphgeom==30.2026.4000
"$work/venv/bin/python" - <<'PY'
import sys

from lsst.sphgeom import ConvexPolygon, LonLat, Region, UnionRegion, UnitVector3d

SIZE = 0.2


def detector(ra: float, dec: float = -30.0) -> ConvexPolygon:
    """Return a square whose lower left corner is at this position."""
    corners = (ra, dec), (ra + SIZE, dec), (ra + SIZE, dec + SIZE), (ra, dec + SIZE)
    return ConvexPolygon([UnitVector3d(LonLat.fromDegrees(*corner)) for corner in corners])


def width(region: Region) -> float:
    return round(region.getBoundingBox().getWidth().asDegrees(), 3)


CROSSING = detector(359.9)
seen = {
    "RA 10": width(detector(10)),
    "RA 180": width(detector(180)),
    "ends before RA 0": width(detector(359.7)),
    "begins after RA 0": width(detector(0.1)),
    "begins at RA 0": width(detector(0)),
    "ends at RA 0": width(detector(360 - SIZE)),
    "crosses RA 0": width(CROSSING),
    "crosses RA 0 on the equator": width(detector(359.9, -0.1)),
    "union": width(UnionRegion(CROSSING, detector(10))),
    "its circle": width(CROSSING.getBoundingCircle()),
    "other side is in the box": CROSSING.getBoundingBox().contains(
        UnitVector3d(LonLat.fromDegrees(180, -29.9))
    ),
}
for name, value in seen.items():
    print(f"{name}: {value}")
expected = {
    "RA 10": SIZE,
    "RA 180": SIZE,
    "ends before RA 0": SIZE,
    "begins after RA 0": SIZE,
    "begins at RA 0": 360.0,
    "ends at RA 0": 360.0,
    "crosses RA 0": 360.0,
    "crosses RA 0 on the equator": 360.0,
    "union": 360.0,
    "its circle": seen["its circle"],
    "other side is in the box": True,
}
sys.exit(0 if seen == expected and seen["its circle"] < 0.4 else 1)
PY
