# SPDX-License-Identifier: BSD-3-Clause
"""Clocks: TAI for messages and the journal, monotonic time for deadlines."""

import datetime
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ppdaemon.timescales import TAI_MINUS_UTC_S

__all__ = ("Clock", "TAI_MINUS_UTC_S", "day_obs", "night_limits", "tai_iso")


def _tai() -> float:
    return time.time() + TAI_MINUS_UTC_S


@functools.cache
def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # hidden by a sandbox: then no other process has the same boot
        import secrets  # with OpenSSL

        return secrets.token_hex(16)


@dataclass(frozen=True, slots=True)
class Clock:
    """The two clocks of a process; tests pass their own functions."""

    mono: Callable[[], float] = field(default=time.monotonic)
    """Returns monotonic seconds, for deadlines."""
    tai: Callable[[], float] = field(default=_tai)
    """Returns TAI seconds since 1970, for messages, journal and logs."""
    boot: Callable[[], str] = field(default=_boot)
    """Returns the boot of the host since which `mono` counts: times of one boot can be compared."""


def tai_iso(tai_s: float) -> str:
    """Return TAI seconds since 1970 as text, such as ``2026-11-22T03:25:16.951``.

    Parameters
    ----------
    tai_s : `float`
        TAI seconds since 1970-01-01T00:00:00 TAI.

    Returns
    -------
    iso : `str`
        ISO 8601 in TAI, to a millisecond, without time zone.
    """
    instant = datetime.datetime.fromtimestamp(tai_s, tz=datetime.UTC).replace(tzinfo=None)
    return instant.isoformat(timespec="milliseconds")


def day_obs(tai_s: float) -> int:
    """Return the observing day of an instant: the TAI date minus 12 h.

    Parameters
    ----------
    tai_s : `float`
        TAI seconds since 1970.

    Returns
    -------
    day_obs : `int`
        ``YYYYMMDD``.
    """
    instant = datetime.datetime.fromtimestamp(tai_s - 43200.0, tz=datetime.UTC)
    return instant.year * 10000 + instant.month * 100 + instant.day


def night_limits(day: int) -> tuple[float, float]:
    """Return the beginning and the end of an observing day, which are at 12 h TAI.

    Parameters
    ----------
    day : `int`
        ``YYYYMMDD``.

    Returns
    -------
    begin_tai, end_tai : `float`
        TAI seconds since 1970.

    Raises
    ------
    ValueError
        Raised if there is no such day.
    """
    noon = datetime.datetime.strptime(f"{day:08}", "%Y%m%d").replace(hour=12, tzinfo=datetime.UTC)
    return noon.timestamp(), noon.timestamp() + 86400.0
