# SPDX-License-Identifier: BSD-3-Clause
"""Room for the images of a host that are spooled uncompressed, until a packer has compressed them.

Covers how many there may be, and who may write one more. Workers, packers and the supervisor share a folder
on the RAM disk: an image there is an empty file of its size, which takes no memory. Nobody is asked, and
nobody waits.
"""

import os
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ppdaemon.config import ExportConfig

__all__ = ("Uncompressed", "UncompressedRoom", "cores_are_busy")

IMAGES_PER_PACKER = 32
"""Images that may wait for each packer: small ones are packed in some 20 ms each."""
_CLOSED = "closed"
"""File in the folder while nothing may be written uncompressed."""
_DECLINED = "declined"
"""File in the folder with one byte for each image for which there was no room."""


def cores_are_busy() -> bool:
    """Return whether in the last minute as many processes wanted to run as there are cores: a packer, which
    reads each image again, would then take more from tasks than a worker that compresses.
    """
    return os.getloadavg()[0] >= (os.cpu_count() or 1)


@dataclass(frozen=True, slots=True)
class Uncompressed:
    """What waits uncompressed."""

    images: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class UncompressedRoom:
    """Room for uncompressed images; `spool` is the folder on a disk that they go to."""

    folder: Path
    spool: Path
    max_images: int
    max_bytes: int

    @classmethod
    def of(cls, folder: Path, spool: Path, config: ExportConfig) -> "UncompressedRoom":
        """Return the room of a node."""
        return cls(folder, spool, IMAGES_PER_PACKER * config.packers, config.uncompressed_bytes)

    def take(self, spool: str, name: str, size_bytes: int) -> bool:
        """Take room for an image of a spool of this name, until `give_back`; return `False` if there is none.

        `name` is unique. Processes that call this at the same moment may all get `False` for the last room,
        but never take more than there is.
        """
        if not self.max_images or not self.max_bytes:
            return False
        try:
            if not (self.folder / _CLOSED).exists() and not cores_are_busy():
                self.note(spool, name, size_bytes)
                if self._has_room():  # this one included
                    return True
                self._path(spool, name).unlink()
            with (self.folder / _DECLINED).open("ab") as file:
                file.write(b".")
        except OSError:  # the RAM disk is full: compressed, an image needs less
            with suppress(OSError):
                self._path(spool, name).unlink()
        return False

    def note(self, spool: str, name: str, size_bytes: int) -> None:
        """Count an image that waits: after a restart the folder is empty."""
        # "wb" would give back the room of one that is counted already, for a moment.
        with self._path(spool, name).open("ab") as file:
            file.truncate(size_bytes)

    def _path(self, spool: str, name: str) -> Path:
        return self.folder / f"{spool}~{name}"

    def _has_room(self) -> bool:
        used, disk = self.used(), os.statvfs(self.spool)
        # The rest is for all other outputs, and for what packers write beside these.
        max_bytes = min(self.max_bytes, disk.f_bavail * disk.f_frsize // 2)
        return used.images <= self.max_images and used.size_bytes <= max_bytes

    def used(self) -> Uncompressed:
        """Return what waits, or is being written."""
        sizes = [size for _, size, _ in self._taken()]
        return Uncompressed(len(sizes), sum(sizes))

    def declined(self) -> int:
        """Return for how many images there was no room, since the start of the daemon."""
        with suppress(FileNotFoundError):
            return (self.folder / _DECLINED).stat().st_size
        return 0

    def give_back(self, spool: str) -> None:
        """Give back the room of all images of a spool; where that fails, it is stale later."""
        with suppress(OSError):
            for path, _, _ in self._taken():
                if path.name.rpartition("~")[0] == spool:
                    path.unlink(missing_ok=True)

    def give_back_stale(self, spools: Collection[str], visit_s: float) -> None:
        """Give back the room of images that are in none of these spools, and older than any visit-detector
        that is processed: its worker has died, or the image was registered uncompressed.
        """
        now = time.time()
        with suppress(OSError):
            for path, _, since in self._taken():
                if path.name.rpartition("~")[0] not in spools and now - since > visit_s:
                    path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let nobody take room, until `open`."""
        with suppress(OSError):  # the RAM disk is full: nobody can
            (self.folder / _CLOSED).touch()

    def open(self) -> None:
        """Let processes take room again."""
        (self.folder / _CLOSED).unlink(missing_ok=True)

    def _taken(self) -> Iterator[tuple[Path, int, float]]:
        """Yield path, size and time of each image."""
        with suppress(FileNotFoundError), os.scandir(self.folder) as entries:
            for entry in entries:
                if entry.name not in (_CLOSED, _DECLINED):
                    with suppress(FileNotFoundError):  # given back meanwhile
                        facts = entry.stat()
                        yield Path(entry.path), facts.st_size, facts.st_mtime
