# SPDX-License-Identifier: BSD-3-Clause
"""tools/replay_night.py: nights, what the telescope does of them, and how visits are followed."""

import json
import math
import sqlite3
import sys
from collections import Counter
from contextlib import closing
from itertools import pairwise

import numpy as np
import pytest
from benchtools import part, program
from click.testing import CliRunner

from ppdaemon.clock import Clock
from ppdaemon.demo.telescope import TelescopeStep
from ppdaemon.errors import BadMessage, Refused, Unavailable
from ppdaemon.messages import Accepted, DetectorOutcome
from ppdaemon.node.slots.assignment import Key
from ppdaemon.node.visits.journal import Journal
from ppdaemon.node.visits.model import Accept, JournalEntry, Reserved, Update
from ppdaemon.raws.layout import make_layout
from ppdaemon.raws.path import RawFileKind
from ppdaemon.relay.ledger import Ledger
from ppdaemon.relay.orders import SetCancelled
from ppdaemon.relay.requests import visit_json
from ppdaemon.states import Outcome
from ppdaemon.visit import read_next_visit

BEGIN_TAI_S = 1_795_317_916.0


@pytest.fixture(scope="module")
def nights():
    return part("nightreplay.nights")


@pytest.fixture(scope="module")
def replay():
    return part("nightreplay.replay")


@pytest.fixture(scope="module")
def night(nights):
    return nights.generated(20_000, 40.0, 5, "LSSTCam")


def test_filters_of_a_generated_night_have_the_shares_of_the_design(nights, night):
    counts = Counter(each.fields["filters"] for each in night)
    total = sum(nights.BAND_SHARES.values())
    for band, share in nights.BAND_SHARES.items():
        # 400 blocks of 50 visits: three standard deviations of a share of a fifth are 0.06.
        assert counts[nights.FILTERS[band]] / len(night) == pytest.approx(share / total, abs=0.06), band


def test_a_night_of_the_simulated_camera_has_its_filters(nights):
    night = nights.generated(2_000, 40.0, 1, "DemoCam")
    assert {each.fields["filters"] for each in night} == {"g_01", "r_03", "i_06"}


def test_surveys_of_a_generated_night_have_their_shares(nights, night):
    counts = Counter(each.fields["survey"] for each in night)
    assert set(counts) == {nights.WIDE, nights.DEEP, nights.FOLLOW_UP}
    assert counts[nights.DEEP] / len(night) == pytest.approx(nights.DEEP_SHARE, abs=0.05)


def test_a_filter_change_costs_time_and_nothing_else_does(nights, night):
    for earlier, later in pairwise(night):
        changed = earlier.fields["filters"] != later.fields["filters"]
        expected = 40.0 + (nights.FILTER_CHANGE_S if changed else 0.0)
        assert later.after_s - earlier.after_s == pytest.approx(expected)


def test_the_fields_of_a_block_are_visited_twice_half_an_hour_apart_or_less(nights, night):
    block = night[: 2 * nights.BLOCK]
    positions = [tuple(each.fields["position"]) for each in block]
    assert positions[: nights.BLOCK] == positions[nights.BLOCK :]
    assert len(set(positions)) == nights.BLOCK
    assert block[nights.BLOCK].after_s - block[0].after_s == nights.BLOCK * 40.0


def test_the_same_seed_is_the_same_night_and_another_one_is_not(nights):
    assert nights.generated(70, 40.0, 1, "LSSTCam") == nights.generated(70, 40.0, 1, "LSSTCam")
    assert nights.generated(70, 40.0, 1, "LSSTCam") != nights.generated(70, 40.0, 2, "LSSTCam")
    assert len(nights.generated(70, 40.0, 1, "LSSTCam")) == 70


def test_generated_announcements_are_valid_in_every_field(nights, night):
    visits = nights.replayed(night[:200], BEGIN_TAI_S, "LSSTCam")
    events = [read_next_visit(visit.next_visit(BEGIN_TAI_S)) for visit in visits]
    assert all(event.without_meaning == () and event.boresight for event in events)
    assert len({event.group for event in events}) == 200


def test_a_night_in_a_file_is_the_same_night(nights, night):
    lines = list(nights.to_lines(night[:20], BEGIN_TAI_S))
    read = nights.of_lines(["\n", *reversed(lines)], "night.jsonl")
    assert [each.fields for each in read] == [each.fields for each in night[:20]]
    assert [each.after_s for each in read] == pytest.approx([each.after_s for each in night[:20]], abs=1e-6)


