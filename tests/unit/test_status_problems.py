# SPDX-License-Identifier: BSD-3-Clause
"""The problems in the status of a node, and what the status reads."""

from pathlib import Path
from types import SimpleNamespace

from ppdaemon.folders import NodeFolders
from ppdaemon.node.control.status import Status, dead_sources
from ppdaemon.reports import ArrivalSource


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


def test_the_status_waits_for_no_disk(config, monkeypatch):
    """It is made every second by the event loop: a disk that hangs would end the daemon."""
    away = SimpleNamespace(waiting_on=lambda ramdisk: (1, SimpleNamespace(used_bytes=2e6, max_bytes=None)))
    status = SimpleNamespace(config=config, folders=NodeFolders.of(config), exporter=away)

    def hang(*_: object, **__: object) -> None:
        raise AssertionError("it would hang")

    monkeypatch.setattr(Path, "read_text", hang)
    monkeypatch.setattr("os.access", hang)
    assert [(spool.name, spool.mb) for spool in Status._spools(status)] == [("ramdisk", 2), ("spill", 2)]
