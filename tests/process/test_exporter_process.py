# SPDX-License-Identifier: BSD-3-Clause
"""The exporter's process dies, and control clients that do not read."""

import os
import shutil
import signal
import socket
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from ppdaemon.errors import Refused
from ppdaemon.folders import REFUSAL, NodeFolders
from ppdaemon.node.supervisor import EXPORT_AT_STOP_S
from ppdaemon.reports import ExportRequest, ReloadRequest, WorkersRequest
from ppdaemon.states import Outcome, Stage
from ppdaemon.testing.node import running_node
from ppdaemon.testing.processes import descendants, title
from ppdaemon.testing.waiting import TIMEOUT_S
from ppdaemon.wire import encode


def exporter_of(node):
    """Return the process id of the node's exporter, when there is one."""
    return next((pid for pid in descendants(node.process.pid) if title(pid) == "ppdaemon exporter"), None)


def waits_for_central(node):
    """Let a visit succeed whose outputs cannot be exported, because the central repo is down."""
    (node.state / "central-down").touch()
    node.succeed("g1")
    node.wait(lambda: "central repo is down" in node.status().exporter)


def test_a_killed_exporter_is_replaced_and_nothing_is_exported_twice(node, group):
    """Fault 45: the exporter dies while the central repo is down."""
    (node.state / "central-down").touch()
    try:
        node.succeed(group)
        node.wait(lambda: node.status().spooled == 1)
        os.kill(node.wait(lambda: exporter_of(node)), signal.SIGKILL)
    finally:
        (node.state / "central-down").unlink()
    node.wait(lambda: node.status().spooled == 0)
    assert [name for name in node.exported() if group in name] == [f"DemoCam~{group}~0~1"]


def test_an_exporter_with_much_memory_is_replaced_when_it_has_exported(tmp_path, socket_dir):
    memory = {"soft": "1 MB", "sample_s": 0.1}
    with running_node(tmp_path, socket_dir, workers={"memory": memory}) as node:
        old = node.wait(lambda: exporter_of(node))
        for group in ("g1", "g2"):
            node.succeed(group)
            node.wait(lambda group=group: f"DemoCam~{group}~0~1" in node.exported())
            node.wait(lambda old=old: exporter_of(node) not in (None, old))
            old = exporter_of(node)
        log = (tmp_path / "daemon.log").read_text()
        assert "the exporter is replaced after the present export" in log
        assert "it is killed" not in log
        assert len(node.exported()) == 2


def test_an_exporter_with_too_much_memory_is_killed_and_nothing_is_lost(tmp_path, socket_dir):
    with running_node(tmp_path, socket_dir) as node:
        old = node.wait(lambda: exporter_of(node))
        (node.state / "central-down").touch()
        node.succeed("g1")
        node.rewrite(workers={"memory": {"soft": "1 MB", "hard": "2 MB", "sample_s": 0.1}})
        node.daemon.ask(ReloadRequest(), timeout_s=TIMEOUT_S)
        node.wait(lambda: exporter_of(node) not in (None, old))
        node.wait(lambda: "workers.memory.hard" in node.status().exporter)
        node.rewrite(workers={"memory": {}})
        node.daemon.ask(ReloadRequest(), timeout_s=TIMEOUT_S)
        (node.state / "central-down").unlink()
        node.wait(lambda: node.status().spooled == 0)
        assert node.exported() == ["DemoCam~g1~0~1"]


def test_reader_and_publisher_with_too_much_memory_are_replaced(tmp_path, socket_dir):
    def found():
        titles = {title(pid): pid for pid in descendants(node.process.pid)}
        return [titles.get(f"ppdaemon {name}") for name in ("reader", "publisher")]

    to = {"what": "telemetry", "to": "http://127.0.0.1:9"}
    remote = {"remote": [{"uri": "http://127.0.0.1:9/raw"}]}
    with running_node(tmp_path, socket_dir, publish=[to], arrivals=remote) as node:
        node.wait(lambda: None not in found())
        old = found()
        node.rewrite(workers={"memory": {"soft": "1 MB", "hard": "2 MB", "sample_s": 0.1}})
        node.daemon.ask(ReloadRequest(), timeout_s=TIMEOUT_S)
        log = tmp_path / "daemon.log"
        node.wait(lambda: "the reader uses " in log.read_text() and "the publisher uses " in log.read_text())
        node.rewrite(workers={"memory": {}})
        node.daemon.ask(ReloadRequest(), timeout_s=TIMEOUT_S)
        node.wait(lambda: not {None, *old}.intersection(found()))