def test_a_line_may_be_the_event_alone_and_a_bad_one_is_named(nights):
    event = '{"groupId": "g", "instrument": "LSSTCam", "nimages": 1, "private_sndStamp": 1795317916.0}'
    (read,) = nights.of_lines([event], "n")
    assert (read.after_s, read.fields["groupId"]) == (0.0, "g")
    for bad in ("[]", "{", '{"groupId": "g", "instrument": "LSSTCam"}', '{"private_sndStamp": 5.0}'):
        with pytest.raises(BadMessage, match=r"night\.jsonl, line 2"):
            nights.of_lines([event, bad], "night.jsonl")


@pytest.mark.parametrize("folder", [True, False])
def test_a_night_is_read_from_a_ledger_without_visits_known_from_nodes_only(nights, tmp_path, folder):
    with closing(Ledger(tmp_path, Clock())) as ledger, ledger.transaction():
        for number, group in enumerate(("b", "a", "z")):
            visit = read_next_visit({"groupId": group, "instrument": "LSSTCam", "nimages": 1, "extra": 7})
            ledger.accept(visit, visit_json(visit), (0, 1), BEGIN_TAI_S + 40.0 * number)
    with closing(sqlite3.connect(tmp_path / "ledger.sqlite", autocommit=True)) as db:
        db.execute("UPDATE visits SET adopted = 1 WHERE group_id = 'z'")
    path = tmp_path if folder else tmp_path / "ledger.sqlite"
    read = nights.of_ledger(path)
    assert [(each.after_s, each.fields["groupId"]) for each in read] == [(0.0, "b"), (40.0, "a")]
    assert read[0].fields["extra"] == 7


def test_cancellations_of_a_ledger_have_their_times(nights, tmp_path):
    with closing(Ledger(tmp_path, Clock(tai=lambda: BEGIN_TAI_S + 12.5))) as ledger, ledger.transaction():
        for number, group in enumerate("abc"):
            visit = read_next_visit({"groupId": group, "instrument": "LSSTCam", "nimages": 1})
            accepted = ledger.accept(visit, visit_json(visit), (0, 1), BEGIN_TAI_S + 5.0 * number)
            if group != "a":
                ledger.write(SetCancelled(accepted.number))
    read = nights.of_ledger(tmp_path)
    assert [each.cancelled_s for each in read] == [None, 7.5, 2.5]
    again = nights.of_lines(nights.to_lines(read, BEGIN_TAI_S), "night")
    assert [each.cancelled_s for each in again] == [None, 7.5, 2.5]


def canceled(nights, cancelled_s, speed=1.0):
    """Return the only visit of a night, which is canceled."""
    (first,) = nights.generated(1, 40.0, 1, "LSSTCam")
    night = [nights.Announcement(0.0, first.fields, cancelled_s)]
    (visit,) = nights.replayed(night, BEGIN_TAI_S, "LSSTCam", speed=speed)
    return visit


@pytest.mark.parametrize(
    ("cancelled_s", "speed", "steps", "after_s"),
    [
        (12.0, 1.0, ["announced", "canceled"], 12.0),
        (12.0, 4.0, ["announced", "canceled"], 3.0),
        (12.0, 0.0, ["announced", "canceled"], 0.0),
        (25.0, 1.0, ["announced", "exposing", "canceled", "written"], 25.0),
    ],
)
def test_a_canceled_visit_takes_no_exposure_that_has_not_begun(
    nights, replay, cancelled_s, speed, steps, after_s
):
    visit = canceled(nights, cancelled_s, speed)
    events = replay.planned_events([visit], speed, raws=True)
    assert [event.step for event in events] == steps
    assert next(event.after_s for event in events if event.step == "canceled") == pytest.approx(after_s)
    assert len(replay.planned_events([visit], speed, raws=False)) == 2


def test_a_cancellation_names_the_group_and_the_script_of_its_announcement(nights):
    visit = canceled(nights, 5.0)
    event = visit.cancellation(BEGIN_TAI_S)
    assert event["groupId"] == visit.group
    assert event["scriptSalIndex"] == visit.next_visit(BEGIN_TAI_S)["scriptSalIndex"]


