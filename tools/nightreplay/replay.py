# SPDX-License-Identifier: BSD-3-Clause
"""Announce the visits of a night, follow them to their outcomes, and count."""

import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from benching.cli import progress
from benching.processes import pss_mb
from fanoutbench.observatory import Observatory

from ppdaemon.ctl.submit import VisitSubmitter
from ppdaemon.demo.nightreport import SimulatedNight
from ppdaemon.demo.plan import ExposurePlan, primary_header
from ppdaemon.demo.raws import encode_sidecar, exposure_folder
from ppdaemon.demo.telescope import PlannedEvent, SimulatedCamera, TelescopeStep, timeline
from ppdaemon.demo.visits import Cadence, VisitPlan
from ppdaemon.messages import BUSY, Accepted
from ppdaemon.night.totals import NightTotals
from ppdaemon.reports import VisitRow
from ppdaemon.states import Outcome, Stage
from ppdaemon.testing.raws import small_fits
from ppdaemon.wire import Model

BUSY_S = 0.1
"""Before an announcement is repeated that the relay was too busy for."""
POLL_S = 0.2
"""Between two questions for the outcomes of a visit."""
EARLY = 0.1
"""This part of the visits has filled all caches."""
PROGRESS = 50
"""Visits between two lines of progress."""


class Memory(Model):
    """Proportional memory in 10^6 bytes, when a tenth of the visits was announced and at the end."""

    relay_early_mb: float
    relay_late_mb: float
    nodes_early_mb: float
    """The supervisors of all nodes together, without their workers."""
    nodes_late_mb: float


class ReplayReport(SimulatedNight):
    """A replayed night in numbers."""

    source: str
    """Where the sequence comes from."""
    speed: float
    """Factor by which it was faster than the night; 0 as fast as visits ended."""
    detectors: int
    """Of each visit."""
    own_nodes: int | None
    """Number of own nodes; `None` at the relay of others."""
    cancelled: int
    """Visits that were canceled before all their detectors had ended."""
    differing: int | None
    """Visit-detectors whose outcome in the relay's ledger is not the one in a node's journal; `None` if no
    journal was read."""
    memory: Memory | None
    """`None` at the relay of others."""

    @property
    def good(self) -> bool:
        """Whether nothing was lost or doubled, and own workers succeeded in all that was not canceled."""
        exact = not self.lost and not self.doubled and not self.differing
        ended = self.succeeded + (self.outcomes.get(Outcome.CANCELLED, 0) if self.cancelled else 0)
        return exact and (self.own_nodes is None or ended == self.announced > 0)


class SmallCamera(SimulatedCamera):
    """Makes files for workers that do not look at pixels, an image for each detector.

    Guiders have no images at a telescope; here all detectors of a visit have their work.
    """

    def read_out(self, plan: ExposurePlan) -> Iterator[tuple[int, Path, bytes, bytes]]:
        """Yield detector number, path relative to the raw root, image and sidecar."""
        for detector in self.detectors:
            name = self._names[detector][0]
            sidecar = encode_sidecar(primary_header(plan, detector, name))
            yield detector, exposure_folder(plan) / f"{plan.obs_id}_{name}.fits", small_fits(), sidecar


def planned_events(visits: Iterable[VisitPlan], speed: float, *, raws: bool) -> list[PlannedEvent]:
    """Return what the telescope does, in order; at speed 0 nothing waits for its time."""
    cadence = Cadence(speed=speed or float("inf"))
    events = timeline(visits, cadence, announce=True, cancel=False)
    sent = (TelescopeStep.ANNOUNCE, TelescopeStep.CANCEL)
    return [event for event in events if raws or event.step in sent]


