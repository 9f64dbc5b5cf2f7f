# SPDX-License-Identifier: BSD-3-Clause
"""Lists of detectors as people write them, such as ``0-8,12``."""

import re
from collections.abc import Iterable

__all__ = ("parse_detector_list", "ranges", "unique")


def parse_detector_list(text: str) -> tuple[int, ...]:
    """Return the detector ids of a text such as ``0-8,12``, in the order written.

    Raises `ValueError` if the text is not such a list; the error shows an example.
    """
    ids: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", part)
        if match is None:
            raise ValueError(f"{text!r} is not a list of detectors; write for instance 0-8,12")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last - first > 10_000:
            raise ValueError(f"{part.strip()!r} is not a range of detectors")
        ids.extend(range(first, last + 1))
    return unique(tuple(ids))


def unique(ids: tuple[int, ...]) -> tuple[int, ...]:
    """Return detector ids; raise `ValueError` if one is listed twice."""
    if len(set(ids)) != len(ids):
        raise ValueError("a detector is listed twice")
    return ids


def ranges(numbers: Iterable[int]) -> str:
    """Format numbers as `parse_detector_list` reads them, such as ``0-8,12``."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ",".join("-".join(map(str, run)) for run in runs)
