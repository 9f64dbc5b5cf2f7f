# SPDX-License-Identifier: BSD-3-Clause
"""What goes wrong with a simulated camera's files on purpose. Pure.

Covers contents that are not right, files that are missing, late, or come
twice. When a visit is announced, cancelled and exposed is
`ppdaemon.demo.telescope`'s, how a file is written `ppdaemon.demo.delivery`'s.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from astropy.io import fits

from ppdaemon.raws.path import sidecar_path

__all__ = ("NOT_FITS", "WRONG_GROUP", "Again", "Faults", "Landing", "Misprint", "with_cards")

WRONG_GROUP = "2001-01-01T00:00:00.000"
"""What a misprinted header says: no visit of today's."""
NOT_FITS = b"This is no image, it is a letter to whoever opens it.\n" * 100
"""What a file that is not FITS has in it."""
_CARD = 80


class Misprint(enum.StrEnum):
    """What a FITS header, but not its sidecar, says wrongly."""

    DETECTOR = "detector"
    """It is another detector's."""
    GROUP = "group"
    """It is another group's."""


class Again(enum.StrEnum):
    """How a file comes a second time."""

    REPLACE = "replace"
    """The same is renamed over it."""
    OVERWRITE = "overwrite"
    """It is opened and written once more."""


@dataclass(frozen=True)
class Landing:
    """A file that is to land."""

    path: Path
    """Relative to the raw root."""
    content: bytes
    after_s: float = 0.0
    """Seconds after the first of its exposure."""
    again: Again | None = None
    """How, if it is there already."""


@dataclass(frozen=True)
class Faults:
    """What goes wrong.

    Raises
    ------
    ValueError
        Raised where two of them contradict.
    """

    drop_detectors: frozenset[int] = frozenset()
    """Detectors whose files never come."""
    only: frozenset[int] | None = None
    """The detectors that all of the following happens to; `None` for all."""
    truncate_bytes: int | None = None
    """FITS files end after this many bytes; 0 for empty ones."""
    not_fits: bool = False
    """Files named as FITS are something else."""
    misprint: Misprint | None = None
    """What is wrong in the FITS header."""
    no_sidecar: bool = False
    """Sidecars never come."""
    late_sidecar_s: float = 0.0
    """Sidecars come so long after their images."""
    again: Again | None = None
    """FITS files come twice."""
    again_after_s: float = 1.0
    """How long after the first time."""

    def __post_init__(self) -> None:
        if self.no_sidecar and self.late_sidecar_s:
            raise ValueError("sidecars cannot both be missing and come late")
        if self.not_fits and (self.truncate_bytes is not None or self.misprint):
            raise ValueError("what is not FITS has no header to be wrong and no end to be cut off")
        if self.truncate_bytes == 0 and self.misprint:
            raise ValueError("an empty file has no header to be wrong")
        if self.only is not None and not self._any:
            raise ValueError("some detectors are to be faulty, but no fault is chosen")
        if self.only is not None and (both := self.only & self.drop_detectors):
            raise ValueError(f"detectors {sorted(both)} are both faulty and dropped: they never come")

    @property
    def _any(self) -> bool:
        broken = self.truncate_bytes is not None or self.not_fits or self.misprint is not None
        return broken or self.no_sidecar or self.late_sidecar_s > 0.0 or self.again is not None

    def strikes(self, detector: int) -> bool:
        """Tell whether a detector's files are faulty."""
        return self.only is None or detector in self.only

    def landings(self, path: Path, image: bytes, sidecar: bytes, detector: int) -> list[Landing]:
        """Return what lands of a detector, in order.

        Parameters
        ----------
        path : `pathlib.Path`
            The FITS file, relative to the raw root.
        image, sidecar : `bytes`
            Contents as they should be; `misprint` has been seen to.
        detector : `int`
            Detector number.

        Returns
        -------
        landings : `list` [`Landing`]
            Empty if the detector is dropped.
        """
        if detector in self.drop_detectors:
            return []
        beside = Path(sidecar_path(str(path)))
        if not self.strikes(detector):
            return [Landing(beside, sidecar), Landing(path, image)]
        spoilt = NOT_FITS if self.not_fits else image[: self.truncate_bytes]
        landings = [Landing(path, spoilt)]
        if not self.no_sidecar:
            landings.append(Landing(beside, sidecar, self.late_sidecar_s))
        if self.again is not None:
            landings.append(Landing(path, spoilt, self.again_after_s, self.again))
        # Of what lands at the same time the sidecar is first, as its name is before.
        return sorted(landings, key=lambda each: (each.after_s, each.path.suffix != ".json"))


def with_cards(image: bytes, cards: Mapping[str, Any]) -> bytes:
    """Change what a primary header says.

    Parameters
    ----------
    image : `bytes`
        A FITS file.
    cards : `~collections.abc.Mapping`
        New values of keywords that it has.

    Returns
    -------
    changed : `bytes`
        The same with other cards; as long as before.

    Raises
    ------
    ValueError
        Raised if the header has no such keyword.
    """
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
