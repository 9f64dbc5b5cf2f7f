# SPDX-License-Identifier: BSD-3-Clause
"""Types of configuration values with their own notation, such as ``8GB`` and ``0-8,12``."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from ppdaemon.thishost import host_context

__all__ = (
    "Address",
    "Detectors",
    "IngestKind",
    "Seconds",
    "Size",
    "VisitGrouping",
    "WritableFolder",
    "parse_detector_list",
)

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(B|kB|MB|GB|TB|KiB|MiB|GiB|TiB)")
_UNITS = {"B": 1} | {
    prefix + unit: base**power
    for unit, base in (("B", 1000), ("iB", 1024))
    for power, prefix in enumerate(("k" if unit == "B" else "K", "M", "G", "T"), 1)
}


def _size(value: Any) -> Any:
    """Convert ``8GB`` or ``8GiB`` to a number of bytes."""
    if isinstance(value, str):
        match = _SIZE.fullmatch(value.strip())
        if match is None:
            raise ValueError(f"{value!r} is not a size; write for instance 8GB (10^9) or 8GiB (2^30)")
        return round(float(match[1]) * _UNITS[match[2]])
    return value


def _detectors(value: Any) -> Any:
    """Convert ``0-8,12``, or a mapping such as ``{0: true, 1-8: false}``, to detector ids."""
    if isinstance(value, int) and not isinstance(value, bool):
        return (value,)
    if isinstance(value, dict):
        switches = [(_detectors(str(key)), switch) for key, switch in value.items()]
        if wrong := [switch for _, switch in switches if switch not in (True, False)]:
            raise ValueError(f"{wrong[0]!r} is not a switch of a detector; write true or false")
        _unique(tuple(number for numbers, _ in switches for number in numbers))
        return tuple(number for numbers, switch in switches if switch for number in numbers)
    if isinstance(value, str):
        ids: list[int] = []
        for part in value.split(","):
            match = re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", part)
            if match is None:
                raise ValueError(f"{value!r} is not a list of detectors; write for instance 0-8,12")
            first, last = int(match[1]), int(match[2] or match[1])
            if last < first or last - first > 10_000:
                raise ValueError(f"{part.strip()!r} is not a range of detectors")
            ids.extend(range(first, last + 1))
        return tuple(ids)
    return value


def _no_switch(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError(f"{value} is not a detector; write for instance 0-8,12, or {{0: true, 1: false}}")
    return value


def _unique(value: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(value)) != len(value):
        raise ValueError("a detector is listed twice")
    return value


def parse_detector_list(text: str) -> tuple[int, ...]:
    """Return the detector ids of a text such as ``0-8,12``, in the order written.

    Raises `ValueError` if the text is not such a list; the error shows an example.
    """
    return _unique(tuple(_detectors(text)))


def _writable(value: Path, info: pydantic.ValidationInfo) -> Path:
    host = host_context(info)
    return value if host is None else host.folder(value)


Size = Annotated[int, pydantic.BeforeValidator(_size), pydantic.Field(ge=0)]
Seconds = Annotated[float, pydantic.Field(gt=0)]
_Detector = Annotated[int, pydantic.BeforeValidator(_no_switch), pydantic.Field(ge=0)]
Detectors = Annotated[
    tuple[_Detector, ...], pydantic.BeforeValidator(_detectors), pydantic.AfterValidator(_unique)
]
VisitGrouping = Literal["one-to-one", "by-group"]
IngestKind = Literal["builtin", "obs_base"]
WritableFolder = Annotated[Path, pydantic.AfterValidator(_writable)]
Address = Annotated[str, pydantic.Field(pattern=r"^(tcp://.+:(\d+|\*)|ipc://.+)$")]
