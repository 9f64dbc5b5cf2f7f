# SPDX-License-Identifier: BSD-3-Clause
"""The relay's ledger: what it remembers, what it refuses, what it survives."""

import json
import sqlite3
from contextlib import closing

import pytest

from ppdaemon.clock import Clock
from ppdaemon.errors import Refused, StateUnusable
from ppdaemon.messages import EndedDetectors, HeldDetectors, Hello
from ppdaemon.relay import ledger as module
from ppdaemon.relay.ledger import Ledger
from ppdaemon.relay.openvisit import Reservation, ReservationState
from ppdaemon.relay.orders import (
    ClearRoute,
    CloseVisit,
    SetAcknowledged,
    SetCancelled,
    SetOutcome,
    SetPermitted,
    SetRoute,
    UpdateOutcome,
)
from ppdaemon.relay.requests import visit_json
from ppdaemon.statelock import lock_state
from ppdaemon.states import ExitCode, Outcome
from ppdaemon.visit import read_next_visit

FIELDS = {"groupId": "g", "instrument": "DemoCam", "scriptSalIndex": 7}


@pytest.fixture
def ledger(tmp_path, clock):
    with closing(Ledger(tmp_path, clock)) as opened:
        yield opened


@pytest.mark.parametrize("shadow", [False, True])
def test_a_ledger_with_visits_is_not_used_in_the_other_mode(tmp_path, clock, shadow):
    Ledger(tmp_path, clock, shadow=not shadow).close()
    with closing(Ledger(tmp_path, clock, shadow=shadow)) as ledger:  # without visits it may change
        accept(ledger)
    Ledger(tmp_path, clock, shadow=shadow).close()
    with pytest.raises(StateUnusable, match=r"use another state_dir"):
        Ledger(tmp_path, clock, shadow=not shadow)


def transact(ledger, works):
    with ledger.transaction():
        return [work(ledger) for work in works]


def accept(ledger, detectors=(0, 1, 2), **changes):
    visit = read_next_visit(FIELDS | changes)
    [result] = transact(ledger, [lambda ledger: ledger.accept(visit, visit_json(visit), detectors, 5.0)])
    return result


def write(ledger, *writes):
    transact(ledger, [lambda ledger, write=write: ledger.write(write) for write in writes])


def test_a_group_is_entered_once_and_its_first_content_stays(ledger):
    first = accept(ledger)
    assert (first.added, first.is_new) == ((0, 1, 2), True)
    again = accept(ledger, survey="other")
    assert (again.number, again.added, again.is_new) == (first.number, (), False)
    assert json.loads(again.content) == FIELDS


def test_a_message_of_another_detector_adds_it_to_the_visit(ledger):
    first = accept(ledger, (0,))
    added = accept(ledger, (1,))
    assert (added.number, added.added, added.is_new) == (first.number, (1,), False)
    [unfinished] = ledger.unfinished_visits()
    assert [reservation.detector for reservation in unfinished.reservations] == [0, 1]
    assert accept(ledger, (0, 1, 2)).added == (2,)


def test_a_detector_that_is_added_to_a_closed_visit_opens_it_again(ledger):
    number = accept(ledger, (0,)).number
    write(
        ledger, SetOutcome(number, 0, Outcome.SUCCEEDED, "", "n1"), SetCancelled(number), CloseVisit(number)
    )
    assert ledger.unfinished_visits() == []
    assert accept(ledger, (1,)).cancelled
    [unfinished] = ledger.unfinished_visits()
    assert [reservation.detector for reservation in unfinished.reservations] == [1]


@pytest.mark.parametrize("adds", ["announcement", "hello"])
def test_a_visit_stays_open_if_a_detector_is_added_between_decision_and_commit_of_its_end(ledger, adds):
    number = accept(ledger, (0,)).number
    end = [SetOutcome(number, 0, Outcome.SUCCEEDED, "", "n1"), CloseVisit(number)]
    if adds == "announcement":
        accept(ledger, (1,))
    else:
        held = HeldDetectors(instrument="DemoCam", group="g", attempt=1, detectors=(1,), state="held")
        fields = {"incarnation": "run1", "instruments": {}, "capacity": 9, "sent_tai": 0.0, "sequence": 1}
        hello = Hello(origin="n1", holds=(held,), **fields)
        transact(ledger, [lambda ledger: ledger.adopt(hello, {"DemoCam": {0, 1}})])
    write(ledger, *end)
    [unfinished] = ledger.unfinished_visits()
    assert [reservation.detector for reservation in unfinished.reservations] == [1]
    write(ledger, SetOutcome(number, 1, Outcome.SUCCEEDED, "", "n1"), CloseVisit(number))
    assert ledger.unfinished_visits() == []


