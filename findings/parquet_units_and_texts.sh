#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# A table of ArrowAstropy comes back without dimensionless units, with unrecognized ones, and with cut texts.
#
# Package:  lsst-daf-butler 30.2026.4300, with Python 3.13. Date: 2026-11-29.
# Where:    tables between tasks: the formatter writes units as text, and texts as Arrow strings.
# Expected: a column of u.dimensionless_unscaled has that unit when it is read, as "nJy" has its
#           own; a unit that astropy can write (imperial.inch, from a namespace that is not enabled)
#           is read or refused at the put; a text with the code 0 inside is stored or refused.
# Seen:     dimensionless columns have no unit (`None`), so that `.unit.to()` and `.quantity`
#           differ; inch is an UnrecognizedUnit, with a warning at the get only; the text "a\0b" is
#           "a", without a warning. A text with half of a surrogate pair is refused at the put.
#
# Exit status: 0 if this is still so, 1 if the behavior has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check lsst-daf-butler==30.2026.4300 pyarrow pandas
"$work/venv/bin/python" -W ignore - "$work/repo" <<'PY'
import sys

import astropy.units as u
from astropy.table import Table
from astropy.units import imperial
from lsst.daf.butler import Butler, DatasetType

Butler.makeRepo(sys.argv[1])
butler = Butler.from_config(sys.argv[1], run="run", writeable=True)
for name in ("table", "refused"):
    dataset_type = DatasetType(name, (), "ArrowAstropy", universe=butler.dimensions)
    butler.registry.registerDatasetType(dataset_type)
table = Table({"ratio": [1.0], "flux": [1.0] * u.nJy, "size": [1.0] * imperial.inch, "name": ["a\0b"]})
table["ratio"].unit = u.dimensionless_unscaled
butler.put(table, "table")
read = butler.get("table")
seen = [repr(read[name].unit) for name in ("ratio", "flux", "size")] + [str(read["name"][0])]
try:
    butler.put(Table({"name": ["\udc80"]}), "refused")
    seen.append("stored")
except Exception as error:
    seen.append(type(error.__cause__ or error).__name__)
print(seen)
unchanged = seen == ["None", 'Unit("nJy")', "UnrecognizedUnit(inch)", "a", "UnicodeDecodeError"]
sys.exit(0 if unchanged else 1)
PY
