#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# A keyword that astropy adds to a compressed image of floats changes the image's pixels.
#
# Package:  astropy 8.0.2, fitsio 1.4.2, numpy 2.5.5, with Python 3.13. Date: 2026-11-30.
# Where:    fits.open(file, mode="update") of a tile-compressed image with quantized floats, to change
#           its header; and HDU.copy() of such an image to write it elsewhere.
# Expected: the compressed tiles are kept, as fitsio keeps them, and as astropy does with a new keyword
#           in another HDU and in writeto of an image that was not read. A copy is written with the
#           settings of its original.
# Seen:     the pixels are decompressed, quantized again and written with the header: the largest
#           error grows from 0.5 to 0.9 steps, and CHECKSUM and DATASUM vanish. An image of which only
#           the pixels were read (`hdu.data`) changes in writeto, too. A copy loses the method and seed
#           of dithering, the level and the shape of tiles: it is quantized again by rows, at the
#           default level, without dithering. No warning in any case.
#
# Exit status: 0 if this is still so, 1 if the behavior has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check astropy==8.0.2 fitsio==1.4.2 numpy==2.5.5
"$work/venv/bin/python" -W error - "$work" <<'PY'
import sys
from pathlib import Path

import fitsio
import numpy as np
from astropy.io import fits

work = Path(sys.argv[1])
TRUE = np.random.default_rng(1).normal(0.0, 10.0, (200, 200)).astype(np.float32)
LEVEL = 4.0  # a step is a quarter of the noise
STEP = 10.0 / LEVEL


def written(name: str) -> Path:
    settings = {"compression_type": "RICE_1", "tile_shape": (50, 50)}
    settings |= {"quantize_level": LEVEL, "quantize_method": 2, "dither_seed": 7}
    image = fits.CompImageHDU(TRUE, name="IMAGE", **settings)
    file = work / f"{name}.fits"
    fits.HDUList([fits.PrimaryHDU(), image]).writeto(file, checksum=True)
    return file


def cards(file: Path) -> tuple:
    with fits.open(file, disable_image_compression=True) as hdus:
        header = hdus["IMAGE"].header
        return tuple(header.get(key) for key in ("ZQUANTIZ", "ZDITHER0", "ZTILE1", "ZTILE2", "DATASUM"))


def update(file: Path, hdu: int) -> Path:
    with fits.open(file, mode="update") as hdus:
        hdus[hdu].header["REVIEWED"] = True
    return file


def update_fitsio(file: Path) -> Path:
    with fitsio.FITS(str(file), "rw") as hdus:
        hdus["IMAGE"].write_key("REVIEWED", True)
    return file


def rewrite(file: Path, *, read: bool = False, copy: bool = False) -> Path:
    target = file.with_suffix(".new.fits")
    with fits.open(file) as hdus:
        pixels = hdus["IMAGE"].data if read else None
        assert pixels is None or pixels.shape == TRUE.shape
        if copy:
            hdus = fits.HDUList([fits.PrimaryHDU(), hdus["IMAGE"].copy()])
        hdus.writeto(target)
    return target


KEPT = ("SUBTRACTIVE_DITHER_2", 7, 50, 50)
cases = {
    "keyword in the image, by fitsio": (update_fitsio, False, KEPT),
    "keyword in the primary HDU": (lambda file: update(file, 0), False, KEPT),
    "writeto": (rewrite, False, KEPT),
    "keyword in the image": (lambda file: update(file, 1), True, KEPT),
    "writeto after the pixels were read": (lambda file: rewrite(file, read=True), True, KEPT),
    "copy and writeto": (lambda file: rewrite(file, copy=True), True, (None, None, 200, 1)),
}
unchanged = True
for number, (name, (change, expected_change, expected_settings)) in enumerate(cases.items()):
    file = written(str(number))
    before = fits.getdata(file, "IMAGE")
    file = change(file)
    after = fits.getdata(file, "IMAGE")
    *settings, checksum = cards(file)
    differ = bool((after != before).any())
    errors = [float(np.abs(image - TRUE).max()) / STEP for image in (before, after)]
    print(f"{name}: pixels changed {differ}, error {errors[0]:.2f} -> {errors[1]:.2f} steps")
    print(f"    settings {settings}, DATASUM {checksum}")
    unchanged &= differ == expected_change == (checksum is None) and tuple(settings) == expected_settings
    unchanged &= errors[0] < 0.55 and (errors[1] > 0.6) == expected_change
sys.exit(0 if unchanged else 1)
PY
