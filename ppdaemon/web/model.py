# SPDX-License-Identifier: BSD-3-Clause
"""What the live page shows, and what of it has changed. Pure.

Times leave it as UTC in milliseconds since 1970, as browsers count.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ppdaemon.clock import TAI_MINUS_UTC_S
from ppdaemon.reports import StatusReport, VisitChange, VisitRow, WorkerRow
from ppdaemon.states import BAD_OUTCOMES, Outcome, Stage, state_of

__all__ = ("Delta", "LiveModel", "change_of_row")

KEEP_VISITS = 20
"""Visits on the page, some 10 minutes of a survey; the page of a night has all."""
KEEP_FAILURES = 20

type Delta = dict[str, Any]
"""Changed parts of the page as JSON values; a new viewer gets all parts."""

type _VisitKey = tuple[str, str]

_SHOWN = frozenset(
    {
        *("node", "version", "state", "stage", "text", "relay", "relay_connected", "slots", "workers_max"),
        *("capacity", "queued", "open_visits", "outcomes", "late_raws", "spooled", "oldest_spool_s"),
        *("exporter", "journal_backlog", "set_aside"),
    }
)
"""Fields of a `~ppdaemon.reports.StatusReport` that are shown as they are."""


def _utc_ms(tai: float | None) -> int | None:
    return None if tai is None else round((tai - TAI_MINUS_UTC_S) * 1000)


def change_of_row(row: VisitRow) -> VisitChange:
    """Return what a journal's row shows, in the form in which changes are sent."""
    close, processed = row.shutter_close_tai, row.stages.get(Stage.PROCESSED)
    latency_s = None
    if row.outcome == Outcome.SUCCEEDED and close is not None and processed is not None:
        latency_s = processed - close
    reached = row.ended_tai or max(row.stages.values(), default=0.0)
    return VisitChange(
        instrument=row.instrument,
        group=row.group,
        detector=row.detector,
        attempt=row.attempt,
        survey=row.survey,
        received_tai=row.stages.get(Stage.ACCEPTED, reached),
        state=state_of(row.outcome, row.stages, partial=row.partial),
        since_tai=reached,
        reason=row.reason,
        slot=row.slot,
        shutter_close_tai=close,
        latency_s=latency_s,
    )


@dataclass(slots=True)
class _Visit:
    survey: str
    received_tai: float
    close_tai: float | None = None
    cells: dict[int, VisitChange] = field(default_factory=dict)


