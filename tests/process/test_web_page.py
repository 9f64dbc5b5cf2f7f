# SPDX-License-Identifier: BSD-3-Clause
"""The web page in a browser, beside a running daemon with scripted workers."""

import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import fastavro
import numpy as np
import pytest
from astropy.io import fits
from node import running
from ramdisk import TEMPORARY

from ppdaemon.clock import night_limits
from ppdaemon.night.page import write_page
from ppdaemon.night.report import NightReport
from ppdaemon.night.totals import NightTotals
from ppdaemon.reports import VisitRow
from ppdaemon.states import Outcome, Stage
from ppdaemon.testing.node import NodeProcess
from ppdaemon.testing.telescope import free_port
from ppdaemon.testing.waiting import wait_until

CHROMIUM = shutil.which("chromium")
TIMEOUT_S = 30.0
TOKEN = "0123456789abcdef0123"
HOSTILE = "<img src=x onerror=document.title='taken'>\"'&"
PHONE = {"width": 390, "height": 844}
EVENT_S = 2.0
"""Far above the 0.3 s of an idle machine: others use this one."""

needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="chromium is missing (Debian: apt install chromium)"
)

# Notes when each detector gets another look, by the clock of this host.
RECORD = """() => {
  window.seen = [];
  new MutationObserver((changes) => {
    for (const { target } of changes) {
      window.seen.push([Number(target.dataset.detector), target.getAttribute("class"), Date.now()]);
    }
  }).observe(document.getElementById("plane"), { subtree: true, attributeFilter: ["class"] });
}"""


def journal_variables(folder: Path, log: Path) -> dict[str, str]:
    """Return variables with which the journal of systemd has a log."""
    program = folder / "bin" / "journalctl"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\nexec cat {log}\n")
    program.chmod(0o755)
    return {"PATH": f"{program.parent}:{os.environ['PATH']}"}


class WebProcess:
    """A ``ppweb`` of a node."""

    def __init__(
        self, folder: Path, control: Path, *options: str, host: str = "127.0.0.1", journal: Path | None = None
    ):
        self.port = free_port()
        self.log = folder / f"web-{self.port}.log"
        arguments = ("--socket", str(control), "--listen", f"{host}:{self.port}", *options)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "ppdaemon.web.app", *arguments],
                stdout=log,
                stderr=log,
                env={**os.environ, **({} if journal is None else journal_variables(folder, journal))},
            )

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def is_up(self) -> bool:
        try:
            with urllib.request.urlopen(self.url("/login"), timeout=TIMEOUT_S):
                return True
        except OSError:
            assert self.process.poll() is None, self.log.read_text()
            return False

    def stop(self) -> None:
        self.process.terminate()
        assert self.process.wait(TIMEOUT_S) == 0, self.log.read_text()


@pytest.fixture(scope="module")
def shared(tmp_path_factory, module_leaves_nothing) -> Iterator[tuple[NodeProcess, WebProcess]]:
    folder = tmp_path_factory.mktemp("web")
    with (
        tempfile.TemporaryDirectory(prefix="pp-", dir=TEMPORARY) as sockets,
        running(folder, Path(sockets), max=9, min=9) as node,
    ):
        web = WebProcess(folder, node.control, journal=node.log)
        try:
            wait_until(web.is_up, TIMEOUT_S, web.log.read_text)
            yield node, web
        finally:
            web.stop()


@pytest.fixture(scope="module")
def browser(module_leaves_nothing):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    page = browser.new_page(viewport=PHONE, color_scheme="dark")
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: errors.append(request.url) if "127.0.0.1" not in request.url else None)
    yield page
    page.context.close()
    assert errors == []


def text_of(page, selector: str) -> str:
    return page.locator(selector).inner_text()


def looks(page) -> dict[int, str]:
    """Return the letters of the detectors on the focal plane."""
    cells = page.locator("#plane g[data-detector]").evaluate_all(
        "cells => cells.map(g => [Number(g.dataset.detector), g.textContent])"
    )
    return dict(cells)


def is_narrow(page) -> bool:
    return page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


