# SPDX-License-Identifier: BSD-3-Clause
"""The pages as HTML, made from what the daemon answers. Pure."""

import datetime
import json
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence

from ppdaemon.camera import load_camera
from ppdaemon.clock import TAI_MINUS_UTC_S, day_obs, night_limits
from ppdaemon.ctl.log import LogLine
from ppdaemon.errors import ConfigError
from ppdaemon.markup import Html, tag
from ppdaemon.night.page import night_sections
from ppdaemon.night.report import BUDGET_S, OPEN, NightReport, NightVisit
from ppdaemon.reports import VisitRow
from ppdaemon.states import Stage
from ppdaemon.terminal import duration
from ppdaemon.web.links import detector_link, night_link, visit_link
from ppdaemon.web.looks import LEGEND, LOOKS, Look
from ppdaemon.web.model import change_of_row

__all__ = (
    "camera_json",
    "detector_page",
    "live_page",
    "login_page",
    "message_page",
    "night_page",
    "visit_page",
)

KEYS = (
    ("arrow keys", "move to another detector, or to another visit in the list"),
    ("Enter", "open the page of the detector, or show the visit"),
    ("n", "show the newest visit, and each new one from now on"),
    ("l", "colors by latency, or by state"),
    ("w", "large letters for a screen on the wall"),
    ("?", "show or hide these keys"),
)


def _page(title: str, *body: object, script: bool = True, wall: bool = False, charts: bool = False) -> Html:
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("link", rel="icon", href="/static/icon.svg"),
        tag("link", rel="stylesheet", href="/static/page.css"),
        tag("link", rel="stylesheet", href="/night.css") if charts else None,
        tag("script", src="/static/page.js", defer="") if script else None,
    )
    return Html(
        "<!doctype html>\n"
        + tag("html", head, tag("body", *body), lang="en", class_="wall" if wall else None)
    )


def _top(*words: object) -> Html:
    return tag("header", tag("a", "live", href="/", class_="home"), *words)


def _mark(state: str) -> Html:
    look = LOOKS.get(state, Look("?", "none", state))
    return tag("span", look.letter, class_=f"mark s-{look.style}", title=state)


def _legend() -> Html:
    return tag(
        "ul",
        (
            tag(
                "li",
                tag("span", look.letter, class_=f"mark s-{look.style}"),
                f" {look.word}",
                data_states=" ".join(states),
                data_letter=look.letter,
                data_style=look.style,
            )
            for look, states in LEGEND.items()
        ),
        class_="legend by-state",
    )


def _latency_legend() -> Html:
    steps = (("l0", "below 30 s"), ("l1", "30 to 45 s"), ("l2", "45 to 60 s"), ("l3", "over 60 s"))
    items = (tag("li", tag("span", "s", class_=f"mark {name}"), f" {text}") for name, text in steps)
    return tag("ul", items, class_="legend by-latency")


def live_page(*, wall: bool, alerts: bool = False) -> Html:
    """Return the live page, which a script fills."""
    plane = tag(
        "section",
        tag("h2", "Focal plane"),
        tag(
            "p",
            tag("span", "waiting for a visit", id="shown"),
            " ",
            tag("button", "newest", id="newest", type="button", aria_pressed="true"),
            " ",
            tag("button", "latency", id="latency", type="button", aria_pressed="false"),
            class_="bar",
        ),
        tag("div", id="plane", class_="plane"),
        tag("p", "choose a detector: click, or Tab and arrow keys", id="detail", aria_live="polite"),
        _legend(),
        _latency_legend(),
        id="focal",
    )
    return _page(
        "ppdaemon",
        tag(
            "header",
            tag("h1", "ppdaemon", id="node"),
            tag("span", "connecting", id="state", class_="badge"),
            tag("span", id="text"),
            tag("span", id="clock"),
            tag("a", "tonight", id="tonight", href="/night/now"),
            tag("button", "?", id="help", type="button", aria_label="keys"),
        ),
        tag("p", id="away", role="alert", hidden=""),
        tag("ul", id="problems", class_="problems", aria_label="problems"),
        tag("dl", ((tag("dt", key), tag("dd", text)) for key, text in KEYS), id="keys", hidden=""),
        tag(
            "main",
            plane,
            tag(
                "section",
                tag("h2", "Visits"),
                tag(
                    "div",
                    tag("span", "shutter close", class_="at-close"),
                    tag("span", "60 s", class_="at-budget"),
                    class_="axis",
                    aria_hidden="true",
                ),
                tag("ol", id="visits"),
                id="timeline",
            ),
            tag(
                "section",
                tag("h2", "Node"),
                tag("div", id="slots", class_="slots", role="img"),
                tag("dl", id="figures", class_="figures"),
                id="resources",
            ),
            tag("section", tag("h2", "Last failures"), tag("ul", id="failures"), id="failed"),
            tag(
                "section",
                tag("h2", "Last alert"),
                tag("div", "none yet", id="stamps", class_="stamps"),
                id="alerts",
            )
            if alerts
            else None,
        ),
        tag("noscript", "The live page needs JavaScript; the pages of visits and nights do not."),
        wall=wall,
    )


