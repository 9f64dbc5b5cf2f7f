# SPDX-License-Identifier: BSD-3-Clause
"""Butler formatter of DemoCam raws: both amplifiers side by side, with overscan."""

import warnings
from typing import Any, ClassVar

import astropy.units as u
import numpy as np
from astropy.io import fits
from astropy.utils.exceptions import AstropyUserWarning
from lsst.daf.butler import FormatterV2
from lsst.images import Image

from ppdaemon.demo.geometry import AMPLIFIERS, RAW_SHAPE

__all__ = ("DemoCamRawFormatter", "read_raw")

_STRUCTURAL = frozenset({"", "COMMENT", "HISTORY", "SIMPLE", "BITPIX", "NAXIS", "EXTEND"})


class DemoCamRawFormatter(FormatterV2):
    """Read a raw as an `lsst.images.Image` in ADU, its header in ``metadata``."""

    can_read_from_local_file: ClassVar[bool] = True
    default_extension: ClassVar[str] = ".fits"
    supported_extensions: ClassVar[frozenset[str]] = frozenset({".fits", ".fz", ".gz"})

    def read_from_local_file(self, path: str, component: str | None = None, expected_size: int = -1) -> Any:
        """Read the image, a part of it (parameter ``bbox``), or one of its components."""
        image = read_raw(path)
        bbox = (self.file_descriptor.parameters or {}).get("bbox")
        if bbox is not None:
            image = image[bbox]
        return image if component is None else getattr(image, component)


def read_raw(path: str) -> Image:
    """Read a DemoCam raw: ADU as float32, (1024, 1088) pixels, the header in ``metadata``.

    `~ppdaemon.demo.geometry.AMPLIFIERS` has the columns of each amplifier.
    Raises `OSError` if the file is truncated or not FITS, `ValueError` if an
    amplifier is missing or has another shape.
    """
    with open(path, "rb") as stream, warnings.catch_warnings():
        # For a truncated file astropy only issues a warning.
        warnings.simplefilter("error", AstropyUserWarning)
        try:
            with fits.open(stream, memmap=False) as hdus:
                return _assemble(path, hdus)
        except AstropyUserWarning as problem:
            raise OSError(f"{path} is damaged or truncated: {problem}") from None


def _assemble(path: str, hdus: fits.HDUList) -> Image:
    pixels = np.empty(RAW_SHAPE, dtype=np.float32)
    for amplifier in AMPLIFIERS:
        columns = amplifier.raw_columns
        expected = (RAW_SHAPE[0], columns.stop - columns.start)
        if amplifier.name not in hdus:
            raise ValueError(f"{path} has no extension {amplifier.name}: it is not a DemoCam raw")
        data = hdus[amplifier.name].data
        if data is None or data.shape != expected:
            found = None if data is None else data.shape
            raise ValueError(f"{path}[{amplifier.name}] has shape {found}, expected {expected}")
        pixels[:, columns] = data
    header = hdus[0].header
    metadata = {key: _plain(value) for key, value in header.items() if key not in _STRUCTURAL}
    return Image(pixels, unit=u.adu, metadata=metadata)


def _plain(value: Any) -> Any:
    """Replace a null value of a FITS header by `None`."""
    return None if isinstance(value, fits.card.Undefined) else value
