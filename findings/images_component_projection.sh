#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# An image plane read as a component has no sky projection; and images that differ in it are equal.
#
# Package:  lsst-images 30.2026.4300, with Python 3.13. Date: 2026-11-29.
# Where:    GenericFormatter reads "image", "mask" and "variance" of a MaskedImage,
#           VisitImage or DifferenceImage as components.
# Expected: the component is the attribute of that name of the whole image.
# Seen:     the attribute has the projection of the image, the component has None.
#           Image.__eq__ does not compare projections, so that a test of equality passes.
#
# Exit status: 0 if this is still so, 1 if the behavior has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    lsst-images==30.2026.4300 lsst-daf-butler==30.2026.4300 requests
"$work/venv/bin/python" - "$work/repo" <<'PY'
import sys

import astropy.units as u
import numpy as np
from astropy.wcs import WCS
from lsst.daf.butler import Butler, DatasetType
from lsst.images import GeneralFrame, Image, MaskedImage, MaskPlane, MaskSchema, SkyProjection

Butler.makeRepo(sys.argv[1])
butler = Butler.from_config(sys.argv[1], run="run")
butler.registry.registerDatasetType(DatasetType("made", butler.dimensions.empty, "MaskedImageV2"))
wcs = WCS(naxis=2)
wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.cdelt = ["RA---TAN", "DEC--TAN"], [150.0, 2.0], [-1e-4, 1e-4]
projection = SkyProjection.from_fits_wcs(wcs, GeneralFrame(unit=u.pix))
plane = Image(np.ones((20, 30), dtype=np.float32), unit=u.nJy)
schema = MaskSchema([MaskPlane("BAD", "")])
butler.put(MaskedImage(plane, mask_schema=schema, sky_projection=projection), "made")
whole = butler.get("made").image
component = butler.get("made.image")
print("attribute:", whole.sky_projection)
print("component:", component.sky_projection)
print("equal:", whole == component)
unchanged = whole.sky_projection is not None and component.sky_projection is None and whole == component
sys.exit(0 if unchanged else 1)
PY