def test_a_group_of_another_instrument_is_another_visit(ledger):
    assert accept(ledger).number != accept(ledger, instrument="LATISS").number
    [visits] = transact(ledger, [lambda ledger: ledger.find("g")])
    assert sorted(visit.instrument for visit in visits) == ["DemoCam", "LATISS"]
    assert {visit.script_sal_index for visit in visits} == {7}


def test_what_was_written_is_there_after_opening_again(tmp_path, clock):
    with closing(Ledger(tmp_path, clock)) as ledger:
        number = accept(ledger).number
        write(
            ledger,
            SetRoute(number, "n1", 1, (0, 1, 2)),
            SetAcknowledged(number, (0,)),
            ClearRoute(number, (1,), 2),
            SetRoute(number, "n2", 2, (1,), alone=True),
            SetAcknowledged(number, (1,)),
            SetPermitted(number, (1,), "run3"),
            SetOutcome(number, 2, Outcome.EXPIRED, "late", None),
            SetCancelled(number),
        )
    with closing(Ledger(tmp_path, clock)) as ledger:
        [unended] = ledger.unfinished_visits()
        assert (unended.number, unended.fields, unended.received_tai) == (number, FIELDS, 5.0)
        assert unended.cancelled
        assert unended.reservations == (
            Reservation(0, ReservationState.ACKNOWLEDGED, "n1"),
            Reservation(1, ReservationState.PERMITTED, "n2", 2, alone=True, incarnation="run3"),
        )


def test_a_later_outcome_replaces_one_that_the_relay_has_decided(ledger):
    number = accept(ledger, (0,)).number
    write(ledger, SetRoute(number, "n1", 1, (0,)), SetOutcome(number, 0, Outcome.INTERRUPTED, "", None))

    def replaced(node, outcome):
        write(ledger, UpdateOutcome("DemoCam", "g", 0, node, 1, outcome, "why"))
        [[visit]] = transact(ledger, [lambda ledger: ledger.find("g")])
        return visit.outcomes[0].outcome

    assert replaced("n2", Outcome.SUCCEEDED) is Outcome.INTERRUPTED
    assert replaced("n1", Outcome.SUCCEEDED) is Outcome.SUCCEEDED
    assert replaced("n1", Outcome.FAILED) is Outcome.SUCCEEDED


def test_the_epoch_grows_with_each_start_whatever_the_clock_is(tmp_path, clock):
    epochs, start = [], int(clock.tai())
    for _ in range(3):
        with closing(Ledger(tmp_path, clock)) as ledger:
            epochs.append(ledger.epoch)
        clock.advance(-1e6)
    assert epochs == [start, start + 1, start + 2]


def test_a_later_attempt_of_the_same_node_amends_an_outcome(ledger):
    number = accept(ledger, (0, 1)).number
    write(ledger, SetRoute(number, "n1", 1, (0, 1)), SetOutcome(number, 0, Outcome.NO_IMAGE, "none", "n1"))

    def amended(detector, node, attempt, outcome):
        write(ledger, UpdateOutcome("DemoCam", "g", detector, node, attempt, outcome, "why"))
        [[visit]] = transact(ledger, [lambda ledger: ledger.find("g")])
        return visit.outcomes[detector].outcome

    assert amended(0, "n1", 1, Outcome.FAILED) is Outcome.NO_IMAGE
    assert amended(0, "n2", 2, Outcome.FAILED) is Outcome.NO_IMAGE
    assert amended(1, "n1", 2, Outcome.FAILED) is None
    assert amended(0, "n1", 2, Outcome.SUCCEEDED) is Outcome.SUCCEEDED
    assert amended(0, "n1", 2, Outcome.FAILED) is Outcome.SUCCEEDED
    assert [len(unended.reservations) for unended in ledger.unfinished_visits()] == [1]