def test_a_replayed_visit_has_all_fields_of_the_original_but_group_and_times(nights):
    original = {
        "groupId": "old", "instrument": "LSSTCam", "nimages": 2, "survey": "BLOCK-9", "filters": "r_57,i_39",
        "startTime": 1030.0, "private_sndStamp": 1000.0, "coordinateSystem": 2, "position": [370.0, -30.0],
        "rotationSystem": 2, "cameraAngle": -10.0, "unknown": {"kept": 1}, "duration": 60.0,
    }  # fmt: skip
    others = [original | {"instrument": "LATISS"}, original | {"nimages": 0}]
    night = [nights.Announcement(float(number), each) for number, each in enumerate([*others, original])]
    (visit,) = nights.replayed(night, BEGIN_TAI_S, "LSSTCam", seq_num=5)
    event = visit.next_visit(BEGIN_TAI_S + 2.0)
    changed = {name for name in event if event[name] != original[name]}
    assert changed == {"groupId", "startTime", "private_sndStamp"}
    assert event["startTime"] == BEGIN_TAI_S + 2.0 + 30.0
    assert [each.seq_num for each in visit.exposures] == [5, 6]
    first = visit.exposures[0]
    assert (first.physical_filter, first.ra_deg, first.rotpa_deg, first.program) == (
        "r_57",
        10.0,
        350.0,
        "BLOCK-9",
    )
    assert {each.group for each in visit.exposures} == {event["groupId"]}


@pytest.mark.parametrize(
    ("speed", "lead_s", "duration_s"), [(1.0, 20.0, 52.0), (10.0, 2.0, 5.2), (0.0, 0.0, 52.0)]
)
def test_start_and_duration_are_announced_as_fast_as_the_replay(nights, speed, lead_s, duration_s):
    night = nights.generated(1, 40.0, 1, "LSSTCam")
    (visit,) = nights.replayed(night, BEGIN_TAI_S, "LSSTCam", speed=speed)
    event = visit.next_visit(BEGIN_TAI_S + 1.0)
    assert event["startTime"] - event["private_sndStamp"] == pytest.approx(lead_s)
    assert event["duration"] == pytest.approx(duration_s)


def test_observations_of_the_scheduler_are_announced_before_their_exposure(nights):
    kinds = [("RA", float), ("dec", float), ("mjd", float), ("band", "U10"), ("rotSkyPos", float)]
    observations = np.zeros(2, dtype=[*kinds, ("science_program", "U60")])
    observations["RA"], observations["dec"] = math.pi / 2, -math.pi / 6
    observations["mjd"] = (61_220.5, 61_220.5 + 40.0 / 86_400.0)
    observations["band"] = ("r", "y")
    observations["science_program"] = ("BLOCK-1", "")
    night = nights.of_observations(observations, "LSSTCam")
    assert [each.after_s for each in night] == pytest.approx([0.0, 40.0], abs=1e-4)
    assert [each.fields["filters"] for each in night] == ["r_57", "y_10"]
    assert [each.fields["survey"] for each in night] == ["BLOCK-1", nights.WIDE]
    assert night[0].fields["position"] == pytest.approx([90.0, -30.0])


def test_without_the_scheduler_the_packages_to_install_are_named(nights, monkeypatch):
    monkeypatch.setitem(sys.modules, "rubin_scheduler", None)
    with pytest.raises(Unavailable, match="pip install rubin-scheduler pandas"):
        nights.of_scheduler(5, "LSSTCam")


# --- the telescope -----------------------------------------------------------


def test_speed_shortens_all_waits_and_0_has_none(nights, replay):
    visits = nights.replayed(nights.generated(3, 40.0, 1, "LSSTCam"), BEGIN_TAI_S, "LSSTCam")
    plain = replay.planned_events(visits, 1.0, raws=True)
    fast = replay.planned_events(visits, 10.0, raws=True)
    at_once = replay.planned_events(visits, 0.0, raws=True)
    assert [each.after_s / 10.0 for each in plain] == pytest.approx([each.after_s for each in fast])
    assert {each.after_s for each in at_once} == {0.0}
    assert [(each.step, each.visit.number) for each in at_once] == [
        (each.step, each.visit.number) for each in plain
    ]
    only = replay.planned_events(visits, 0.0, raws=False)
    assert [each.step for each in only] == [TelescopeStep.ANNOUNCE] * 3


def test_each_detector_has_a_small_raw_and_guiders_too(nights, replay):
    (visit,) = nights.replayed(nights.generated(1, 40.0, 1, "LSSTCam"), BEGIN_TAI_S, "LSSTCam")
    (plan,) = visit.exposures
    layout = make_layout("lsst", {"LSSTCam": range(205)})
    found = list(replay.SmallCamera("LSSTCam", range(205)).read_out(plan))
    assert [detector for detector, *_ in found] == list(range(205))
    for detector, path, image, sidecar in found:
        read = layout.parse(path.as_posix())
        assert (read.kind, read.exposure, read.detector) == (RawFileKind.IMAGE, plan.exposure_id, detector)
        assert len(image) == 5760
        assert json.loads(sidecar)["GROUPID"] == visit.group


# --- following ---------------------------------------------------------------


