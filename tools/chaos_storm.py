# SPDX-License-Identifier: BSD-3-Clause
"""A storm over the real relay and several real nodes, with scripted workers.

One loop does everything: the actions that are due, a client that sends its requests until they are
answered, and a check that no program has ended by itself. When the plan ends, calm returns: all
processes are continued, all connections healed. `chaos_storm_check` evaluates the results.
"""

import contextlib
import heapq
import itertools
import json
import random
import signal
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import zmq
from benching.cli import progress
from chaos_check import Violation, is_quiet, read_exports, read_rows, read_writes
from chaos_node import ChaosNode
from chaos_plan import CUTS, NODE_FAULTS, NODE_WORKER_FAULTS, Fault, Plan, ProcessFault, Visit, make_plan
from chaos_scene import CAMERA, CENTRAL_REPO, RunFolders
from chaos_storm_check import LedgerEntry, StormRecords, find_storm_violations

from ppdaemon.clock import Clock
from ppdaemon.errors import PPDaemonError
from ppdaemon.reports import DrainRequest, ResumeRequest
from ppdaemon.states import Outcome
from ppdaemon.testing.hosts import Hosts
from ppdaemon.testing.played import ClientSockets, VisitDetector
from ppdaemon.testing.relay import SubmitClient
from ppdaemon.testing.telescope import RELAY, Telescope

DETECTORS = tuple(range(9))
VISIT_EVERY_S = 1.3
"""Four nodes with six slots are rarely full, also on a busy machine with two cores."""
STEP_S = 0.02
CHECK_S = 0.5
READY_S = 90.0
CALM_S = 30.0
"""After this time without faults everything must have an outcome."""
QUIET_S = 1.0
"""Long enough for a resent message to arrive."""
ANSWER_S = 1.0
"""A request without an answer is sent again after this time."""
RAWS_WITHIN_S = 8.0
GIVE_UP_S = 6.0
"""Longer than most faults, so that the relay gives up some nodes that return."""
TIMES = {"boot_s": 10, "prepare_s": 5, "ingest_s": 5, "run_s": 15, "export_s": 5, "grace_s": 0.3, "stop_s": 3}
MORE_FAULTS = (Fault.KILL_WORKER, Fault.KILL_WORKER, Fault.STOP_WORKER, Fault.KILL_SUPERVISOR)
"""The most frequent faults after the first round; all cuts are added where they are possible."""
TAIL = 15
MOST_LINES = 40
"""Of the relay in a story: it logs each detector for itself."""
MAX_RESTARTS = 3
"""Number of times that a program which ends by itself is started again."""


class StormFailed(PPDaemonError):
    """The storm did not finish: there is nothing to check."""


@dataclass(slots=True)
class StormReport:
    """The results of a storm."""

    accepted: int
    outcomes: Counter[str]
    faults: Counter[str]
    incarnations: int
    calm_s: float
    """From the last fault until nothing was open."""
    moved: int
    """Visit-detectors that the journals of several nodes have."""
    violations: list[Violation]
    stories: dict[str, list[str]]

    def count(self, kind: str) -> int:
        """Return the number of violations of a kind."""
        return sum(1 for violation in self.violations if violation.kind == kind)


class StormClient:
    """Sends requests until they are answered, also by a relay that was killed meanwhile."""

    def __init__(self, sockets: ClientSockets, telescope: Telescope):
        self._socket = sockets.connect(zmq.DEALER, telescope.relay.submit, telescope.client_keys)
        self._unanswered: dict[tuple[str, str], tuple[dict[str, Any], float]] = {}
        self.accepted: set[str] = set()
        """Groups of accepted visits."""
        self.refused: dict[str, str] = {}
        """Answers to visits that were not accepted, by group."""

    def announce(self, visit: Visit) -> None:
        """Announce a visit, once more if it was announced before."""
        fields = {"groupId": visit.group, "instrument": CAMERA, "nimages": visit.snaps}
        stamp = {"private_sndStamp": Clock().tai()}
        self._unanswered["visit", visit.group] = {**fields, "survey": visit.survey, **stamp}, 0.0

    def cancel(self, group: str) -> None:
        """Cancel a visit."""
        self._unanswered["cancel", group] = {"groupId": group}, 0.0

    @property
    def done(self) -> bool:
        """Whether all requests were answered."""
        return not self._unanswered

    def listen(self, wait_s: float) -> None:
        """Send what is due, and receive answers."""
        now = time.monotonic()
        for key, (fields, sent) in self._unanswered.items():
            # A cancellation only after its visit: the relay would not know it.
            if now - sent >= ANSWER_S and (key[0] == "visit" or ("visit", key[1]) not in self._unanswered):
                self._unanswered[key] = fields, now
                self._send(fields)
        while self._socket.poll(round(wait_s * 1000)):
            wait_s = 0.0
            self._receive(json.loads(self._socket.recv_multipart()[-1]))

    def _send(self, fields: dict[str, Any]) -> None:
        with contextlib.suppress(zmq.Again):  # sent again later
            self._socket.send_multipart([b"", json.dumps(fields).encode()], zmq.NOBLOCK)

    def _receive(self, answer: dict[str, Any]) -> None:
        group = answer["groupId"]
        # The answers to one group come in the order of the requests.
        if self._unanswered.pop(("visit", group), None) is None:
            self._unanswered.pop(("cancel", group), None)
        elif answer["status"] in ("accepted", "duplicate"):
            self.accepted.add(group)
        else:
            self.refused[group] = f"{answer['status']}: {answer['reason']}"


