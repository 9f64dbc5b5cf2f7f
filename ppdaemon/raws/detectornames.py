# SPDX-License-Identifier: BSD-3-Clause
"""Names of detectors in file names."""

from collections.abc import Mapping
from typing import Self

from ppdaemon.camera import camera_names, load_camera

__all__ = ("DetectorNames",)

_SINGLE_RAFTS = ("LSST-TS8",)
"""Test stands: detectors are numbered by slot, whichever raft is mounted."""


class DetectorNames:
    """Maps names of detectors in file names to numbers, and back.

    Parameters
    ----------
    numbers : `~collections.abc.Mapping` [`str`, `int`]
        Detector numbers by name; a detector may have several names.
    by_slot : `bool`, optional
        Whether names contain only the slot, such as ``S11``.
    """

    def __init__(self, numbers: Mapping[str, int], *, by_slot: bool = False):
        self._numbers = numbers
        self._by_slot = by_slot
        self._names: dict[int, tuple[str, ...]] = {}
        for name, number in numbers.items():
            self._names[number] = (*self._names.get(number, ()), name)

    @classmethod
    def of(cls, instrument: str) -> Self | None:
        """Return the names of an instrument's detectors; `None` without a focal-plane table."""
        if instrument in _SINGLE_RAFTS:
            return cls({f"S{number // 3}{number % 3}": number for number in range(9)}, by_slot=True)
        if instrument not in camera_names():
            return None
        numbers = {detector.name: detector.id for detector in load_camera(instrument).detectors.values()}
        # A camera with one detector and no raft writes R00 in file names.
        return cls({name.replace("RXX_", "R00_"): number for name, number in numbers.items()} | numbers)

    def number_of(self, name: str) -> int | None:
        """Return the number of a detector such as ``R22_S11``; `None` if there is none."""
        return self._numbers.get(name.rpartition("_")[2] if self._by_slot else name)

    def names_of(self, detector: int) -> tuple[str, ...]:
        """Return the names of a detector in file names; empty if its raft is unknown."""
        return () if self._by_slot else self._names.get(detector, ())
