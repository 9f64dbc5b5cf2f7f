# SPDX-License-Identifier: BSD-3-Clause
"""Watches the images that wait for packers: whether workers may spool more of them uncompressed."""

import logging
from dataclasses import dataclass, field

from ppdaemon.config import ExportConfig
from ppdaemon.folders import NodeFolders
from ppdaemon.reports import UncompressedReport
from ppdaemon.spooling import SpoolDisk
from ppdaemon.terminal import number_of, size
from ppdaemon.uncompressed import UncompressedRoom, cores_are_busy

__all__ = ("UncompressedWatch",)

_LOG = logging.getLogger(__name__)

CALM_S = 60.0
"""Workers compress by themselves until there has been room for each image for so long."""


@dataclass(slots=True)
class UncompressedWatch:
    """Closes the room for uncompressed images where they could cost others, and logs when it is used up."""

    folders: NodeFolders
    report: UncompressedReport = field(init=False, default=UncompressedReport())
    _declining_until: float | None = field(init=False, default=None)
    """`None`: there is room; monotonic seconds."""

    def update(self, config: ExportConfig, spill: SpoolDisk, now: float) -> None:
        """Look at the room, given what waits on the disk; `now` in monotonic seconds. Reads the RAM disk;
        while that fails, the last report stays.
        """
        room = UncompressedRoom.of(self.folders.uncompressed, self.folders.spool, config)
        # Each image that waits there may make the oldest ones lose theirs.
        full = spill.max_bytes is not None and spill.used_bytes > spill.max_bytes // 2
        try:
            (room.close if full else room.open)()
            used, declined, cores_busy = room.used(), room.declined(), cores_are_busy()
        except OSError:  # no descriptor is free, for instance: the next call looks again
            return
        new, was_declining = declined - self.report.declined, self._declining_until is not None
        if new:
            self._declining_until = now + CALM_S
        elif self._declining_until is not None and now > self._declining_until:
            self._declining_until = None
        self.report = UncompressedReport(
            images=used.images,
            mb=used.size_bytes / 1e6,
            max_mb=room.max_bytes / 1e6 if room.max_images else 0.0,
            declined=declined,
            declining=self._declining_until is not None,
        )
        if self.report.declining and not was_declining:
            if full:
                why = "half of export.spill_max waits for export"
            elif cores_busy:
                why = "all cores are busy"
            else:
                why = "packers do not keep up, more export.packers help while cores are idle"
            _LOG.info(
                "workers compress images by themselves, and are free later: %s; %s (%s) wait uncompressed",
                why,
                number_of(used.images, "image"),
                size(used.size_bytes),
            )
        elif was_declining and not self.report.declining:
            _LOG.info("workers spool images uncompressed again; %d wait for packers", used.images)