@dataclass(slots=True)
class Storm:
    """One storm. `draw` selects victims."""

    plan: Plan
    telescope: Telescope
    client: StormClient
    draw: random.Random
    faults: Counter[str] = field(default_factory=Counter)
    _log: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    _violations: list[Violation] = field(default_factory=list)
    _agenda: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _order: Iterator[int] = field(default_factory=itertools.count)
    _begin: float = 0.0
    _last_check: float = 0.0
    _last_line: int = -1
    _stopped: set[str] = field(default_factory=set)
    """Nodes, and the relay, that are stopped now: they cannot answer."""
    _cut: set[str] = field(default_factory=set)
    _restarts: Counter[str] = field(default_factory=Counter)

    @property
    def nodes(self) -> dict[str, ChaosNode]:
        """The nodes by name."""
        return self.telescope.nodes  # type: ignore[return-value]

    def run(self) -> StormReport:
        """Execute the plan, return to calm, wait for all outcomes, stop all, and check the results."""
        self.telescope.start(READY_S)
        self._begin = time.monotonic()
        self._fill_agenda()
        while self._agenda:
            self._step()
        calm_s = self._calm()
        with ClientSockets() as sockets:
            ledger = self._ledger(self.telescope.client(sockets))
        self._violations += [Violation("leaked", problem) for problem in self.telescope.stop()]
        self._check_leaks()
        return self._report(ledger, calm_s)

    # --- time --------------------------------------------------------------

    @property
    def _now_s(self) -> float:
        return time.monotonic() - self._begin

    def _at(self, when_s: float, act: Callable[[], object]) -> None:
        heapq.heappush(self._agenda, (when_s, next(self._order), act))  # type: ignore[arg-type]

    def _after(self, length_s: float, act: Callable[[], object]) -> None:
        self._at(self._now_s + length_s, act)

    def _step(self) -> None:
        self.client.listen(STEP_S)
        while self._agenda and self._agenda[0][0] <= self._now_s:
            heapq.heappop(self._agenda)[2]()
        if time.monotonic() - self._last_check >= CHECK_S:
            self._last_check = time.monotonic()
            self._check_alive()

    # --- visits ------------------------------------------------------------

    def _fill_agenda(self) -> None:
        for visit in self.plan.visits:
            for at_s in (visit.announce_s, *visit.resend_s):
                self._at(at_s, lambda visit=visit: self._announce(visit))
            for snap, at_s in enumerate(visit.raws_s, 1):
                self._at(at_s, lambda visit=visit, snap=snap: self._write_raws(visit, snap))
            if visit.cancel_s is not None:
                self._at(visit.cancel_s, lambda visit=visit: self._cancel(visit))
        for fault in self.plan.process_faults:
            self._at(fault.at_s, lambda fault=fault: self._cause(fault))

    def _note(self, group: str, text: str) -> None:
        self._log[group].append(f"{self._now_s:7.3f} {text}")

    def _announce(self, visit: Visit) -> None:
        again = visit.group in self._log
        self._note(visit.group, "announced again" if again else f"announced: {visit.survey}")
        self.client.announce(visit)
        if again:
            self.faults[Fault.DUPLICATE] += 1
        elif visit.visit_fault not in (None, Fault.DUPLICATE, Fault.CANCEL):
            self.faults[str(visit.visit_fault)] += 1

    def _write_raws(self, visit: Visit, snap: int) -> None:
        self._note(visit.group, f"raws of snap {snap} written")
        self.telescope.raws.land(visit.group, DETECTORS, snap=snap, snaps=visit.snaps)

    def _cancel(self, visit: Visit) -> None:
        self.faults[Fault.CANCEL] += 1
        self._note(visit.group, "canceled")
        self.client.cancel(visit.group)

    # --- faults ------------------------------------------------------------

    def _cause(self, fault: ProcessFault) -> None:
        """Cause a fault at a node, or try again soon if it is not possible there now."""
        name = self.draw.choice(sorted(self.nodes))
        act: Callable[[str, float], bool] = {
            Fault.KILL_WORKER: lambda name, _: self._signal_worker(name, signal.SIGKILL) is not None,
            Fault.STOP_WORKER: self._stop_worker,
            Fault.KILL_ZYGOTE: lambda name, _: self._signal(name, "ppdaemon zygote", signal.SIGKILL),
            Fault.STOP_ZYGOTE: lambda name, length_s: self._stop_process(name, "ppdaemon zygote", length_s),
            Fault.KILL_EXPORTER: lambda name, _: self._signal(name, "ppdaemon exporter", signal.SIGKILL),
            Fault.KILL_ASKER: lambda name, _: self._signal(name, "ppdaemon asker", signal.SIGKILL),
            Fault.STOP_ASKER: lambda name, length_s: self._stop_process(name, "ppdaemon asker", length_s),
            Fault.KILL_SUPERVISOR: self._kill_supervisor,
            Fault.STOP_SUPERVISOR: self._stop_supervisor,
            Fault.KILL_RELAY: self._kill_relay,
            Fault.STOP_RELAY: self._stop_relay,
            Fault.DRAIN: self._drain,
            Fault.CUT_FROM_NODE: lambda name, length_s: self._cut_off(name, length_s, (name, RELAY)),
            Fault.CUT_FROM_RELAY: lambda name, length_s: self._cut_off(name, length_s, (RELAY, name)),
            Fault.CUT_BOTH: lambda name, length_s: self._cut_off(
                name, length_s, (name, RELAY), (RELAY, name)
            ),
        }[fault.fault]
        if act(name, fault.length_s):
            self.faults[fault.fault] += 1
            self._note("", f"{fault.fault} {name} {fault.length_s:.1f} s")
        elif self._now_s < self.plan.visits[-1].announce_s:
            self._after(0.2, lambda: self._cause(fault))

    def _answers(self, name: str) -> bool:
        """Return whether a node has started and is not stopped: while it starts, it needs its zygote."""
        if name in self._stopped:
            return False
        status = self.nodes[name].status_or_none()
        return status is not None and status.state != "starting"

    def _signal(self, name: str, title: str, number: int) -> bool:
        if not self._answers(name):
            return False
        pid = self.nodes[name].find(title)
        return pid is not None and self.nodes[name].signal(pid, number)

    def _signal_worker(self, name: str, number: int) -> int | None:
        """Signal a worker, each state in use with the same probability; return its pid."""
        if not self._answers(name):
            return None
        rows = [row for row in self.nodes[name].workers_or_none() if row.pid is not None]
        if not rows:
            return None
        state = self.draw.choice(sorted({row.state for row in rows}))
        row = self.draw.choice([row for row in rows if row.state == state])
        if row.pid is None or not self.nodes[name].signal(row.pid, number):
            return None
        if row.group is not None:
            self._note(row.group, f"{name}: signal {number} to detector {row.detector} while {row.state}")
        return row.pid

    def _stop_worker(self, name: str, length_s: float) -> bool:
        pid = self._signal_worker(name, signal.SIGSTOP)
        if pid is None:
            return False
        self._after(length_s, lambda: self.nodes[name].signal(pid, signal.SIGCONT))
        return True

    def _stop_process(self, name: str, title: str, length_s: float) -> bool:
        pid = self.nodes[name].find(title) if self._answers(name) else None
        if pid is None or not self.nodes[name].signal(pid, signal.SIGSTOP):
            return False
        self._after(length_s, lambda: self.nodes[name].signal(pid, signal.SIGCONT))
        return True

    def _kill_supervisor(self, name: str, _: float) -> bool:
        """Kill it, and start the next one at once, while its workers may still be running."""
        if not self._answers(name):
            return False
        self.nodes[name].kill()
        self.nodes[name].launch()
        return True

    def _stop_supervisor(self, name: str, length_s: float) -> bool:
        if not self._answers(name):
            return False
        self._stopped.add(name)
        pid = self.nodes[name].pid
        self.nodes[name].signal(pid, signal.SIGSTOP)
        self._after(length_s, lambda: self._continue(name))
        return True

    def _continue(self, name: str) -> None:
        self._stopped.discard(name)
        self.nodes[name].signal(self.nodes[name].pid, signal.SIGCONT)

    def _kill_relay(self, _: str, __: float) -> bool:
        if RELAY in self._stopped:
            return False
        self.telescope.relay.kill()
        self.telescope.relay.launch()
        return True

    def _stop_relay(self, _: str, length_s: float) -> bool:
        if RELAY in self._stopped:
            return False
        self._stopped.add(RELAY)
        self.telescope.relay.process.send_signal(signal.SIGSTOP)
        self._after(length_s, self._continue_relay)
        return True

    def _continue_relay(self) -> None:
        self._stopped.discard(RELAY)
        self.telescope.relay.process.send_signal(signal.SIGCONT)

    def _drain(self, name: str, length_s: float) -> bool:
        if not self._answers(name):
            return False
        self.nodes[name].request(DrainRequest())
        self._after(length_s, lambda: self._resume(name))
        return True

    def _resume(self, name: str) -> None:
        # Until it answers: a drain lasts over a restart.
        if name in self._stopped or not self.nodes[name].request(ResumeRequest()):
            self._after(0.2, lambda: self._resume(name))

    def _cut_off(self, name: str, length_s: float, *ways: tuple[str, str]) -> bool:
        """Lose all messages from and to these hosts; only one cut of a node at a time."""
        hosts = self.telescope.hosts
        assert hosts is not None
        if name in self._cut:
            return False
        self._cut.add(name)
        for source, target in ways:
            hosts.cut(source, target)
        self._after(length_s, lambda: self._heal(name))
        return True

    def _heal(self, name: str) -> None:
        self._cut.discard(name)
        assert self.telescope.hosts is not None
        self.telescope.hosts.heal(name)

    # --- checks --------------------------------------------------------------

    def _check_alive(self) -> None:
        """Start what has ended by itself again, a few times, as a service manager does."""
        for name, program in {RELAY: self.telescope.relay, **self.nodes}.items():
            if (status := program.process.poll()) is None:
                continue
            tail = "\n".join(program.log.read_text(errors="replace").splitlines()[-TAIL:])
            self._violations.append(Violation("wrong", f"{name} exited with status {status}:\n{tail}"))
            self._restarts[name] += 1
            if self._restarts[name] > MAX_RESTARTS:
                raise StormFailed(f"{name} exited {MAX_RESTARTS + 1} times by itself:\n{tail}")
            program.launch()
        if int(self._now_s) > self._last_line:
            self._last_line = int(self._now_s)
            progress(
                f"{self._last_line:4d} s  accepted {len(self.client.accepted):4d} visits"
                f"  faults {self.faults.total():4d}  stopped {len(self._stopped)}  cut {len(self._cut)}"
            )

    def _calm(self) -> float:
        """Wait until nothing is open, or `CALM_S` have passed; return the time."""
        began, quiet_since = time.monotonic(), None
        progress("calm; waiting for all outcomes")
        while (passed_s := time.monotonic() - began) < CALM_S:
            self._step()
            if self._is_quiet():
                quiet_since = quiet_since or time.monotonic()
                if time.monotonic() - quiet_since > QUIET_S:
                    return quiet_since - began
            else:
                quiet_since = None
        states = {name: node.status_or_none() for name, node in self.nodes.items()}
        texts = [f"{name}: {status.text if status else 'no answer'}" for name, status in states.items()]
        self._violations.append(Violation("open", f"not quiet {CALM_S:g} s after calm: {'; '.join(texts)}"))
        return passed_s

    def _is_quiet(self) -> bool:
        """Return whether the relay and the nodes have nothing open."""
        if not self.client.done or not all(is_quiet(node.status_or_none()) for node in self.nodes.values()):
            return False
        with ClientSockets() as sockets:
            client = self.telescope.client(sockets)
            return all(all(client.outcomes(group).values()) for group in sorted(self.client.accepted))

    def _ledger(self, client: SubmitClient) -> dict[VisitDetector, LedgerEntry]:
        found = {}
        for group in sorted(self.client.accepted):
            answer = client.request({"type": "visit_status", "groupId": group})
            for each in answer.get("outcomes", ()):
                outcome = Outcome(each["outcome"]) if each.get("outcome") else None
                found[group, each["detector"]] = LedgerEntry(
                    each.get("node"), outcome, each.get("reason", ""), each.get("attempt", 1)
                )
        return found

    def _check_leaks(self) -> None:
        for name, node in self.nodes.items():
            for pid, title in node.processes().items():
                self._violations.append(Violation("leaked", f"{name}: {node.describe(pid, title)}"))
                node.signal(pid, signal.SIGKILL)
            folders = node.folders
            self._violations += [
                Violation("leaked", f"{name}: {path} was not deleted")
                for path in (*folders.spool.iterdir(), *folders.no_return.iterdir())
            ]

    def _report(self, ledger: dict[VisitDetector, LedgerEntry], calm_s: float) -> StormReport:
        journals = {name: read_rows(node.folders.journal) for name, node in self.nodes.items()}
        exports = {
            name: read_exports(path.name for path in (node.state / "exported").glob("*"))
            for name, node in self.nodes.items()
        }
        records = StormRecords(
            accepted=frozenset((group, each) for group in self.client.accepted for each in DETECTORS),
            ledger=ledger,
            journals=journals,
            writes={name: read_writes(node.state / "marks") for name, node in self.nodes.items()},
            exports=exports,
        )
        refused = [
            Violation("wrong", f"{group} was refused: {text}") for group, text in self.client.refused.items()
        ]
        violations = [*self._violations, *refused, *find_storm_violations(records)]
        holders = Counter(key for rows in journals.values() for key in {row.key for row in rows})
        return StormReport(
            accepted=len(records.accepted),
            outcomes=Counter(str(entry.outcome) for entry in ledger.values()),
            faults=self.faults,
            incarnations=sum(node.incarnations for node in self.nodes.values()),
            calm_s=calm_s,
            moved=sum(count > 1 for count in holders.values()),
            violations=violations,
            stories={
                group: self._story(group)
                for group in {violation.key[0] for violation in violations if violation.key}
            },
        )

    def _story(self, group: str) -> list[str]:
        """Return what happened to a visit, and the faults of all processes meanwhile."""
        begin, end = (float(self._log[group][index].split()[0]) for index in (0, -1))
        faults = [line for line in self._log[""] if begin - 1 <= float(line.split()[0]) <= end + 10]
        story = sorted([*self._log[group], *faults])
        for name, node in self.nodes.items():
            story += [f"{name}: {line}" for line in node.log_of(group)]
        relay = self.telescope.relay.log.read_text(errors="replace").splitlines()
        return story + [f"{RELAY}: {line}" for line in relay if group in line][:MOST_LINES]