@needs_chromium
def test_the_focal_plane_follows_a_visit(shared, page):
    node, web = shared
    before = node.status().outcomes.get(Outcome.SUCCEEDED, 0)  # of other tests
    page.goto(web.url("/"))
    node.relay.reserve("live-1", range(9), survey="process:raise@/7")
    node.wait(lambda: looks(page) == dict.fromkeys(range(9), "w"))
    page.evaluate(RECORD)
    for detector in range(9):
        node.land("live-1", detector)
    expected = dict.fromkeys(range(9), "✓") | {7: "✗"}
    node.wait(lambda: looks(page) == expected, TIMEOUT_S)
    node.wait(lambda: "detector 7" in text_of(page, "#failures"))
    assert "ZeroDivisionError" in text_of(page, "#failures")
    node.wait(lambda: f"{before + 8} succeeded" in text_of(page, "#figures"))
    words = text_of(page, "#visits li:first-child")
    assert "live-1" in words
    ended = {row.detector: (row.ended_tai - 37) * 1000 for row in node.visit("live-1")}
    shown = {
        detector: at for detector, look, at in page.evaluate("window.seen") if look in ("s-good", "s-bad")
    }
    late_ms = sorted(shown[detector] - ended[detector] for detector in range(9))
    assert late_ms[4] < EVENT_S * 1000, late_ms
    assert is_narrow(page)


@needs_chromium
def test_keys_move_between_detectors_and_visits(shared, page):
    node, web = shared
    for group in ("keys-1", "keys-2"):
        node.relay.reserve(group, range(9), survey="idle skip")
        node.wait(lambda: not node.relay.open)
    page.goto(web.url("/"))
    page.wait_for_selector("#plane g[class]")
    page.locator("#plane g[tabindex='0']").focus()
    for key in ("ArrowUp", "ArrowRight"):
        page.keyboard.press(key)
    assert "R22_S11 detector 4" in text_of(page, "#detail")
    page.keyboard.press("?")
    assert page.locator("#keys").is_visible()
    page.keyboard.press("l")
    assert page.locator(".by-latency").is_visible()
    page.locator("#visits button").first.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    assert text_of(page, "#shown").startswith("keys-1")
    page.keyboard.press("n")
    assert text_of(page, "#shown").startswith("keys-2")
    page.locator("#plane g[data-detector='3']").focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/detector/DemoCam/3")
    assert "keys-2" in text_of(page, "table")


@needs_chromium
def test_names_of_others_are_text_on_every_page(shared, page):
    node, web = shared
    node.relay.reserve(HOSTILE, (4,), survey="prepare:raise idle")
    node.wait(lambda: not node.relay.open)
    page.goto(web.url("/"))
    node.wait(lambda: HOSTILE in text_of(page, "#visits"))
    node.wait(lambda: HOSTILE in text_of(page, "#failures"))
    page.locator("#shown a").click()
    page.wait_for_url("**/visit/**")
    assert text_of(page, "h1") == HOSTILE
    page.goto(web.url("/night/now"))
    assert HOSTILE in page.locator("table").last.inner_text()
    page.goto(web.url("/detector/DemoCam/4"))
    assert HOSTILE in text_of(page, "table")
    assert page.title() != "taken"
    assert page.locator("img").count() == 0


@needs_chromium
def test_a_visit_has_its_times_and_its_log(shared, page):
    node, web = shared
    node.relay.reserve("told-1", (4, 5), survey="process:raise@/4")
    for detector in (4, 5):
        node.land("told-1", detector)
    node.wait(lambda: not node.relay.open)
    page.goto(web.url("/visit/told-1"))
    page.wait_for_selector("#plane g[class], .plane g[class]")
    assert "s after shutter close" in text_of(page, "#d5")
    assert "ZeroDivisionError" in text_of(page, "#d4")
    log = text_of(page, ".log").splitlines()
    assert any("ZeroDivisionError" in line for line in log)
    (end,) = [line for line in log if "  supervisor  4  " in line]
    assert "told-1 detector 4 attempt 1: failed (ZeroDivisionError" in end
    assert [line[:12] for line in log if line[:1].isdigit()] == sorted(
        line[:12] for line in log if line[:1].isdigit()
    )
    for path in ("/visit/told-1", "/detector/DemoCam/4", "/night/now"):
        page.goto(web.url(path))
        assert is_narrow(page), path


@needs_chromium
def test_the_page_of_a_night_has_the_charts_of_its_report(shared, page):
    node, web = shared
    node.relay.reserve("night-1", (4, 5), survey="process:raise@/4")
    for detector in (4, 5):
        node.land("night-1", detector)
    node.wait(lambda: not node.relay.open)
    page.goto(web.url("/night/now"))
    row = page.locator("tr", has_text="night-1").last
    assert "ZeroDivisionError" in row.inner_text()
    assert page.locator("svg.chart").count() >= 4
    # By the style sheet: a page of its own has it inside.
    fill = page.locator(".m3 .cell").first.evaluate("cell => getComputedStyle(cell).fill")
    assert fill == "rgb(254, 232, 56)"
    assert is_narrow(page)


