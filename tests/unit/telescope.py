# SPDX-License-Identifier: BSD-3-Clause
"""A whole telescope without a process: one relay, several nodes with workers, a bad network.

All decisions are those of the product: dispatcher and ledger of the relay, visits,
journal and slots of the nodes. Modeled are the network (messages are lost, doubled,
delayed, one way only), time, disks, and workers that do one small step at a time.
"""

import shutil
import sqlite3
from collections import Counter, deque
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from visitworld import CAMERA, CHOSEN, World, a_raw

from ppdaemon.config import NodeConfig
from ppdaemon.folders import NodeFolders
from ppdaemon.ledgerfile import LEDGER_NAME
from ppdaemon.messages import (
    CancelVisit,
    Cross,
    Done,
    GiveUp,
    Heartbeat,
    Hello,
    HelloRefused,
    Ingest,
    Ingested,
    MayCross,
    PermitRefused,
    PermitRequest,
    Permitted,
    Prepare,
    Prepared,
    Process,
    Quit,
    Ready,
    ReserveVisit,
    Results,
    ResultsSeen,
    SendHello,
    StageReached,
    VisitAccepted,
    VisitRefused,
    Welcome,
)
from ppdaemon.node.slots import events
from ppdaemon.node.slots.slot import Slot
from ppdaemon.node.visits import model
from ppdaemon.node.visits.requeue import is_returned
from ppdaemon.relay.dispatcher import Dispatcher
from ppdaemon.relay.ledger import Ledger
from ppdaemon.relay.link import NodeLink
from ppdaemon.relay.openvisit import Reservation, make_open_visit
from ppdaemon.relay.orders import ConfirmResults, Effects, SendHeartbeat, SetOutcome
from ppdaemon.relay.requests import visit_json
from ppdaemon.states import Outcome, SlotState, Stage
from ppdaemon.visit import read_next_visit

SILENCE_S = 4.0
GIVE_UP_S = 60.0
EXPIRY_S = 7200.0
DETECTORS = (0, 1)
SLOTS = 2

PERMANENT = ("mark", "write", "spool", "done")
"""Steps after the first task; those before ``write`` can be repeated."""
SPOOL_ONLY = ("may spool", "spool", "done")


class Clock:
    """The time of all hosts."""

    def __init__(self):
        self.now = 0.0

    def mono(self):
        return 1000.0 + self.now

    def tai(self):
        return 2e9 + self.now

    def boot(self):
        return "boot1"


class Worker:
    """One process: handles orders, and does the steps of its visit one by one."""

    def __init__(self, node, slot):
        self.node, self.slot = node, slot
        self.orders = deque()
        self.order = None
        self.steps = deque()
        self.asking = False
        self.doomed = False

    def tell(self, fact):
        number = 0 if self.order is None else self.order.visit_number
        self.node.to_slot(self.slot, fact.model_copy(update={"visit_number": number}))

    @property
    def key(self):
        visit = self.order.visit
        return model.Key(visit.instrument, visit.group, self.order.detector, self.order.attempt)

    def step(self):
        """Do one step; return whether there was one."""
        if self.doomed:
            self.node.worker_died(self.slot)
        elif self.orders:
            self.handle(self.orders.popleft())
        elif self.steps and not self.asking:
            self.do(self.steps.popleft())
        else:
            return False
        return True

    def handle(self, order):
        match order:
            case Prepare():
                self.order, self.asking = order, False
                self.steps.clear()
                self.tell(Prepared(pipeline="p"))
            case Ingest(raw=raw):
                self.tell(Ingested(exposure=raw.exposure))
            case Process():
                self.steps.extend(PERMANENT if "alerts" in self.order.visit.survey else SPOOL_ONLY)
            case Cross():
                self.asking = False
            case GiveUp():
                self.steps.clear()
            case Quit():
                self.doomed = True

    def do(self, step):
        disk, key = self.node.disk, self.key
        match step:
            case "mark" | "may spool":
                self.tell(MayCross(what="alerts" if step == "mark" else ""))
                self.asking = True
                if step == "mark":
                    self.steps.appendleft("crossed")
            case "crossed":
                disk.marks[key] = "alerts"
            case "write":
                self.node.telescope.written[key[1:3]] += 1
            case "spool":
                self.tell(StageReached(stage=Stage.PROCESSED, tai=0.0))
                disk.spools.add(str(self.node.folders.spooled(*key)))
            case "done":
                spool = str(self.node.folders.spooled(*key))
                self.tell(Done(outcome=Outcome.SUCCEEDED, pipeline="p", spool=spool, datasets=1))