def run_storm(
    folders: RunFolders,
    seconds: float,
    seed: int,
    nodes: int,
    workers: int,
    *,
    namespaces: bool,
) -> StormReport:
    """Run a storm in empty folders, with hosts as network namespaces if requested."""
    cuts = CUTS if namespaces else ()
    plan = make_plan(
        seed,
        seconds,
        DETECTORS,
        worker_faults=NODE_WORKER_FAULTS,
        process_faults=(*NODE_FAULTS, *cuts),
        more_faults=(*MORE_FAULTS, *cuts),
        visit_every_s=VISIT_EVERY_S,
        fault_every_s=0.7,
    )
    mark = uuid.uuid4().hex
    names = [f"n{number}" for number in range(1, nodes + 1)]
    with (
        Hosts([RELAY, *names]) if namespaces else contextlib.nullcontext() as hosts,
        ClientSockets() as sockets,
    ):
        telescope = Telescope(
            folders.scratch,
            folders.ramdisk,
            names,
            hosts=hosts,
            relay={"give_up_s": GIVE_UP_S},
            make_node=lambda folder, config, launcher: ChaosNode(folder, config, mark, launcher=launcher),
            arrivals={"image_timeout_s": RAWS_WITHIN_S},
            butler=CENTRAL_REPO,
            workers={"max": workers, "times": TIMES},
        )
        try:
            return Storm(
                plan,
                telescope,
                StormClient(sockets, telescope),
                random.Random(f"victims of {seed}"),
            ).run()
        finally:
            telescope.kill()
