#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# A simulated alert changes the schema that it was made from; that schema then drops values.
#
# Package:  lsst-alert-packet 30.2026.2700, fastavro 1.13.1, with Python 3.13. Date: 2026-11-29.
# Where:    packets for tests and for the load of a broker: simulate_alert(schema.definition),
#           then alerts of the pipeline through the same Schema.
# Expected: the schema is an input: it equals a fresh one afterwards, and an alert that was valid
#           before is written as before.
# Seen:     each field with a list of types is narrowed in place to the first of them, which is null
#           for most (unless keepNull names the field). The Schema no longer equals a fresh one; a
#           target_name written with it is read back as None, without an error. With version 8.0
#           the call itself ends in a KeyError.
#
# Exit status: 0 if this is still so, 1 if the behavior has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    lsst-alert-packet==30.2026.2700 fastavro==1.13.1
"$work/venv/bin/python" -W ignore - <<'PY'
import sys

from lsst.alert.packet import Schema, get_schema_uri
from lsst.alert.packet.simulate import simulate_alert


def schema(major: int, minor: int) -> Schema:
    return Schema.from_uri(get_schema_uri(major, minor).join(f"lsst.v{major}_{minor}.alert.avsc"))


def name_read_back(used: Schema, alert: dict) -> str | None:
    return used.deserialize(used.serialize(alert))["target_name"]


seen = []
for version in ((9, 0), (10, 0), (11, 1)):
    used = schema(*version)
    assert used == schema(*version)
    alert = simulate_alert(used.definition) | {"target_name": "COSMOS"}
    found = (used == schema(*version), name_read_back(used, alert), name_read_back(schema(*version), alert))
    print(f"{version}: equal {found[0]}, the same schema returns {found[1]}, a fresh one {found[2]}")
    seen.append(found)
try:
    simulate_alert(schema(8, 0).definition)
    eighth = "no error"
except KeyError as error:
    eighth = f"KeyError {error}"
print(f"(8, 0): {eighth}")
sys.exit(0 if seen == 3 * [(False, None, "COSMOS")] and eighth == "KeyError 'name'" else 1)
PY