def test_the_first_outcome_of_a_detector_stays(ledger):
    number = accept(ledger, (0,)).number
    write(ledger, SetOutcome(number, 0, Outcome.SUCCEEDED, "", "n1"))
    write(ledger, SetOutcome(number, 0, Outcome.FAILED, "again", "n2"))
    [[visit]] = transact(ledger, [lambda ledger: ledger.find("g")])
    assert visit.outcomes[0].outcome is Outcome.SUCCEEDED
    assert visit.outcomes[0].node == "n1"


def test_a_reason_that_is_no_text_is_kept_as_far_as_it_is(ledger):
    number = accept(ledger).number
    write(ledger, SetOutcome(number, 0, Outcome.BAD_RAW, "raw\udcff.fits", "n1"))
    [[visit]] = transact(ledger, [lambda ledger: ledger.find("g")])
    assert visit.outcomes[0].reason == "raw?.fits"


def test_a_visit_that_is_not_understood_any_more_can_still_be_asked_for(ledger, tmp_path):
    accept(ledger)
    with closing(sqlite3.connect(tmp_path / "ledger.sqlite")) as other, other:
        other.execute("UPDATE visits SET content = json_set(content, '$.nimages', 'many')")
    [[visit]] = transact(ledger, [lambda ledger: ledger.find("g")])
    assert visit.script_sal_index == 7


def test_a_closed_visit_is_not_unended_but_still_known(ledger):
    number = accept(ledger, (0,)).number
    write(ledger, SetOutcome(number, 0, Outcome.SUCCEEDED, "", "n1"), CloseVisit(number))
    assert ledger.unfinished_visits() == []
    assert accept(ledger, (0,)).added == ()


def end(ledger, group, detectors=(0, 1, 2)):
    number = accept(ledger, detectors, groupId=group).number
    outcomes = [SetOutcome(number, detector, Outcome.SUCCEEDED, "", "n1") for detector in detectors]
    write(ledger, *outcomes, CloseVisit(number))


def test_only_what_ended_before_is_pruned(ledger, clock):
    end(ledger, "old")
    accept(ledger, groupId="open")
    clock.advance(100.0)
    end(ledger, "young")
    before = clock.tai() - 50.0
    assert transact(ledger, [lambda ledger: ledger.prune(before)]) == [1]
    assert transact(ledger, [lambda ledger: ledger.prune(before)]) == [0]
    found = transact(ledger, [lambda ledger, g=g: ledger.find(g) for g in ("old", "open", "young")])
    assert [len(visits) for visits in found] == [0, 1, 1]


def test_pruning_takes_the_rows_of_detectors_too(ledger, clock, tmp_path):
    end(ledger, "g")
    transact(ledger, [lambda ledger: ledger.prune(clock.tai() + 1.0)])
    with closing(sqlite3.connect(tmp_path / "ledger.sqlite")) as db:
        assert db.execute("SELECT count(*) FROM detectors").fetchone() == (0,)


def test_works_of_one_transaction_are_done_together_or_not_at_all(ledger):
    visit = read_next_visit(FIELDS)

    def enter(ledger):
        ledger.accept(visit, visit_json(visit), (0,), 5.0)

    def fail(ledger):
        raise sqlite3.OperationalError("database or disk is full")

    with pytest.raises(sqlite3.OperationalError):
        transact(ledger, [enter, fail])
    assert transact(ledger, [lambda ledger: ledger.find("g")]) == [[]]


@pytest.mark.parametrize("damage", ["garbage", "torn"])
def test_a_corrupt_file_is_moved_aside_and_an_empty_ledger_begins(tmp_path, clock, caplog, damage):
    with closing(Ledger(tmp_path, clock)) as ledger:
        for k in range(50):
            accept(ledger, range(50), groupId=f"g{k}")
    path = tmp_path / "ledger.sqlite"
    data = path.read_bytes()
    broken = b"not a database" * 1000 if damage == "garbage" else data[:8192] + b"\xa5" * (len(data) - 8192)
    path.write_bytes(broken)
    with closing(Ledger(tmp_path, clock)) as ledger:
        assert ledger.unfinished_visits() == []
        assert accept(ledger).number == 1
    [kept] = tmp_path.glob("ledger.corrupt-*.sqlite")
    assert kept.read_bytes() == broken
    assert "corrupt" in caplog.text


