# SPDX-License-Identifier: BSD-3-Clause
"""Boolean maps of the whole sky: HEALPix maps in FITS files.

Covers the files of healpy: all cells in order, ring or nested, in equatorial,
galactic or ecliptic coordinates. Does not cover partial maps.
"""

import functools
import math
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ppdaemon.camera import SkyPoint

if TYPE_CHECKING:
    import numpy as np

__all__ = ("SkyMap",)

UNKNOWN = 16
"""Value of cells without information; they count as 0."""
CELLS_AT_ONCE = 2**20
"""Cells that are converted in one step, to limit the memory for large maps."""

type _Matrix = tuple[tuple[float, float, float], ...]

# From ICRS, with the pole and the origin of galactic longitude of the
# Hipparcos Catalogue (ESA SP-1200, vol. 1, eq. 1.5.11).
_GALACTIC = (
    (-0.0548755604, -0.8734370902, -0.4838350155),
    (0.4941094279, -0.4448296300, 0.7469822445),
    (-0.8676661490, -0.1980763734, 0.4559837762),
)
# Mean ecliptic of J2000: obliquity of 84381.406 arcsec (IAU 2006).
_OBLIQUITY = math.radians(84381.406 / 3600.0)
_ECLIPTIC = (
    (1.0, 0.0, 0.0),
    (0.0, math.cos(_OBLIQUITY), math.sin(_OBLIQUITY)),
    (0.0, -math.sin(_OBLIQUITY), math.cos(_OBLIQUITY)),
)
_SYSTEMS: Mapping[str, _Matrix | None] = {
    **dict.fromkeys(("", "C", "Q", "CEL", "CELESTIAL", "EQ", "EQU", "EQUATORIAL", "ICRS"), None),
    **dict.fromkeys(("G", "GAL", "GALACTIC"), _GALACTIC),
    **dict.fromkeys(("E", "ECL", "ECLIPTIC"), _ECLIPTIC),
}
_ORDERINGS = {"RING": False, "NESTED": True, "NEST": True}


class SkyMap:
    """A map that is true, false or unknown for each position on the sky.

    `path` is a FITS file, optionally gzipped. It is read by `read` or by the first
    `at`; one bit per cell is kept in memory: 6 MB at nside 2048.
    """

    def __init__(self, path: str):
        self.path = path

    def __repr__(self) -> str:
        return f"SkyMap({self.path!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SkyMap) and self.path == other.path

    def __hash__(self) -> int:
        return hash(self.path)

    def read(self) -> "SkyMap":
        """Read the file now and return this map; raise `ValueError` if it is not valid."""
        self._cells  # noqa: B018
        return self

    def at(self, point: SkyPoint) -> bool:
        """Return the map's value at (ra, dec), ICRS degrees; `False` if it is unknown."""
        return self._cells.at(point)

    @functools.cached_property
    def _cells(self) -> "_Cells":
        from astropy.io import fits
        from astropy.utils.exceptions import AstropyUserWarning

        try:
            with warnings.catch_warnings(), fits.open(self.path, memmap=True) as hdus:
                # For a truncated file astropy warns first and then raises.
                warnings.simplefilter("ignore", AstropyUserWarning)
                table = next((hdu for hdu in hdus if isinstance(hdu, fits.BinTableHDU)), None)
                if table is None or not table.columns:
                    raise ValueError("not a HEALPix map: no binary table")
                return _Cells(table)
        except OSError as error:
            raise ValueError(f"{self.path}: {error.strerror or error}") from None
        except (ValueError, TypeError) as error:
            raise ValueError(f"{self.path}: {error}") from None


