# SPDX-License-Identifier: BSD-3-Clause
"""Faults that a simulated camera puts into its files on purpose. Pure.

Covers wrong contents and files that are missing, late, or written twice. The
times of a visit are decided in `ppdaemon.demo.telescope`, the way of writing a
file in `ppdaemon.demo.delivery`.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from astropy.io import fits

from ppdaemon.raws.path import sidecar_path

__all__ = ("NOT_FITS", "WRONG_GROUP", "Rewrite", "Faults", "ScheduledFile", "HeaderFault", "with_cards")

WRONG_GROUP = "2001-01-01T00:00:00.000"
"""Group in a wrong header: an old date, so that it is no current visit's."""
NOT_FITS = b"This file is a text, not a FITS image.\n" * 100
"""Content of a file that is named as FITS and is something else."""
# Length of a FITS header card in bytes.
_CARD = 80


class HeaderFault(enum.StrEnum):
    """A wrong value in the FITS header; the sidecar has the right one."""

    DETECTOR = "detector"
    """The header names another detector."""
    GROUP = "group"
    """The header names another group."""


class Rewrite(enum.StrEnum):
    """The way in which a file is written a second time."""

    REPLACE = "replace"
    """A new file with the same content is renamed over it."""
    OVERWRITE = "overwrite"
    """It is opened and written once more."""


@dataclass(frozen=True)
class ScheduledFile:
    """A file to be written."""

    path: Path
    """Relative to the raw root."""
    content: bytes
    after_s: float = 0.0
    """Seconds after the first file of its exposure."""
    rewrite: Rewrite | None = None
    """How it is written if the first copy exists already."""


@dataclass(frozen=True)
class Faults:
    """The faults of one run. Raises `ValueError` if two of them contradict."""

    drop_detectors: frozenset[int] = frozenset()
    """Detectors whose files are never written."""
    only: frozenset[int] | None = None
    """Detectors with the faults below; `None` for all."""
    truncate_bytes: int | None = None
    """Length of each FITS file; 0 for empty ones."""
    not_fits: bool = False
    """Whether FITS files contain something else."""
    header_fault: HeaderFault | None = None
    """The wrong value in the FITS header."""
    no_sidecar: bool = False
    """Whether sidecars are never written."""
    late_sidecar_s: float = 0.0
    """Delay of each sidecar after its image."""
    rewrite: Rewrite | None = None
    """How FITS files are written a second time; `None` for once only."""
    rewrite_after_s: float = 1.0
    """Time between the two."""

    def __post_init__(self) -> None:
        if self.no_sidecar and self.late_sidecar_s:
            raise ValueError("sidecars cannot be both missing and late: choose one of the two")
        if self.not_fits and (self.truncate_bytes is not None or self.header_fault):
            raise ValueError("a file that is not FITS cannot be truncated or have a wrong header: choose one")
        if self.truncate_bytes == 0 and self.header_fault:
            raise ValueError("an empty file has no header that could be wrong: choose one of the two")
        if self.only is not None and not self._any:
            raise ValueError("faulty detectors are named, but no fault is chosen: choose one")
        if self.only is not None and (both := self.only & self.drop_detectors):
            raise ValueError(f"detectors {sorted(both)} are both faulty and dropped: choose one of the two")

    @property
    def _any(self) -> bool:
        broken = self.truncate_bytes is not None or self.not_fits or self.header_fault is not None
        return broken or self.no_sidecar or self.late_sidecar_s > 0.0 or self.rewrite is not None

    def affects(self, detector: int) -> bool:
        """Return whether a detector's files have the faults."""
        return self.only is None or detector in self.only

    def files_to_write(self, path: Path, image: bytes, sidecar: bytes, detector: int) -> list[ScheduledFile]:
        """Return the files of one detector in the order of writing; none if it is dropped.

        `path` is that of the FITS file, relative to the raw root. `image` has
        its header fault already: see `with_cards`.
        """
        if detector in self.drop_detectors:
            return []
        beside_image = Path(sidecar_path(str(path)))
        if not self.affects(detector):
            return [ScheduledFile(beside_image, sidecar), ScheduledFile(path, image)]
        faulty_image = NOT_FITS if self.not_fits else image[: self.truncate_bytes]
        files_to_write = [ScheduledFile(path, faulty_image)]
        if not self.no_sidecar:
            files_to_write.append(ScheduledFile(beside_image, sidecar, self.late_sidecar_s))
        if self.rewrite is not None:
            files_to_write.append(ScheduledFile(path, faulty_image, self.rewrite_after_s, self.rewrite))
        # A camera writes the sidecar first: of two files at the same time it goes before the image.
        return sorted(files_to_write, key=lambda each: (each.after_s, each.path.suffix != ".json"))


def with_cards(image: bytes, cards: Mapping[str, Any]) -> bytes:
    """Replace the values of keywords in a primary header; the length stays the same.

    Raises `ValueError` if the header lacks one of the keywords.
    """
    # Cards are replaced in place, so that the offsets of the other HDUs stay valid.
    changed, missing = bytearray(image), set(cards)
    for start in range(0, len(image), _CARD):
        keyword = image[start : start + 8].decode("ascii", "replace").strip()
        if keyword == "END":
            break
        if keyword in missing:
            card = fits.Card(keyword, cards[keyword]).image.encode("ascii")
            changed[start : start + _CARD] = card
            missing.discard(keyword)
    if missing:
        raise ValueError(f"the header has no {', '.join(sorted(missing))}")
    return bytes(changed)
