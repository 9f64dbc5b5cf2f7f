# SPDX-License-Identifier: BSD-3-Clause
"""The problems in the status of a node."""

from ppdaemon.node.control.status import dead_sources
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
