# SPDX-License-Identifier: BSD-3-Clause
"""The header of a raw that is whole, in astropy's terms, which translators understand.

Whether it is whole is decided by `ppdaemon.raws.fitsblocks`.
"""

import warnings
from pathlib import Path

from astropy.io import fits

from ppdaemon.raws.fitsblocks import structure

__all__ = ("BadFits", "read_primary_header")


class BadFits(ValueError):
    """The file is not a complete FITS file; the text says why."""


def read_primary_header(path: Path) -> fits.Header:
    """Check a file's structure and return its first header.

    Parameters
    ----------
    path : `pathlib.Path`
        A FITS file, possibly compressed as a whole by gzip.

    Returns
    -------
    header : `astropy.io.fits.Header`
        The primary header.

    Raises
    ------
    BadFits
        Raised if the file is empty, truncated or not FITS.
    OSError
        Raised if it cannot be read.
    """
    with path.open("rb") as stream:
        found = structure(stream)
    if not found.whole:
        raise BadFits(f"it is no whole FITS file: {found.problem}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a card that breaks the standard does not make a raw useless
        try:
            return fits.getheader(path)
        except (ValueError, TypeError, fits.VerifyError) as error:
            raise BadFits(f"its primary header cannot be read: {error}") from error
