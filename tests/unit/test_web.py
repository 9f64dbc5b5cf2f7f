# SPDX-License-Identifier: BSD-3-Clause
"""What the web page shows, to whom, and as what text."""

import asyncio
import io
import json
import os
import struct
import zlib
from html.parser import HTMLParser
from pathlib import Path

import fastavro
import numpy as np
import pytest
from astropy.io import fits

from ppdaemon.changefeed import ChangeFeed
from ppdaemon.errors import ConfigError
from ppdaemon.markup import Html, tag
from ppdaemon.night.page import night_sections, report_page
from ppdaemon.night.report import NightReport
from ppdaemon.night.totals import NightTotals
from ppdaemon.node.slots.assignment import Key
from ppdaemon.node.visits import model as visits
from ppdaemon.node.visits.changes import change_of, changes_of
from ppdaemon.node.visits.openvisits import OpenVisits
from ppdaemon.reports import Problem, StatusReport, VisitChange, VisitRow, WorkerRow
from ppdaemon.states import BAD_OUTCOMES, PARTIAL, Outcome, SlotState, Stage
from ppdaemon.tokenfile import read_token
from ppdaemon.visit import read_next_visit
from ppdaemon.web import hub, pages
from ppdaemon.web.access import Access, check_listen
from ppdaemon.web.alerts import NAMES, AlertWatch, png, read_stamps
from ppdaemon.web.looks import LEGEND, LOOKS
from ppdaemon.web.model import KEEP_FAILURES, KEEP_VISITS, LiveModel

TAI = 1_800_000_000.0
HOSTILE = "<img src=x onerror=alert(1)>\"'&\x1b[31m"
TOKEN = "0123456789abcdef0123"


def change(detector: int = 0, state: str = Stage.ACCEPTED, group: str = "g", **fields) -> VisitChange:
    values = {"instrument": "DemoCam", "attempt": 1, "received_tai": TAI, "since_tai": TAI + 1} | fields
    return VisitChange(group=group, detector=detector, state=state, **values)


def row(detector: int = 0, group: str = "g", **fields) -> VisitRow:
    stages = fields.pop("stages", {Stage.ACCEPTED: TAI})
    return VisitRow(instrument="DemoCam", group=group, detector=detector, attempt=1, stages=stages, **fields)


def status(**fields) -> StatusReport:
    values = {
        **{"node": "n1", "version": "1", "pid": 1, "state": "running", "text": "running: 1 busy"},
        **{"started_tai": TAI, "tai": TAI, "relay": "connected", "slots": {}, "workers_max": 3, "queued": 0},
        **{"capacity": 3, "logs": ""},
        **{
            "open_visits": 0,
            "outcomes": {},
            "spooled": 0,
            "exporter": "idle",
            "arrivals": (),
            "counters": {},
        },
    }
    return StatusReport(**values | fields)


# --- changes that the daemon sends ---


def entry(detector: int = 0, **fields) -> visits.JournalEntry:
    visit = read_next_visit({"groupId": "g", "instrument": "DemoCam", "nimages": 1, "survey": "s"})
    return visits.JournalEntry(Key("DemoCam", "g", detector, 1), visit, TAI, {Stage.ACCEPTED: TAI}, **fields)


def test_a_write_to_the_journal_is_a_change_of_the_state_that_ppctl_shows():
    done = entry(outcome=Outcome.SUCCEEDED, partial=True, shutter_close_tai=TAI, ended_tai=TAI + 50, slot=2)
    done.stages |= {Stage.PROCESSED: TAI + 41.5, Stage.SPOOLED: TAI + 42}
    (found,) = changes_of(visits.Update((done,)), None)
    assert (found.state, found.latency_s, found.since_tai, found.slot) == (PARTIAL, 41.5, TAI + 50, 2)
    started = entry()
    started.stages |= {Stage.FIRST_TASK: TAI + 9, Stage.ARRIVED: TAI + 8}
    found = change_of(started)
    assert (found.state, found.since_tai, found.survey, found.latency_s) == ("first_task", TAI + 9, "s", None)


