# SPDX-License-Identifier: BSD-3-Clause
"""One telescope on several hosts: nothing is done twice or lost, and the ledger agrees with all journals.

Hosts are network namespaces. The tests of a module share four nodes; those that end or spoil nodes have
their own.
"""

import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
from ramdisk import TEMPORARY

from ppdaemon.reports import VisitRow
from ppdaemon.states import Outcome, SlotState
from ppdaemon.testing.hosts import Hosts, why_not
from ppdaemon.testing.telescope import RELAY, Telescope, running_telescope

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(reason := why_not()), reason=reason)]

NODES = ("n1", "n2", "n3", "n4")
DETECTORS = range(9)
TIMES = {"boot_s": 10, "prepare_s": 60, "run_s": 60, "export_s": 60, "grace_s": 0.5, "stop_s": 0.3}
WITHIN_S = 30.0
GROUPS = itertools.count(1)

STRANGER = """
import contextlib, sys, time, zmq
from ppdaemon.messages import ResultEntry, Results
from ppdaemon.states import Outcome
from ppdaemon.testing.played import ClientSockets, PlayedNode
address, group = sys.argv[1:]
with ClientSockets() as sockets:
    stranger = PlayedNode(sockets, address, "stranger", detectors=range(9))
    stranger._socket.set(zmq.SNDTIMEO, 0)  # after a refusal nothing can be sent
    entry = {"instrument": "DemoCam", "group": group, "outcome": Outcome.SUCCEEDED}
    entries = [ResultEntry(detector=detector, **entry) for detector in range(9)]
    until = time.monotonic() + 1.0
    while time.monotonic() < until:
        with contextlib.suppress(zmq.Again):
            stranger.send(Results, entries=tuple(entries))
            stranger.listen()
        time.sleep(0.05)
    print([message.type for message in stranger.received])
"""


class Site(SimpleNamespace):
    """A running telescope, a client of its relay, and its hosts."""

    telescope: Telescope

    def announce(self, survey: str = "") -> str:
        group = f"hosts-{next(GROUPS)}"
        answer = self.client.announce(group, survey=survey, nimages=1)
        assert answer["status"] == "accepted", answer
        return group

    def land(self, group: str) -> None:
        self.telescope.raws.land(group, DETECTORS)

    def ledger(self, group: str) -> dict[int, dict]:
        """Return the relay's answer about each detector."""
        answer = self.client.request({"type": "visit_status", "groupId": group})
        return {found["detector"]: found for found in answer["outcomes"]}

    def outcomes(self, group: str) -> set[str | None]:
        return set(self.client.outcomes(group).values())

    def node_of(self, group: str, detector: int) -> str | None:
        return self.ledger(group)[detector].get("node")

    def wait_for(self, group: str, *outcomes: str) -> None:
        """Wait until each detector has one of these outcomes."""
        self.telescope.wait(lambda: self.outcomes(group) <= set(outcomes), WITHIN_S)

    def wait_until_quiet(self) -> None:
        """Wait until no running node has open work, or outputs that are not exported."""
        nodes = [node for node in self.telescope.nodes.values() if node.running]
        self.telescope.wait(
            lambda: not any(node.status().open_visits or node.status().spooled for node in nodes), WITHIN_S
        )

    def open_gates(self, group: str) -> None:
        for node in self.telescope.nodes.values():
            node.open_gate(group)

    def writes(self, group: str) -> dict[int, int]:
        return {key[1]: count for key, count in self.telescope.writes().items() if key[0] == group}

    def exports(self, group: str) -> dict[int, int]:
        return {key[1]: count for key, count in self.telescope.exports().items() if key[0] == group}

    def contradictions(self, group: str) -> list[tuple[str, VisitRow, dict]]:
        """Return the rows of journals that the ledger contradicts; what was withdrawn does not count."""
        ledger = self.ledger(group)
        return [
            (name, row, ledger[row.detector])
            for name, rows in self.telescope.journal_rows(group).items()
            for row in final_rows(rows)
            if not row.reason.startswith(("withdrawn", "handed back"))
            and (ledger[row.detector]["node"], ledger[row.detector].get("outcome")) != (name, row.outcome)
        ]


def final_rows(rows: list[VisitRow]) -> list[VisitRow]:
    """Return the last row of each detector."""
    return list({row.detector: row for row in rows}.values())


@contextmanager
def running_site(folder: Path, nodes=NODES, *, relay=None, **workers) -> Iterator[Site]:
    with Hosts([RELAY, *nodes, "stranger"]) as hosts:
        sockets = folder / "s"
        sockets.mkdir()
        (folder / "f").mkdir()
        parts = {"times": TIMES, "max": 9, **workers}
        options = {"hosts": hosts, "relay": relay, "workers": parts}
        with running_telescope(folder / "f", sockets, nodes, **options) as (telescope, client):
            yield Site(telescope=telescope, client=client, hosts=hosts)


