# SPDX-License-Identifier: BSD-3-Clause
"""Execute the plan of a chaos run with a real daemon, and log each action.

One loop does everything: the actions that are due, the relay's end of the
link, an operator who restarts quarantined slots, and a check of the resources.
`chaos_check` evaluates the results.
"""

import heapq
import itertools
import random
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from benching.cli import progress
from chaos_check import ReceivedOutcome, RunRecords, Violation, find_violations, is_quiet, read_rows
from chaos_node import ChaosNode
from chaos_plan import Fault, Plan, ProcessFault, Visit
from chaos_relay import ChaosRelay
from chaos_scene import Scene

from ppdaemon.errors import PPDaemonError
from ppdaemon.reports import RestartRequest, WorkerRow
from ppdaemon.states import BUSY_STATES, SlotState
from ppdaemon.testing.played import VisitDetector
from ppdaemon.testing.processes import ResourceUsage

# Faults come every 0.7 s: the loop must not delay them.
STEP_S = 0.015
# Quarantined slots must be restarted soon, or the run has too few workers.
CHECK_S = 0.5
READY_S = 90.0
ORPHANS_S = 5.0
"""Time limit for the exit of the workers after their supervisor was killed."""
RAW_MARGIN_S = 2.0
"""A raw that is written this long before the end of the wait must be used."""
# Long enough for a resent reservation or a repeated outcome to arrive.
QUIET_S = 1.5
MAX_RESTARTS = 3
"""Number of times that a daemon which exits by itself is started again."""
TAIL = 15
MORE_DESCRIPTORS, MORE_THREADS, MORE_RSS_BYTES = 4, 8, 60_000_000
"""Allowed growth of the supervisor's resources: its pool of threads for files
grows up to 6 during the run."""


class ChaosFailed(PPDaemonError):
    """The run did not finish: there is nothing to check."""


@dataclass(slots=True)
class Report:
    """The results of a run."""

    accepted: int
    refused: int
    outcomes: Counter[str]
    attempts: int
    faults: Counter[str]
    killed_while: Counter[str]
    """Number of killed workers by state of their slot."""
    incarnations: int
    restarted_slots: int
    slowest_answer_s: float
    begin: ResourceUsage
    end: ResourceUsage
    violations: list[Violation]
    stories: dict[str, list[str]]
    """By group: the records of the relay, the journal and the daemon's log."""

    def count(self, kind: str) -> int:
        """Return the number of violations of a kind."""
        return sum(1 for violation in self.violations if violation.kind == kind)