class Disk:
    """What survives a node's death, besides its journal."""

    def __init__(self):
        self.marks, self.spools = {}, set()


class Node(World):
    """A node: its visits and slots, and its end of the link."""

    def __init__(self, telescope, name, folder):
        self.telescope, self.name = telescope, name
        self.runs = 0
        self.connections = 0
        self.disk = Disk()
        self.up, self.down = deque(), deque()
        self.cut_up = self.cut_down = False
        config = NodeConfig.model_validate(
            {
                "node": {
                    "name": name,
                    "state_dir": folder,
                    "ramdisk": folder,
                    "control": folder / "control",
                    "instruments": {CAMERA: "0-1"},
                    "expiry_s": EXPIRY_S,
                },
                "relay": {"address": "tcp://127.0.0.1:1", "alone": telescope.alone},
                "arrivals": {"roots": [folder]},
                "workers": {"work": "scripted", "max": SLOTS, "min": 1, "spare": 1},
                "pipelines": {"main": [{"pipelines": ["/p/Any.yaml"]}]},
            }
        )
        self.folders = NodeFolders.of(config)
        super().__init__(config, folder / f"{name}.sqlite")

    def start(self):
        self.runs += 1
        self.incarnation = f"{self.name}-{self.runs}"
        self.mono, self.tai = self.telescope.clock.mono(), self.telescope.clock.tai()
        self.workers, self.deadlines, self.machines = {}, {}, {}
        self.epoch, self.connected = 0, False
        super().start()
        for ended, reported, age_s in self.journal.latest_outcomes(1000):
            self.visits.ended.add([ended], self.mono - age_s, reported=reported)
        for number in range(SLOTS):
            slot = self.machines[number] = Slot(number, self.config.workers, lambda: 0.5)
            self.perform_slot(slot, slot.open(self.mono))
        self.recover(self.leftovers)
        self.deliver_raws()
        self.connect()

    def restart(self):
        """Die with all workers, and start again with the same disk."""
        self.journal.close()
        self.start()

    def leftovers(self, key):
        spool = str(self.folders.spooled(*key))
        return model.Leftovers(self.disk.marks.get(key, ""), spool if spool in self.disk.spools else None)

    def deliver_raws(self):
        for raw in self.telescope.raws:
            self.handle(events.RawArrived(raw))

    # --- slots ---------------------------------------------------------------

    def to_slot(self, number, event):
        slot = self.machines[number]
        self.perform_slot(slot, slot.handle(event, self.mono))

    def perform_slot(self, slot, actions):
        for action in actions:
            match action:
                case events.SetDeadline(at=at):
                    self.deadlines[slot.number] = at
                case events.ClearDeadline():
                    self.deadlines.pop(slot.number, None)
                case events.Fork():
                    self.workers[slot.number] = Worker(self, slot.number)
                    self.to_slot(slot.number, events.WorkerForked(1))
                    self.to_slot(slot.number, Ready(pid=1))
                case events.Send(order=order):
                    self.workers[slot.number].orders.append(order)
                case events.Signal():
                    self.workers[slot.number].doomed = True
                case events.NoteStage(key=key, stage=stage, tai=None):
                    self.handle(events.NoteStage(key, stage, self.tai))
                case events.SlotChanged() | events.WipeRepo() | events.NoteRecycled():
                    pass
                case _:
                    self.handle(action)

    def worker_died(self, number):
        if self.workers.pop(number, None) is not None:
            self.to_slot(number, events.WorkerDied(-9))

    def pass_deadlines(self):
        for number, at in list(self.deadlines.items()):
            if at <= self.mono:
                self.deadlines.pop(number)
                self.to_slot(number, events.DeadlinePassed())

    def assign_all(self):
        for number, slot in self.machines.items():
            if self.queue and slot.state == SlotState.IDLE:
                key = next(iter(self.queue))
                self.handle(events.SlotAssigned(self.queue.pop(key), number, 1))

    @property
    def can_assign(self):
        return bool(self.queue) and any(slot.state == SlotState.IDLE for slot in self.machines.values())

    # --- effects ---------------------------------------------------------------

    def act(self, action):
        match action:
            case model.SendToSlot(slot=number, key=key, event=event):
                slot = self.machines[number]
                if isinstance(event, events.VisitAssigned):
                    if slot.state == SlotState.IDLE:
                        self.to_slot(number, event)
                    else:
                        self.handle(model.AssignmentRefused(key))
                elif slot.assignment is not None and slot.assignment.key == key:
                    self.to_slot(number, event)
            case model.Acknowledge(message=message, detectors=detectors):
                self.send(VisitAccepted, **self.names(message), detectors=detectors)
            case model.Refuse(message=message, detectors=detectors, reason=reason, final=final):
                self.send(
                    VisitRefused, **self.names(message), detectors=detectors, reason=reason, final=final
                )
            case model.SendResults(entries=entries):
                self.visits.ended.add(entries, self.mono)
                self.send(Results, entries=entries)
            case model.ResendResults():
                if entries := self.journal.unreported(100):
                    self.send(Results, entries=tuple(entries))
            case model.AskPermits(visits=visits):
                self.send(PermitRequest, visits=visits)
            case model.Export(spool=spool):
                if spool in self.disk.spools:
                    place = self.folders.parse_spool_name(Path(spool).name)
                    self.telescope.exported[place[1:3]].add((self.name, spool))
            case model.Discard(paths=paths):
                self.disk.spools -= set(map(str, paths))
                for key in [key for key in self.disk.marks if self.folders.mark(*key) in paths]:
                    del self.disk.marks[key]
            case model.Rescan(keys=keys):
                self.handle(model.RescanFinished(keys))
            case _:
                super().act(action)

    def names(self, message):
        visit = message.visit
        return {"instrument": visit.instrument, "group": visit.group, "attempt": message.attempt}

    # --- link -----------------------------------------------------------------

    @property
    def peer(self):
        return f"{self.name}/{self.connections}".encode()

    def connect(self):
        """Open a new connection: what was under way is lost."""
        self.connections += 1
        self.up.clear()
        self.down.clear()
        self.received_at = self.mono
        if self.connected:
            self.connected = False
            self.handle(model.RelayLost())
        self.hello()

    def hello(self):
        self.send(
            Hello,
            incarnation=self.incarnation,
            instruments={CAMERA: DETECTORS},
            capacity=SLOTS,
            holds=self.visits.open.held(),
            ended=() if self.connected else self.visits.ended.listed(),
            alone=self.config.relay.alone == "cross",
        )

    def send(self, kind, **fields):
        if not self.cut_up:
            self.sequence += 1
            self.up.append(kind(origin=self.name, sent_tai=self.tai, sequence=self.sequence, **fields))

    def tick(self):
        self.mono, self.tai = self.telescope.clock.mono(), self.telescope.clock.tai()
        if self.mono - self.received_at > SILENCE_S:
            self.connect()
        elif self.connected:
            self.send(Heartbeat)
            self.act(model.ResendResults())
        else:
            self.hello()
        self.handle(model.PermitsDue())
        self.pass_deadlines()

    def receive(self, message):
        self.received_at = self.mono
        match message:
            case Heartbeat():
                pass
            case Welcome(epoch=epoch):
                if epoch >= self.epoch:
                    self.epoch, self.connected = epoch, True
                    self.handle(message)
            case SendHello():
                self.hello()
            case HelloRefused():
                self.connected = False
                self.handle(model.RelayLost())
                self.hello()
            case Permitted(epoch=epoch, incarnation=incarnation):
                if epoch >= self.epoch and incarnation == self.incarnation:
                    self.handle(message)
            case ReserveVisit():
                self.handle(model.Reserved(message, dict.fromkeys(message.detectors, CHOSEN)))
            case CancelVisit() | PermitRefused() | ResultsSeen():
                self.handle(message)

    def work(self):
        """Let each worker do one step; return whether there was one."""
        return any([worker.step() for worker in list(self.workers.values())])


