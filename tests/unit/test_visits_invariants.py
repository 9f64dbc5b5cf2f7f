# SPDX-License-Identifier: BSD-3-Clause
"""Invariants of visits in any order of events, commits, failures and crashes.

Effects are committed one by one at random moments, so that events come between a
decision and its commit; a crash loses all effects that are not committed.
"""

import json
import shutil
import tempfile
from collections import Counter
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from journalkit import late_of
from visitworld import CAMERA, CHOSEN, World, a_raw

from ppdaemon.config import NodeConfig
from ppdaemon.folders import NodeFolders
from ppdaemon.messages import Pipelines
from ppdaemon.node.slots.assignment import Key
from ppdaemon.node.slots.events import NoteRaw, NoteStage, RawArrived, RescanRaws
from ppdaemon.node.slots.scheduler import Drop
from ppdaemon.node.visits.model import (
    Acknowledge,
    AssignmentRefused,
    Export,
    Leftovers,
    LeftoversRead,
    RecordLateRaws,
    Reply,
    RequeueRequested,
    Rescan,
    RescanDue,
    RescanFinished,
    SendResults,
    SendToSlot,
    SlotsChanged,
    StopStarted,
    WriteDue,
)
from ppdaemon.retries import HANDED_BACK
from ppdaemon.selection import PipelineChoice
from ppdaemon.states import Outcome, Stage

GROUPS = st.sampled_from(["a", "b"])
DETECTORS = st.sets(st.sampled_from([0, 1]), min_size=1).map(lambda found: tuple(sorted(found)))
IGNORED = PipelineChoice(Pipelines(), "no rule matches")


class Checked(World):
    """A world that checks each action against the journal as it is performed."""

    def act(self, action):
        match action:
            case Acknowledge(message=message, detectors=detectors):
                have = {row.detector for row in self.rows(message.visit.group)}
                assert have.issuperset(detectors)
            case SendResults(entries=entries):
                for entry in entries:
                    outcomes = {
                        row.outcome
                        for row in self.rows(entry.group)
                        if row.detector == entry.detector and row.outcome is not None
                    }
                    assert entry.outcome in outcomes, "reported before it was written"
                    self.finals[entry.group, entry.detector, entry.attempt] += 1
            case Reply(rows=rows):
                self.requeued += sum(row.attempt is not None for row in rows)
            case Export(spool=spool):
                folders = NodeFolders.of(self.config)
                key = Key(*folders.parse_spool_name(Path(spool).name))
                row = self.row(key)
                assert row is not None, "exported without acceptance"
                assert row.outcome is not None, "exported before its outcome was written"
            case SendToSlot(key=key, event=event) if type(event).__name__ == "VisitAssigned":
                row = self.row(key)
                assert row is not None, "given to a worker without acceptance"
                assert row.outcome is None, "given to a worker after its outcome"
        super().act(action)

    def commit(self):
        raws = [
            raw
            for write in self.uncommitted[0].writes
            if isinstance(write, RecordLateRaws)
            for raw in write.raws
        ]
        for raw in raws:
            if raw.detector not in {row.detector for row in self.rows(raw.group)}:
                self.unmatched.add((raw.group, raw.detector, raw.exposure))
        super().commit()

    def row(self, key):
        rows = {(row.detector, row.attempt): row for row in self.rows(key.group)}
        return rows.get((key.detector, key.attempt))