@dataclass(slots=True)
class ChaosRun:
    """One run. `draw` selects victims."""

    plan: Plan
    scene: Scene
    node: ChaosNode
    relay: ChaosRelay
    draw: random.Random
    faults: Counter[str] = field(default_factory=Counter)
    killed_while: Counter[str] = field(default_factory=Counter)
    _log: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    _violations: list[Violation] = field(default_factory=list)
    _harmed_pids: set[int] = field(default_factory=set)
    _announced: dict[str, float] = field(default_factory=dict)
    _supervisor_kills: list[float] = field(default_factory=list)
    _orphans: dict[int, str] = field(default_factory=dict)
    """Processes that were running when the supervisor was killed."""
    _restarted_slots: int = 0
    _restarts: int = 0
    _agenda: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _order: Iterator[int] = field(default_factory=itertools.count)
    _begin: float = 0.0
    _last_check: float = 0.0
    _last_line: int = -1
    _used: ResourceUsage | None = None

    def run(self) -> Report:
        """Execute the plan, wait for all outcomes, stop the daemon, and check the results."""
        self.node.launch()
        try:
            self._wait_until_ready(READY_S)
            self._begin = time.monotonic()
            self._fill_agenda()
            while self._agenda or self._orphans:
                self._step()
            progress("no more faults; waiting for all outcomes")
            self._drain()
            end = self.node.usage()
            self._check_growth(end)
        finally:
            status = self.node.stop_or_kill()
        self._check_stop(status)
        return self._report(end)

    # --- time ------------------------------------------------------------

    @property
    def _now_s(self) -> float:
        return time.monotonic() - self._begin

    def _at(self, when_s: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._agenda, (when_s, next(self._order), act))

    def _step(self) -> None:
        self.relay.listen(STEP_S)
        while self._agenda and self._agenda[0][0] <= self._now_s:
            heapq.heappop(self._agenda)[2]()
        if time.monotonic() - self._last_check >= CHECK_S:
            self._last_check = time.monotonic()
            self._check()

    def _wait_until_ready(self, limit_s: float) -> None:
        until = time.monotonic() + limit_s
        while time.monotonic() < until:
            self.relay.listen(STEP_S)
            self._check_alive()
            status = self.node.status_or_none()
            if status and status.relay.startswith("connected") and status.slots.get(SlotState.IDLE):
                self._used = self.node.usage()
                return
        tail = "\n".join(self.node.log_of("", most=TAIL))
        raise ChaosFailed(f"the daemon is not ready after {limit_s:g} s:\n{tail}")

    # --- visits ----------------------------------------------------------

    def _fill_agenda(self) -> None:
        for visit in self.plan.visits:
            self._at(visit.announce_s, lambda visit=visit: self._announce(visit))
            for snap, at_s in enumerate(visit.raws_s, 1):
                self._at(at_s, lambda visit=visit, snap=snap: self._write_raws(visit, snap))
            for at_s in visit.resend_s:
                self._at(at_s, lambda visit=visit: self._announce_again(visit))
            if visit.cancel_s is not None:
                self._at(visit.cancel_s, lambda visit=visit: self._cancel(visit))
        for fault in self.plan.process_faults:
            self._at(fault.at_s, lambda fault=fault: self._cause(fault))

    def _note(self, group: str, text: str) -> None:
        self._log[group].append(f"{self._now_s:7.3f} {text}")

    def _announce(self, visit: Visit) -> None:
        self._announced[visit.group] = time.monotonic()
        self._note(
            visit.group, f"announced: detectors {visit.detectors}, {visit.survey}, {visit.visit_fault or ''}"
        )
        self.relay.reserve_detectors(self.scene.announcement(visit), visit.detectors)
        if visit.visit_fault in (Fault.NO_RAW, Fault.EARLY_RAW, Fault.MISSING_SNAP, Fault.LATE_RAW):
            self.faults[visit.visit_fault] += 1

    def _announce_again(self, visit: Visit) -> None:
        self.faults[Fault.DUPLICATE] += 1
        self.relay.reserve_again(visit.group)

    def _write_raws(self, visit: Visit, snap: int) -> None:
        self._note(visit.group, f"raws of snap {snap} written")
        self.scene.write_raws(visit, snap)

    def _cancel(self, visit: Visit) -> None:
        self.faults[Fault.CANCEL] += 1
        self._note(visit.group, "canceled")
        self.relay.cancel_visit(visit.group)

    # --- process faults ---------------------------------------------------

    def _cause(self, fault: ProcessFault) -> None:
        """Cause the fault, or try again soon if there is no victim now."""
        act: Callable[[float], bool] = {
            Fault.KILL_WORKER: self._kill_worker,
            Fault.STOP_WORKER: self._stop_worker,
            Fault.KILL_ZYGOTE: lambda _: (
                self._has_started() and self._signal_process("ppdaemon zygote", signal.SIGKILL)
            ),
            Fault.STOP_ZYGOTE: lambda length_s: (
                self._has_started() and self._stop_process("ppdaemon zygote", length_s)
            ),
            Fault.KILL_EXPORTER: lambda _: self._signal_process("ppdaemon exporter", signal.SIGKILL),
            Fault.KILL_ASKER: lambda _: self._signal_process("ppdaemon asker", signal.SIGKILL),
            Fault.STOP_ASKER: lambda length_s: self._stop_process("ppdaemon asker", length_s),
            Fault.KILL_SUPERVISOR: self._kill_supervisor,
            Fault.RELOAD: self._reload,
            Fault.CLOCK_JUMP: self._set_clock,
            Fault.RELAY_SILENT: self._stop_relay,
            Fault.INVALID_MESSAGE: self._send_invalid_message,
            Fault.CENTRAL_DOWN: self._stop_central,
        }[fault.fault]
        if act(fault.length_s):
            self.faults[fault.fault] += 1
        elif self._now_s < self.plan.visits[-1].announce_s:
            self._at(self._now_s + 0.2, lambda: self._cause(fault))

    def _victim(self) -> WorkerRow | None:
        """Select a worker: each state in use has the same probability."""
        rows = [row for row in self.node.workers_or_none() if row.pid is not None]
        states = sorted({row.state for row in rows})
        if not states:
            return None
        state = self.draw.choice(states)
        return self.draw.choice([row for row in rows if row.state == state])

    def _signal_worker(self, number: int, how: str) -> WorkerRow | None:
        row = self._victim()
        if row is None or row.pid is None or not self.node.signal(row.pid, number):
            return None
        self._harmed_pids.add(row.pid)
        if row.group is not None:
            self._note(row.group, f"worker {row.pid} of detector {row.detector} {how} while {row.state}")
        return row

    def _kill_worker(self, _: float) -> bool:
        row = self._signal_worker(signal.SIGKILL, "killed")
        if row is not None:
            self.killed_while[row.state] += 1
        return row is not None

    def _stop_worker(self, length_s: float) -> bool:
        row = self._signal_worker(signal.SIGSTOP, f"stopped for {length_s:.1f} s")
        if row is not None and row.pid is not None:
            self._continue_after(row.pid, length_s)
        return row is not None

    def _stop_process(self, title: str, length_s: float) -> bool:
        pid = self.node.find(title)
        if pid is None or not self.node.signal(pid, signal.SIGSTOP):
            return False
        self._continue_after(pid, length_s)
        return True

    def _continue_after(self, pid: int, length_s: float) -> None:
        self._at(self._now_s + length_s, lambda: bool(self.node.signal(pid, signal.SIGCONT)) and None)

    def _has_started(self) -> bool:
        """Return whether the daemon has started: while it starts, it needs its zygote."""
        status = self.node.status_or_none()
        return status is not None and status.state != "starting"

    def _signal_process(self, title: str, number: int) -> bool:
        pid = self.node.find(title)
        return pid is not None and self.node.signal(pid, number)

    def _kill_supervisor(self, _: float) -> bool:
        """Kill it, and start the next one at once."""
        if self._orphans or not self.node.workers_or_none():
            return False  # the processes of the last kill are still exiting
        orphans = self.node.processes()
        self.node.kill()
        self._supervisor_kills.append(time.monotonic())
        orphans.pop(self.node.pid, None)
        self._orphans = orphans
        self._at(self._now_s + ORPHANS_S, self._check_orphans)
        # At once, so that both incarnations' processes exist side by side for some time.
        self.node.launch()
        return True

    def _check_orphans(self) -> None:
        running = self.node.processes().keys()
        self._violations += [
            Violation("leaked", f"still running after its supervisor: {self.node.describe(pid, title)}")
            for pid, title in self._orphans.items()
            if pid in running
        ]
        self._orphans = {}

    def _reload(self, _: float) -> bool:
        """Replace all processes while visits are running."""
        if self.node.status_or_none() is None:
            return False
        self.node.change_settings()
        return self.node.signal(self.node.pid, signal.SIGHUP)

    def _set_clock(self, _: float) -> bool:
        # Before the daemon answers, it has no handler: the signal would terminate it.
        return self.node.status_or_none() is not None and self.node.signal(self.node.pid, signal.SIGUSR1)

    def _stop_relay(self, length_s: float) -> bool:
        self.relay.stop_answering(length_s)
        return True

    def _send_invalid_message(self, _: float) -> bool:
        self.relay.send_invalid_message()
        return True

    def _stop_central(self, length_s: float) -> bool:
        flag = self.node.folders.state / "central-down"
        flag.parent.mkdir(parents=True, exist_ok=True)  # the daemon may not have made it yet
        flag.touch()
        self._at(self._now_s + length_s, lambda: flag.unlink(missing_ok=True))
        return True

    # --- checks ----------------------------------------------------------

    def _check(self) -> None:
        self._check_alive()
        rows = self.node.workers_or_none()
        for row in rows:
            if row.state == SlotState.QUARANTINED:
                self._restarted_slots += 1
                self.node.request(RestartRequest(slot=row.slot))
        if int(self._now_s) > self._last_line:
            self._last_line = int(self._now_s)
            busy = sum(1 for row in rows if row.state in BUSY_STATES)
            progress(
                f"{self._last_line:4d} s  accepted {len(self.relay.acked):4d}"
                f"  ended {len(self.relay.results):4d}  workers {busy:2d} of {len(rows):2d} busy"
                f"  faults {self.faults.total():4d}  incarnation {self.node.incarnations}"
            )

    def _check_alive(self) -> None:
        """Start a daemon that has exited again, a few times, as a service manager does."""
        status = self.node.process.poll()
        if status is None:
            return
        tail = "\n".join(self.node.log_of("", most=TAIL))
        self._violations.append(Violation("wrong", f"the daemon exited with status {status}:\n{tail}"))
        if self._restarts >= MAX_RESTARTS:
            raise ChaosFailed(f"the daemon exited {MAX_RESTARTS + 1} times by itself:\n{tail}")
        self._restarts += 1
        self.node.launch()

    # --- the end ---------------------------------------------------------

    def _drain(self) -> None:
        """Wait until all work is done and exported, or the time limit is reached."""
        until = time.monotonic() + self.scene.drain_s
        quiet_since = status = None
        while time.monotonic() < until:
            self._step()
            status = self.node.status_or_none()
            if not is_quiet(status) or self.relay.missing:
                quiet_since = None
            elif quiet_since is None:
                quiet_since = time.monotonic()
            elif time.monotonic() - quiet_since > QUIET_S:
                return
        late = f"{self.scene.drain_s:g} s after the last fault"
        state = (
            f"{status.text}; {status.spooled} spooled, exporter {status.exporter}" if status else "no answer"
        )
        self._violations.append(Violation("wrong", f"not quiet {late}: {state}"))
        self._violations += [Violation("lost", f"no outcome {late}", key) for key in self.relay.missing]

    def _check_growth(self, end: ResourceUsage) -> None:
        begin = self._used
        assert begin is not None
        for name, before, now, more in (
            ("descriptors", begin.descriptors, end.descriptors, MORE_DESCRIPTORS),
            ("threads", begin.threads, end.threads, MORE_THREADS),
            ("bytes of memory", begin.rss_bytes, end.rss_bytes, MORE_RSS_BYTES),
        ):
            if now > before + more:
                what = f"the supervisor has {now} {name}, had {before}"
                if name == "descriptors":
                    what += ": " + ", ".join(self.node.open_files())
                self._violations.append(Violation("leaked", what))

    def _check_stop(self, status: int | None) -> None:
        if status != 0:
            how = "had to be killed" if status is None else f"exited with status {status}"
            self._violations.append(Violation("wrong", f"the daemon {how} after the request to stop"))
        self._violations += [
            Violation("leaked", self.node.describe(pid, title))
            for pid, title in self.node.processes().items()
        ]
        for pid in self.node.processes():
            self.node.signal(pid, signal.SIGKILL)
        folders = self.node.folders
        self._violations += [
            Violation("leaked", f"{path} was not deleted; it has {sorted(map(str, path.rglob('*')))[:TAIL]}")
            for path in (folders.ramdisk, *folders.spool.iterdir(), *folders.no_return.iterdir())
            if path.exists()
        ]

    def _report(self, end: ResourceUsage) -> Report:
        rows = read_rows(self.node.folders.journal)
        relay = self.relay
        finals = {row.key: row for row in rows if row.final}
        violations = self._violations + find_violations(
            RunRecords(
                accepted=frozenset(relay.acked),
                received={
                    key: [ReceivedOutcome(entry.outcome, entry.attempt) for entry in entries]
                    for key, entries in relay.results.items()
                },
                rows=rows,
                writes=self.scene.writes(),
                exports=self.scene.exports(),
                reasons=self._reasons(),
                harmed_pids=frozenset(self._harmed_pids),
                raw_in_time=frozenset(self._raw_in_time()),
                refused=relay.refused,
            )
        )
        assert self._used is not None
        return Report(
            accepted=len(relay.acked),
            refused=len(relay.refused),
            outcomes=Counter(str(row.outcome) for row in finals.values()),
            attempts=len(rows),
            faults=self.faults + self.scene.done_worker_faults(),
            killed_while=self.killed_while,
            incarnations=self.node.incarnations,
            restarted_slots=self._restarted_slots,
            slowest_answer_s=self.node.slowest_answer_s,
            begin=self._used,
            end=end,
            violations=violations,
            stories={
                key[0]: [
                    *self._log[key[0]],
                    *(f"journal: detector {row.key[1]} {row}" for row in rows if row.key[0] == key[0]),
                    *(f"log: {line}" for line in self.node.log_of(key[0])),
                ]
                for key in (violation.key for violation in violations)
                if key is not None
            },
        )

    def _reasons(self) -> dict[VisitDetector, list[str]]:
        """Return the faults of each visit-detector that may explain its outcome."""
        reasons: dict[VisitDetector, list[str]] = defaultdict(list)
        for visit in self.plan.visits:
            for detector in visit.detectors:
                key = (visit.group, detector)
                if visit.worker_fault is not None and visit.worker_fault.detector in (None, detector):
                    reasons[key].append(str(visit.worker_fault))
                if visit.cancel_s is not None:
                    reasons[key].append("canceled")
                begin = self._announced.get(visit.group, 0.0)
                end = self.relay.outcome_at.get(key, float("inf"))
                if any(begin <= kill <= end for kill in self._supervisor_kills):
                    reasons[key].append("supervisor killed")
        return reasons

    def _raw_in_time(self) -> Iterator[VisitDetector]:
        for visit in self.plan.visits:
            last_s = visit.announce_s + self.scene.raw_timeout_s - RAW_MARGIN_S
            if visit.raws_s and min(visit.raws_s) < last_s:
                yield from ((visit.group, detector) for detector in visit.detectors)
