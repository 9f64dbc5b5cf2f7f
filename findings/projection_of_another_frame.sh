#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# A projection in FK5, FK4 or Galactic coordinates is taken for one in ICRS, with the same numbers.
#
# Package:  lsst-images 30.2026.4300, astropy 8.0.2, with Python 3.13. Date: 2026-11-30.
# Where:    SkyProjection.from_fits_wcs of the header of a raw, a template or a reference image. Many cameras write
#           RADESYS = 'FK5', and some telescopes the equinox of the date.
# Expected: sky positions are those of astropy.wcs, pixel_to_world(...).icrs, since a projection "is always in ICRS";
#           or an error for another frame. from_ast_frame_set promises this "regardless of the original sky system".
# Seen:     neither converts: pixel_to_sky calls the numbers of the other frame ICRS. FK5 of J2000 is off by 14 mas, FK5
#           of 2026 by 19 arc minutes, FK4 by 0.6 and Galactic by 86 degrees. Image.write stores them with
#           RADESYS = 'ICRS', so that each reader has the error, and nothing tells of it. TAN, SIP, TPV and ZPN in
#           ICRS agree to a nanoarcsecond. Convert the header first, or compare one position with astropy's.
#
# Exit status: 0 if this is still so, 1 if the behavior has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check lsst-images==30.2026.4300 astropy==8.0.2
"$work/venv/bin/python" -W ignore - "$work" <<'PY'
import sys

import astropy.units as u
import numpy as np
from astropy.io import fits
from astropy.wcs import WCS
from lsst.images import Box, DetectorFrame, Image, SkyProjection
from lsst.images._transforms._ast import FitsChan, StringStream

BOX = Box.factory[0:4000, 0:4000]
FRAME = DetectorFrame(instrument="Cam", detector=1, bbox=BOX)
X, Y = np.array([0.0, 2000.0, 3999.0]), np.array([0.0, 1000.0, 3900.0])
FRAMES = {
    "ICRS": {"RADESYS": "ICRS"},
    "FK5, J2000": {"RADESYS": "FK5", "EQUINOX": 2000.0},
    "FK5, J2026": {"RADESYS": "FK5", "EQUINOX": 2026.0},
    "FK4": {"RADESYS": "FK4", "EQUINOX": 1950.0},
    "Galactic": {"CTYPE1": "GLON-TAN", "CTYPE2": "GLAT-TAN"},
}


def wcs_in(cards: dict[str, str | float]) -> WCS:
    header = fits.Header({"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 30.0, "CRVAL2": -20.0})
    header.update(CRPIX1=2000.0, CRPIX2=2000.0, CD1_1=-5.5e-5, CD2_2=5.5e-5)
    header.update(cards)
    return WCS(header)


def error(projection: SkyProjection, wcs: WCS, first: int = 0) -> float:
    """Return the greatest distance from the positions of astropy, milliarcseconds."""
    ours = projection.pixel_to_sky(x=X + first, y=Y + first)
    return float(ours.separation(wcs.pixel_to_world(X, Y).icrs).to_value(u.mas).max())


def by_ast(wcs: WCS) -> SkyProjection:
    """Make a projection of pixels that begin with 1."""
    channel = FitsChan(StringStream(wcs.to_header_string(relax=True)), "Encoding=FITS-WCS")
    return SkyProjection.from_ast_frame_set(channel.read(), FRAME)


seen = {}
for name, cards in FRAMES.items():
    wcs = wcs_in(cards)
    projection = SkyProjection.from_fits_wcs(wcs, FRAME, BOX)
    path = f"{sys.argv[1]}/{name}.fits"
    Image(np.zeros((10, 10), "f4"), sky_projection=projection).write(path)
    written = WCS(fits.getheader(path, 1))
    off = written.pixel_to_world(5, 5).icrs.separation(wcs.pixel_to_world(5, 5).icrs).to_value(u.mas)
    seen[name] = error(projection, wcs), error(by_ast(wcs), wcs, 1), float(off), written.wcs.radesys
for name, (one, other, off, system) in seen.items():
    print(f"{name}: from_fits_wcs {one:.3g}, from_ast_frame_set {other:.3g}, written {off:.3g} mas, {system}")
ranges = {
    "ICRS": (0, 1e-3),
    "FK5, J2000": (10, 20),
    "FK5, J2026": (1.1e6, 1.2e6),
    "FK4": (2.1e6, 2.3e6),
    "Galactic": (3.0e8, 3.2e8),
}
same = all(low <= value <= high for name, (low, high) in ranges.items() for value in seen[name][:3])
sys.exit(0 if same and all(values[3] == "ICRS" for values in seen.values()) else 1)
PY
