# SPDX-License-Identifier: BSD-3-Clause
"""Real nodes that take visits from a real Redis server: nothing lost, nothing doubled."""

import json
import random
import signal
import tempfile
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from ramdisk import TEMPORARY
from redisserver import redis_server
from rich.console import Console

from ppdaemon.clock import Clock
from ppdaemon.ctl.tables import status_view
from ppdaemon.reports import DrainRequest, ResumeRequest
from ppdaemon.sqlitereader import reading
from ppdaemon.states import Outcome
from ppdaemon.testing.node import NodeProcess, node_config
from ppdaemon.testing.raws import RawWriter
from ppdaemon.testing.waiting import TIMEOUT_S

MESSAGES = Path(__file__).parents[1] / "data" / "messages"
STREAM = "instrument:democam"


@pytest.fixture
def server(socket_dir):
    with redis_server(socket_dir, keeps=True) as server:
        yield server


def message(group, detector=0, **fields):
    """Return an entry of the fan-out: a next_visit for one detector, each value a text."""
    visit = {
        "groupId": group,
        "instrument": "DemoCam",
        "nimages": 1,
        "position": "[10.5, -30.0]",
        "private_sndStamp": Clock().tai(),
        "detector": detector,
    } | fields
    return {name: str(value) for name, value in visit.items()}


@contextmanager
def nodes(server, tmp_path, *names, **parts):
    """Run nodes of one group, with one raw root."""
    with ExitStack() as stack:
        made = []
        for name in names:
            folder = tmp_path / name
            folder.mkdir()
            sockets = stack.enter_context(tempfile.TemporaryDirectory(prefix="pp-", dir=TEMPORARY))
            redis = {"url": server.url, "streams": [STREAM], "claim_after_s": 1.0}
            config = node_config(folder, Path(sockets), redis=redis | parts.get("redis", {}))
            config["node"] |= {"name": name} | parts.get("node", {})
            config["workers"] |= parts.get("workers", {})
            (tmp_path / "raw").mkdir(exist_ok=True)
            config["arrivals"]["roots"] = [str(tmp_path / "raw")]
            made.append(NodeProcess(folder, config))
        for node in made:
            node.launch()
        try:
            for node in made:
                node.wait(lambda node=node: node.is_ready() and node.status().redis.connected)
            yield made
        finally:
            for node in made:
                if node.running:
                    node.stop()


def outcomes(*nodes):
    """Return all outcomes in the journals: by group and detector; not what was given to another node."""
    found = []
    for node in nodes:
        with reading(node.state / "journal.sqlite") as db:
            found += db.execute(
                "SELECT grp, detector, outcome FROM attempt WHERE final = 1"
                " AND reason NOT LIKE 'handed back%' AND reason NOT LIKE 'withdrawn%'"
            ).fetchall()
    return sorted(found)


def rows_of(*nodes):
    """Return all attempts in the journals, for a failure."""
    found = []
    for node in nodes:
        with reading(node.state / "journal.sqlite") as db:
            rows = db.execute("SELECT grp, detector, attempt, asked, final, outcome, reason FROM attempt")
            found += [(*row, node.config["node"]["name"]) for row in rows]
    return "\n".join(map(str, sorted(found)))


def unsettled(*nodes):
    """Return how many attempts are open, or have an outcome that may not count."""
    found = 0
    for node in nodes:
        with reading(node.state / "journal.sqlite") as db:
            query = "SELECT count(*) FROM attempt WHERE outcome IS NULL OR (final = 1 AND reported = 0)"
            found += db.execute(query).fetchone()[0]
    return found


def pending(server):
    return server.ask("XPENDING", STREAM, "ppdaemon")["pending"]


def test_messages_of_the_fan_out_get_outcomes(server, tmp_path):
    cases = [json.loads(path.read_text()) for path in sorted(MESSAGES.glob("fanned_out_*"))]
    assert [case["detector"] for case in cases] == ["42", "43"]
    with nodes(server, tmp_path, "n1", node={"instruments": {"LSSTCam": "0-188"}}) as (node,):
        server.add(STREAM, *(case | {"private_sndStamp": str(Clock().tai())} for case in cases))
        group = cases[0]["groupId"]
        node.wait(lambda: node.status().open_visits == 2)
        RawWriter(node.raw_root, "LSSTCam", "MC").land(group, (42, 43))
        node.wait(lambda: not pending(server))
        assert {(row.detector, row.outcome) for row in node.visit(group)} == {
            (42, Outcome.SUCCEEDED),
            (43, Outcome.SUCCEEDED),
        }
        # Counted with each renewal.
        node.wait(lambda: (redis := node.status().redis).held == redis.pending == redis.waiting == 0)
        status = node.status()
        console = Console(width=200)
        with console.capture() as capture:
            console.print(status_view(status))
        assert "0 held, 0 of all consumers, 0 waiting, the last one taken" in capture.get()
        assert (status.redis.held, status.redis.connected, status.relay_connected) == (0, True, None)
        assert server.ask("GET", f"ppdaemon:permit:LSSTCam:{group}:42") == b"n1"


