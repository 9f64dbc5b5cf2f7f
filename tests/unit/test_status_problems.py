# SPDX-License-Identifier: BSD-3-Clause
"""The problems in the status of a node, and what the status reads."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from ppdaemon.folders import NodeFolders
from ppdaemon.node.control.status import Status, dead_sources
from ppdaemon.problemlog import Finding
from ppdaemon.reports import ArrivalSource

UNTIL = "no visits until ppctl --relay resume n1"
UNTIL_HOST = "this host is given back before they could end (--until)"


def source(name, note="", *, live=False):
    return ArrivalSource(name=name, live=live, files=0, note=note)


def test_a_folder_that_is_away_is_one_problem():
    gone = "No such file or directory"
    sources = [
        source("inotify /a", gone),
        source("poll /a", gone),
        source("scan /a", "the filesystem does not respond"),
        source("scan /b b", gone),
        source("zmq tcp://host:5580", "no publisher is connected", live=True),
        source("reader", "restarts"),
    ]
    assert list(dead_sources(sources)) == [
        ("inotify, poll /a", gone),
        ("scan /a", "the filesystem does not respond"),
        ("scan /b b", gone),
        ("reader", "restarts"),
    ]


@pytest.mark.parametrize(
    ("state", "changes", "closed", "problems"),
    [
        ("running", {}, [], []),
        ("running", {"export": "no mark"}, [], ["no mark"]),
        ("running", {"relay": "no relay answers", "export": "no mark"}, ["no relay answers"], ["no mark"]),
        ("running", {"journal": "disk full"}, ["disk full"], []),
        ("running", {"slots": "no fork"}, ["no visits are accepted: no fork"], []),
        ("running", {"drained": True}, [f"drained at the relay by an operator: {UNTIL}"], []),
        ("running", {"until": -1.0}, [f"no more visits are taken: {UNTIL_HOST}"], []),
        (
            "starting",
            {"export": "no central repo"},
            ["the daemon is starting: imports", "no central repo"],
            [],
        ),
    ],
)
def test_what_keeps_visits_away_after_a_resume(config, state, changes, closed, problems):
    source = SimpleNamespace(
        drained=changes.get("drained", False), problem=changes.get("relay", ""), kind="relay", away_s=1.0
    )
    status = SimpleNamespace(
        config=config,
        state=state,
        stage="imports",
        generations=SimpleNamespace(stage=""),
        drained_since=None,
        source=source,
        clock=SimpleNamespace(mono=lambda: 0.0),
        visits=SimpleNamespace(takes_until=changes.get("until", 1.0)),
        offer=SimpleNamespace(journal_problem=changes.get("journal", ""), problem=changes.get("slots", "")),
    )
    status._closed = lambda: Status._closed(status)
    others = [Finding("export", changes["export"])] if "export" in changes else []
    status._problems = lambda: [*(status._closed() if state == "running" else []), *others]
    resumed = Status.resumed(status, changes.get("journal", ""))
    assert (list(resumed.closed), list(resumed.problems)) == (closed, problems)


def test_the_status_waits_for_no_disk(config, monkeypatch):
    """It is made every second by the event loop: a disk that hangs would end the daemon."""
    away = SimpleNamespace(waiting_on=lambda ramdisk: (1, SimpleNamespace(used_bytes=2e6, max_bytes=None)))
    status = SimpleNamespace(config=config, folders=NodeFolders.of(config), exporter=away)

    def hang(*_: object, **__: object) -> None:
        raise AssertionError("it would hang")

    monkeypatch.setattr(Path, "read_text", hang)
    monkeypatch.setattr("os.access", hang)
    assert [(spool.name, spool.mb) for spool in Status._spools(status)] == [("ramdisk", 2), ("spill", 2)]
