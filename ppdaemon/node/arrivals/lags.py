# SPDX-License-Identifier: BSD-3-Clause
"""How soon each source tells of raws. Pure."""

from collections import Counter, defaultdict, deque
from dataclasses import dataclass

__all__ = ("Lags", "SourceFigures")

LATELY = 1000
"""Raws of a source that its lag is said of: five exposures of 205 detectors."""


@dataclass(frozen=True, slots=True)
class SourceFigures:
    """What a source has done."""

    files: int
    """Raws first seen through it."""
    lag_p50_ms: float | None
    """From the file's last change to the sighting, of those of lately; `None`
    if there are none."""
    lag_p99_ms: float | None


class Lags:
    """Counts raws by the source that saw them first."""

    def __init__(self) -> None:
        self._files: Counter[str] = Counter()
        self._lags: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=LATELY))

    def sighted(self, source: str) -> None:
        """Count a raw that a source saw first."""
        self._files[source] += 1

    def took(self, source: str, lag_s: float) -> None:
        """Note how soon a source told of a raw.

        Parameters
        ----------
        source : `str`
            Its name.
        lag_s : `float`
            Seconds.
        """
        self._lags[source].append(lag_s)

    def of(self, source: str) -> SourceFigures:
        """Return what a source has done.

        Parameters
        ----------
        source : `str`
            Its name.

        Returns
        -------
        figures : `SourceFigures`
            Until now.
        """
        lags = sorted(self._lags.get(source, ()))
        return SourceFigures(self._files[source], _quantile_ms(lags, 0.5), _quantile_ms(lags, 0.99))


def _quantile_ms(sorted_s: list[float], fraction: float) -> float | None:
    if not sorted_s:
        return None
    return 1000.0 * sorted_s[min(len(sorted_s) - 1, int(fraction * len(sorted_s)))]
