# SPDX-License-Identifier: BSD-3-Clause
"""Read a night from journals of nodes, beside the daemons or without them."""

import os
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from ppdaemon import journalfile
from ppdaemon.clock import Clock, day_obs, night_limits
from ppdaemon.errors import StateUnusable, Unavailable, Unreadable
from ppdaemon.night.report import NightReport
from ppdaemon.night.totals import NightTotals
from ppdaemon.reports import JOURNAL_NAME, LateRequest
from ppdaemon.retries import HANDED_BACK, WITHDRAWN
from ppdaemon.sqlitereader import reading
from ppdaemon.states import Outcome

__all__ = ("copy_night", "is_journal", "journals_at", "last_rows", "names_of", "newest_night", "read_night")

LONGEST_S = 120.0
"""200,000 visit-detectors take some seconds; a busy host needs longer."""


def journals_at(paths: Iterable[Path]) -> list[Path]:
    """Return the journals that paths name: files, state folders, or folders of copies.

    Raises `~ppdaemon.errors.Unavailable` if a folder has none.
    """
    found: list[Path] = []
    for path in paths:
        inside = path / JOURNAL_NAME
        if not path.is_dir():
            found.append(path)
        elif _exists(inside):  # alone: beside it may be one that was corrupt
            found.append(inside)
        elif copies := sorted(path.glob("*.sqlite")):
            found += copies
        else:
            raise Unavailable(f"{path} has no journal")
    return list(dict.fromkeys(found))


def is_journal(path: Path) -> bool:
    """Return whether a path is that of a journal, or of a folder with some."""
    inside = path.is_dir() and (_exists(path / JOURNAL_NAME) or any(path.glob("*.sqlite")))
    return path.suffix == ".sqlite" or inside


def _exists(path: Path) -> bool:
    """Return whether there is a file; raises `~ppdaemon.errors.Unreadable` if that is not to be seen."""
    try:
        return path.exists()
    except PermissionError:
        raise Unreadable(f"{path.parent}: permission denied; its group may read it") from None


def newest_night(paths: Sequence[Path], clock: Clock) -> int:
    """Return the day_obs of the newest visit in journals."""
    with ExitStack() as opened:
        return _newest([opened.enter_context(reading(path)) for path in paths], clock)


def last_rows(paths: Sequence[Path], day: int) -> Iterator[journalfile.NightRow]:
    """Yield the last attempt of all nodes at each visit-detector of a night.

    Raises `~ppdaemon.errors.Unavailable` if some nodes ran in shadow mode and others did not.
    """
    with ExitStack() as opened:
        dbs = [opened.enter_context(reading(path, longest_s=LONGEST_S)) for path in paths]
        _is_shadow(dbs)
        yield from (
            row for _, row in _last_of_all(dict(zip(names_of(paths), dbs, strict=True)), night_limits(day))
        )


def names_of(paths: Sequence[Path]) -> list[str]:
    """Return the names of the nodes of journals; the whole paths if two names are the same."""
    names = [path.absolute().parent.name if path.name == JOURNAL_NAME else path.stem for path in paths]
    return names if len(set(names)) == len(names) else list(map(str, paths))


def read_night(paths: Sequence[Path], day: int | None, clock: Clock) -> NightReport:
    """Return the report of a night; without its day_obs, that of the newest visit.

    Raises `~ppdaemon.errors.Unavailable` if a journal cannot be read.
    """
    with ExitStack() as opened:
        dbs = [opened.enter_context(reading(path, longest_s=LONGEST_S)) for path in paths]
        day = day or _newest(dbs, clock)
        shadow = _is_shadow(dbs)
        limits = night_limits(day)
        totals = NightTotals()
        if len(dbs) == 1:
            for row in journalfile.last_attempts(dbs[0], *limits):
                totals.add_last(row)
        else:
            for name, row in _last_of_all(dict(zip(names_of(paths), dbs, strict=True)), limits):
                totals.add_last(row, name)
        late = LateRequest(since_tai=limits[0], until_tai=limits[1])
        return NightReport(
            day_obs=day,
            late_raws=sum(journalfile.count_late_raws(db, late) for db in dbs),
            recycled=_sum(journalfile.recycled(db, day) for db in dbs),
            shadow=shadow,
            **totals.fields(),
        )


def copy_night(path: Path, day: int | None, clock: Clock, target: Path) -> int:
    """Write a night of a journal to a file, replacing an old one, for `read_night`; return its day_obs.

    Raises `~ppdaemon.errors.Unavailable` if the journal cannot be read, and
    `~ppdaemon.errors.StateUnusable` if the file cannot be written, or is the journal itself.
    """
    if target.exists() and target.samefile(path):
        raise StateUnusable(f"{target} is the journal itself: its other nights would be lost")
    part = target.with_name(f"{target.name}.part")
    with reading(path, longest_s=LONGEST_S) as db:
        day = day or _newest([db], clock)
        try:
            part.unlink(missing_ok=True)
            journalfile.copy_night(db, part, day, *night_limits(day))
            os.replace(part, target)
        except OSError as error:
            raise StateUnusable(f"{target}: {error.strerror}") from None
        except sqlite3.Error as error:
            raise StateUnusable(f"{target} cannot be written: {error}") from None
        finally:
            part.unlink(missing_ok=True)
    return day


def _is_shadow(dbs: Iterable[sqlite3.Connection]) -> bool:
    """Return whether the nodes ran in shadow mode; raise `~ppdaemon.errors.Unavailable` if only some did."""
    modes = {journalfile.is_shadow(db) for db in dbs}
    if len(modes) > 1:
        raise Unavailable("some of these journals are of shadow mode: report them apart, or ppctl compare")
    return modes == {True}


def _newest(dbs: Iterable[sqlite3.Connection], clock: Clock) -> int:
    times = [tai for tai in map(journalfile.newest_tai, dbs) if tai is not None]
    return day_obs(max(times, default=clock.tai()))


def _last_of_all(
    dbs: dict[str, sqlite3.Connection], limits: tuple[float, float]
) -> Iterator[tuple[str, journalfile.NightRow]]:
    """Yield the last attempt of all nodes at each visit-detector, and its node: the relay gives some to
    another node.

    Reads each journal twice: the rows of a long night do not fit into memory, their keys do.
    """
    best: dict[tuple[str, str, int], tuple[bool, bool, int, str]] = {}
    for name, row in _rows(dbs, limits):
        # What succeeded is in the central repo, also if the relay has sent it to another node meanwhile.
        # Without a relay, a later attempt may be the one that does not count.
        counts = not row.reason.startswith((HANDED_BACK, WITHDRAWN))
        rank = row.outcome == Outcome.SUCCEEDED, counts, row.attempt, name
        key = row.instrument, row.group, row.detector
        best[key] = max(best.get(key, rank), rank)
    for name, row in _rows(dbs, limits):
        if best[row.instrument, row.group, row.detector][-1] == name:
            yield name, row


def _rows(
    dbs: dict[str, sqlite3.Connection], limits: tuple[float, float]
) -> Iterator[tuple[str, journalfile.NightRow]]:
    for name, db in dbs.items():
        for row in journalfile.last_attempts(db, *limits):
            yield name, row


def _sum(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return dict(sorted(total.items()))