def test_a_stop_exports_the_spools_of_a_killed_exporter(tmp_path, socket_dir):
    with running_node(tmp_path, socket_dir, export={"retry_s": 600}) as node:
        waits_for_central(node)
        os.kill(exporter_of(node), signal.SIGKILL)
        node.wait(lambda: "the process ended by signal 9 (SIGKILL)" in node.status().exporter)
        (node.state / "central-down").unlink()
        assert node.stop() == 0
        assert node.exported() == ["DemoCam~g1~0~1"]


def test_a_stop_does_not_wait_for_a_central_repo_that_is_down(tmp_path, socket_dir):
    with running_node(tmp_path, socket_dir, export={"retry_s": 600}) as node:
        waits_for_central(node)
        begin = time.monotonic()
        assert node.stop() == 0
        assert time.monotonic() - begin < EXPORT_AT_STOP_S
        assert [path.name for path in NodeFolders(tmp_path, node.state).spool.iterdir()] == ["DemoCam~g1~0~1"]


def test_outputs_that_a_boot_of_the_host_has_deleted_can_be_made_again(tmp_path, socket_dir):
    with running_node(tmp_path, socket_dir, export={"retry_s": 600}) as node:
        folders = NodeFolders(node.ramdisk, node.state)
        waits_for_central(node)
        assert node.stop() == 0
        shutil.rmtree(folders.spooled("DemoCam", "g1", 0, 1))
        with closing(sqlite3.connect(folders.journal)) as db, db:
            db.execute("UPDATE attempt SET boot = 'of the host before'")
        folders.spills.write_text(f"{tmp_path}/away\n")
        (node.state / "central-down").unlink()
        node.launch()
        node.wait(node.is_ready)
        (row,) = node.visit("g1")
        assert (row.outcome, row.datasets) == (Outcome.INTERRUPTED, 0)
        assert "its outputs were lost" in row.reason
        away = f"{tmp_path}/away, where outputs waited, could not be written to at the start"
        assert any(away in text for text in node.status().problem_texts)
        (row,) = node.daemon.requeue("g1", None, force=False)
        assert "point of no return" in row.text, "as after any other outcome"
        (row,) = node.daemon.requeue("g1", None, force=True)
        assert row.attempt == 2
        node.wait(lambda: node.exported() == ["DemoCam~g1~0~2"])


def test_an_operator_ends_the_pause_of_a_failed_export(tmp_path, socket_dir):
    with running_node(tmp_path, socket_dir, export={"retry_s": 600}) as node:
        waits_for_central(node)
        with pytest.raises(Refused, match="the central repo is down"):
            node.daemon.ask(ExportRequest(action="init"), timeout_s=TIMEOUT_S)
        (node.state / "central-down").unlink()
        assert node.daemon.ask(ExportRequest(action="init"), timeout_s=TIMEOUT_S) == "marked"
        node.wait(lambda: node.exported() == ["DemoCam~g1~0~1"])


def test_however_long_an_outage_lasts_the_next_try_comes_after_the_same_pause(tmp_path, socket_dir):
    export = {"retry_s": 0.2, "gather_s": 0.0}
    log = {"levels": {"ppdaemon.node.processes.exporter": "DEBUG"}}
    with running_node(tmp_path, socket_dir, export=export, log=log) as node:
        (node.state / "central-down").touch()
        node.succeed("g1")
        failed = "export failed; the spools stay and are tried again after a pause"
        # With pauses that grow as those after a death, the next one would take 102 s.
        node.wait(lambda: node.log.read_text().count(failed) >= 10)
        lines = [line for line in node.log.read_text().splitlines() if failed in line]
        errors = [line.partition(failed)[2] for line in lines if "[error" in line]
        assert 1 <= len(errors) == len(set(errors)), "the same reason is logged once, not with each try"
        (node.state / "central-down").unlink()
        node.wait(lambda: node.exported() == ["DemoCam~g1~0~1"])