SHOWN = """() => {
  const rgb = (text) => text.match(/[0-9.]+/g).slice(0, 3).map(Number);
  const light = (text) => rgb(text)
    .map((part) => part / 255)
    .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4))
    .reduce((sum, part, k) => sum + part * [0.2126, 0.7152, 0.0722][k], 0);
  const contrast = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);
  const card = getComputedStyle(document.querySelector("section")).backgroundColor;
  const on = [...document.querySelectorAll(".chart > text, section h2, .facts dd, .facts dt, td, .legend li")]
    .map((each) => getComputedStyle(each))
    .map((style) => contrast(card, style.fill === "rgb(0, 0, 0)" ? style.color : style.fill));
  const cells = [...document.querySelectorAll(".chart g:has(rect)")].map((g) => contrast(
    getComputedStyle(g.querySelector("rect")).fill, getComputedStyle(g.querySelector("text")).fill));
  const outside = [...document.querySelectorAll("svg.chart text")].filter((each) => {
    const box = each.getBoundingClientRect(), svg = each.closest("svg").getBoundingClientRect();
    return box.width && (box.left < svg.left - 1 || box.right > svg.right + 1 || box.bottom > svg.bottom + 1);
  }).map((each) => each.textContent);
  const ground = getComputedStyle(document.body).backgroundColor;
  return { text: Math.min(...on), cells: Math.min(...cells), outside, ground };
}"""
"""Contrasts of texts, and texts that are cut off."""


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_report_of_a_night_can_be_read_on_every_screen_and_on_paper(browser, tmp_path, scheme):
    file = tmp_path / "night.html"
    totals = NightTotals()
    for number in range(30):
        for detector in range(9):
            totals.add_last(night_row(number, detector))
    write_page(file, NightReport(day_obs=20261129, **totals.fields()), "a test")
    page = browser.new_page(color_scheme=scheme)
    others: list[str] = []
    page.on("request", lambda request: others.append(request.url))
    page.on("console", lambda message: others.append(message.text))
    page.goto(file.as_uri())
    assert others == [file.as_uri()]
    for width, height in ((390, 844), (1280, 800), (1920, 1080)):
        page.set_viewport_size({"width": width, "height": height})
        shown = page.evaluate(SHOWN)
        assert is_narrow(page), width
        assert shown["outside"] == []
        assert shown["text"] >= 4.5
        assert shown["cells"] >= 4.5
    assert shown["ground"] == {"light": "rgb(246, 247, 248)", "dark": "rgb(15, 20, 26)"}[scheme]
    page.emulate_media(media="print")
    shown = page.evaluate(SHOWN)
    assert shown["ground"] == "rgb(255, 255, 255)"
    assert shown["text"] >= 4.5
    page.context.close()


def night_row(number: int, detector: int) -> VisitRow:
    """Return a visit-detector; some are slow, some failed."""
    accepted = night_limits(20261129)[0] + 600.0 * number
    fails = (number + detector) % 11 == 0
    stages = {Stage.ACCEPTED: accepted, Stage.ASSIGNED: accepted + 0.1, Stage.PREPARED: accepted + 9.0}
    if not fails:
        stages |= {Stage.ARRIVED: accepted + 64.0, Stage.FIRST_TASK: accepted + 64.2}
        stages |= {Stage.PROCESSED: accepted + 90.0 + 5 * detector + number, Stage.SPOOLED: accepted + 200.0}
        stages |= {Stage.CENTRAL: accepted + 204.0} if number < 15 else {}
    return VisitRow(
        instrument="DemoCam",
        group=f"g{number}",
        detector=detector,
        attempt=1,
        outcome=Outcome.FAILED if fails else Outcome.SUCCEEDED,
        reason=f"task isr: no flat of {number}" if fails else "",
        stages=stages,
        datasets=0 if fails else 7,
        shutter_close_tai=accepted + 60.0,
    )


@pytest.mark.slow
@needs_chromium
def test_the_cutouts_of_a_new_alert_appear(tmp_path, shared, page):
    node, _ = shared
    alerts = tmp_path / "alerts"
    alerts.mkdir()
    web = WebProcess(tmp_path, node.control, "--alerts", str(alerts))
    try:
        wait_until(web.is_up, TIMEOUT_S, web.log.read_text)
        page.goto(web.url("/"))
        node.wait(lambda: text_of(page, "#stamps") == "none yet")
        write_alert(alerts / "new.avro")
        node.wait(lambda: "4711" in text_of(page, "#stamps"))
        widths = "images => images.map(image => image.complete && image.naturalWidth)"
        node.wait(lambda: page.locator("#stamps img").evaluate_all(widths) == [5, 5, 5])
    finally:
        page.goto("about:blank")
        web.stop()


