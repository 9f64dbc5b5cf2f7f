# SPDX-License-Identifier: BSD-3-Clause
"""What the notes of writers and workers say, beside what it should be. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from benching.figures import Goal, Scalar, percentile

__all__ = ("Tally", "figures_of", "goals", "missed_of", "read_notes")

POLL_SLACK_MS = 100


@dataclass(slots=True)
class Tally:
    """What became of the files of one source."""

    files: int = 0
    missed: int = 0
    """Files that no worker was told of in time."""
    twice: int = 0
    """Orders too many."""
    lags_ms: list[float] = field(default_factory=list)
    """From the complete file to the order."""

    def add(self, complete: Mapping[int, float], notes: Iterable[tuple[int, float]]) -> None:
        """Compare what was written of an exposure with what workers noted.

        Parameters
        ----------
        complete : `~collections.abc.Mapping` [`int`, `float`]
            When the file of each detector was complete, monotonic seconds.
        notes : `~collections.abc.Iterable` [`tuple` [`int`, `float`]]
            Detector, and when its worker was told.
        """
        told: dict[int, list[float]] = {}
        for detector, at in notes:
            told.setdefault(detector, []).append(at)
        self.files += len(complete)
        self.missed += len(complete.keys() - told.keys())
        self.twice += sum(len(times) - 1 for times in told.values())
        self.lags_ms += [
            (min(told[detector]) - at) * 1e3 for detector, at in complete.items() if detector in told
        ]

    def with_those_of(self, other: "Tally") -> "Tally":
        """Return both together.

        Parameters
        ----------
        other : `Tally`
            Of other files.

        Returns
        -------
        both : `Tally`
            A new one.
        """
        return Tally(
            self.files + other.files,
            self.missed + other.missed,
            self.twice + other.twice,
            self.lags_ms + other.lags_ms,
        )


def figures_of(source: str, tally: Tally) -> dict[str, Scalar]:
    """Name the figures of one source.

    Parameters
    ----------
    source : `str`
        ``inotify``, whose figures have no prefix, or another one.
    tally : `Tally`
        What became of its files.

    Returns
    -------
    figures : `dict`
        Percentiles are `None` if nothing was found.
    """
    prefix = "" if source == "inotify" else f"{source}_"
    lags = tally.lags_ms
    return {
        f"{prefix}notice_p50_ms": percentile(lags, 50) if lags else None,
        f"{prefix}notice_p99_ms": percentile(lags, 99) if lags else None,
        f"{prefix}notice_worst_ms": max(lags, default=None),
    }


def missed_of(figures: Mapping[str, Scalar]) -> int:
    """Return how many files were not found at all.

    Parameters
    ----------
    figures : `~collections.abc.Mapping`
        What was measured.

    Returns
    -------
    missed : `int`
        In all sections.
    """
    counts = (figures.get(name) for name in ("missed", "races_missed", "storm_missed"))
    return sum(count for count in counts if isinstance(count, int))


def goals(poll_s: float) -> dict[str, Goal]:
    """Return what figures should be, on two cores that do nothing else.

    Parameters
    ----------
    poll_s : `float`
        The period of polling.

    Returns
    -------
    goals : `dict` [`str`, `~benching.figures.Goal`]
        By figure.
    """
    return {
        "missed": Goal(0),
        "twice": Goal(0),
        "notice_p99_ms": Goal(50, "below"),
        "zmq_notice_p99_ms": Goal(50, "below"),
        "poll_notice_p99_ms": Goal(poll_s * 1e3 + POLL_SLACK_MS, "below"),
        "races_missed": Goal(0),
        "races_twice": Goal(0),
        "storm_missed": Goal(0),
        "storm_s": Goal(2),
        "old_tree_start_s": Goal(5),
        "old_tree_mb": Goal(200, "below"),
    }


def read_notes(lines: Iterable[str], exposure: int) -> Sequence[tuple[int, float]]:
    """Read what workers noted of one exposure.

    Parameters
    ----------
    lines : `~collections.abc.Iterable` [`str`]
        As `ppdaemon.testing.work` writes them: group, detector, exposure, bytes,
        monotonic seconds; a last line may be cut off.
    exposure : `int`
        Exposure id.

    Returns
    -------
    notes : `~collections.abc.Sequence` [`tuple` [`int`, `float`]]
        Detector, and when its worker was told.
    """
    words = (line.split() for line in lines if line.endswith("\n"))
    return [(int(detector), float(at)) for _, detector, number, _, at in words if int(number) == exposure]