class Relay:
    """Answers as a relay does; `outcomes` are those of each visit's two detectors."""

    def __init__(self, *outcomes, busy=0):
        self.outcomes = list(outcomes)
        self.busy = busy
        self.groups = []

    def ask(self, event):
        if event.get("type") == "visit_status":
            found = self.outcomes[self.groups.index(event["groupId"])]
            each = [
                DetectorOutcome(detector=k, outcome=outcome, attempt=1) for k, outcome in enumerate(found)
            ]
            return Accepted(status="accepted", group=event["groupId"], outcomes=tuple(each))
        if self.busy:
            self.busy -= 1
            return Accepted(status="rejected", reason="busy: too many messages")
        self.groups.append(event["groupId"])
        return Accepted(status="accepted", group=event["groupId"], detectors=2)


def announcement(group):
    return {"groupId": group, "instrument": "LSSTCam"}


def followed(replay, relay, visits, **options):
    """Announce visits and follow them to their end."""
    follower = replay.Follower(relay, visits, **options)
    for number in range(visits):
        follower.ask(announcement(f"g{number}"))
    follower.finish()
    return follower


def test_a_visit_without_outcomes_is_lost_and_no_other(replay):
    good, bad = (Outcome.SUCCEEDED, Outcome.SUCCEEDED), (Outcome.FAILED, None)
    follower = followed(replay, Relay(good, bad, good), 3, open_visits=1, limit_s=0.0)
    assert (follower.visits, follower.announced, follower.differing) == (3, 6, None)
    assert follower.totals.outcomes == {Outcome.SUCCEEDED: 4, Outcome.FAILED: 1}
    assert follower.totals.doubled is None
    assert follower.totals.fields()["latencies"]["answer_ms"].count == 3


def test_no_more_visits_are_open_than_asked_for(replay):
    relay = Relay(*[(Outcome.SUCCEEDED,) * 2] * 5)
    follower = replay.Follower(relay, 5, open_visits=2)
    for number in range(5):
        follower.ask(announcement(f"g{number}"))
        assert len(follower._open) <= 2
    follower.finish()
    assert follower.totals.accepted == 10


def test_a_cancellation_is_counted_unless_it_comes_too_late(replay):
    class Canceling(Relay):
        def ask(self, event):
            if "instrument" in event or "type" in event:
                return super().ask(event)
            return Accepted(status="ignored" if event["groupId"] == "g0" else "accepted", group="")

    follower = replay.Follower(Canceling(*[(Outcome.CANCELLED,) * 2] * 2), 2)
    for group in ("g0", "g1"):
        follower.ask(announcement(group))
        assert follower.ask({"groupId": group}).status in ("accepted", "duplicate")
    follower.finish()
    assert (follower.visits, follower.cancelled) == (2, 1)
    assert follower.totals.outcomes == {Outcome.CANCELLED: 4}


def test_a_busy_relay_is_asked_again(replay, monkeypatch):
    monkeypatch.setattr(replay, "BUSY_S", 0.0)
    follower = followed(replay, Relay((Outcome.SUCCEEDED,) * 2, busy=3), 1)
    assert (follower.visits, follower.totals.accepted) == (1, 2)


# --- the command -------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--scheduler", "--night", "."], "use one of"),
        (["--raw-root", "raw"], "--raw-root needs --relay"),
        (["--relay", "tcp://127.0.0.1:1", "--raws"], "--raws and --script are for own nodes"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options, reason):
    with program("replay_night") as tool:
        result = CliRunner().invoke(tool.command, options)
    assert result.exit_code == 2
    assert reason in result.output


def test_a_saved_night_can_be_replayed(nights, tmp_path):
    with program("replay_night") as tool:
        result = CliRunner().invoke(tool.command, ["--visits", "4", "--save", str(tmp_path / "night")])
    assert result.exit_code == 0, result.output
    assert len(nights.of_lines((tmp_path / "night").read_text().splitlines(), "night")) == 4


# --- a replay that was interrupted ---------------------------------------------


def test_events_of_kafka_are_read_as_it_prints_them(nights):
    """As text and as a record of Avro, with a stamp of its own or of Kafka, and a cancellation."""
    event = {"groupId": "a", "instrument": "LSSTCam", "nimages": 1, "private_sndStamp": BEGIN_TAI_S}
    later = {"groupId": "b", "instrument": "LSSTCam", "nimages": 1}
    ms = round(1000 * (BEGIN_TAI_S - 37.0 + 40.0))
    lines = [
        json.dumps({"topic": "nextVisit", "offset": 4, "ts": 5, "payload": json.dumps(event)}),
        json.dumps({"topic": "nextVisit", "ts": ms, "payload": {"message": later}}),
        json.dumps({"ts": ms + 9000, "payload": json.dumps({"groupId": "b", "scriptSalIndex": 3})}),
    ]
    first, second = nights.of_lines(lines, "dump")
    assert (first.after_s, first.fields, first.cancelled_s) == (0.0, event, None)
    assert (second.after_s, second.fields["groupId"], second.cancelled_s) == (40.0, "b", 9.0)