class LiveModel:
    """The state of a node for the live page.

    Each method that takes news returns what has changed on the page; an empty delta if nothing has.
    """

    def __init__(self) -> None:
        self._status: dict[str, Any] = {}
        self._visits: dict[_VisitKey, _Visit] = {}
        self._failures: dict[tuple[str, str, int], VisitChange] = {}
        self._away: dict[str, Any] | None = None
        self._alert: dict[str, Any] | None = None

    def snapshot(self) -> Delta:
        """Return everything."""
        return {
            "all": True,
            "away": self._away,
            "status": self._status,
            "visits": [self._visit(key, visit, visit.cells) for key, visit in self._visits.items()],
            "failures": self._failure_list(),
            "alert": self._alert,
        }

    def alert(self, facts: Mapping[str, Any]) -> Delta:
        """There are cutouts of another alert."""
        self._alert = dict(facts)
        return {"alert": self._alert}

    def away(self, reason: str, tai: float) -> Delta:
        """The daemon does not answer."""
        since = _utc_ms(tai) if self._away is None else self._away["since"]
        if self._away == {"since": since, "reason": reason}:
            return {}
        self._away = {"since": since, "reason": reason}
        return {"away": self._away}

    def restart(self, rows: Iterable[VisitRow], failed: Iterable[VisitRow]) -> Delta:
        """The daemon answers: replace everything by the newest rows of its journal, the newest first."""
        self._away, self._visits = None, {}
        # Of older visits only the failures are shown.
        found = sorted(map(change_of_row, failed), key=lambda change: change.since_tai)
        self._failures = {(each.instrument, each.group, each.detector): each for each in found}
        self.visits(
            sorted(map(change_of_row, rows), key=lambda change: (change.received_tai, change.attempt))
        )
        return self.snapshot()

    def status(self, report: StatusReport) -> Delta:
        """The daemon has sent its status."""
        shown = report.model_dump(mode="json", include=set(_SHOWN))
        shown["started"] = _utc_ms(report.started_tai)
        shown["memory"] = {
            "supervisor": report.supervisor_mb and round(report.supervisor_mb),
            "ramdisk": report.ramdisk_mb and round(report.ramdisk_mb),
            "ramdisk_size": report.ramdisk_size_mb and round(report.ramdisk_size_mb),
        }
        shown["arrivals"] = [
            {"name": source.name, "live": source.live, "note": source.note} for source in report.arrivals
        ]
        shown["problems"] = [
            {"text": problem.text, "since": _utc_ms(problem.since_tai), "degrades": problem.degrades}
            for problem in report.problems
        ]
        return self._set_status(shown)

    def workers(self, rows: Sequence[WorkerRow]) -> Delta:
        """The daemon has sent its slots."""
        used = [row.memory_mb for row in rows if row.memory_mb is not None]
        return self._set_status(
            {"workers": {"memory": round(sum(used)), "largest": round(max(used, default=0.0))}}
        )

    def _set_status(self, shown: dict[str, Any]) -> Delta:
        changed = {name: value for name, value in shown.items() if self._status.get(name) != value}
        self._status |= changed
        return {"status": changed} if changed else {}

    def visits(self, changes: Iterable[VisitChange]) -> Delta:
        """Visit-detectors have other states in the journal."""
        touched: dict[_VisitKey, dict[int, VisitChange]] = {}
        failures = dict(self._failures)
        for change in changes:
            key, name = (change.instrument, change.group), (change.instrument, change.group, change.detector)
            visit = self._visits.get(key)
            if visit is None:
                visit = self._visits[key] = _Visit(change.survey, change.received_tai)
            visit.received_tai = min(visit.received_tai, change.received_tai)
            visit.close_tai = visit.close_tai or change.shutter_close_tai
            visit.cells[change.detector] = change
            touched.setdefault(key, {})[change.detector] = change
            # The last one first; what another attempt has mended is no failure any more.
            failures.pop(name, None)
            if change.state in BAD_OUTCOMES:
                failures[name] = change
        if not touched:
            return {}
        self._forget_old()
        delta: Delta = {
            "visits": [
                self._visit(key, self._visits[key], cells)
                for key, cells in touched.items()
                if key in self._visits
            ]
        }
        if failures != self._failures:
            self._failures = dict(list(failures.items())[-KEEP_FAILURES:])
            delta["failures"] = self._failure_list()
        return delta

    def _forget_old(self) -> None:
        if len(self._visits) > KEEP_VISITS:
            newest = sorted(self._visits.items(), key=lambda item: item[1].received_tai)[-KEEP_VISITS:]
            self._visits = dict(newest)

    @staticmethod
    def _visit(key: _VisitKey, visit: _Visit, cells: dict[int, VisitChange]) -> dict[str, Any]:
        return {
            "instrument": key[0],
            "group": key[1],
            "survey": visit.survey,
            "received": _utc_ms(visit.received_tai),
            "close": _utc_ms(visit.close_tai),
            # In the order of `CELL` of the script.
            "cells": {
                detector: [
                    change.state,
                    _utc_ms(change.since_tai),
                    None if change.latency_s is None else round(change.latency_s, 1),
                    change.attempt,
                    change.slot,
                    change.reason,
                ]
                for detector, change in cells.items()
            },
        }

    def _failure_list(self) -> list[dict[str, Any]]:
        """The newest first."""
        return [
            {
                "instrument": change.instrument,
                "group": change.group,
                "detector": change.detector,
                "outcome": change.state,
                "reason": change.reason,
                "at": _utc_ms(change.since_tai),
            }
            for change in sorted(self._failures.values(), key=lambda change: -change.since_tai)
        ]
