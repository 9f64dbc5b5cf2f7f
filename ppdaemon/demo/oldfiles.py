# SPDX-License-Identifier: BSD-3-Clause
"""Write many raws of past nights as fast as possible, to test start and scans."""

import os
from pathlib import Path

from ppdaemon.clock import TAI_MINUS_UTC_S, day_obs
from ppdaemon.demo.plan import CAMERA_CODES
from ppdaemon.demo.raws import detector_names

__all__ = ("write_old_files",)

_DAY_S = 86_400.0


def write_old_files(
    root: Path,
    instrument: str,
    count: int,
    newest_tai_s: float,
    *,
    content: bytes = b"",
    exposures_a_day: int = 1000,
) -> int:
    """Write `count` files of past exposures; return the number of exposure folders.

    The layout is that of the LSST cameras, with one file per detector. The
    newest files are dated `newest_tai_s` (TAI seconds since 1970), the others
    on earlier nights. Files and folders get old modification times; their
    change times cannot be set.
    """
    names = [name for name, _ in detector_names(instrument).values()]
    written = nights_ago = 0
    while written * len(names) < count:
        tai_s = newest_tai_s - nights_ago * _DAY_S
        day = root / instrument / str(day_obs(tai_s))
        day.mkdir(parents=True, exist_ok=True)
        stamps = (tai_s - TAI_MINUS_UTC_S,) * 2
        for number in range(1, exposures_a_day + 1):
            exposure_names = names[: max(count - written * len(names), 0)]
            if not exposure_names:
                break
            obs_id = f"{CAMERA_CODES[instrument]}_O_{day.name}_{number:06d}"
            _write_exposure(
                day / obs_id, [f"{obs_id}_{name}.fits" for name in exposure_names], content, stamps
            )
            written += 1
        os.utime(day, stamps)
        nights_ago += 1
    return written


def _write_exposure(folder: Path, names: list[str], content: bytes, stamps: tuple[float, float]) -> None:
    folder.mkdir(exist_ok=True)
    for name in names:
        descriptor = os.open(folder / name, os.O_WRONLY | os.O_CREAT, 0o644)
        if content:
            os.write(descriptor, content)
        os.utime(descriptor, stamps)
        os.close(descriptor)
    os.utime(folder, stamps)