def test_a_ledger_of_a_newer_relay_is_left_alone(tmp_path, clock):
    Ledger(tmp_path, clock).close()
    with closing(sqlite3.connect(tmp_path / "ledger.sqlite")) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(StateUnusable, match="newer pprelay"):
        Ledger(tmp_path, clock)
    assert not list(tmp_path.glob("*corrupt*"))


def test_a_state_directory_is_locked_against_a_second_relay(tmp_path):
    with closing(lock_state(tmp_path / "made" / "here", "pprelay")):
        with pytest.raises(Refused, match=r"another pprelay \(pid \d+\) uses") as caught:
            lock_state(tmp_path / "made" / "here", "pprelay")
        assert caught.value.exit_code is ExitCode.TRY_LATER
    with closing(lock_state(tmp_path / "made" / "here", "pprelay")):
        pass


def test_a_state_directory_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StateUnusable, match="state_dir"):
        lock_state(tmp_path / "file" / "state", "pprelay")


# --- ages at a restart -----------------------------------------------------------


def clock_at(mono_s, tai_s=0.0, boot="boot1"):
    return Clock(mono=lambda: mono_s, tai=lambda: tai_s, boot=lambda: boot)


def ages(folder, clock):
    with closing(Ledger(folder, clock)) as ledger:
        return [visit.age_s for visit in ledger.unfinished_visits()]


@pytest.mark.parametrize("jump_s", [-86_400.0, -3600.0, 0.0, 3600.0, 86_400.0])
def test_the_age_of_a_visit_does_not_follow_a_wall_clock_that_jumped(tmp_path, jump_s):
    with closing(Ledger(tmp_path, clock_at(1000.0))) as ledger:
        accept(ledger)
    assert ages(tmp_path, clock_at(1040.0, jump_s)) == [40.0]


def test_after_a_reboot_a_visit_is_as_old_as_the_last_known_time(tmp_path):
    with closing(Ledger(tmp_path, clock_at(1000.0))) as ledger:
        accept(ledger)
    with closing(Ledger(tmp_path, clock_at(1300.0))) as ledger:
        accept(ledger, groupId="later")
    assert ages(tmp_path, clock_at(5.0, boot="boot2")) == [300.0, 0.0]
    # The second boot goes on counting.
    assert ages(tmp_path, clock_at(25.0, boot="boot2")) == [320.0, 20.0]


def test_a_visit_that_is_opened_again_is_as_old_as_its_new_detector(tmp_path):
    with closing(Ledger(tmp_path, clock_at(1000.0))) as ledger:
        number = accept(ledger, (0,)).number
        write(ledger, SetOutcome(number, 0, Outcome.SUCCEEDED, "", "n1"), CloseVisit(number))
    with closing(Ledger(tmp_path, clock_at(2000.0))) as ledger:
        accept(ledger, (1,))
    with closing(Ledger(tmp_path, clock_at(2010.0))) as ledger:
        accept(ledger, (2,))
    assert ages(tmp_path, clock_at(2030.0)) == [30.0]


def test_drained_nodes_are_known_after_opening_again(tmp_path, clock):
    with closing(Ledger(tmp_path, clock)) as ledger:
        works = [lambda ledger, node=node: ledger.set_drained(node, True) for node in ("a", "b", "a")]
        assert transact(ledger, works)[-1] == {"a", "b"}
    with closing(Ledger(tmp_path, clock)) as ledger:
        transact(ledger, [lambda ledger: ledger.set_drained("a", False)])
        assert ledger.drained_nodes() == {"b"}


# --- an older copy of the ledger ---------------------------------------------------


def hello(*, ended=(), holds=(), node="n1"):
    return Hello(
        origin=node,
        sent_tai=0.0,
        sequence=1,
        incarnation="run1",
        instruments={},
        capacity=1,
        ended=[
            EndedDetectors(instrument="DemoCam", group="g", outcome="succeeded", **{"reported": True} | each)
            for each in ended
        ],
        holds=[HeldDetectors(instrument="DemoCam", group="g", **each) for each in holds],
    )


def adopt(ledger, message):
    [found] = transact(ledger, [lambda ledger: ledger.adopt(message, {"DemoCam": range(3)})])
    return found


def rows(ledger):
    (visit,) = ledger.find("g")
    return {row.detector: (row.node, row.attempt, row.outcome) for row in visit.outcomes}