def test_a_night_of_a_journal_has_each_visit_once_and_its_cancellation(nights, tmp_path):
    with closing(Journal(tmp_path / "journal.sqlite")) as journal:
        for group, after_s in (("a", 0.0), ("b", 40.0)):
            visit = read_next_visit({"groupId": group, "instrument": "LSSTCam", "extra": 7})
            for detector in (0, 1):
                entry = JournalEntry(
                    Key("LSSTCam", group, detector, 1), visit, received_tai=BEGIN_TAI_S + after_s
                )
                journal.write(Accept(Reserved(None, {}), (entry,)))
                entry.outcome, entry.final = Outcome.CANCELLED if group == "b" else Outcome.SUCCEEDED, True
                entry.ended_tai = BEGIN_TAI_S + after_s + 12.0 + detector
                journal.write(Update((entry,)))
    first, second = nights.of_journal(tmp_path)
    assert (first.fields["groupId"], first.fields["extra"], first.cancelled_s) == ("a", 7, None)
    assert (second.after_s, second.cancelled_s) == (40.0, 12.0)


@pytest.mark.parametrize("added", ["", "announced 20", None])
def test_an_interrupted_replay_continues_with_what_was_not_done(nights, replay, tmp_path, added):
    progress, path = part("nightreplay.progressfile"), tmp_path / "progress"
    night = nights.generated(4, 40.0, 1, "LSSTCam")
    visits = nights.replayed(night, BEGIN_TAI_S, "LSSTCam", named_tai_s=BEGIN_TAI_S)
    events = replay.planned_events(visits, 1.0, raws=True)
    record = progress.ProgressFile(path, "night", 4, BEGIN_TAI_S, 1)
    assert record.rest(visits, events) == visits
    for event in events[:5]:  # the second visit is announced, and its raws are not written
        record.note(event)
    record.close()
    text = path.read_text()
    path.write_text(text.removesuffix("\n") if added is None else text + added)
    again = progress.ProgressFile(path, "night", 4, BEGIN_TAI_S + 900.0, 77)
    with pytest.raises(Refused, match="another replay is using it"):
        progress.ProgressFile(path, "night", 4, BEGIN_TAI_S, 1)
    assert (again.begin_tai_s, again.seq_num) == (BEGIN_TAI_S, 1)
    now = nights.replayed(night, BEGIN_TAI_S + 900.0, "LSSTCam", named_tai_s=again.begin_tai_s)
    left = again.rest(now, replay.planned_events(now, 1.0, raws=True))
    assert [visit.group for visit in left] == [visit.group for visit in visits[1:]]
    assert left[0].announced_tai_s == visits[1].announced_tai_s + 900.0
    for event in replay.planned_events(now, 1.0, raws=True):
        again.note(event)
    again.close()
    done = progress.ProgressFile(path, "night", 4, 0.0, 0)
    assert done.rest(now, replay.planned_events(now, 1.0, raws=True)) == []
    done.close()
    assert all(line.count(".") < 3 for line in path.read_text().splitlines()[1:])
    with pytest.raises(BadMessage, match="is of another replay"):
        progress.ProgressFile(path, "other night", 4, 0.0, 0)


@pytest.mark.parametrize(
    "content",
    [b'{"source": "nig', b"notes\n", b'{"source": "night", "visits": 4}\n', b"[]\n", b"\xff\n", b"\n"],
)
def test_a_file_of_something_else_is_refused_and_kept(tmp_path, content):
    progress, path = part("nightreplay.progressfile"), tmp_path / "progress"
    path.write_bytes(content)
    for _ in range(2):
        with pytest.raises(BadMessage, match="is no file of a replay: delete it, or name another one"):
            progress.ProgressFile(path, "night", 4, 0.0, 0)
    assert path.read_bytes() == content


def test_a_visit_that_the_interrupted_replay_has_announced_is_followed_too(replay):
    class Known(Relay):
        def ask(self, event):
            answer = super().ask(event)
            return answer.model_copy(update={"status": "duplicate"}) if "instrument" in event else answer

    follower = followed(replay, Known((Outcome.SUCCEEDED,) * 2), 1)
    assert (follower.visits, follower.totals.outcomes) == (1, {Outcome.SUCCEEDED: 2})
