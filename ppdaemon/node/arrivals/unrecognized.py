# SPDX-License-Identifier: BSD-3-Clause
"""Finds files in folders of raws that are no raws, such as unfinished ones, and why they are none."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ppdaemon.errors import BadMessage
from ppdaemon.node.arrivals.roots import RawPath, RawRoot
from ppdaemon.raws.path import ExpectedRaws, RawFileKind, RawName

__all__ = ("UnrecognizedFile", "UnrecognizedFiles")

MAX_SUFFIXES = 2
"""Suffixes that writers add to a raw until it is complete, such as ``.part`` or ``.aB12cd`` of rsync."""


@dataclass(frozen=True, slots=True)
class UnrecognizedFile:
    """A file in a folder of raws that is none."""

    path: str
    reason: str
    detector: int | None = None
    """`None` if its name does not contain one."""
    image: tuple[RawName, RawPath] | None = None
    """Name and path of an image of the same exposure, which need not exist; `None` if the exposure is
    not known."""


@dataclass(frozen=True, eq=False)
class UnrecognizedFiles:
    """Finds files below one root that may be the raw of an expected detector under another name, or
    have a name that the layout does not have.

    Files of unknown meaning that have not changed since `since_unix` (UTC seconds since 1970) are skipped.
    """

    root: RawRoot
    expected: ExpectedRaws
    since_unix: float

    def in_folder(self, folder: str) -> list[UnrecognizedFile]:
        """Return those in a folder; none if it was removed. Blocks while the filesystem hangs."""
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            return [*self._find(folder, [*entries])]
        return []

    def _find(self, folder: str, entries: Sequence[os.DirEntry[str]]) -> Iterator[UnrecognizedFile]:
        names = {entry.name: self._name(entry.path) for entry in entries}
        known = {file: name for file, name in names.items() if name is not None}
        images = {file: name for file, name in known.items() if name.kind is RawFileKind.IMAGE}
        arrived = {(name.exposure, name.detector) for name in images.values()}
        markers = {self.root.marker(name, f"{folder}/{file}") for file, name in images.items()}
        any_image = None
        if self.root.layout.one_exposure_per_folder:
            any_image = next((self._image(f"{folder}/{file}", name) for file, name in known.items()), None)
        for entry in entries:
            name = names[entry.name]
            if name is not None:
                if (
                    name.kind is RawFileKind.SIDECAR
                    and self.expected.matches(name)
                    and (name.exposure, name.detector) not in arrived
                ):
                    text = "a sidecar without its image"
                    yield UnrecognizedFile(entry.path, text, name.detector, self._image(entry.path, name))
            elif entry.path in markers:
                continue
            elif (unfinished := self._unfinished(entry)) is not None:
                name, image, reason = unfinished
                if name.kind is RawFileKind.IMAGE and self.expected.matches(name):
                    yield UnrecognizedFile(entry.path, reason, name.detector, self._image(image, name))
            elif self._has_changed(entry):
                reason = "a folder" if entry.is_dir(follow_symlinks=False) else "no name of the layout"
                yield UnrecognizedFile(entry.path, reason, image=any_image)

    def _image(self, path: str, name: RawName) -> tuple[RawName, RawPath]:
        image = path if name.kind is RawFileKind.IMAGE else f"{path.removesuffix('.json')}.fits"
        return name, RawPath(self.root.path, image)

    def _unfinished(self, entry: os.DirEntry[str]) -> tuple[RawName, str, str] | None:
        """Return name and path of the raw that a file may become when its writer renames it, and why it is
        none; `None` for other files.
        """
        folder, written = os.path.dirname(entry.path), entry.name.removeprefix(".")
        file = written
        for _ in range(MAX_SUFFIXES + 1):
            for path in (f"{folder}/{file}", f"{folder}/{file}.fits"):
                if (name := self._name(path)) is not None:
                    ending = written[len(file) :]
                    text = f"ends in {ending}" if ending else "has no ending"
                    text = "begins with a dot" if entry.name.startswith(".") else text
                    return name, path, f"not complete, or no raw: its name {text}"
            file = file.rpartition(".")[0]
        return None

    def _name(self, path: str) -> RawName | None:
        try:
            return self.root.layout.parse(self.root.raw_of_marker(path)[len(self.root.path) + 1 :])
        except BadMessage:
            return None

    def _has_changed(self, entry: os.DirEntry[str]) -> bool:
        try:
            status = entry.stat(follow_symlinks=False)
        except OSError:
            return False  # removed meanwhile
        return max(status.st_mtime, status.st_ctime) >= self.since_unix