class Follower:
    """Announces visits for a telescope, and counts them when they have ended.

    With `observatory` journals and the workers' own records are read, too. `open_visits` is how many may
    be open at once; 0 for any number. A visit that has no outcomes after `limit_s` is counted as it is.
    """

    def __init__(
        self,
        client: VisitSubmitter,
        visits: int,
        *,
        observatory: Observatory | None = None,
        raws: bool = False,
        open_visits: int = 0,
        limit_s: float = 300.0,
    ):
        self.totals = NightTotals()
        self.announced = self.visits = self.cancelled = 0
        self.differing: int | None = None
        if observatory is None:
            self.totals.doubled = None
        else:
            self.differing = 0
        self._client = client
        self._expected = visits
        self._observatory = observatory
        self._raws = raws
        self._open_visits = open_visits
        self._limit_s = limit_s
        self._open: deque[tuple[str, float]] = deque()
        self._early: tuple[float, float] | None = None

    def ask(self, event: dict[str, Any]) -> Accepted:
        """Send an announcement when few enough visits are open, or a cancellation; return the relay's
        answer.
        """
        if "instrument" not in event:
            answer = self._answer(event)
            self.cancelled += answer.status == "accepted"
            # All its detectors have ended: it came too late, as it may have in its night.
            late = answer.status == "ignored"
            return answer.model_copy(update={"status": "duplicate"}) if late else answer
        while self._open_visits and len(self._open) >= self._open_visits:
            self._end_oldest()
        answer = self._answer(event)
        if answer.status not in ("accepted", "duplicate"):  # a duplicate is of the run that is continued
            return answer  # the telescope refuses to continue
        self.visits += 1
        self.announced += answer.detectors
        self._open.append((answer.group, time.monotonic()))
        if self._early is None and self.visits >= EARLY * self._expected:
            self._early = self._memory_mb()
        if self.visits % PROGRESS == 0:
            text = "" if self._observatory is None else f", relay {self._memory_mb()[0]:.1f} MB"
            progress(f"visit {self.visits} of {self._expected}, {len(self._open)} open{text}")
        return answer

    def _answer(self, event: dict[str, Any]) -> Accepted:
        began = time.monotonic()
        while (answer := self._client.ask(event)).status == "rejected" and answer.reason.startswith(BUSY):
            time.sleep(BUSY_S)
        self.totals.measure("answer_ms", [time.monotonic() - began])
        return answer

    def finish(self) -> None:
        """Follow all visits to their end."""
        while self._open:
            self._end_oldest()
        if self._observatory is not None and self._raws:
            writes = self._observatory.telescope.writes()
            doubled = sum(count > 1 for count in writes.values())
            self.totals.doubled = max(self.totals.doubled or 0, doubled)

    def memory(self) -> Memory | None:
        """Return the memory of own relay and nodes."""
        if self._observatory is None or self._early is None:
            return None
        relay, nodes = self._memory_mb()
        return Memory(
            relay_early_mb=round(self._early[0], 1),
            relay_late_mb=round(relay, 1),
            nodes_early_mb=round(self._early[1], 1),
            nodes_late_mb=round(nodes, 1),
        )

    def _memory_mb(self) -> tuple[float, float]:
        if self._observatory is None:
            return 0.0, 0.0
        nodes = self._observatory.telescope.nodes.values()
        return self._observatory.relay_mb(), sum(pss_mb(node.pid) for node in nodes)

    def _end_oldest(self) -> None:
        group, announced = self._open.popleft()
        until = announced + self._limit_s
        outcomes = self._outcomes(group)
        while None in outcomes.values() and time.monotonic() < until:
            time.sleep(POLL_S)
            outcomes = self._outcomes(group)
        if self._observatory is None:
            for outcome, attempt in self._attempts.values():
                self.totals.count(outcome, attempt)
        else:
            self._compare(group, outcomes)

    def _outcomes(self, group: str) -> dict[int, Outcome | None]:
        """Return the outcome of each detector of a visit, so far."""
        found = self._client.ask({"type": "visit_status", "groupId": group}).outcomes or ()
        self._attempts = {each.detector: (each.outcome, each.attempt) for each in found}
        return {each.detector: each.outcome for each in found}

    def _compare(self, group: str, outcomes: dict[int, Outcome | None]) -> None:
        """Count what the journals have, and compare it with relay and workers."""
        assert self._observatory is not None
        rows = [row for rows in self._observatory.telescope.journal_rows(group).values() for row in rows]
        self.totals.add(rows)
        ended = (row for row in rows if row.ended_tai is not None and Stage.ACCEPTED in row.stages)
        self.totals.measure("accepted_to_ended_ms", map(_duration_s, ended))
        known = {row.detector: row.outcome for row in sorted(rows, key=lambda row: row.attempt)}
        for detector in outcomes.keys() - known.keys():
            if outcomes[detector] == Outcome.CANCELLED:  # before a node had it
                known[detector] = Outcome.CANCELLED
                self.totals.count(Outcome.CANCELLED, 1)
        self.differing = (self.differing or 0) + sum(
            known.get(detector) != outcome for detector, outcome in outcomes.items()
        )
        orders, attempts = self._observatory.prepared.count(group), Counter(row.detector for row in rows)
        extra = sum(orders[detector] > count for detector, count in attempts.items())
        self.totals.doubled = (self.totals.doubled or 0) + extra


def _duration_s(row: VisitRow) -> float | None:
    return None if row.ended_tai is None else row.ended_tai - row.stages[Stage.ACCEPTED]