def write_alert(path: Path) -> None:
    """Write a file with one alert, renamed into place."""
    names = ("Science", "Template", "Difference")
    fields = [{"name": f"cutout{name}", "type": "bytes"} for name in names]
    schema = {"type": "record", "name": "alert", "fields": [{"name": "diaSourceId", "type": "long"}, *fields]}
    image = io.BytesIO()
    fits.PrimaryHDU(np.eye(5, dtype=np.float32)).writeto(image)
    part = path.with_suffix(".part")
    with part.open("wb") as stream:
        packet = {"diaSourceId": 4711} | {f"cutout{name}": image.getvalue() for name in names}
        fastavro.writer(stream, schema, [packet])
    part.rename(path)


@pytest.mark.slow
@needs_chromium
def test_a_page_survives_a_restart_of_the_daemon(tmp_path, socket_dir, page):
    with running(tmp_path, socket_dir) as node:
        web = WebProcess(tmp_path, node.control)
        try:
            wait_until(web.is_up, TIMEOUT_S, web.log.read_text)
            page.goto(web.url("/"))
            node.wait(lambda: text_of(page, "#state") == "running")
            assert node.stop() == 0
            wait_until(lambda: "is ppdaemon running?" in text_of(page, "#away"), TIMEOUT_S, page.content)
            assert text_of(page, "#state") == "away"
            node.start()
            node.wait(lambda: text_of(page, "#state") == "running")
            assert not page.locator("#away").is_visible()
            node.relay.reserve("after", (4,), survey="idle skip")
            node.wait(lambda: "after" in text_of(page, "#visits"))
        finally:
            page.goto("about:blank")
            web.stop()


@pytest.mark.slow
def test_a_token_is_needed_beyond_this_host(tmp_path, shared):
    node, _ = shared
    path = tmp_path / "token"
    path.touch(0o600)
    path.write_text(TOKEN)
    web = WebProcess(tmp_path, node.control, "--token-file", str(path), host="0.0.0.0")
    try:
        wait_until(web.is_up, TIMEOUT_S, web.log.read_text)
        for address in ("/events", "/night/now", "/visit/g", "/camera/DemoCam"):
            assert status_of(web, address) == 403
        assert status_of(web, "/camera/DemoCam", Authorization=f"Bearer {TOKEN}") == 200
        assert status_of(web, "/static/page.css") == 200
        request = urllib.request.Request(web.url("/login"), data=b"token=" + TOKEN.encode())
        opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        with opener.open(request, timeout=TIMEOUT_S) as answer:
            assert answer.url == web.url("/")
            assert answer.headers["Content-Security-Policy"].startswith("default-src 'self'")
    finally:
        web.stop()


def test_without_a_token_another_name_of_this_host_is_refused(shared):
    _, web = shared
    assert status_of(web, "/camera/DemoCam") == 200
    assert status_of(web, "/camera/DemoCam", Host="evil.example") == 403
    assert status_of(web, "/camera/DemoCam", Host=f"evil.example:{web.port}") == 403


def test_ppctl_web_prints_the_url_of_a_page_that_runs(shared):
    _, web = shared
    command = [sys.executable, "-c", "from ppdaemon.ctl.cli import main; main()", "web"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0
    assert web.url("/") in done.stdout.splitlines()


def test_errors_are_pages(shared):
    _, web = shared
    assert status_of(web, "/visit/none") == status_of(web, "/night/x") == 404
    assert status_of(web, "/visit/" + quote("../../etc/passwd", safe="")) == 404
    assert status_of(web, "/static/../app.py") == 404


def status_of(web: WebProcess, path: str, **headers: str) -> int:
    try:
        with urllib.request.urlopen(
            urllib.request.Request(web.url(path), headers=headers), timeout=TIMEOUT_S
        ) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_many_viewers_get_the_same_events(shared):
    node, web = shared
    viewers = [urllib.request.urlopen(web.url("/events"), timeout=TIMEOUT_S) for _ in range(50)]
    try:
        for viewer in viewers:
            assert next_data(viewer)["all"]
        node.relay.reserve("many-1", (4,), survey="idle skip")
        node.wait(lambda: not node.relay.open)
        for viewer in viewers:
            assert wait_until(lambda viewer=viewer: is_of(next_data(viewer), "many-1"), TIMEOUT_S)
    finally:
        for viewer in viewers:
            viewer.close()


def next_data(viewer) -> dict:
    while not (line := viewer.readline()).startswith(b"data: "):
        assert line
    return json.loads(line.removeprefix(b"data: "))


def is_of(delta: dict, group: str) -> bool:
    return any(visit["group"] == group for visit in delta.get("visits", ()))
