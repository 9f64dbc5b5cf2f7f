# SPDX-License-Identifier: BSD-3-Clause
"""Nights of old: many raws that nobody waits for any more, as fast as they can be made."""

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
    """Write files of former exposures, in the layout of LSST cameras.

    Files and folders get old time stamps of content; that of the last change
    of name or mode cannot be set.

    Parameters
    ----------
    root : `pathlib.Path`
        The raw root.
    instrument : `str`
        A camera with a focal-plane table.
    count : `int`
        How many files; each exposure has one per detector, the last fewer.
    newest_tai_s : `float`
        When the newest are from, TAI seconds since 1970; further nights go
        back from there.
    content : `bytes`, optional
        What each of them has.
    exposures_a_day : `int`, optional
        How many fill a day's folder.

    Returns
    -------
    exposures : `int`
        How many folders of exposures were written.
    """
    names = [name for name, _ in detector_names(instrument).values()]
    begun = nights_ago = 0
    while begun * len(names) < count:
        tai_s = newest_tai_s - nights_ago * _DAY_S
        day = root / instrument / str(day_obs(tai_s))
        day.mkdir(parents=True, exist_ok=True)
        stamps = (tai_s - TAI_MINUS_UTC_S,) * 2
        for number in range(1, exposures_a_day + 1):
            wanted = names[: max(count - begun * len(names), 0)]
            if not wanted:
                break
            obs_id = f"{CAMERA_CODES[instrument]}_O_{day.name}_{number:06d}"
            _write_exposure(day / obs_id, [f"{obs_id}_{name}.fits" for name in wanted], content, stamps)
            begun += 1
        os.utime(day, stamps)
        nights_ago += 1
    return begun


def _write_exposure(folder: Path, names: list[str], content: bytes, stamps: tuple[float, float]) -> None:
    folder.mkdir(exist_ok=True)
    for name in names:
        descriptor = os.open(folder / name, os.O_WRONLY | os.O_CREAT, 0o644)
        if content:
            os.write(descriptor, content)
        os.utime(descriptor, stamps)
        os.close(descriptor)
    os.utime(folder, stamps)