def camera_json(instrument: str) -> str:
    """Return the detectors of a camera in its focal plane, mm; an empty list for an unknown one."""
    try:
        detectors = load_camera(instrument).detectors.values()
    except ConfigError:
        return "[]"
    return json.dumps(
        [
            {"id": d.id, "name": d.name, "x": d.x_mm, "y": d.y_mm, "w": d.width_mm, "h": d.height_mm}
            for d in detectors
        ]
    )


def _utc(tai: float | None, *, date: bool = False) -> str:
    if not tai:
        return ""
    instant = datetime.datetime.fromtimestamp(tai - TAI_MINUS_UTC_S, tz=datetime.UTC)
    return instant.strftime("%Y-%m-%d %H:%M:%S" if date else "%H:%M:%S")


def _table(names: Sequence[str], rows: Iterable[Html]) -> Html:
    head = tag("tr", (tag("th", name, scope="col") for name in names))
    return tag("div", tag("table", tag("thead", head), tag("tbody", rows)), class_="wide")


def visit_page(rows: Sequence[VisitRow], log: Sequence[LogLine] | None, note: str) -> Html:
    """Return the page of a visit; `log` is `None` if it cannot be read, for the reason in `note`."""
    first, group = rows[0], rows[0].group
    last = {(row.instrument, row.detector): row for row in rows}
    latencies = [c.latency_s for row in last.values() if (c := change_of_row(row)).latency_s is not None]
    accepted = min((row.stages[Stage.ACCEPTED] for row in rows if Stage.ACCEPTED in row.stages), default=None)
    counts = Counter(change_of_row(row).state for row in last.values())
    close = next((row.shutter_close_tai for row in rows if row.shutter_close_tai), None)
    return _page(
        f"{group} - visit",
        _top(tag("h1", group), tag("span", first.instrument), tag("span", first.survey)),
        tag("p", note, class_="note") if note else None,
        tag(
            "p",
            f"accepted {_utc(accepted, date=True)} UTC; shutter closed {_utc(close) or 'not yet'}; ",
            ", ".join(f"{count} {state}" for state, count in sorted(counts.items())),
            f"; slowest {max(latencies):.1f} s after shutter close" if latencies else "",
            f"; exposures {', '.join(map(str, first.exposures))}" if first.exposures else "",
        ),
        tag(
            "p",
            tag("a", "the night of this visit", href=night_link(day_obs(accepted))) if accepted else None,
        ),
        tag("div", class_="plane", data_instrument=first.instrument),
        _legend(),
        _table(
            ("", "detector", "attempt", "outcome", "latency", "slot", "pipeline", "reason and times"),
            (_visit_row(row, close) for row in rows),
        ),
        tag("h2", "Log", id="log"),
        _log(log, group),
    )


def _visit_row(row: VisitRow, close_tai: float | None) -> Html:
    change = change_of_row(row)
    zero = close_tai or row.stages.get(Stage.ACCEPTED, 0.0)
    times = " ".join(
        f"{stage} {tai - zero:+.1f}" for stage, tai in sorted(row.stages.items(), key=lambda i: i[1])
    )
    return tag(
        "tr",
        tag("td", _mark(change.state)),
        tag("td", tag("a", row.detector, href=detector_link(row.instrument, row.detector))),
        tag("td", row.attempt),
        tag("td", change.state),
        tag("td", "" if change.latency_s is None else f"{change.latency_s:.1f} s"),
        tag("td", row.slot),
        tag("td", row.pipeline),
        tag(
            "td",
            tag("div", row.reason, class_="reason") if row.reason else None,
            tag("div", f"s after {'shutter close' if close_tai else 'acceptance'}: {times}", class_="dim"),
        ),
        id=f"d{row.detector}",
        data_detector=row.detector,
        data_state=change.state,
    )


def _log(lines: Sequence[LogLine] | None, group: str) -> Html:
    if lines is None:
        return tag(
            "p",
            "This program may not read the logs: on the host, ",
            tag("code", f"ppctl log {shlex.quote(group)}"),
        )
    if not lines:
        return tag("p", "The logs have no line of this visit.")
    return tag("pre", (_log_line(line) for line in lines), class_="log", tabindex="0")