def test_a_stage_is_passed_on_when_it_is_reached_and_not_again_when_it_is_written():
    opened, found = OpenVisits(), []
    opened.on_change = found.append
    opened.mark_changed(entry(3))
    assert [each.key.detector for each in found] == [3]
    assert list(changes_of(visits.Update(opened.take_changes()), None)) == []


def test_what_was_accepted_before_is_no_change():
    accept = visits.Accept(visits.Reserved(None, {}), (entry(0), entry(1)))
    assert [(found.detector, found.attempt) for found in changes_of(accept, [None, 4])] == [(1, 4)]


def test_a_retry_is_shown_as_its_next_attempt():
    again = entry()
    again.key = again.key._replace(attempt=2)
    (found,) = changes_of(visits.Retry(entry(outcome=Outcome.CRASHED), again), None)
    assert (found.attempt, found.state) == (2, "accepted")


def test_a_watcher_gets_the_latest_change_of_each_detector():
    feed = ChangeFeed()
    with feed.watched() as first, feed.watched() as second:
        feed.record(lambda: [change(0), change(1), change(0, Stage.ARRIVED)])
        assert second.filled.is_set()
        assert [each.state for each in first.take()] == ["arrived", "accepted"]
        assert (first.take(), first.filled.is_set()) == ((), False)
        assert len(second.take()) == 2


def test_changes_are_not_computed_for_nobody():
    feed = ChangeFeed()
    feed.record(lambda: pytest.fail("computed"))
    with feed.watched():
        pass
    feed.record(lambda: pytest.fail("computed"))


# --- the model ---


def test_only_what_has_changed_is_sent():
    model = LiveModel()
    model.visits([change(0), change(1)])
    delta = model.visits([change(1, Outcome.SUCCEEDED, latency_s=41.26, shutter_close_tai=TAI + 30)])
    assert delta == {
        "visits": [
            {
                **{"instrument": "DemoCam", "group": "g", "survey": ""},
                **{"received": round((TAI - 37) * 1000), "close": round((TAI - 7) * 1000)},
                "cells": {1: ["succeeded", round((TAI - 36) * 1000), 41.3, 1, None, ""]},
            }
        ]
    }
    assert set(model.snapshot()["visits"][0]["cells"]) == {0, 1}
    assert model.visits([]) == {}


def test_an_unchanged_status_is_not_sent():
    model = LiveModel()
    assert model.status(status())["status"]["state"] == "running"
    assert model.status(status(tai=TAI + 1)) == {}
    problem = Problem(source="relay", text="relay away", since_tai=TAI, degrades=True)
    delta = model.status(status(problems=(problem,)))
    shown = [{"text": "relay away", "since": round((TAI - 37) * 1000), "degrades": True}]
    assert delta == {"status": {"problems": shown}}


def test_the_memory_of_the_workers_is_added_up():
    rows = [
        WorkerRow(slot=n, state=SlotState.IDLE, epoch=1, since_s=1.0, memory_mb=mb)
        for n, mb in enumerate((100.0, 250.0, None))
    ]
    model = LiveModel()
    assert model.workers(rows) == {"status": {"workers": {"memory": 350, "largest": 250}}}
    assert model.workers(rows) == {}


def test_failures_are_listed_until_another_attempt_begins():
    model = LiveModel()
    delta = model.visits([change(3, Outcome.FAILED, reason=HOSTILE), change(4, Outcome.NO_IMAGE)])
    assert [(each["detector"], each["reason"]) for each in delta["failures"]] == [(3, HOSTILE)]
    assert "failures" not in model.visits([change(5, Outcome.SUCCEEDED)])
    assert model.visits([change(3, attempt=2)])["failures"] == []