class VisitsMachine(RuleBasedStateMachine):
    """Random sequences of events of a node's visits."""

    @initialize()
    def begin(self):
        self.folder = Path(tempfile.mkdtemp(prefix="visits-", dir="/dev/shm"))
        config = NodeConfig.model_validate(
            {
                "node": {
                    "name": "n1",
                    "state_dir": self.folder,
                    "ramdisk": self.folder,
                    "control": self.folder / "control",
                    "instruments": {CAMERA: "0-1"},
                },
                "arrivals": {"roots": [self.folder]},
                "workers": {"work": "scripted"},
                "pipelines": {"main": [{"survey": "new", "pipelines": ["/p/Any.yaml"]}]},
            }
        )
        self.world = Checked.__new__(Checked)
        self.world.finals, self.world.requeued, self.world.unmatched = Counter(), 0, set()
        self.world.__init__(config, self.folder / "journal.sqlite")
        self.raws = {}
        """Raws that have arrived, by group, detector and exposure."""
        self.leftovers = {}
        """Leftovers of dead workers, by attempt."""
        self.stopped = False

    def teardown(self):
        if not hasattr(self, "world"):
            return
        try:
            self.wait_until_idle()
            self.check_final_state()
        finally:
            self.world.journal.close()
            shutil.rmtree(self.folder)

    # --- from outside ------------------------------------------------------

    @rule(group=GROUPS, detectors=DETECTORS, attempt=st.integers(1, 3), ignored=st.booleans())
    def reserve(self, group, detectors, attempt, ignored):
        self.world.reserve(group, detectors, attempt, IGNORED if ignored else CHOSEN)

    @rule(group=GROUPS, detectors=st.none() | DETECTORS)
    def cancel(self, group, detectors):
        self.world.cancel(group, detectors)

    @rule(group=GROUPS, detector=st.integers(0, 1), exposure=st.integers(1, 3))
    def raw(self, group, detector, exposure):
        exposure += 100 * (group == "b")  # an exposure has one group
        if (group, detector, exposure) not in self.raws:  # arrivals deliver each once
            raw = self.raws[group, detector, exposure] = a_raw(group, detector, exposure)
            self.world.handle(RawArrived(raw))

    # A commit takes less time than raws of unknown visits are remembered.
    @precondition(lambda self: not self.world.uncommitted)
    @rule(seconds=st.floats(0.0, 400.0))
    def time_passes(self, seconds):
        self.world.mono += seconds
        self.world.tai += seconds

    @rule()
    def write_due(self):
        self.world.handle(WriteDue())

    # --- scheduler and slots -----------------------------------------------

    @precondition(lambda self: self.world.queue)
    @rule(slot=st.integers(0, 3), dies=st.booleans())
    def assign(self, slot, dies):
        if slot not in self.world.slots:
            self.world.assign(slot)
            if dies and slot in self.world.slots:
                key = self.world.slots.pop(slot).key
                self.world.handle(AssignmentRefused(key))

    @precondition(lambda self: self.world.queue)
    @rule()
    def drop(self):
        key = next(iter(self.world.queue))
        self.world.handle(Drop(self.world.queue.pop(key), "no worker became free in time"))

    @precondition(lambda self: self.world.slots)
    @rule(stage=st.sampled_from([Stage.PREPARED, Stage.INGESTED]))
    def progress(self, stage):
        for assignment in self.world.slots.values():
            self.world.handle(NoteStage(assignment.key, stage, self.world.tai))
            exposures = tuple(sorted(raw.exposure for raw in assignment.raws))
            self.world.handle(NoteRaw(assignment.key, exposures, None))

    @precondition(lambda self: self.world.slots)
    @rule(
        outcome=st.sampled_from([Outcome.SUCCEEDED, Outcome.FAILED, Outcome.NO_IMAGE]),
        retriable=st.booleans(),
        spooled=st.booleans(),
    )
    def finish(self, outcome, retriable, spooled):
        slot = next(iter(self.world.slots))
        spool = self.spool(self.world.slots[slot].key) if spooled else None
        retriable = retriable and outcome != Outcome.SUCCEEDED
        self.world.finish(slot, outcome, retriable=retriable, spool=spool)

    @precondition(lambda self: self.world.slots)
    @rule(retriable=st.booleans(), mark=st.booleans(), spool=st.booleans(), partial=st.booleans())
    def worker_dies(self, retriable, mark, spool, partial):
        slot = next(iter(self.world.slots))
        key = self.world.finish(
            slot, Outcome.CRASHED, reason="killed", retriable=retriable, may_have_leftovers=True
        )
        self.leftovers[key] = Leftovers(
            "alerts" if mark else "",
            self.spool(key) if spool else None,
            "a task failed" if spool and partial else "",
        )

    @precondition(lambda self: self.world.reading)
    @rule()
    def leftovers_are_read(self):
        key = self.world.reading.pop(0)
        self.world.handle(LeftoversRead(key, self.leftovers[key]))

    def spool(self, key):
        return str(NodeFolders.of(self.world.config).spooled(*key))

    # --- rescans -----------------------------------------------------------

    @precondition(lambda self: self.world.slots)
    @rule()
    def rescan_requested(self):
        for assignment in list(self.world.slots.values()):
            self.world.handle(RescanRaws(assignment.key))

    @rule()
    def rescans_run(self):
        due, self.world.rescans = self.world.rescans, []
        for visit in due:
            before = len(self.world.of(Rescan))
            self.world.handle(RescanDue(visit))
            for rescan in self.world.of(Rescan)[before:]:
                self.world.handle(RescanFinished(rescan.keys))

    # --- operators ---------------------------------------------------------

    @rule(group=GROUPS, force=st.booleans(), number=st.integers(0, 1 << 30))
    def requeue(self, group, force, number):
        before = tuple(self.world.journal.last_attempts(group))
        chosen = {entry.key: CHOSEN for entry in before}
        self.world.handle(RequeueRequested(number, before, chosen, {}, frozenset(), force=force))

    @rule(hand_back=st.booleans())
    def stop(self, hand_back):
        self.world.handle(StopStarted(hand_back))
        self.stopped = True

    @rule(usable=st.booleans(), connected=st.booleans())
    def slots_change(self, usable, connected):
        problem = "" if usable else "no memory"
        self.world.handle(SlotsChanged(problem, hand_back=bool(problem) and connected))

    # --- the disk ----------------------------------------------------------

    @precondition(lambda self: self.world.uncommitted)
    @rule()
    def commit(self):
        self.committed(self.world.commit)

    @precondition(lambda self: self.world.uncommitted)
    @rule()
    def commit_all(self):
        while self.world.uncommitted:
            self.committed(self.world.commit)

    def committed(self, commit):
        """Commit a effects; one that the journal contradicts is given back."""
        effects = self.world.uncommitted[0]
        try:
            commit()
        except Exception as error:
            if "again in the meantime" not in str(error):
                raise
            self.world.uncommitted.appendleft(effects)
            assert self.world.refuse()

    @precondition(lambda self: self.world.uncommitted)
    @rule()
    def disk_is_full(self):
        self.world.refuse()

    @rule()
    def crash(self):
        """The supervisor dies, with its workers; the next run begins."""
        promised = self.not_final()
        for assignment in self.world.slots.values():
            self.leftovers.setdefault(assignment.key, Leftovers())
        self.world.crash()
        self.stopped = False
        found = self.world.recover(lambda key: self.leftovers.get(key, Leftovers()))
        assert {key[1:3] for key in found} == promised
        for raw in self.raws.values():  # a scan finds them again
            self.world.handle(RawArrived(raw))

    def not_final(self):
        last = {}
        for group in ("a", "b"):
            for row in self.world.rows(group):
                last[row.group, row.detector] = row
        return {place for place, row in last.items() if not self.is_final(row)}

    def is_final(self, row):
        key = (CAMERA, row.group, row.detector)
        return all(
            entry.final for entry in self.world.journal.last_attempts(row.group) if entry.key[:3] == key
        )

    # --- invariants ---------------------------------------------------------

    @invariant()
    def one_outcome_per_attempt_is_reported(self):
        if hasattr(self, "world"):
            assert all(times <= 1 + self.world.requeued for times in self.world.finals.values())

    @invariant()
    def nothing_is_open_that_the_journal_closed(self):
        if not hasattr(self, "world") or self.world.uncommitted:
            return
        for visit in self.world.visits.open:
            row = self.world.row(visit.key)
            assert row is not None
            assert row.outcome is None, visit

    def wait_until_idle(self):
        """End all visits."""
        for _ in range(20):
            while self.world.uncommitted:
                self.committed(self.world.commit)
            while self.world.reading:
                self.leftovers_are_read()
            for slot in list(self.world.slots):
                self.world.finish(slot, Outcome.SUCCEEDED)
            self.rescans_run()
            while self.world.queue:
                self.world.assign(slot=0)
                if 0 in self.world.slots:
                    self.world.finish(0, Outcome.SUCCEEDED)
            self.world.handle(WriteDue())
        while self.world.uncommitted:
            self.committed(self.world.commit)

    def check_final_state(self):
        assert len(self.world.visits.open) == 0
        assert self.not_final() == set()
        accepted = set()
        for group in ("a", "b"):
            finals = Counter()
            for row in self.world.rows(group):
                accepted.add((row.group, row.detector))
                assert row.outcome is not None
                finals[row.detector] += row.outcome != Outcome.CANCELLED and self.counts(row)
            assert all(number <= 1 for number in finals.values()), "two final outcomes"
        self.check_raws(accepted)

    def counts(self, row):
        """Return whether a row is final."""
        found = self.world.journal._db.execute(
            "SELECT final FROM attempt WHERE grp = ? AND detector = ? AND attempt = ?",
            (row.group, row.detector, row.attempt),
        ).fetchone()
        return bool(found[0])

    def check_raws(self, accepted):
        """Each raw of an accepted visit-detector is used or late, unless it was
        unmatched long before the acceptance, or another node uses it; none is lost.
        """
        late = {(row.group, row.detector, row.exposure) for row in late_of(self.world.journal, 1000)}
        used = set()
        ignored = set()
        for group, detector, outcome, reason, exposures, seen in self.world.journal._db.execute(
            "SELECT grp, detector, outcome, reason, exposures, seen FROM attempt ORDER BY attempt"
        ):
            used |= {(group, detector, e) for e in (*json.loads(exposures), *json.loads(seen))}
            ignored.discard((group, detector))
            if outcome == Outcome.IGNORED or reason.startswith(HANDED_BACK):
                ignored.add((group, detector))
        unused = [
            raw
            for raw in self.raws
            if raw[:2] in accepted
            and raw[:2] not in ignored
            and raw not in used | late | self.world.unmatched
        ]
        assert unused == [], "neither used nor late nor unmatched"


VisitsMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestVisits = VisitsMachine.TestCase