class Telescope:
    """Relay, ledger, nodes, network."""

    def __init__(self, folder, *, nodes=2, alone="wait"):
        self.folder, self.alone = folder, alone
        self.clock = Clock()
        self.written = Counter()
        """Permanent writes, by group and detector."""
        self.exported = {(group, d): set() for group in "abcdef" for d in DETECTORS}
        self.raws = []
        self.groups = []
        self.surveys = []
        self.decided = []
        """Outcomes that the relay has decided by itself."""
        self.boot_relay()
        self.nodes = [Node(self, f"n{k}", folder) for k in range(nodes)]

    # --- relay ------------------------------------------------------------------

    def boot_relay(self):
        self.ledger = Ledger(self.folder, self.clock)
        self.dispatcher = Dispatcher(resend_s=0.5, silence_s=SILENCE_S, rejoin_s=1.0, give_up_s=GIVE_UP_S)
        self.uncommitted = deque()
        self.link = NodeLink(None, "relay", "r", self.ledger.epoch, self.clock)
        self.dispatcher.expect(self.ledger.recent_nodes())
        self.restore(self.ledger.unfinished_visits())

    def restore(self, rows):
        for row in rows:
            visit = read_next_visit(row.fields)
            place = row.number, visit, row.reservations, row.received_tai
            self.open(*place, row.cancelled, row.age_s, adopted=row.adopted)

    def open(self, number, visit, reservations, received_tai, cancelled=False, age_s=0.0, adopted=False):
        opened = make_open_visit(
            number,
            visit,
            [replace(reservation) for reservation in reservations],
            received_tai=received_tai,
            age_s=age_s,
            expiry_s=EXPIRY_S,
            now=self.clock.mono(),
            cancelled=cancelled,
            adopted=adopted,
        )
        self.uncommitted.append(self.dispatcher.add(opened, self.clock.mono()))

    def restart_relay(self):
        self.ledger.close()
        for node in self.nodes:
            node.up.clear()
            node.down.clear()
        self.boot_relay()

    def commit(self):
        if self.uncommitted:
            effects = self.uncommitted.popleft()
            with self.ledger.transaction():
                moved = set()
                for write in effects.writes:
                    moved.add(self.ledger.write(write))
                    if isinstance(write, SetOutcome) and write.node is None:
                        self.decided.append(write)
            for send in effects.sends:
                if isinstance(send, ConfirmResults):
                    send = send.with_moved(moved)
                for node in self.nodes:
                    if node.peer == send.peer and not node.cut_down:
                        node.down.append(self.link._message(send))

    def copy_ledger(self):
        """Make a copy of the ledger, as a backup or a snapshot does."""
        with closing(sqlite3.connect(self.folder / "copy.sqlite")) as copy:
            self.ledger._db.backup(copy)

    def put_back_ledger(self, after_s=200.0):
        """Restart the relay with the copy of its ledger, and announce at once what was announced before.

        All nodes can be reached: what one that stays away has done cannot be known.
        """
        self.clock.now += after_s  # more than the starts so far: the epoch grows
        self.ledger.close()
        copy = self.folder / "copy.sqlite"
        for name in ("", "-wal", "-shm"):
            (self.folder / f"{LEDGER_NAME}{name}").unlink(missing_ok=True)
        if copy.exists():
            shutil.copy(copy, self.folder / LEDGER_NAME)
        for node in self.nodes:
            node.up.clear()
            node.down.clear()
            node.cut_up = node.cut_down = False
        self.boot_relay()
        for number in range(len(self.groups)):
            self.announce_again(number)
        for _ in range(round(2 * SILENCE_S / 0.5)):
            self.tick()
            for node in self.nodes:
                for _ in range(4):
                    self.flow(node)
                    self.check_always()

    def announce(self, survey="alerts"):
        self.groups.append("abcdef"[len(self.groups)])
        self.surveys.append(survey)
        self.announce_again(len(self.groups) - 1)

    def announce_again(self, number):
        group, survey = self.groups[number], self.surveys[number]
        visit = read_next_visit({"groupId": group, "instrument": CAMERA, "survey": survey, "nimages": 1})
        with self.ledger.transaction():
            accepted = self.ledger.accept(visit, visit_json(visit), DETECTORS, self.clock.tai())
        if accepted.added or accepted.was_adopted:
            reservations = [Reservation(detector) for detector in accepted.added]
            self.open(accepted.number, visit, reservations, self.clock.tai(), accepted.cancelled)

    def cancel(self):
        if self.groups:
            self.uncommitted.append(self.dispatcher.cancel((CAMERA, self.groups[-1]), self.clock.mono()))

    def take_image(self):
        """The raws of the oldest visit without them arrive."""
        done = {raw.group for raw in self.raws}
        if group := next((group for group in self.groups if group not in done), None):
            new = [a_raw(group, d, exposure=self.groups.index(group) + 1) for d in DETECTORS]
            self.raws += new
            for node in self.nodes:
                for raw in new:
                    node.handle(events.RawArrived(raw))

    def tick(self, seconds=0.5):
        self.clock.now += seconds
        for node in self.nodes:
            node.tick()
        self.uncommitted.append(self.dispatcher.tick(self.clock.mono()))
        beats = (SendHeartbeat(node.peer) for node in self.dispatcher.registry.nodes)
        self.uncommitted.append(Effects.of(*beats))

    def deliver_up(self, node):
        if not node.up:
            return
        message = node.up.popleft()
        if isinstance(message, Hello) and self.dispatcher.is_new(node.peer, message):
            while self.uncommitted:  # the ledger writes in the order of decisions
                self.commit()
            with self.ledger.transaction():
                opened, adopted = self.ledger.adopt(message, {CAMERA: DETECTORS})
            self.restore(opened)
            self.dispatcher.adopted += adopted
        self.uncommitted.append(self.dispatcher.receive(node.peer, message, self.clock.mono()))

    def deliver_down(self, node):
        if node.down:
            node.receive(node.down.popleft())

    def flow(self, node):
        """Deliver and commit all that is under way, then let the workers do one step."""
        for _ in range(len(node.up)):
            self.deliver_up(node)
        while self.uncommitted:
            self.commit()
        for _ in range(len(node.down)):
            self.deliver_down(node)
        self.settle(node)
        node.work()
        self.settle(node)

    def settle(self, node):
        """Do what a node does by itself, until nothing is left to do."""
        while node.uncommitted or node.reading or node.rescans or node.can_assign:
            node.commit_all()
            while node.reading:
                key = node.reading.pop(0)
                node.handle(model.LeftoversRead(key, node.leftovers(key)))
            node.begin_rescans()
            node.assign_all()

    def stop(self, node):
        """Stop a node as an operator does, and start it again."""
        node.handle(model.StopStarted(hand_back=True))
        self.flow(node)
        node.restart()

    def calm_down(self, seconds=150.0):
        """Mend the network, and let everything come to its end."""
        for node in self.nodes:
            node.cut_up = node.cut_down = False
            node.handle(model.SlotsChanged("", hand_back=False))
        while {raw.group for raw in self.raws} != set(self.groups):
            self.take_image()
        for _ in range(round(seconds / 0.5)):
            self.tick()
            for node in self.nodes:
                for _ in range(4):
                    self.flow(node)
            if self.quiet():
                break

    def quiet(self):
        return not (
            len(self.dispatcher)
            or self.uncommitted
            or any(
                len(node.visits.open) or node.uncommitted or node.journal.unreported(1) for node in self.nodes
            )
        )

    # --- what must be true ---------------------------------------------------------

    def check_always(self):
        assert all(times <= 1 for times in self.written.values()), f"written twice: {self.written}"
        for place, spools in self.exported.items():
            assert len(spools) <= 1, f"exported twice: {place} {spools}"

    def check_in_the_end(self):
        self.check_always()
        waiting = [r for v in self.dispatcher._visits.values() for r in v.reservations.values()]
        assert waiting == [], "the relay waits"
        for node in self.nodes:
            assert len(node.visits.open) == 0, f"{node.name} waits for ever"
        for group in self.groups:
            (visit,) = self.ledger.find(group)
            assert len(visit.outcomes) == len(DETECTORS)
            for row in visit.outcomes:
                assert row.outcome is not None, (group, row)
                self.compare(group, row)

    def compare(self, group, row):
        """The ledger has what the journal of the node has, and a success was exported."""
        for node in self.nodes:
            last = [
                entry for entry in node.journal.last_attempts(group) if entry.key.detector == row.detector
            ]
            if node.name != row.node or not last or is_returned(last[0]):
                continue
            # A later attempt that never reached its node has no row in the journal.
            if max(last[0].asked, last[0].key.attempt) >= row.attempt:
                assert last[0].outcome == row.outcome, (group, row, last[0])
        exported = self.exported[group, row.detector]
        if row.outcome is Outcome.SUCCEEDED:
            assert {name for name, _ in exported} == {row.node}, (group, row, exported)