def test_old_visits_and_failures_are_forgotten():
    model = LiveModel()
    for number in range(KEEP_VISITS + 9):
        fields = {"received_tai": TAI + number, "since_tai": TAI + number}
        model.visits([change(0, Outcome.FAILED, f"g{number}", **fields)])
    groups = [visit["group"] for visit in model.snapshot()["visits"]]
    assert groups == [f"g{number}" for number in range(9, KEEP_VISITS + 9)]
    failures = [failure["group"] for failure in model.snapshot()["failures"]]
    assert (len(failures), failures[0]) == (KEEP_FAILURES, f"g{KEEP_VISITS + 8}")


def test_a_daemon_that_is_away_is_shown_with_the_first_time():
    model = LiveModel()
    model.visits([change(0, group="old")])
    since = round((TAI - 37) * 1000)
    assert model.away("no answer", TAI) == {"away": {"since": since, "reason": "no answer"}}
    assert model.away("no answer", TAI + 9) == {}
    assert model.away("not there", TAI + 9)["away"] == {"since": since, "reason": "not there"}
    delta = model.restart([row(0, "new")], [row(1, "older", outcome=Outcome.CRASHED)])
    assert delta["away"] is None
    assert [visit["group"] for visit in delta["visits"]] == ["new"]
    assert [failure["group"] for failure in delta["failures"]] == ["older"]


# --- viewers ---


def data_of(event: bytes | None) -> dict:
    assert event is not None
    number, data, *_ = event.decode().splitlines()
    assert number.startswith("id: ")
    return json.loads(data.removeprefix("data: "))


def test_a_viewer_gets_the_whole_page_and_then_its_changes():
    async def scene() -> list[dict]:
        whole = {"all": True}
        viewers = hub.Hub(lambda: whole, lambda: 5)
        with viewers.viewing() as first:
            viewers.publish({"away": None})
            viewers.publish({})
            with viewers.viewing() as second:
                return [data_of(await each.take()) for each in (first, first, second)]

    assert asyncio.run(scene()) == [
        {"now": 5, "all": True},
        {"now": 5, "away": None},
        {"now": 5, "all": True},
    ]


def test_a_slow_viewer_and_one_too_many_are_turned_away(monkeypatch):
    monkeypatch.setattr(hub, "MAX_VIEWERS", 1)
    viewers = hub.Hub(dict, lambda: 5)
    with viewers.viewing() as viewer:
        with pytest.raises(hub.TooManyViewers), viewers.viewing():
            pass
        for number in range(hub.MAX_WAITING + 1):
            viewers.publish({"status": number})
        assert asyncio.run(viewer.take()) is None
    assert len(viewers) == 0


# --- pages ---