@pytest.mark.slow
def test_two_nodes_of_a_group_process_each_visit_detector_once(server, tmp_path):
    groups = [f"g{number}" for number in range(4)]
    # Fewer slots than entries: neither can take all.
    with nodes(server, tmp_path, "n1", "n2", workers={"min": 2, "max": 2, "spare": 0}) as both:
        server.add(STREAM, *(message(group, detector) for group in groups for detector in range(4)))
        for group in groups:
            both[0].raws.land(group, range(4))
        both[0].wait(lambda: len(outcomes(*both)) == 16)
        both[0].wait(lambda: not pending(server))
        assert outcomes(*both) == [(group, n, Outcome.SUCCEEDED) for group in groups for n in range(4)]
        marks = [node.marks() for node in both]
        assert len(marks[0]) + len(marks[1]) == 16
        assert marks[0].keys().isdisjoint(marks[1])
        assert marks[0]
        assert marks[1]


@pytest.mark.slow
def test_a_node_that_stops_leaves_its_visits_to_others_at_once(server, tmp_path):
    with nodes(server, tmp_path, "n1", "n2", redis={"claim_after_s": 600}) as (first, second):
        second.daemon.ask(DrainRequest())
        first.wait(lambda: second.status().state == "draining")
        server.add(STREAM, message("g"))
        first.wait(lambda: first.status().open_visits == 1)
        second.daemon.ask(ResumeRequest())
        assert first.stop() == 0
        second.wait(lambda: second.status().open_visits == 1)
        second.raws.land("g")
        second.wait(lambda: outcomes(second))
        assert outcomes(first, second) == [("g", 0, Outcome.SUCCEEDED)]
        second.wait(lambda: not pending(server))


@pytest.mark.slow
def test_nothing_permanent_is_written_while_the_server_is_away(server, tmp_path):
    with nodes(server, tmp_path, "n1") as (node,):
        server.add(STREAM, message("g"))
        node.wait(lambda: node.status().open_visits == 1)
        server.stop()
        node.land("g")
        node.wait(lambda: "g 0" in read(node.state / "ingested"))
        node.wait(lambda: any(problem.source == "redis" for problem in node.status().problems))
        assert not node.marks()
        server.start()
        node.wait(lambda: outcomes(node))
        assert outcomes(node) == [("g", 0, Outcome.SUCCEEDED)]
        assert node.marks() == {"g~0": 1}
        node.wait(lambda: not pending(server))


@pytest.mark.slow
def test_a_server_that_hangs_costs_no_visit(server, tmp_path):
    with nodes(server, tmp_path, "n1", "n2") as both:
        server.add(STREAM, message("before"))
        both[0].wait(lambda: sum(node.status().open_visits for node in both) == 1)
        server.signal(signal.SIGSTOP)
        both[0].land("before")
        both[0].wait(lambda: not any(node.status().redis.connected for node in both))
        server.signal(signal.SIGCONT)
        server.add(STREAM, message("after"))
        both[0].land("after")
        both[0].wait(lambda: len(outcomes(*both)) == 2)
        assert outcomes(*both) == [("after", 0, Outcome.SUCCEEDED), ("before", 0, Outcome.SUCCEEDED)]
        both[0].wait(lambda: not pending(server))


def test_without_the_permit_nothing_is_written_and_the_entry_goes_to_its_owner(server, tmp_path):
    with nodes(server, tmp_path, "n1") as (node,):
        server.ask("SET", "ppdaemon:permit:DemoCam:g:0", "n9")
        server.add(STREAM, message("g"))
        node.land("g")
        node.wait(lambda: [row for row in node.daemon.visits(10) if row.outcome])
        (row,) = node.visit("g")
        assert (row.outcome, row.reason.partition(":")[0]) == (Outcome.CANCELLED, "withdrawn")
        assert not node.marks()
        node.wait(lambda: server.ask("XPENDING", STREAM, "ppdaemon")["consumers"][0]["name"] == b"n9")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_node_that_is_killed_at_any_moment_loses_and_doubles_nothing(server, tmp_path):
    """Between taking and writing down, and after; another node may take what it had."""
    moments = random.Random(69)
    groups = [f"g{number}" for number in range(30)]
    with nodes(server, tmp_path, "n1", "n2", workers={"min": 2, "max": 2, "spare": 0}) as (first, second):
        for group in groups:
            server.add(STREAM, *(message(group, detector, survey="pace:20") for detector in range(3)))
            first.raws.land(group, range(3))
            # An entry is taken and written down within milliseconds.
            time.sleep(moments.uniform(0.0, moments.choice((0.02, 0.3))))
            first.kill()
            first.launch()
            first.wait(first.is_ready)
        expected = sorted((group, n) for group in groups for n in range(3))

        def is_settled():
            """Return whether all have ended, and a node that has not the permit knows that: a killed one may
            still process what the other one has acknowledged.
            """
            if pending(server) or unsettled(first, second):
                return False
            return len(outcomes(first, second)) >= len(expected)

        with suppress(AssertionError):  # what is missing or doubled tells more
            second.wait(is_settled, deadline_s=4 * TIMEOUT_S)
        found = outcomes(first, second)
        assert [each[:2] for each in found] == expected, rows_of(first, second)
        assert {each[2] for each in found} <= {Outcome.SUCCEEDED, Outcome.INTERRUPTED}
        marks = [node.marks() for node in (first, second)]
        assert marks[0].keys().isdisjoint(marks[1])
        assert {*marks[0].values(), *marks[1].values()} == {1}


def read(path):
    return path.read_text() if path.exists() else ""
