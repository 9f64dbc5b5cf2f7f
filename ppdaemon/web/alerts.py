# SPDX-License-Identifier: BSD-3-Clause
"""Cutouts of the strongest alert in the newest file of a folder, for the live page.

Reads Avro files of alert packets in the schema of LSST, with FITS cutouts, as the demonstration writes them.
"""

import asyncio
import io
import logging
import os
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ("AlertWatch", "Stamps", "newest_file", "png", "read_stamps")

_LOG = logging.getLogger(__name__)

NAMES = ("Science", "Template", "Difference")
POLL_S = 2.0
MAX_FILE = 200_000_000
"""Bytes of a file; one alert has some 25 kB, a detector some 50 alerts."""
MAX_PACKETS = 1000
"""Packets that are looked at in one file."""
MAX_SIDE = 512
"""Pixels of a cutout; a larger one is not shown."""


@dataclass(frozen=True, slots=True)
class Stamps:
    """The cutouts of one alert as PNG, by name, and what is known of it."""

    images: Mapping[str, bytes]
    facts: Mapping[str, Any]


def newest_file(folder: Path) -> tuple[Path, int] | None:
    """Return the Avro file that was changed last, and when in nanoseconds; `None` if there is none."""
    found: tuple[Path, int] | None = None
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(".avro") and not entry.name.startswith(".") and entry.is_file():
                changed = entry.stat().st_mtime_ns
                if found is None or changed > found[1]:
                    found = Path(entry.path), changed
    return found


def read_stamps(path: Path) -> Stamps | None:
    """Return the cutouts of the alert with the highest signal-to-noise ratio; `None` if none has all.

    Raises OSError, ValueError or another error of the libraries for a file that is not of this form.
    """
    import fastavro

    if path.stat().st_size > MAX_FILE:
        raise ValueError(f"larger than {MAX_FILE} bytes")
    best: Any = None
    packet: Any
    with path.open("rb") as stream:
        for _, packet in zip(range(MAX_PACKETS), fastavro.reader(stream), strict=False):
            is_complete = isinstance(packet, dict) and all(packet.get(f"cutout{name}") for name in NAMES)
            if is_complete and (best is None or _snr(packet) > _snr(best)):
                best = packet
    if best is None:
        return None
    source = best.get("diaSource") or {}
    facts = {name: source.get(name) for name in ("visit", "detector", "band", "ra", "dec", "snr")}
    facts |= {"id": str(best.get("diaSourceId", "")), "file": path.name}
    return Stamps({name: png(_pixels(best[f"cutout{name}"])) for name in NAMES}, facts)


def _snr(packet: Mapping[str, Any]) -> float:
    return abs(float((packet.get("diaSource") or {}).get("snr") or 0.0))


def _pixels(encoded: bytes) -> np.ndarray:
    from astropy.io import fits

    with fits.open(io.BytesIO(encoded)) as file:
        pixels = next(hdu.data for hdu in file if getattr(hdu, "data", None) is not None)
        return np.array(pixels, dtype=np.float32)


def png(pixels: np.ndarray) -> bytes:
    """Return an image as gray PNG, its first row at the bottom, from the 1st to the 99.5th percentile.

    Pixels that are not finite are black. Raises ValueError if it is no image, or too large.
    """
    if pixels.ndim != 2 or not 0 < max(pixels.shape) <= MAX_SIDE or not pixels.size:
        raise ValueError(f"a cutout of {pixels.shape} pixels is not shown")
    finite = np.isfinite(pixels)
    low, high = np.percentile(pixels[finite], (1, 99.5)) if finite.any() else (0.0, 1.0)
    scaled = (np.where(finite, pixels, low) - low) / max(high - low, 1e-30)
    gray = (255 * np.clip(scaled, 0, 1)).astype(np.uint8)[::-1]
    rows = b"".join(b"\0" + line.tobytes() for line in gray)  # 0: no filter
    header = struct.pack(">IIBBBBB", gray.shape[1], gray.shape[0], 8, 0, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )


@dataclass(eq=False)
class AlertWatch:
    """Looks for new files in a folder; `show` gets what is known of a new alert."""

    folder: Path
    show: Callable[[Mapping[str, Any]], None]
    stamps: Stamps | None = field(default=None, init=False)
    _last: tuple[Path, int] | None = field(default=None, init=False)
    _problem: str = field(default="", init=False)

    async def run(self) -> None:
        """Look for new files until canceled."""
        while True:
            before = self.stamps
            await asyncio.to_thread(self.look)
            if self.stamps is not None and self.stamps is not before:
                self.show(self.stamps.facts)
            await asyncio.sleep(POLL_S)

    def look(self) -> None:
        """Read the newest file if it is new; a file that cannot be read is logged and skipped."""
        problem = ""
        try:
            newest = newest_file(self.folder)
            if newest is not None and newest != self._last:
                self._last = newest
                self.stamps = read_stamps(newest[0]) or self.stamps
        except Exception as error:  # the libraries raise what they like; the page goes on without
            problem = f"{self._last[0] if self._last else self.folder}: {error}"
        if problem and problem != self._problem:
            _LOG.warning("cannot show alerts: %s", problem)
        self._problem = problem
