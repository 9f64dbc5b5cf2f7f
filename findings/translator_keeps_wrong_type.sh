#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# ObservationInfo logs "Ignoring ... wrong type" and keeps the value of the wrong type.
#
# Package:  astro-metadata-translator 30.2026.4300, with Python 3.13. Date: 2026-11-29.
# Where:    a header of DECam in which EXPNUM is a text, as headers are that come from a
#           database or from a stream of strings; pedantic=False, as ingest calls it.
# Expected: exposure_id is None, as every property whose calculation fails under
#           pedantic=False (an object that a log line calls ignored is not there), or 1400001.
# Seen:     exposure_id is the text '1400001'. Comparisons with the id are false and
#           arithmetic fails far from the header; for a Quantity the value may be a unit
#           ("30.3" * u.s is a CompositeUnit). The round trip through to_simple and
#           from_simple makes it an int, so that a file of translated headers and the
#           translation itself differ. Only properties in `required` are refused.
#
# Exit status: 0 if this is still so, 1 if the behavior has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check astro-metadata-translator==30.2026.4300
"$work/venv/bin/python" -W ignore - <<'PY'
import logging
import sys

from astro_metadata_translator import ObservationInfo

logging.basicConfig(level=logging.ERROR)
HEADER = {
    "INSTRUME": "DECam",
    "TELESCOP": "CTIO 4.0-m telescope",
    "OBSID": "ct4m20260314t010255",
    "EXPNUM": 1400001,
    "DATE-OBS": "2026-03-14T01:02:55.753848",
    "DTUTC": "2026-03-14T01:04:30.100000",
    "TIMESYS": "UTC",
    "EXPTIME": 90.0,
    "OBSTYPE": "object",
    "FILTER": "r DECam SDSS c0002 6415.0 1480.0",
    "CCDNUM": 1,
}
SUBSET = {"exposure_id", "observation_counter", "observing_day", "altaz_begin"}


def translated(header: dict[str, object], **how: object) -> ObservationInfo:
    return ObservationInfo(header, pedantic=False, quiet=True, subset=SUBSET, **how)


usual = translated(dict(HEADER))
info = translated(HEADER | {"EXPNUM": "1400001"})
again = ObservationInfo.from_simple(info.to_simple())
try:
    translated(HEADER | {"EXPNUM": "1400001"}, required={"exposure_id"})
    refused = "no"
except TypeError as error:
    refused = str(error)[:70]
print(f"a number: {usual.exposure_id!r}; a text: {info.exposure_id!r}; after a round trip: {again.exposure_id!r}")
print(f"a property that fails: altaz_begin = {info.altaz_begin!r}; refused if required: {refused}")
unchanged = (
    usual.exposure_id == 1400001
    and info.exposure_id == "1400001"
    and info.altaz_begin is None
    and again.exposure_id == 1400001
    and "wrong type" in refused
)
sys.exit(0 if unchanged else 1)
PY