def _log_line(line: LogLine) -> Html:
    fields = line.fields
    words = (
        line.timestamp[11:23],
        line.source,
        fields.get("detector", ""),
        fields.get("level"),
        fields.get("event"),
    )
    text = "  ".join(str(word) for word in words)
    more = [*str(fields.get("exception") or "").splitlines(), *line.more]
    return Html(
        tag("span", text, class_=f"level-{fields.get('level')}")
        + "\n"
        + "".join(tag("span", f"    {each}", class_="dim") + "\n" for each in more)
    )


def detector_page(instrument: str, detector: int, name: str, rows: Sequence[VisitRow], note: str) -> Html:
    """Return the page of a detector: its last attempts, the newest first."""
    changes = [change_of_row(row) for row in rows]
    counts = Counter(change.state for change in changes)
    latencies = [change.latency_s for change in changes if change.latency_s is not None]
    title = f"{instrument} {name}".strip() + f" detector {detector}"
    return _page(
        title,
        _top(tag("h1", title)),
        tag("p", note, class_="note") if note else None,
        tag(
            "p",
            f"the last {len(rows)} attempts: " if rows else "no attempt in the journal",
            ", ".join(f"{count} {state}" for state, count in sorted(counts.items())),
            f"; {_latency_text(latencies)}" if latencies else "",
        ),
        tag("p", (_mark(change.state) for change in reversed(changes)), class_="strip"),
        _table(
            ("", "accepted, UTC", "visit", "attempt", "outcome", "latency", "slot", "reason"),
            (
                tag(
                    "tr",
                    tag("td", _mark(change.state)),
                    tag("td", _utc(change.received_tai, date=True)),
                    tag("td", tag("a", change.group, href=f"{visit_link(change.group)}#d{detector}")),
                    tag("td", change.attempt),
                    tag("td", change.state),
                    tag("td", "" if change.latency_s is None else f"{change.latency_s:.1f} s"),
                    tag("td", change.slot),
                    tag("td", change.reason, class_="reason"),
                )
                for change in changes
            ),
        ),
        script=False,
    )


def _latency_text(latencies: Sequence[float]) -> str:
    ordered = sorted(latencies)
    middle, late = ordered[len(ordered) // 2], sum(each > BUDGET_S for each in ordered)
    return (
        f"latency median {middle:.1f} s, longest {ordered[-1]:.1f} s,"
        f" {late} of {len(ordered)} over {BUDGET_S:g} s"
    )


def night_page(report: NightReport) -> Html:
    """Return the page of a night: the charts of its report, and its visits, the newest first."""
    day = report.day_obs or 0
    noon_tai, _ = night_limits(day)
    return _page(
        f"night {day}",
        _top(
            tag("h1", f"Night {day}"),
            tag("a", "the night before", href=night_link(day_obs(noon_tai - 1.0))),
            tag("a", "the night after", href=night_link(day_obs(noon_tai + 86_401.0))),
        ),
        night_sections(report),
        _table(
            ("accepted, UTC", "visit", "survey", "slowest", "detectors", "first failure"),
            (
                tag(
                    "tr",
                    tag("td", _utc(visit.received_tai)),
                    tag("td", tag("a", visit.group, href=visit_link(visit.group))),
                    tag("td", visit.survey),
                    tag(
                        "td",
                        "" if visit.slowest_s is None else duration(visit.slowest_s),
                        class_="over" if (visit.slowest_s or 0) > BUDGET_S else None,
                    ),
                    tag("td", _counts(visit)),
                    tag(
                        "td",
                        ""
                        if visit.failed_detector is None
                        else f"detector {visit.failed_detector}: {visit.reason}",
                        class_="reason",
                    ),
                )
                for visit in reversed(report.visit_list)
            ),
        ),
        script=False,
        charts=True,
    )


def _counts(visit: NightVisit) -> Html:
    """Return a mark for each kind of outcome, with its number."""
    looks: Counter[Look] = Counter()
    for state, count in visit.outcomes.items():
        looks[LOOKS[Stage.ACCEPTED if state == OPEN else state]] += count
    return tag(
        "span",
        (
            (tag("span", look.letter, class_=f"mark s-{look.style}", title=look.word), f" {count} ")
            for look, count in looks.most_common()
        ),
    )


def message_page(title: str, text: str) -> Html:
    """Return a page with a text only, such as an error."""
    return _page(title, _top(tag("h1", title)), tag("p", text), script=False)


def login_page(*, wrong: bool) -> Html:
    """Return the form for the token."""
    return _page(
        "ppdaemon",
        tag("header", tag("h1", "ppdaemon")),
        tag("p", "This token is wrong.", role="alert") if wrong else None,
        tag(
            "form",
            tag(
                "label",
                "Token ",
                tag("input", type="password", name="token", autofocus="", autocomplete="current-password"),
            ),
            tag("button", "open"),
            method="post",
            action="/login",
        ),
        script=False,
    )
