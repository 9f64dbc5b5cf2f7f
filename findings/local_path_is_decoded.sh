#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# A pathlib.Path with "%3A" or "#" in a name is another file for ResourcePath.
#
# Package:  lsst-resources 30.2026.4200, with Python 3.13. Date: 2026-11-29.
# Where:    groups such as 2026-11-28T03:25:16.951#1 in names of raw files; writers that cannot
#           use ":" and "#" in names quote them (%3A, %23). Butler.ingest, Pipeline.from_uri and
#           others make a ResourcePath of a path.
# Expected: a Path, which is no URI, names the file that it names for open(): its text is
#           quoted when it becomes a URI, as in Path.as_uri(). For a space, "+", "?" and a "%"
#           that no two hexadecimal digits follow it is so.
# Seen:     "%" and two hexadecimal digits are decoded (a warning, "Possible double encoding",
#           is logged): ResourcePath(Path("A%41")) reads the file AA if there is one, and
#           a%3Ab is not found although it exists. What follows "#" is cut off as a fragment.
#           ResourcePath.join keeps "%41" and cuts "#"; a relative Path is decoded, too.
#           ResourcePath(path.as_uri()) is right in all cases.
#
# Exit status: 0 if this is still so, 1 if the behavior has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check lsst-resources==30.2026.4200
mkdir "$work/files"
"$work/venv/bin/python" - "$work/files" <<'PY'
import logging
import sys
from pathlib import Path

from lsst.resources import ResourcePath

logging.disable()
folder = Path(sys.argv[1])
for name in ("AA", "A%41", "a%3Ab", "a#1", "a b+c?d", "100%"):
    (folder / name).write_text(name)


def content(uri: ResourcePath) -> str | None:
    return uri.read().decode() if uri.exists() else None


plain, as_uri, joined = {}, {}, {}
for path in sorted(folder.iterdir()):
    plain[path.name] = content(ResourcePath(path))
    as_uri[path.name] = content(ResourcePath(path.as_uri()))
    joined[path.name] = content(ResourcePath(folder, forceDirectory=True).join(path.name))
    print(f"{path.name}: as Path {plain[path.name]}, as URI {as_uri[path.name]}, joined {joined[path.name]}")
names = {name: name for name in plain}
unchanged = (
    plain == names | {"A%41": "AA", "a%3Ab": None, "a#1": None}
    and as_uri == names
    and joined == names | {"a#1": None}
)
sys.exit(0 if unchanged else 1)
PY
