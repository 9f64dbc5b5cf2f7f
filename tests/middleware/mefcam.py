# SPDX-License-Identifier: BSD-3-Clause
"""ToyCam as a camera that writes all detectors of an exposure into one file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from astropy.io import fits
from lsst.daf.butler import FormatterV2
from toycam import DAY, ToyCam, ToyFormatter, ToyTranslator, make_header

CONFIG: dict[str, Any] = {
    "arrivals": {"layout": {"path": "{instrument}/{day_obs}/{exposure}", "detector_keyword": "CCDNUM"}},
    "butler": {"instrument_class": {"ToyCam": f"{__name__}.MefCam"}},
}
PIXELS = (40, 50)


class MefTranslator(ToyTranslator):
    """The number of the detector is in the header of its HDU."""

    name = "MefCam"
    supported_instrument = "MefCam"
    _trivial_map: ClassVar[dict[str, Any]] = ToyTranslator._trivial_map | {"detector_num": "CCDNUM"}


class MefFormatter(ToyFormatter):
    """Read the HDU of the detector in the data ID, as the formatter of such a camera does."""

    def read_from_local_file(self, path: str, component: str | None = None, expected_size: int = -1) -> Any:
        with fits.open(path) as hdus:
            (hdu,) = [each for each in hdus[1:] if each.header.get("CCDNUM") == self.data_id["detector"]]
            return {"exposure": int(hdus[0].header["SEQNUM"]), "sum": float(hdu.data.sum())}


class MefCam(ToyCam):
    """One file for all detectors."""

    translatorClass = MefTranslator  # noqa: N815

    def getRawFormatter(self, dataId: Any) -> type[FormatterV2]:  # noqa: N802, N803
        return MefFormatter


def pixels_of(detector: int) -> np.ndarray:
    """Return the pixels of a detector; each one has others."""
    return np.full(PIXELS, 10 + detector, dtype=np.int16)


def write_file(
    folder: Path, pixels: Mapping[int, np.ndarray | None], *, compressed: bool = False, **changes: Any
) -> Path:
    """Write a raw of some detectors in the layout of `CONFIG`; return its path."""
    primary = fits.PrimaryHDU()
    for key, value in make_header(0, **changes).items():
        if key != "DETECTOR":
            primary.header[key] = value
    kind = fits.CompImageHDU if compressed else fits.ImageHDU
    hdus = []
    for detector, data in pixels.items():
        hdu = kind(data) if data is not None else fits.ImageHDU()
        hdu.header["CCDNUM"] = detector
        hdus.append(hdu)
    path = folder / "ToyCam" / str(DAY) / f"{DAY}00001.fits"
    path.parent.mkdir(parents=True, exist_ok=True)
    fits.HDUList([primary, *hdus]).writeto(path, overwrite=True)
    return path
