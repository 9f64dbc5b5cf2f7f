# SPDX-License-Identifier: BSD-3-Clause
"""The mask planes of the demo's images, and helpers to build images."""

import copyreg
from collections.abc import Iterable, Mapping
from typing import Any

import astropy.units as u
import numpy as np
from astropy.wcs import WCS
from lsst.images import GeneralFrame, Image, Mask, MaskedImage, MaskPlane, MaskSchema, SkyProjection
from starlink import Ast

__all__ = ("PLANES", "make_image", "plane", "projection_of", "sky_projection", "unusable")

PLANES = MaskSchema(
    [
        MaskPlane("BAD", "Defect of the detector."),
        MaskPlane("SATURATED", "At or above full well, or bled into."),
        MaskPlane("COSMIC_RAY", "Hit by a cosmic ray; the value is interpolated."),
        MaskPlane("NO_DATA", "Nothing was measured here."),
        MaskPlane("EDGE", "Too close to the edge to be searched."),
        MaskPlane("DETECTED", "Part of a detected source."),
        MaskPlane("VIGNETTED", "Less than half of the light arrives here."),
    ]
)
"""Planes of every image that the demo's tasks write."""

_UNUSABLE = ("BAD", "SATURATED", "COSMIC_RAY", "NO_DATA")


def plane(image: MaskedImage, name: str) -> np.ndarray:
    """Return one mask plane; all False if the image has no such plane.

    Parameters
    ----------
    image : `lsst.images.MaskedImage`
        Any image, with the schema `PLANES` or another.
    name : `str`
        Name of the plane, such as ``SATURATED``.

    Returns
    -------
    pixels : `numpy.ndarray` of `bool`
        Same shape as the image.
    """
    if name not in image.mask.schema.names:
        return np.zeros(image.image.array.shape, dtype=bool)
    return np.asarray(image.mask.get(name))


def unusable(image: MaskedImage) -> np.ndarray:
    """Return the pixels whose value is not valid.

    Parameters
    ----------
    image : `lsst.images.MaskedImage`
        Image with some of the planes of `PLANES`.

    Returns
    -------
    pixels : `numpy.ndarray` of `bool`
        Same shape as the image.
    """
    return np.asarray(np.logical_or.reduce([plane(image, name) for name in _UNUSABLE]))


def projection_of(image: MaskedImage) -> WCS:
    """Return an image's projection; the first pixel of its array is (0, 0).

    Parameters
    ----------
    image : `lsst.images.MaskedImage`
        A calibrated image or a template patch.

    Returns
    -------
    wcs : `astropy.wcs.WCS`
        Projection from 0-based pixels of the array to ICRS degrees.

    Raises
    ------
    ValueError
        Raised if the image has none.
    """
    wcs = image.fits_wcs
    if wcs is None:
        raise ValueError(f"the image of {image.bbox} has no sky projection: it is not calibrated")
    return wcs


def sky_projection(wcs: WCS) -> SkyProjection[Any]:
    """Convert a FITS projection of an array whose first pixel is (0, 0).

    Parameters
    ----------
    wcs : `astropy.wcs.WCS`
        Celestial projection in ICRS.

    Returns
    -------
    projection : `lsst.images.SkyProjection`
        The same mapping for `lsst.images`.
    """
    return SkyProjection.from_fits_wcs(wcs, GeneralFrame(unit=u.pix))


def make_image(
    pixels: np.ndarray,
    variance: np.ndarray,
    planes: Mapping[str, np.ndarray],
    unit: u.UnitBase,
    *,
    projection: SkyProjection[Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> MaskedImage:
    """Assemble a masked image in single precision.

    Parameters
    ----------
    pixels, variance : `numpy.ndarray`, (rows, columns)
        Values in ``unit`` and its square.
    planes : `~collections.abc.Mapping` [`str`, `numpy.ndarray`]
        Boolean image for each plane that has pixels set.
    unit : `astropy.units.UnitBase`
        Unit of ``pixels``.
    projection : `lsst.images.SkyProjection`, optional
        Mapping from pixels to the sky; `None` for an uncalibrated image.
    metadata : `~collections.abc.Mapping`, optional
        Plain values to be stored with the image.

    Returns
    -------
    image : `lsst.images.MaskedImage`
        Image with the schema `PLANES`.
    """
    mask = Mask(schema=PLANES, shape=pixels.shape)
    for name, where in planes.items():
        mask.set(name, where)
    return MaskedImage(
        Image(np.ascontiguousarray(pixels, dtype=np.float32), unit=unit),
        mask=mask,
        variance=Image(np.ascontiguousarray(variance, dtype=np.float32), unit=unit**2),
        sky_projection=projection,
        metadata=dict(metadata or {}),
    )


class _AstLines:
    """The lossless text form of an AST object, written and read by an AST channel."""

    def __init__(self, lines: Iterable[str] = ()):
        self.lines = list(lines)
        self._unread = iter(self.lines)

    def astsink(self, line: str) -> None:
        self.lines.append(line)

    def astsource(self) -> str | None:
        return next(self._unread, None)


def _read_ast(lines: list[str]) -> Any:
    return Ast.Channel(_AstLines(lines), None).read()


def _reduced(content: Any) -> tuple[Any, ...]:
    text = _AstLines()
    Ast.Channel(None, text).write(content)
    return _read_ast, (text.lines,)


# A projection consists of AST objects, which cannot be pickled by themselves. Without a pickled
# form, images would have to go from one process to another through files.
for _class in vars(Ast).values():
    if isinstance(_class, type) and issubclass(_class, Ast.Object):
        copyreg.pickle(_class, _reduced)