class _Cells:
    """The cells of a map as bits, 1 for true."""

    def __init__(self, table: Any):
        import hpgeom

        header = table.header

        def keyword(key: str, default: str = "") -> str:
            return str(header.get(key, default)).strip().upper()

        # healpy writes PIXTYPE and does not need it: without it, ORDERING and the number of cells count.
        if keyword("PIXTYPE", "HEALPIX") != "HEALPIX":
            raise ValueError(f"not a HEALPix map: PIXTYPE is {header['PIXTYPE']!r}")
        if keyword("ORDERING") not in _ORDERINGS:
            raise ValueError(f"ORDERING is {header.get('ORDERING', 'missing')!r}, not RING or NESTED")
        if keyword("COORDSYS") not in _SYSTEMS:
            raise ValueError(f"COORDSYS is {header['COORDSYS']!r}, not C, G or E")
        if keyword("INDXSCHM", "IMPLICIT") != "IMPLICIT" or keyword("OBJECT", "FULLSKY") != "FULLSKY":
            raise ValueError("only maps of the whole sky with implicit indexing can be used")
        cells, yes, no = _column(table)
        self._nest = _ORDERINGS[keyword("ORDERING")]
        self._matrix = _SYSTEMS[keyword("COORDSYS")]
        self._nside = _nside(cells.size, self._nest)
        if header.get("NSIDE", self._nside) != self._nside:
            raise ValueError(f"{cells.size} cells, but NSIDE is {header['NSIDE']}")
        self._bits = _pack(cells, yes, no)
        self._pixel = hpgeom.angle_to_pixel

    def at(self, point: SkyPoint) -> bool:
        longitude, latitude = point if self._matrix is None else _rotated(point, self._matrix)
        cell = int(self._pixel(self._nside, longitude, latitude, nest=self._nest, lonlat=True, degrees=True))
        return bool(self._bits[cell >> 3] >> (cell & 7) & 1)


def _nside(count: int, nest: bool) -> int:
    nside = math.isqrt(count // 12)
    if count == 0 or 12 * nside * nside != count:
        raise ValueError(f"{count} cells: not 12 nside^2")
    if nest and nside & (nside - 1):
        raise ValueError(f"nested, but nside {nside} is not a power of 2")
    return nside


def _column(table: Any) -> tuple["np.ndarray[Any, Any]", int, tuple[int, ...]]:
    """Return the cells as stored in the file, the value for true, and the values for
    false or unknown.
    """
    import numpy as np

    if table.columns[0].format.format == "L":
        # The conversion by astropy would use ten bytes per cell temporarily.
        location = table.fileinfo()
        location["file"].seek(location["datLoc"])
        kind = table.columns.dtype
        rows = np.frombuffer(location["file"].read(kind.itemsize * table.header["NAXIS2"]), dtype=kind)
        return rows[kind.names[0]].reshape(-1), ord("T"), (ord("F"), 0)
    cells = np.asarray(table.data.field(0)).reshape(-1)
    if cells.dtype.kind not in "iu":
        raise ValueError(f"cells are {cells.dtype.newbyteorder('=')}, not integers or booleans")
    return cells, 1, (0, UNKNOWN)


def _pack(cells: "np.ndarray[Any, Any]", yes: int, no: tuple[int, ...]) -> bytes:
    """Return one bit per cell, 1 for true."""
    import numpy as np

    packed = []
    for start in range(0, cells.size, CELLS_AT_ONCE):
        part = cells[start : start + CELLS_AT_ONCE]
        is_true = part == yes
        wrong = ~(is_true | np.isin(part, no))
        if wrong.any():
            cell = int(np.flatnonzero(wrong)[0])
            raise ValueError(f"cell {start + cell} is {part[cell]}, not 0, 1 or {UNKNOWN}")
        packed.append(np.packbits(is_true, bitorder="little").tobytes())
    return b"".join(packed)


def _rotated(point: SkyPoint, matrix: _Matrix) -> SkyPoint:
    ra, dec = math.radians(point[0]), math.radians(point[1])
    vector = (math.cos(dec) * math.cos(ra), math.cos(dec) * math.sin(ra), math.sin(dec))
    x, y, z = (math.sumprod(row, vector) for row in matrix)
    return math.degrees(math.atan2(y, x)) % 360.0, math.degrees(math.atan2(z, math.hypot(x, y)))
