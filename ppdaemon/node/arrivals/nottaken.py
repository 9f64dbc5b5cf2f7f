# SPDX-License-Identifier: BSD-3-Clause
"""Names the files in expected folders that were not taken for a visit, and why. Pure."""

import os
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ("FileNotTaken", "describe")

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


def describe(files: Iterable[FileNotTaken]) -> str:
    """Return the begin of a list of files by folder, with the number of the others; empty without files."""
    # The files of the detector first: they are the most likely to be its raw.
    ordered = sorted(files, key=lambda file: (file.group is not None, file.detector is None, file.path))
    folders: dict[str, list[str]] = {}
    named = chars = 0
    for file in ordered[:MAX_NAMED]:
        folder, name = os.path.split(file.path)
        text = f"{_printable(name, MAX_NAME_CHARS)} ({_escaped(file.reason)[:MAX_WHY_CHARS]})"
        chars += len(text) + (0 if folder in folders else min(len(folder), MAX_FOLDER_CHARS))
        if named and chars > MAX_CHARS:
            break
        folders.setdefault(folder, []).append(text)
        named += 1
    if not named:
        return ""
    count = f"{len(ordered)} {'file' if len(ordered) == 1 else 'files'} not taken"
    listed = "; ".join(
        f"in {_printable(folder, MAX_FOLDER_CHARS)}: {', '.join(texts)}" for folder, texts in folders.items()
    )
    rest = f" and {len(ordered) - named} more" if len(ordered) > named else ""
    return f"{count}, {listed}{rest}"


def _escaped(text: str) -> str:
    # It may contain a part of a file's name, of which not all bytes are text.
    return text if text.isprintable() else repr(text)[1:-1]


def _printable(text: str, most: int) -> str:
    shown = text if text.isprintable() else repr(text)
    return shown if len(shown) <= most else f"...{shown[-most:]}"