@pytest.fixture
def folder(socket_dir: Path) -> Path:
    """Return an empty folder with a short path."""
    return socket_dir


@pytest.fixture(scope="module")
def shared_site(tmp_path_factory, module_leaves_nothing) -> Iterator[Site]:
    folder = Path(tempfile.mkdtemp(prefix="pp-", dir=TEMPORARY))
    try:
        with running_site(folder) as site:
            yield site
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def site(shared_site: Site) -> Iterator[Site]:
    """Return the shared site, with whole connections."""
    yield shared_site
    shared_site.hosts.heal()
    shared_site.wait_until_quiet()


def test_a_visit_is_done_once_on_four_hosts(site):
    group = site.announce()
    site.land(group)
    site.wait_for(group, Outcome.SUCCEEDED)
    site.wait_until_quiet()
    assert {entry["node"] for entry in site.ledger(group).values()} == set(NODES)
    assert site.writes(group) == site.exports(group) == dict.fromkeys(DETECTORS, 1)
    assert site.contradictions(group) == []


def test_alerts_are_not_doubled_when_the_acknowledgements_of_a_node_are_lost(site):
    probe = site.announce("skip")
    site.wait_for(probe, Outcome.SUCCEEDED)
    name = site.node_of(probe, 0)
    node = site.telescope.nodes[name]
    site.hosts.cut(name, RELAY)
    group = site.announce("process:gate")
    site.land(group)
    site.telescope.wait(lambda: node.at_gate(group))
    site.telescope.wait(lambda: all(entry["node"] != name for entry in site.ledger(group).values()))
    site.open_gates(group)
    site.wait_for(group, Outcome.SUCCEEDED)
    site.hosts.heal()
    site.wait_until_quiet()
    assert site.writes(group) == site.exports(group) == dict.fromkeys(DETECTORS, 1)
    assert site.contradictions(group) == []


def test_a_host_that_wakes_after_its_visit_was_moved_writes_nothing(site):
    group = site.announce("ingest:gate")
    site.land(group)
    nodes = site.telescope.nodes
    site.telescope.wait(lambda: all(node.at_gate(group) for node in nodes.values()))
    name = site.node_of(group, 0)
    site.hosts.signal(name, signal.SIGSTOP)
    try:
        site.telescope.wait(lambda: all(entry["node"] != name for entry in site.ledger(group).values()))
        site.open_gates(group)
        site.wait_for(group, Outcome.SUCCEEDED)
    finally:
        site.hosts.signal(name, signal.SIGCONT)
    site.wait_until_quiet()
    assert site.writes(group) == site.exports(group) == dict.fromkeys(DETECTORS, 1)
    assert site.contradictions(group) == []


def test_a_visit_stays_with_its_node_when_the_answers_of_the_relay_are_lost(site):
    group = site.announce("ingest:gate")
    site.land(group)
    nodes = site.telescope.nodes
    site.telescope.wait(lambda: all(node.at_gate(group) for node in nodes.values()))
    before = {detector: entry["node"] for detector, entry in site.ledger(group).items()}
    site.hosts.cut(RELAY, before[0])
    site.open_gates(group)
    others = {detector for detector, name in before.items() if name != before[0]}
    site.telescope.wait(lambda: others <= site.writes(group).keys())
    site.hosts.heal()
    site.wait_for(group, Outcome.SUCCEEDED)
    site.wait_until_quiet()
    assert {detector: entry["node"] for detector, entry in site.ledger(group).items()} == before
    assert site.writes(group) == site.exports(group) == dict.fromkeys(DETECTORS, 1)
    assert site.contradictions(group) == []


def test_a_first_outcome_after_a_cancellation_leaves_no_contradiction(site):
    for name in NODES:
        site.hosts.cut(name, RELAY)
    group = site.announce("process:gate")
    site.land(group)
    nodes = site.telescope.nodes.values()
    site.telescope.wait(lambda: all(node.at_gate(group) for node in nodes))
    site.telescope.wait(lambda: len(site.telescope.relay.events("no message from node")) >= len(NODES))
    assert site.client.request({"groupId": group})["status"] == "accepted"
    site.wait_for(group, Outcome.CANCELLED)
    site.open_gates(group)
    site.hosts.heal()
    site.wait_until_quiet()
    site.telescope.wait(lambda: not site.contradictions(group), WITHIN_S)
    assert all(count == 1 for count in site.writes(group).values())
    succeeded = {n for n, entry in site.ledger(group).items() if entry["outcome"] == Outcome.SUCCEEDED}
    assert succeeded == site.writes(group).keys() == site.exports(group).keys()


