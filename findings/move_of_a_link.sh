#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# transfer="move" of a symbolic link moves the file that the link points to and leaves the link.
#
# Package:  lsst-resources 30.2026.4200, with Python 3.13. Date: 2026-11-29.
# Where:    a folder of links to raw files that others own, such as a selection for a test,
#           is ingested with transfer="move", as Butler.ingest passes it on.
# Expected: as mv and os.rename do, the link is moved; or its content is copied and the link
#           removed. The file outside of the folder stays.
# Seen:     the file is gone from its own folder, its content is in the target, and the link
#           in the source folder stays and points to nothing. Relative and absolute links are
#           alike. shutil.move of the same link moves the link.
#
# Exit status: 0 if this is still so, 1 if the behavior has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check lsst-resources==30.2026.4200
"$work/venv/bin/python" - "$work" <<'PY'
import os
import shutil
import sys
from pathlib import Path

from lsst.resources import ResourcePath

seen = {}
for case in ("relative", "absolute", "shutil.move"):
    folder = Path(sys.argv[1], case)
    archive, selection, target = folder / "archive", folder / "selection", folder / "datastore" / "raw"
    for each in (archive, selection, target.parent):
        each.mkdir(parents=True)
    original, link = archive / "raw", selection / "raw"
    original.write_text("pixels")
    link.symlink_to(os.path.relpath(original, selection) if case == "relative" else original)
    if case == "shutil.move":
        shutil.move(link, target)
    else:
        ResourcePath(target.as_uri()).transfer_from(ResourcePath(link.as_uri()), transfer="move")
    seen[case] = original.exists(), os.path.lexists(link), target.is_symlink(), target.read_text()
    words = ("original exists", "link exists", "target is a link", "content")
    print(f"{case}: {dict(zip(words, seen[case], strict=True))}")
lost = False, True, False, "pixels"
unchanged = seen == {"relative": lost, "absolute": lost, "shutil.move": (True, False, True, "pixels")}
sys.exit(0 if unchanged else 1)
PY