def test_a_visit_that_only_a_node_knows_is_a_duplicate_and_gets_its_content_later(ledger):
    message = hello(
        ended=[{"detectors": (0, 99), "attempt": 2}],
        holds=[{"detectors": (1,), "attempt": 1, "state": "crossed"}],
    )
    [opened], number = adopt(ledger, message)
    assert (number, opened.adopted, opened.fields) == (2, True, {"groupId": "g", "instrument": "DemoCam"})
    assert opened.reservations == (Reservation(1, ReservationState.PERMITTED, "n1", incarnation="run1"),)
    assert [visit.adopted for visit in ledger.unfinished_visits()] == [True]
    assert rows(ledger) == {0: ("n1", 2, Outcome.SUCCEEDED), 1: ("n1", 1, None)}
    assert adopt(ledger, message) == ([], 0)
    announced = accept(ledger)
    assert (announced.added, announced.is_new, announced.was_adopted) == ((2,), False, True)
    assert json.loads(announced.content) == FIELDS
    assert not accept(ledger).was_adopted
    assert [(visit.adopted, visit.fields) for visit in ledger.unfinished_visits()] == [(False, FIELDS)]


def test_only_attempts_that_the_ledger_cannot_know_replace_an_outcome(ledger):
    number = accept(ledger).number
    write(
        ledger,
        SetRoute(number, "n2", 3, (0, 1)),
        SetOutcome(number, 0, Outcome.FAILED, "", "n2"),
        SetOutcome(number, 1, Outcome.EXPIRED, "", None),
    )
    for attempt in (2, 3):
        assert adopt(ledger, hello(ended=[{"detectors": (0, 1, 2), "attempt": attempt}])) == ([], 0)
    own = {"detectors": (0, 1), "attempt": 3}
    assert adopt(ledger, hello(ended=[own | {"reported": False}], node="n2")) == ([], 0)  # its results follow
    assert adopt(ledger, hello(ended=[own], node="n2")) == ([], 1)
    assert rows(ledger)[1] == ("n2", 3, Outcome.SUCCEEDED)
    assert adopt(ledger, hello(ended=[{"detectors": (0,), "attempt": 4}])) == ([], 1)
    assert rows(ledger)[0] == ("n1", 4, Outcome.SUCCEEDED)


def test_the_outcome_of_a_requeue_replaces_the_one_before_it(ledger):
    number = accept(ledger).number
    write(
        ledger,
        SetRoute(number, "n1", 1, (0, 1, 2)),
        *(SetOutcome(number, detector, Outcome.FAILED, "", "n1") for detector in range(2)),
        SetOutcome(number, 2, Outcome.SUCCEEDED, "", "n1"),  # after a retry of the node itself
        CloseVisit(number),
    )
    own = {"detectors": (0, 2), "attempt": 1, "last": 2}
    for message in (hello(ended=[own | {"reported": False}]), hello(ended=[own], node="n2")):
        assert adopt(ledger, message) == ([], 0)
    assert adopt(ledger, hello(ended=[own])) == ([], 1)
    assert adopt(ledger, hello(ended=[own])) == ([], 0)
    assert rows(ledger) == {
        0: ("n1", 2, Outcome.SUCCEEDED),
        1: ("n1", 1, Outcome.FAILED),
        2: ("n1", 1, Outcome.SUCCEEDED),
    }


def test_a_closed_visit_of_which_a_node_has_a_detector_is_open_again(ledger):
    number = accept(ledger, (0,)).number
    write(ledger, SetOutcome(number, 0, Outcome.SUCCEEDED, "", "n1"), CloseVisit(number))
    [opened], _ = adopt(ledger, hello(holds=[{"detectors": (1,), "attempt": 1, "state": "held"}]))
    assert (opened.fields, opened.adopted) == (FIELDS, False)
    assert [visit.number for visit in ledger.unfinished_visits()] == [number]


def test_the_nodes_of_the_newest_visits_are_expected(ledger, monkeypatch):
    assert ledger.recent_nodes() == set()
    monkeypatch.setattr(module, "RECENT_VISITS", 2)
    for name in ("a", "b", "c"):
        write(ledger, SetRoute(accept(ledger, groupId=name).number, name, 1, (0,)))
    assert ledger.recent_nodes() == {"b", "c"}
