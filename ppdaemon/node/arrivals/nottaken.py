# SPDX-License-Identifier: BSD-3-Clause
"""Names the files in expected folders that were not taken for a visit, and why. Pure."""

import itertools
import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ("FileNotTaken", "FilesNotTaken")

MAX_NAMED = 5
"""Files that a reason names."""
MAX_CHARS = 380
"""A reason is cut at 500 characters; with the number of the other files it must not be."""
MAX_NAME_CHARS = 80
"""Names of LSST raws have 35 characters."""
MAX_FOLDER_CHARS = 160
"""Of longer ones the end is shown, which has the exposure."""
MAX_WHY_CHARS = 100
"""A reason may contain a path or an error text."""


@dataclass(frozen=True, slots=True)
class FileNotTaken:
    """A file that a final rescan found in an expected folder, and that is not used for the visit."""

    path: str
    reason: str
    detector: int | None = None
    """`None` if its name does not contain one."""
    group: str | None = None
    """The group that it has instead of the visit's; `None` if that is not the reason."""


class FilesNotTaken:
    """Files of one visit, grouped once for all its detectors: 200 of them, and some 6000 files."""

    def __init__(self, files: Iterable[FileNotTaken]):
        self._by_detector: defaultdict[int | None, list[FileNotTaken]] = defaultdict(list)
        for file in sorted(files, key=_order):
            self._by_detector[file.detector].append(file)

    def of(self, detector: int) -> tuple[int, str]:
        """Return the number of the files that may be of a detector, and a text that names some of them."""
        files, common = self._by_detector.get(detector, ()), self._by_detector.get(None, ())
        number = len(files) + len(common)
        return number, _describe(sorted([*files[:MAX_NAMED], *common[:MAX_NAMED]], key=_order), number)


def _order(file: FileNotTaken) -> tuple[bool, bool, str]:
    # The files of the detector first: they are the most likely to be its raw.
    return file.group is not None, file.detector is None, file.path


def _describe(ordered: Iterable[FileNotTaken], number: int) -> str:
    """Return the first of a number of files by folder, with the number of the others; empty without files."""
    folders: dict[str, list[str]] = {}
    named = chars = 0
    for file in itertools.islice(ordered, MAX_NAMED):
        folder, name = os.path.split(file.path)
        text = f"{_printable(name, MAX_NAME_CHARS)} ({file.reason[:MAX_WHY_CHARS]})"
        chars += len(text) + (0 if folder in folders else min(len(folder), MAX_FOLDER_CHARS))
        if named and chars > MAX_CHARS:
            break
        folders.setdefault(folder, []).append(text)
        named += 1
    if not named:
        return ""
    count = f"{number} {'file' if number == 1 else 'files'} not taken"
    listed = "; ".join(
        f"in {_printable(folder, MAX_FOLDER_CHARS)}: {', '.join(texts)}" for folder, texts in folders.items()
    )
    rest = f" and {number - named} more" if number > named else ""
    return f"{count}, {listed}{rest}"


def _printable(text: str, most: int) -> str:
    shown = text if text.isprintable() else repr(text)
    return shown if len(shown) <= most else f"...{shown[-most:]}"
