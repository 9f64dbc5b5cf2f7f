# SPDX-License-Identifier: BSD-3-Clause
"""HEALPix FITS maps as healpy writes them, for tests."""

from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits

HEADER = {
    "PIXTYPE": "HEALPIX",
    "ORDERING": "RING",
    "COORDSYS": "C",
    "INDXSCHM": "IMPLICIT",
    "OBJECT": "FULLSKY",
}


def write_map(path: Path, cells: np.ndarray, format: str = "B", **header: Any) -> str:
    """Write a map; header values of `None` are left out.

    Parameters
    ----------
    path : `pathlib.Path`
        The file to make.
    cells : `numpy.ndarray`
        Values, one for each cell.
    format : `str`, optional
        FITS format letter of a cell.
    **header : `object`
        Changes to `HEADER`.

    Returns
    -------
    path : `str`
        The file.
    """
    width = 1024 if cells.size % 1024 == 0 else 1
    column = fits.Column("MASK", f"{width}{format}", array=cells.reshape(-1, width))
    table = fits.BinTableHDU.from_columns([column])
    table.header.update({key: value for key, value in (HEADER | header).items() if value is not None})
    table.writeto(path)
    return str(path)