def test_outputs_wait_in_the_spill_folder_and_lose_images_above_its_limit(tmp_path, socket_dir):
    export = {"retry_s": 0.2, "spill": str(tmp_path / "spill"), "spill_max": 10}
    with running_node(tmp_path, socket_dir, export=export) as node:
        (node.state / "central-down").touch()
        for group in ("g1", "g2"):
            node.succeed(group)
            # Deleted when the next one waits, too.
            (tmp_path / "spill" / "ppdaemon-n1" / f"DemoCam~{group}~0~1" / "image.fits").touch()
        node.wait(lambda: node.status().images_given_up)
        node.wait(lambda: [row.figures for row in node.visit("g1")] == [{"given_up": "image"}])
        (spill,) = node.status().spools
        assert (spill.name, spill.spooled, spill.max_mb) == ("spill", 2, 1e-5)
        assert any("have lost their images" in text for text in node.status().problem_texts)
        assert node.stop() == 0
        node.start()
        node.wait(lambda: any("have lost their images" in text for text in node.status().problem_texts))
        (node.state / "central-down").unlink()
        node.wait(lambda: len(node.exported()) == 2)
        node.wait(lambda: node.status().state == "running")


def test_a_spool_that_somebody_has_taken_away_is_not_called_exported(tmp_path, socket_dir):
    with running_node(tmp_path, socket_dir, export={"retry_s": 600}) as node:
        assert node.daemon.ask(ExportRequest(action="now"), timeout_s=TIMEOUT_S) == "nothing waits for export"
        folders = NodeFolders(node.ramdisk, node.state)
        waits_for_central(node)
        spool = folders.spooled("DemoCam", "g1", 0, 1)
        spool.rename(spool.with_name("of-an-operator"))
        (node.state / "central-down").unlink()
        assert node.daemon.ask(ExportRequest(action="now"), timeout_s=TIMEOUT_S) == "exporting 1"
        node.wait(lambda: node.status().spooled == 0)
        (row,) = node.wait(lambda: [row for row in node.visit("g1") if row.outcome == Outcome.INTERRUPTED])
        assert "was deleted, renamed or moved away" in row.reason
        assert Stage.CENTRAL not in row.stages
        assert node.status().counters["spools_gone"] == 1


def test_a_refused_spool_is_reported_and_exported_when_it_is_moved_back(node, group):
    folders = NodeFolders(node.ramdisk, node.state)
    (node.state / "central-refuses").touch()
    try:
        node.succeed(group)
        node.wait(folders.refused.is_dir)
        node.wait(lambda: node.status().spooled == 0)
        text = f"export: 1 spools quarantined, see {folders.refused}/*/{REFUSAL}"
        node.wait(lambda: text in node.status().problem_texts)
        assert node.status().state == "degraded"
    finally:
        (node.state / "central-refuses").unlink()
    (spool,) = folders.refused.iterdir()
    spool.rename(folders.spool / spool.name)
    node.daemon.ask(ReloadRequest(), timeout_s=TIMEOUT_S)
    node.wait(lambda: f"DemoCam~{group}~0~1" in node.exported())
    node.wait(lambda: node.status().state == "running")


def test_outputs_whose_spool_is_quarantined_or_gone_are_made_again(node, group):
    folders = NodeFolders(node.ramdisk, node.state)
    (node.state / "central-refuses").touch()
    try:
        node.succeed(group)
        node.wait((folders.refused / f"DemoCam~{group}~0~1").is_dir)
    finally:
        (node.state / "central-refuses").unlink()
    # Refused until the exporter has answered; the scripted worker has written something permanent.
    (row,) = node.wait(
        lambda: [row for row in node.daemon.requeue(group, None, force=True) if row.attempt is not None]
    )
    assert (row.attempt, row.text) == (2, "")
    node.wait(lambda: f"DemoCam~{group}~0~2" in node.exported())
    node.wait(
        lambda: [row.text for row in node.daemon.requeue(group, None, force=True)] == ["it has succeeded"]
    )
    shutil.rmtree(folders.refused)


def test_clients_that_do_not_read_cost_no_descriptor(node):
    descriptors = Path(f"/proc/{node.process.pid}/fd")
    before = len(list(descriptors.iterdir()))
    for _ in range(5):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(node.control))
            client.sendall((encode(WorkersRequest()) + b"\n") * 500)
    node.wait(lambda: len(list(descriptors.iterdir())) <= before)
    assert node.status().node == "n1"
