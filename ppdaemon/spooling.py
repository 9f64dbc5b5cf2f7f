# SPDX-License-Identifier: BSD-3-Clause
"""Which disk has outputs until they are exported: the RAM disk first, then a folder on a disk. Pure.

If both are full, the images of the oldest outputs on the disk are given up, and nothing else.
"""

from dataclasses import dataclass

__all__ = ("SpoolDisk", "goes_to_ramdisk")

STUCK_S = 60.0
"""Spools that have waited for so long wait for a central repo that is away. What a power failure must not
delete goes to the disk then."""


@dataclass(frozen=True, slots=True)
class SpoolDisk:
    """What waits for export on one disk."""

    used_bytes: int
    max_bytes: int | None
    """`None`: no limit but that of the disk."""
    oldest_s: float = 0.0
    """For how long the oldest spool has waited."""

    @property
    def has_room(self) -> bool:
        """Whether less waits here than may."""
        return self.max_bytes is None or self.used_bytes < self.max_bytes

    @property
    def excess_bytes(self) -> int:
        """By how much more waits here than may."""
        return 0 if self.max_bytes is None else max(0, self.used_bytes - self.max_bytes)


def goes_to_ramdisk(ramdisk: SpoolDisk, spill: SpoolDisk) -> bool:
    """Return whether the next outputs go to the RAM disk: while exports succeed, or if the disk is full."""
    return ramdisk.has_room and (ramdisk.oldest_s <= STUCK_S or not spill.has_room)
