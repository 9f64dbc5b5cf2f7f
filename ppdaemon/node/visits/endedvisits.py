# SPDX-License-Identifier: BSD-3-Clause
"""The latest outcomes of a node, for its hello: the ledger of the relay may be an older copy. Pure code."""

import json
from collections import OrderedDict, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from ppdaemon.messages import EndedDetectors, ResultEntry
from ppdaemon.node.visits.model import VisitKey
from ppdaemon.states import Outcome

__all__ = ("EndedVisits",)

MAX_VISITS = 500
"""Five hours of visits."""
MAX_BYTES = 600_000
"""With what it holds, a hello stays below the 1 MB that a relay accepts: 500 visits of 205 detectors are some
500 kB, more with long names or many attempts; then the oldest are left out."""
ENTRY_BYTES, DETECTOR_BYTES = 140, 4
"""Of one `~ppdaemon.messages.EndedDetectors` as JSON without its names, and of each detector in it."""


@dataclass(eq=False)
class EndedVisits:
    """Visit-detectors whose outcome is in the journal, and which another node must not process."""

    remember_s: float
    """A visit that ended longer ago is forgotten: a relay refuses its announcement as too old."""
    _visits: OrderedDict[VisitKey, tuple[float, dict[int, tuple[int, int | None, Outcome, bool]]]] = field(
        default_factory=OrderedDict
    )
    """By visit: when a detector ended last, monotonic seconds; by detector, the relay's number of the
    attempt, the node's if it differs, its outcome, and whether the relay has confirmed it."""

    def add(self, entries: Iterable[ResultEntry], now: float, *, reported: bool = False) -> None:
        """Add outcomes; what was returned to the relay is none."""
        for entry in entries:
            if not entry.returned:
                key = entry.instrument, entry.group
                _, detectors = self._visits.get(key, (now, {}))
                asked = entry.attempt if entry.asked is None else entry.asked
                last = entry.attempt if entry.attempt != asked else None
                detectors[entry.detector] = asked, last, entry.outcome, reported
                self._visits[key] = now, detectors
                self._visits.move_to_end(key)
        while self._visits and (
            len(self._visits) > MAX_VISITS or now - next(iter(self._visits.values()))[0] > self.remember_s
        ):
            self._visits.popitem(last=False)

    def confirm(
        self, keys: Iterable[tuple[str, str, int, int]], moved: Iterable[tuple[str, str, int, int]]
    ) -> None:
        """Record that the relay has these outcomes; forget those that do not count."""
        for instrument, group, detector, _ in keys:
            _, detectors = self._visits.get((instrument, group), (0.0, {}))
            if detector in detectors:
                detectors[detector] = *detectors[detector][:3], True
        for instrument, group, detector, _ in moved:
            self._visits.get((instrument, group), (0.0, {}))[1].pop(detector, None)

    def listed(self) -> tuple[EndedDetectors, ...]:
        """Return the newest, for the relay: as many as fit into its message."""
        found: dict[tuple[str, str, int, int | None, Outcome, bool], list[int]] = defaultdict(list)
        size = 0
        for (instrument, group), (_, detectors) in reversed(self._visits.items()):
            entries = len(set(detectors.values()))
            names = len(json.dumps(instrument + group))
            size += entries * (ENTRY_BYTES + names) + DETECTOR_BYTES * len(detectors)
            if size > MAX_BYTES:
                break
            for detector, ended in detectors.items():
                found[instrument, group, *ended].append(detector)
        return tuple(
            EndedDetectors(
                instrument=instrument,
                group=group,
                attempt=attempt,
                last=last,
                detectors=tuple(detectors),
                outcome=outcome,
                reported=reported,
            )
            for (instrument, group, attempt, last, outcome, reported), detectors in found.items()
        )
