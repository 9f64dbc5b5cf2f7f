# SPDX-License-Identifier: BSD-3-Clause
"""The screen of ``ppctl top``."""

import contextlib
import io

import pytest
from controlserver import status, summary, visit, worker
from rich.console import Console
from rich.text import Text

from ppdaemon.ctl import top
from ppdaemon.ctl.top import VIEWS, screen
from ppdaemon.errors import Unavailable
from ppdaemon.reports import StatusReport, VisitRow, VisitSummary, WorkerRow

LONG = "SIGSEGV [in subtract] " * 9
PROBLEM = {"source": "relay", "text": LONG, "since_tai": 1.0, "degrades": True}


class Node:
    """A busy node with many slots, visits and failures."""

    def __init__(self, detectors):
        self.detectors = detectors

    def workers(self):
        return [
            WorkerRow.model_validate(
                worker(
                    number, state="processing", group="2026-11-22T03:25:16.951", detector=number, note=LONG
                )
            )
            for number in range(64)
        ]

    def summaries(self, limit):
        states = ("succeeded", "first_task", "crashed", "prepared")
        detectors = {number: states[number % 4] for number in range(self.detectors)}
        return [VisitSummary.model_validate(summary(detectors=detectors)) for _ in range(limit)]

    def visits(self, limit, *, failed):
        return [VisitRow.model_validate(visit(0, outcome="crashed", reason=LONG)) for _ in range(limit)]


def lines_of(node, report, key, height=24):
    console = Console(file=io.StringIO(), width=80, height=height, markup=False, highlight=False)
    console.print(screen(report, node, height, key))
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("detectors", [1, 9, 51, 205])
@pytest.mark.parametrize("key", VIEWS)
@pytest.mark.parametrize("problems", [0, 2, 40])
def test_a_busy_node_fits_a_terminal_of_80_by_24(detectors, key, problems):
    report = StatusReport.model_validate(status(state="degraded", problems=[PROBLEM] * problems))
    lines = lines_of(Node(detectors), report, key)
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("ppdaemon node1  degraded")
    assert lines[-1].endswith("q quit")


def test_visits_workers_and_problems_are_shown_together():
    text = "\n".join(lines_of(Node(9), StatusReport.model_validate(status()), "a"))
    for part in ("slot 3 is quarantined", "█▅✗▂█▅✗▂█", "5/9", "processing", "and 57 more slots"):
        assert part in text


def test_more_problems_than_room_are_counted():
    report = StatusReport.model_validate(status(problems=[PROBLEM] * 40))
    lines = lines_of(Node(9), report, "a")
    assert lines[3] == "! and 38 more, see ppctl status"


@pytest.fixture
def shown():
    """What a screen has shown."""
    return []


@pytest.fixture
def replace_terminal(monkeypatch, shown):
    """Return the function that puts keys and a screen in the place of those of the terminal."""

    class Live:
        def __init__(self, **_):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def update(self, view, refresh):
            shown.append(view)

    def replace(*keys):
        given = iter(keys)
        monkeypatch.setattr(top, "Live", Live)
        monkeypatch.setattr(top, "_keyboard", lambda: contextlib.nullcontext(lambda: next(given)))
        monkeypatch.setattr(top, "REFRESH_S", 1e9)
        return given

    return replace


def test_keys_change_the_view_and_end_the_program(monkeypatch, replace_terminal, shown):
    keys = replace_terminal("", "w", "x", "f", "", "q", "v")
    node = Node(9)
    node.watch = lambda tick_s: iter([StatusReport.model_validate(status()), *[None] * 9])
    monkeypatch.setattr(top, "screen", lambda report, daemon, height, key: key)
    top.follow(node, Console(file=io.StringIO(), force_terminal=True))
    assert shown == ["a", "w", "f"]
    assert next(keys) == "v"


def test_a_daemon_that_restarts_is_shown_again(monkeypatch, replace_terminal, shown):
    replace_terminal("", "", "", "", "q")
    runs = iter([[status(node="before")], [], [status(node="after")]])

    def watch(tick_s):
        yield from map(StatusReport.model_validate, next(runs))
        raise Unavailable("no daemon listens here")

    node = Node(9)
    node.watch = watch
    monkeypatch.setattr(top, "TICK_S", 0.0)
    monkeypatch.setattr(top, "screen", lambda report, daemon, height, key: Text(report.node))
    top.follow(node, Console(file=io.StringIO(), force_terminal=True))
    first, away, still_away, again = (getattr(view, "renderables", [view])[0].plain for view in shown)
    assert (first, again) == ("before", "after")
    assert away == still_away == "no daemon listens here (asking again)"


def test_a_daemon_that_was_never_there_ends_the_program(replace_terminal):
    replace_terminal("")

    def watch(tick_s):
        raise Unavailable("no daemon listens here")

    node = Node(9)
    node.watch = watch
    with pytest.raises(Unavailable):
        top.follow(node, Console(file=io.StringIO(), force_terminal=True))


def test_few_visits_leave_their_room_to_the_slots():
    node = Node(9)
    all_visits = node.summaries
    node.summaries = lambda limit: all_visits(1)
    lines = lines_of(node, StatusReport.model_validate(status()), "a")
    assert len(lines) == 24
    assert "and 51 more slots" in "\n".join(lines)
