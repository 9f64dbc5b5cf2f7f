# SPDX-License-Identifier: BSD-3-Clause
"""The visits of a node with a real journal and without an event loop.

Effects wait until a test commits them; performed actions are listed.
"""

from collections import Counter, deque
from pathlib import Path

from journalkit import visit_of

from ppdaemon.messages import CancelVisit, Pipelines, Raw, ReserveVisit
from ppdaemon.node.slots.events import Finish, SlotAssigned
from ppdaemon.node.visits.core import Visits
from ppdaemon.node.visits.journal import Journal
from ppdaemon.node.visits.model import (
    Accept,
    AcceptanceChanged,
    AttemptRecovered,
    BeginRescan,
    Dequeue,
    Enqueue,
    FlushRequested,
    Leftovers,
    Now,
    ReadLeftovers,
    RecordLateRaws,
    Requeue,
    Rescan,
    RescanDue,
    Reserved,
    SendToSlot,
    WriteCommitted,
    WriteFailed,
)
from ppdaemon.selection import PipelineChoice
from ppdaemon.states import Outcome
from ppdaemon.visit import read_next_visit

CAMERA = "DemoCam"
CHOSEN = PipelineChoice(Pipelines(main=("/p/Any.yaml",)))


class World:
    """Visits, their journal, and a simple model of the other parts of a node."""

    def __init__(self, config, journal_path: Path):
        self.config = config
        self.path = journal_path
        self.mono, self.tai = 1000.0, 2e9
        self.sequence = 0
        self.start()

    def start(self):
        """Begin a run of the daemon."""
        self.count = Counter()
        self.journal = Journal(self.path)
        self.visits = Visits(self.config, self.count)
        self.uncommitted = deque()
        self.done = []
        self.queue = {}
        """Assignments in the scheduler's queue, by key."""
        self.slots = {}
        """Assignments that slots have, by slot."""
        self.reading = []
        """Keys of leftovers being read."""
        self.rescans = []
        self.handle(AcceptanceChanged(accepting=True))

    def crash(self):
        """End the run: what is not committed is lost."""
        self.journal.close()
        self.start()

    def recover(self, leftovers=lambda key: Leftovers(), chosen=CHOSEN):
        """Recover the attempts of the previous run."""
        entries = self.journal.unfinished()
        for entry in entries:
            self.handle(AttemptRecovered(entry, leftovers(entry.key), chosen))
        return [entry.key for entry in entries]

    # --- pump --------------------------------------------------------------

    def handle(self, event):
        effects = self.visits.handle(event, Now(self.mono, self.tai))
        if effects.writes or isinstance(event, FlushRequested):
            self.uncommitted.append(effects)
        else:
            self.perform(effects)

    def commit(self):
        """Commit the oldest effects, and perform it."""
        effects = self.uncommitted.popleft()
        with self.journal.transaction():
            results = [self.journal.write(write) for write in effects.writes]
        self.perform(effects)
        for write, result in zip(effects.writes, results, strict=True):
            if isinstance(write, Accept | Requeue | RecordLateRaws):
                self.handle(WriteCommitted(write, result))

    def commit_all(self):
        while self.uncommitted:
            self.commit()

    def refuse(self):
        """Let the oldest write fail, if it may fail."""
        for write in self.uncommitted[0].writes:
            if isinstance(write, Accept | Requeue):
                self.uncommitted.popleft()
                self.handle(WriteFailed(write, "the disk is full"))
                return True
        return False

    def perform(self, effects):
        for action in effects.actions:
            self.act(action)
            self.done.append(action)

    def act(self, action):
        match action:
            case Enqueue(assignment=assignment):
                self.queue[assignment.key] = assignment
            case Dequeue(key=key):
                self.queue.pop(key, None)
            case ReadLeftovers(key=key):
                self.reading.append(key)
            case BeginRescan(visit=visit):
                self.rescans.append(visit)
            case SendToSlot(slot=slot, key=key, event=event):
                if type(event).__name__ == "VisitAssigned":
                    assert slot not in self.slots
                    self.slots[slot] = event.assignment
                elif (assignment := self.slots.get(slot)) and assignment.key == key:
                    self.to_slot(slot, event)

    def to_slot(self, slot, event):
        """Add a raw to an assignment, as a slot does."""
        assignment = self.slots[slot]
        if type(event).__name__ == "RawArrived" and not assignment.has(event.raw.exposure):
            self.slots[slot] = assignment._replace(raws=(*assignment.raws, event.raw))

    # --- events ------------------------------------------------------------

    def _envelope(self):
        self.sequence += 1
        return {"origin": "relay", "sent_tai": self.tai, "sequence": self.sequence}

    def reserve(
        self, group="g", detectors=(0,), attempt=1, chosen=CHOSEN, age_s=0.0, relay_ahead_s=0.0, **fields
    ):
        """Reserve detectors; the relay accepted the visit `age_s` ago and has its own clock."""
        visit = read_next_visit({"groupId": group, "instrument": CAMERA, "survey": "new", **fields})
        envelope = self._envelope() | {"sent_tai": self.tai + relay_ahead_s}
        received_tai = envelope["sent_tai"] - age_s
        message = ReserveVisit(
            visit=visit, detectors=detectors, attempt=attempt, received_tai=received_tai, **envelope
        )
        self.handle(Reserved(message, dict.fromkeys(detectors, chosen)))

    def cancel(self, group="g", detectors=None):
        self.handle(CancelVisit(instrument=CAMERA, group=group, detectors=detectors, **self._envelope()))

    def assign(self, slot=0):
        """Match the oldest queued visit-detector and a slot."""
        key = next(iter(self.queue))
        self.handle(SlotAssigned(self.queue.pop(key), slot, 4711))
        return key

    def finish(self, slot=0, outcome=Outcome.SUCCEEDED, **changes):
        assignment = self.slots.pop(slot)
        self.handle(Finish(assignment, outcome, **changes))
        return assignment.key

    def begin_rescans(self):
        for visit in self.rescans:
            self.handle(RescanDue(visit))
        self.rescans = []
        return [action for action in self.done if isinstance(action, Rescan)]

    # --- state ---------------------------------------------------------------

    def of(self, *kinds):
        """Return what was done of some kinds."""
        return [action for action in self.done if isinstance(action, kinds)]

    def rows(self, group="g"):
        return visit_of(self.journal, group)

    def outcomes(self, group="g"):
        return [row.outcome for row in self.rows(group)]


def a_raw(group="g", detector=0, exposure=7):
    return Raw(
        path=f"/raws/{exposure}/{detector}.fits",
        instrument=CAMERA,
        group=group,
        detector=detector,
        exposure=exposure,
        seen_tai=2e9,
    )
