# SPDX-License-Identifier: BSD-3-Clause
"""Problems, and since when each has lasted."""

import logging
from types import SimpleNamespace

import pytest

from ppdaemon.problemlog import Finding, ProblemLog, status_line

RELAY = Finding("relay", "no relay answers", age_s=4.0)
SLOT_2, SLOT_7 = (Finding("slots", f"slot {number} is quarantined", str(number)) for number in (2, 7))
STRANGER = Finding("leftovers", "/ram/x does not belong to ppdaemon", degrades=False)


def since(problems):
    return {problem.text: problem.since_tai for problem in problems}


def test_a_problem_keeps_the_time_of_its_first_report():
    log = ProblemLog()
    assert since(log.update([RELAY], 100.0)) == {"no relay answers": 96.0}
    later = [Finding("relay", "no relay answers: refused", age_s=30.0), SLOT_2]
    assert since(log.update(later, 126.0)) == {
        "no relay answers: refused": 96.0,
        "slot 2 is quarantined": 126.0,
    }


def test_a_problem_that_ended_and_comes_back_begins_again():
    log = ProblemLog()
    log.update([SLOT_2], 10.0)
    log.update([], 20.0)
    assert since(log.update([SLOT_2], 30.0)) == {"slot 2 is quarantined": 30.0}


def test_the_end_of_a_problem_does_not_change_the_time_of_another():
    log = ProblemLog()
    log.update([SLOT_2], 10.0)
    log.update([SLOT_2, SLOT_7], 20.0)
    assert since(log.update([SLOT_7], 30.0)) == {"slot 7 is quarantined": 20.0}


def test_findings_of_one_source_without_a_subject_are_numbered():
    log = ProblemLog()
    one, two = Finding("resources", "disk 99 % full"), Finding("resources", "log too long")
    log.update([one], 1.0)
    assert since(log.update([one, two], 2.0)) == {"disk 99 % full": 1.0, "log too long": 2.0}


def test_of_two_findings_of_a_source_the_one_that_stays_keeps_its_time(caplog):
    caplog.set_level(logging.INFO)
    ram, state = Finding("resources", "RAM disk 99 % full"), Finding("resources", "state disk 99 % full")
    log = ProblemLog()
    log.update([ram], 0.0)
    log.update([ram, state], 36_000.0)
    assert since(log.update([state], 36_060.0)) == {"state disk 99 % full": 36_000.0}
    assert "ended after 10 h 1 min: RAM disk 99 % full" in caplog.text


def test_what_limits_the_program_is_first_then_the_worst_source_then_the_oldest():
    log = ProblemLog()
    log.update([STRANGER], 1.0)
    log.update([STRANGER, SLOT_7], 2.0)
    texts = [problem.text for problem in log.update([STRANGER, SLOT_2, SLOT_7, RELAY], 3.0)]
    assert texts == [RELAY.text, SLOT_7.text, SLOT_2.text, STRANGER.text]


def test_the_end_of_a_problem_is_logged_with_its_duration(caplog):
    caplog.set_level(logging.INFO)
    log = ProblemLog()
    log.update([RELAY], 100.0)
    assert not caplog.text
    log.update([], 130.0)
    assert "ended after 34.0 s: no relay answers" in caplog.text


@pytest.mark.parametrize(
    ("findings", "line"),
    [
        ([], "running: 3 busy"),
        ([RELAY], "running: 3 busy; no relay answers, since 4.0 s"),
        ([STRANGER, SLOT_2, RELAY], "running: 3 busy; no relay answers, since 4.0 s; 2 more"),
    ],
)
def test_the_line_for_the_service_manager_has_the_worst_problem(findings, line):
    problems = ProblemLog().update(findings, 50.0)
    assert status_line(SimpleNamespace(text="running: 3 busy", problems=problems, tai=50.0)) == line


def test_many_problems_are_not_each_compared_with_all_others():
    compared = 0

    class Subject(str):
        __slots__ = ()
        __hash__ = str.__hash__

        def __eq__(self, other):
            nonlocal compared
            compared += 1
            return str.__eq__(self, other)

    log, count = ProblemLog(), 200
    for note in ("not ready", "not forked"):
        log.update([Finding("slots", f"slot {n}: {note}", Subject(n)) for n in range(count)], 10.0)
    assert compared <= 10 * count
