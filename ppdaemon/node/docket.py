# SPDX-License-Identifier: BSD-3-Clause
"""The open visit-detectors of a node: what is promised and not yet answered.

Covers the in-memory side of the journal. Entries that have changed are handed
out for writing in batches; an entry leaves when its outcome is final.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from ppdaemon.messages import Raw
from ppdaemon.node.assignment import Assignment, Key
from ppdaemon.node.journal import Entry
from ppdaemon.raws.path import Expected
from ppdaemon.states import Outcome, Stage

__all__ = ("Docket", "OpenVisit")

Place = tuple[str, str, int]


@dataclass(slots=True)
class OpenVisit:
    """One visit-detector on its way, in its present attempt."""

    entry: Entry
    assignment: Assignment
    slot: int | None = None
    """The seat that has it; `None` while it queues."""
    raws: dict[int, Raw] = field(default_factory=dict)
    """What has landed of it, by exposure."""
    cancelled: str = ""
    """Why it is not to be tried again; its seat may be past obeying."""


@dataclass(slots=True)
class Docket:
    """Finds open visit-detectors, by detector and by visit."""

    outcomes: Counter[Outcome] = field(default_factory=Counter)
    """Final outcomes since the start."""
    _open: dict[Place, OpenVisit] = field(default_factory=dict)
    _groups: dict[tuple[str, str], set[int]] = field(default_factory=lambda: defaultdict(set))
    _changed: dict[Key, Entry] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[OpenVisit]:
        return iter(list(self._open.values()))

    def add(self, visit: OpenVisit) -> None:
        """Count an accepted visit-detector in.

        Parameters
        ----------
        visit : `OpenVisit`
            Its journal row exists.
        """
        instrument, group, detector, _ = visit.entry.key
        self._open[instrument, group, detector] = visit
        self._groups[instrument, group].add(detector)

    def find(self, instrument: str, group: str, detector: int) -> OpenVisit | None:
        """Return an open visit-detector.

        Parameters
        ----------
        instrument, group : `str`
            The visit.
        detector : `int`
            The detector.

        Returns
        -------
        visit : `OpenVisit` or `None`
            `None` if there is none without an outcome.
        """
        return self._open.get((instrument, group, detector))

    def of(self, key: Key) -> OpenVisit | None:
        """Return an open visit-detector, if it is in this attempt.

        Parameters
        ----------
        key : `~ppdaemon.node.assignment.Key`
            Which attempt.

        Returns
        -------
        visit : `OpenVisit` or `None`
            `None` if that attempt has ended.
        """
        visit = self._open.get(key[:3])
        return visit if visit is not None and visit.entry.key == key else None

    def of_group(self, instrument: str, group: str) -> list[OpenVisit]:
        """Return all open detectors of a visit.

        Parameters
        ----------
        instrument, group : `str`
            The visit.

        Returns
        -------
        visits : `list` [`OpenVisit`]
            By detector.
        """
        detectors = self._groups.get((instrument, group), ())
        return [self._open[instrument, group, detector] for detector in sorted(detectors)]

    def waiting(self) -> list[Expected]:
        """Return which raws are waited for, or will be.

        Returns
        -------
        expected : `list` [`~ppdaemon.raws.path.Expected`]
            One for each visit of which some detector has not all its raws.
        """
        found = []
        for (instrument, group), detectors in self._groups.items():
            missing = (d for d in detectors if Stage.INGESTED not in self._stages(instrument, group, d))
            if wanted := frozenset(missing):
                found.append(Expected(instrument, wanted, group))
        return found

    def _stages(self, instrument: str, group: str, detector: int) -> dict[Stage, float]:
        return self._open[instrument, group, detector].entry.stages

    def reached(self, visit: OpenVisit, stage: Stage, tai: float) -> None:
        """Note a stage; the first time counts.

        Parameters
        ----------
        visit : `OpenVisit`
            Which.
        stage : `~ppdaemon.states.Stage`
            What it reached.
        tai : `float`
            When, TAI seconds since 1970.
        """
        visit.entry.stages.setdefault(stage, tai)
        self.touch(visit.entry)

    def touch(self, entry: Entry) -> None:
        """Have an entry written with the next batch.

        Parameters
        ----------
        entry : `~ppdaemon.node.journal.Entry`
            What has changed.
        """
        self._changed[entry.key] = entry

    def changed(self) -> list[Entry]:
        """Take out the entries that have changed since the last call.

        Returns
        -------
        entries : `list` [`~ppdaemon.node.journal.Entry`]
            Copies, safe to write in another thread.
        """
        ready = [entry for entry in self._changed.values() if entry.promised]
        self._changed = {key: entry for key, entry in self._changed.items() if not entry.promised}
        return [replace(entry, stages=dict(entry.stages)) for entry in ready]

    def not_written(self, entries: Iterable[Entry]) -> None:
        """Take back what could not be written, unless it is changed again.

        Parameters
        ----------
        entries : `~collections.abc.Iterable` [`~ppdaemon.node.journal.Entry`]
            What `changed` has handed out.
        """
        for entry in entries:
            self._changed.setdefault(entry.key, entry)

    def forget(self, visit: OpenVisit) -> None:
        """Count a visit-detector out without an outcome.

        Parameters
        ----------
        visit : `OpenVisit`
            It has no journal row.
        """
        instrument, group, detector, _ = visit.entry.key
        del self._open[instrument, group, detector]
        members = self._groups[instrument, group]
        members.discard(detector)
        if not members:
            del self._groups[instrument, group]

    def end(self, visit: OpenVisit, outcome: Outcome, reason: str, tai: float, *, final: bool) -> None:
        """Give an attempt its outcome.

        Parameters
        ----------
        visit : `OpenVisit`
            Which.
        outcome : `~ppdaemon.states.Outcome`
            How it ended.
        reason : `str`
            Why.
        tai : `float`
            When, TAI seconds since 1970.
        final : `bool`
            Whether it is the visit-detector's outcome, too.
        """
        entry = visit.entry
        entry.outcome, entry.reason, entry.ended_tai, entry.final = outcome, reason, tai, final
        self.touch(entry)
        self.forget(visit)
        if final:
            self.outcomes[outcome] += 1