class Text(HTMLParser):
    """Collects the elements and the text of a page."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, name, attributes):
        self.tags.append(name)
        self.attributes += attributes

    def handle_data(self, data):
        self.text += data


def test_text_of_others_is_never_markup():
    assert (
        tag("p", "<b>", Html("<i></i>"), title="\"'<") == '<p title="&quot;&#x27;&lt;">&lt;b&gt;<i></i></p>'
    )
    rows = [row(0, HOSTILE, survey=HOSTILE, reason=HOSTILE, pipeline=HOSTILE, outcome=Outcome.FAILED)]
    made = [
        pages.visit_page(rows, [], HOSTILE),
        pages.detector_page("DemoCam", 0, "R22_S00", rows, HOSTILE),
        pages.night_page(night(*rows)),
        report_page(night(*rows), HOSTILE),
        pages.message_page("Not found", HOSTILE),
    ]
    for page in made:
        parsed = Text(page)
        assert "img" not in parsed.tags
        assert not [name for name, _ in parsed.attributes if name.startswith("on") or name == "style"]
        assert HOSTILE.replace("\x1b", "?") in parsed.text
        assert "\x1b" not in page


def test_the_command_for_a_log_that_cannot_be_read_quotes_the_group():
    page = Text(pages.visit_page([row(group="two words")], None, ""))
    assert "ppctl log 'two words'" in page.text


def test_no_page_needs_another_host_or_inline_code():
    made = [pages.live_page(wall=True), pages.visit_page([row()], None, ""), pages.login_page(wrong=True)]
    for page in made:
        parsed = Text(page)
        assert not [
            value for name, value in parsed.attributes if name in ("src", "href") and value[0] not in "/#"
        ]
        assert "style" not in parsed.tags
    for path in (Path(pages.__file__).parent / "static").iterdir():
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")
        assert "http:" not in text
        assert "https:" not in text
        assert "innerHTML" not in text


def test_every_state_has_a_look_and_each_look_its_letter():
    assert LOOKS.keys() == {*Stage, *Outcome, PARTIAL}
    letters = [look.letter for look in LEGEND]
    assert len(set(letters)) == len(letters)
    assert {look.letter for state, look in LOOKS.items() if state in BAD_OUTCOMES} == {"✗"}
    css = (Path(pages.__file__).parent / "static" / "page.css").read_text()
    assert [
        look.style for look in LEGEND if f".s-{look.style} " not in css and f".s-{look.style}," not in css
    ] == []


def test_an_ignored_detector_is_not_called_canceled():
    assert {str(state) for state, look in LOOKS.items() if look.word == "canceled"} == {"cancelled"}
    assert LOOKS[Outcome.IGNORED].word == "ignored"


def night(*rows: VisitRow) -> NightReport:
    totals = NightTotals()
    totals.add(rows)
    return NightReport(day_obs=20261129, **totals.fields())


def test_the_latency_of_a_night_is_compared_with_the_budget():
    """The numbers and the charts are those of the report, of which test_night has the values."""
    rows = [
        row(
            0,
            f"g{seconds}",
            outcome=Outcome.SUCCEEDED,
            shutter_close_tai=TAI,
            stages={"processed": TAI + seconds},
        )
        for seconds in (30.0, 50.0, 70.0)
    ]
    page = pages.night_page(night(*rows))
    assert night_sections(night(*rows)) in page
    text = Text(page).text
    assert "3 with 3 visit-detectors" in text
    assert "2 of 3 (66.67%)" in text
    assert ("class", "over") in Text(page).attributes
    assert "g70.070.0 s" in text


def test_the_focal_plane_has_the_detectors_of_the_camera():
    assert [each["id"] for each in json.loads(pages.camera_json("DemoCam"))] == list(range(9))
    assert pages.camera_json("Unknown") == "[]"


# --- access ---


@pytest.mark.parametrize("listen", ["0.0.0.0:8080", "[::]:80", "192.0.2.1:1", "example.org:80"])
def test_other_hosts_need_a_token_or_a_proxy(listen):
    with pytest.raises(ConfigError, match="other hosts can reach this"):
        check_listen(listen, Access())
    port = int(listen.rpartition(":")[2])
    assert (
        check_listen(listen, Access(TOKEN))[1] == check_listen(listen, Access(behind_proxy=True))[1] == port
    )


@pytest.mark.parametrize("listen", ["127.0.0.1:8080", "[::1]:8080", "localhost:8080"])
def test_this_host_needs_nothing(listen):
    assert check_listen(listen, Access()) == (listen.removesuffix(":8080").strip("[]"), 8080)


@pytest.mark.parametrize("listen", ["8080", ":8080", "host", "h:x", "h:70000", "h:²"])
def test_an_address_that_is_none_is_refused(listen):
    with pytest.raises(ConfigError, match="use ADDRESS:PORT"):
        check_listen(listen, Access())


def test_a_token_is_asked_for_in_a_header_or_a_cookie():
    access = Access(TOKEN)
    assert access.allows(authorization=f"Bearer {TOKEN}", cookie="")
    assert access.allows(authorization="", cookie=access.cookie)
    for text in ("", "Bearer ", "é", TOKEN[:-1]):
        assert not access.allows(authorization=text, cookie=text)
    assert not access.allows(authorization="", cookie=TOKEN)
    assert Access().allows(authorization="", cookie="")
    assert not Access().is_token("")


def test_without_a_token_only_local_names_are_answered():
    assert Access().allows_host("localhost")
    assert not Access().allows_host("evil.example")
    assert Access(TOKEN).allows_host("node.example")
    assert Access(behind_proxy=True).allows_host("node.example")


def test_a_token_that_others_can_read_or_guess_is_refused(tmp_path):
    path = tmp_path / "token"
    path.write_text(TOKEN + "\n")
    path.chmod(0o640)
    assert read_token(path) == TOKEN
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="other users can read"):
        read_token(path)
    path.chmod(0o600)
    path.write_text("short")
    with pytest.raises(ConfigError, match="at least 20"):
        read_token(path)
    with pytest.raises(ConfigError, match="No such file"):
        read_token(tmp_path / "none")


# --- cutouts of alerts ---


def write_alerts(path: Path, *alerts: tuple[int, float, np.ndarray | None]) -> None:
    """Write packets with the fields that are shown."""
    cutouts = [{"name": f"cutout{name}", "type": ["null", "bytes"]} for name in NAMES]
    source = {"type": "record", "name": "source", "fields": [{"name": "snr", "type": "double"}]}
    fields = [{"name": "diaSourceId", "type": "long"}, {"name": "diaSource", "type": source}, *cutouts]
    packets = []
    for number, snr, pixels in alerts:
        stream = io.BytesIO()
        if pixels is not None:
            fits.PrimaryHDU(pixels).writeto(stream)
        images = {f"cutout{name}": stream.getvalue() or None for name in NAMES}
        packets.append({"diaSourceId": number, "diaSource": {"snr": snr}, **images})
    with path.open("wb") as file:
        fastavro.writer(file, {"type": "record", "name": "alert", "fields": fields}, packets)


def gray(image: bytes) -> list[list[int]]:
    """Return the pixels of a gray PNG."""
    assert image.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", image[16:24])
    length = struct.unpack(">I", image[33:37])[0]
    rows = zlib.decompress(image[41 : 41 + length])
    return [list(rows[n * (width + 1) + 1 : (n + 1) * (width + 1)]) for n in range(height)]


def test_the_strongest_alert_with_all_cutouts_is_shown(tmp_path):
    pixels = np.array([[0, 1, 2], [np.nan, 4, 100]], dtype=np.float32)
    path = tmp_path / "alerts.avro"
    write_alerts(path, (1, 5.0, pixels), (2, -8.0, pixels), (3, 99.0, None))
    stamps = read_stamps(path)
    assert (stamps.facts["id"], stamps.facts["snr"], stamps.facts["detector"]) == ("2", -8.0, None)
    top, bottom = gray(stamps.images["Difference"])
    assert (top[0], top[2], bottom[0]) == (0, 255, 0)  # the first row is at the bottom
    write_alerts(path, (3, 99.0, None))
    assert read_stamps(path) is None


@pytest.mark.parametrize("shape", [(2, 3, 4), (0, 5), (1, 5000)])
def test_what_is_no_cutout_is_not_drawn(shape):
    with pytest.raises(ValueError, match="is not shown"):
        png(np.zeros(shape, dtype=np.float32))


def test_a_broken_file_is_skipped_and_the_next_one_shown(tmp_path, caplog):
    watch = AlertWatch(tmp_path, lambda facts: None)
    watch.look()
    assert (watch.stamps, caplog.text) == (None, "")
    broken = tmp_path / "a.avro"
    broken.write_bytes(b"no Avro")
    os.utime(broken, ns=(1, 1))
    watch.look()
    watch.look()
    assert caplog.text.count("cannot show alerts") == 1
    write_alerts(tmp_path / "b.avro", (7, 5.0, np.eye(3, dtype=np.float32)))
    (tmp_path / ".c.avro").write_bytes(b"not complete")
    watch.look()
    assert watch.stamps.facts["id"] == "7"