def test_a_stranger_ends_no_visit_and_gets_none(site):
    group = site.announce("process:gate")
    site.land(group)
    site.telescope.wait(lambda: any(node.at_gate(group) for node in site.telescope.nodes.values()))
    command = [*site.hosts.launcher("stranger"), sys.executable, "-c", STRANGER]
    command += [site.telescope.relay.nodes, group]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WITHIN_S)
    assert (done.stdout, site.outcomes(group)) == ("[]\n", {None}), done.stderr
    after = site.announce("skip")
    site.wait_for(after, Outcome.SUCCEEDED)
    assert {entry["node"] for entry in site.ledger(after).values()} <= set(NODES)
    site.open_gates(group)
    site.wait_for(group, Outcome.SUCCEEDED)
    site.wait_until_quiet()
    assert site.contradictions(group) == []


def test_what_a_dead_host_has_only_held_runs_elsewhere_and_what_it_had_begun_to_write_does_not(folder):
    with running_site(folder, relay={"give_up_s": 3.0}) as site:
        written = site.announce("written:gate")
        site.land(written)
        victim = site.node_of(written, 0)
        node = site.telescope.nodes[victim]
        site.telescope.wait(lambda: len(site.writes(written)) == len(DETECTORS))
        held = site.announce()
        theirs = [each for each in DETECTORS if site.node_of(held, each) == victim]
        site.telescope.wait(
            lambda: len(site.telescope.journal_rows(held).get(victim, ())) == len(theirs), WITHIN_S
        )
        node.kill()
        site.hosts.isolate(victim)
        site.land(held)
        site.wait_for(held, Outcome.SUCCEEDED)
        site.open_gates(written)
        site.wait_for(written, Outcome.SUCCEEDED, Outcome.INTERRUPTED)
        ledger = site.ledger(written)
        assert {d for d in DETECTORS if ledger[d]["outcome"] == Outcome.INTERRUPTED} == set(theirs)
        assert all("may have" in ledger[each]["reason"] for each in theirs)
        site.hosts.heal()
        node.start()
        site.wait_until_quiet()
        for group in (held, written):
            assert site.writes(group) == dict.fromkeys(DETECTORS, 1)
            assert site.exports(group).keys() >= set(DETECTORS) - set(theirs)
            assert site.contradictions(group) == []


def test_a_first_outcome_after_the_relay_gave_up_amends_the_ledger(folder):
    with running_site(folder, nodes=("n1",), relay={"give_up_s": 2.0}) as site:
        group = site.announce("written:gate")
        site.land(group)
        site.telescope.wait(lambda: len(site.writes(group)) == len(DETECTORS))
        site.hosts.isolate("n1")
        site.wait_for(group, Outcome.INTERRUPTED)
        site.open_gates(group)
        site.telescope.wait(lambda: not site.telescope.nodes["n1"].status().open_visits)
        site.hosts.heal()
        site.wait_for(group, Outcome.SUCCEEDED)
        site.wait_until_quiet()
        assert site.writes(group) == site.exports(group) == dict.fromkeys(DETECTORS, 1)
        assert site.contradictions(group) == []


def test_a_pipeline_that_kills_its_workers_does_not_cost_the_night(folder):
    with running_site(folder, max=3, attempts=1) as site:
        for _ in range(12):
            bad = site.announce("prepare:die")
            site.wait_for(bad, Outcome.CRASHED)
        good = site.announce()
        site.land(good)
        site.wait_for(good, Outcome.SUCCEEDED)


def test_a_node_whose_workers_are_killed_from_outside_keeps_no_visit_from_the_others(folder):
    with running_site(folder, max=2) as site:
        for name in ("n1", "n2"):
            kill_workers(site, name, times=5)
        good = site.announce()
        site.land(good)
        site.wait_for(good, Outcome.SUCCEEDED)


def kill_workers(site: Site, name: str, times: int) -> None:
    """Kill the workers of each slot this many times, or until the slot is quarantined."""
    node, killed = site.telescope.nodes[name], dict[int, set[int]]()

    def done() -> bool:
        rows = node.workers()
        for row in rows:
            pids = killed.setdefault(row.slot, set())
            if row.state == SlotState.IDLE and row.pid is not None and len(pids) < times:
                pids.add(row.pid)
                with suppress(ProcessLookupError):  # it was retired meanwhile
                    os.kill(row.pid, signal.SIGKILL)
        quarantined = {row.slot for row in rows if row.state == SlotState.QUARANTINED}
        return all(len(pids) >= times or slot in quarantined for slot, pids in killed.items())

    site.telescope.wait(done, WITHIN_S)
