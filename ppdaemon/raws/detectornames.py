# SPDX-License-Identifier: BSD-3-Clause
"""What detectors are called in the names of files."""

from collections.abc import Mapping
from typing import Self

from ppdaemon.camera import camera_names, load_camera

__all__ = ("DetectorNames",)

_TABLES_OF = {"LSSTCam-imSim": "LSSTCam"}
"""Instruments whose detectors are called and numbered as another one's."""
_SINGLE_RAFTS = ("LSST-TS8",)
"""Test stands: detectors are numbered by slot, in whatever raft is mounted."""


class DetectorNames:
    """Detectors' numbers by their names in files.

    Parameters
    ----------
    numbers : `~collections.abc.Mapping` [`str`, `int`]
        By name; a detector may have several.
    by_slot : `bool`, optional
        Whether the names are only the slots, such as ``S11``.
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
        table = _TABLES_OF.get(instrument, instrument)
        if table not in camera_names():
            return None
        numbers = {detector.name: detector.id for detector in load_camera(table).detectors.values()}
        # A camera of one detector without a raft says R00 in files.
        return cls({name.replace("RXX_", "R00_"): number for name, number in numbers.items()} | numbers)

    def number_of(self, name: str) -> int | None:
        """Return the number of a detector such as ``R22_S11``; `None` if there is none."""
        return self._numbers.get(name.rpartition("_")[2] if self._by_slot else name)

    def names_of(self, detector: int) -> tuple[str, ...]:
        """Return what a detector is called in files; empty if its raft is not known."""
        return () if self._by_slot else self._names.get(detector, ())
