# SPDX-License-Identifier: BSD-3-Clause
"""The charts of a night as SVG. Pure.

Colors are classes of ``night.css``, the same on the report and on the web page: those of Okabe and Ito, and
steps of cividis. A hatch, a shape or a number shows the same as each color.
"""

import datetime
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ppdaemon.camera import load_camera
from ppdaemon.clock import TAI_MINUS_UTC_S
from ppdaemon.errors import ConfigError
from ppdaemon.markup import Html, tag
from ppdaemon.night.report import BUDGET_S, OPEN, NightDetector, NightReport, NightVisit
from ppdaemon.states import BAD_OUTCOMES, NEUTRAL_OUTCOMES, PARTIAL

__all__ = (
    "PATTERNS",
    "detector_name",
    "export_chart",
    "failure_map",
    "histogram_chart",
    "latency_chart",
    "latency_map",
    "outcome_chart",
    "slowest_chart",
)

WIDTH, HEIGHT = 480.0, 230.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 16.0, 18.0, 34.0
HALF_LETTER = 4.0
"""A digit of 12 px is some 7 px wide."""
BINS_MIN = (1, 5, 10, 15, 30, 60, 120, 240)
"""Widths of the bars of a night, minutes."""
MOST_BINS = 48
SLOWEST = 12
"""Detectors that are shown."""
FEW = 100
"""Up to so many visits have larger marks."""
LARGEST_PX = 22.0
"""Of a number on the focal plane."""

GROUPS: dict[str, tuple[str, frozenset[str]]] = {
    "c-bad": ("failed", frozenset(map(str, BAD_OUTCOMES))),
    "c-open": ("no outcome", frozenset({OPEN})),
    "c-none": ("no image, canceled, ignored", frozenset(map(str, NEUTRAL_OUTCOMES))),
    "c-partial": ("partial", frozenset({PARTIAL})),
}
"""What is shown of outcomes other than success: class, word, states."""

PATTERNS = tag(
    "svg",
    tag(
        "defs",
        tag(
            "pattern",
            tag("rect", width=6, height=6, class_="c-bad-ground"),
            tag("path", d="M0 0 6 6M-1 5 1 7M5 -1 7 1", class_="hatch"),
            id="hatch",
            width=6,
            height=6,
            patternUnits="userSpaceOnUse",
        ),
    ),
    width=0,
    height=0,
    class_="defs",
    aria_hidden="true",
)
"""The hatch of what failed or took too long; once on a page."""


@dataclass(frozen=True, slots=True)
class _Scale:
    """Maps values to pixels."""

    begin: float
    end: float
    first_px: float
    last_px: float

    def __call__(self, value: float) -> float:
        part = (value - self.begin) / ((self.end - self.begin) or 1.0)
        return round(self.first_px + part * (self.last_px - self.first_px), 1)


def _ticks(end: float, most: int = 5) -> list[float]:
    """Return round values from 0 to an end, at most one more than `most`."""
    raw = end / most
    power = 10.0 ** math.floor(math.log10(raw)) if raw > 0 else 1.0
    step = next(power * each for each in (1, 2, 5, 10) if power * each >= raw)
    return [step * k for k in range(int(end / step + 1e-9) + 1)]


def _number(value: float) -> str:
    return f"{value:g}" if value < 1e4 else f"{value / 1e3:g} k"


def _text(x: float, y: float, text: object, anchor: str = "middle", class_: str | None = None) -> Html:
    return tag("text", text, x=round(x, 1), y=round(y, 1), text_anchor=anchor, class_=class_)


def _line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Html:
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def _rect(x: float, y: float, width: float, height: float, class_: str, title: str = "") -> Html:
    inner = tag("title", title) if title else None
    sizes = {"x": round(x, 1), "y": round(y, 1), "width": round(width, 1), "height": round(height, 1)}
    return tag("rect", inner, class_=class_, **sizes)


def _svg(label: str, *parts: object, height: float = HEIGHT) -> Html:
    return tag(
        "svg", *parts, viewBox=f"0 0 {WIDTH:g} {height:g}", role="img", aria_label=label, class_="chart"
    )


def _empty(text: str) -> Html:
    return tag("p", text, class_="dim")


def _x_axis(scale: _Scale, ticks: Iterable[tuple[float, str]], name: str, bottom: float) -> Iterator[Html]:
    yield _line(scale.first_px, bottom, scale.last_px, bottom, "axis")
    for value, text in ticks:
        yield _line(scale(value), bottom, scale(value), bottom + 4, "axis")
        # The last one moves to the left where a half of it would be outside.
        yield _text(min(scale(value), WIDTH - HALF_LETTER * len(text)), bottom + 15, text)
    yield _text(scale.last_px, bottom + 29, name, "end", "name")


def _y_axis(scale: _Scale, name: str) -> Iterator[Html]:
    for value in _ticks(scale.end):
        yield _line(LEFT, scale(value), WIDTH - RIGHT, scale(value), "grid")
        yield _text(LEFT - 5, scale(value) + 4, _number(value), "end")
    yield _text(4, 11, name, "start", "name")


def _frame(end: float) -> _Scale:
    return _Scale(0.0, end, HEIGHT - BOTTOM, TOP)


def legend(classes: Mapping[str, str]) -> Html:
    """Return the meanings of classes."""
    boxes = (
        tag("li", tag("svg", _rect(0, 0, 14, 14, name), width=14, height=14, aria_hidden="true"), f" {text}")
        for name, text in classes.items()
    )
    return tag("ul", boxes, class_="legend")


# --- latency -------------------------------------------------------------------


def histogram_chart(report: NightReport) -> Html:
    """Draw how many visit-detectors took how long from shutter close to the end of the last task."""
    counts, step_s = report.histogram.counts, report.histogram.step_s
    if not sum(counts):
        return _empty("nothing succeeded")
    across = _Scale(0.0, len(counts) * step_s, LEFT, WIDTH - RIGHT)
    up = _frame(1.08 * max(counts))
    width = across(step_s) - across(0.0)
    bars = (
        _rect(
            across(k * step_s) + 0.3,
            min(up(count), up(0.0) - 1.5),  # one in a thousand is seen, too
            max(0.7, width - 0.6),
            max(1.5, up(0.0) - up(count)),
            "c-late" if k * step_s >= BUDGET_S else "c-good",
            f"{k * step_s:g} to {(k + 1) * step_s:g} s: {count}",
        )
        for k, count in enumerate(counts)
        if count
    )
    ticks = ((each, f"{each:g}") for each in _ticks(across.end, 8))
    return _svg(
        "histogram of latencies",
        _y_axis(up, "visit-detectors"),
        bars,
        _x_axis(across, ticks, "s from shutter close to the end of the last task", HEIGHT - BOTTOM),
        _line(across(BUDGET_S), TOP, across(BUDGET_S), HEIGHT - BOTTOM, "budget"),
        _text(across(BUDGET_S) - 4, TOP + 9, f"{BUDGET_S:g} s", "end", "budget-text"),
    )


def _hours(begin_tai: float, end_tai: float) -> Iterator[tuple[float, str]]:
    """Yield round times of the day in UTC."""
    step_s = next(
        (each for each in (60, 300, 900, 1800, 3600, 7200, 14400) if (end_tai - begin_tai) / each <= 8), 28800
    )
    tai = math.ceil((begin_tai - TAI_MINUS_UTC_S) / step_s) * step_s + TAI_MINUS_UTC_S
    while tai <= end_tai:
        yield tai, _clock(tai)
        tai += step_s


def _clock(tai: float) -> str:
    return datetime.datetime.fromtimestamp(tai - TAI_MINUS_UTC_S, tz=datetime.UTC).strftime("%H:%M")


def _times(visits: Sequence[NightVisit], step_s: float = 60.0) -> _Scale:
    begin, end = visits[0].received_tai, visits[-1].received_tai + step_s
    return _Scale(begin, end, LEFT, WIDTH - RIGHT)


def latency_chart(report: NightReport) -> Html:
    """Draw median and slowest detector of each visit over the night, against the budget."""
    visits = [visit for visit in report.visit_list if visit.slowest_s is not None]
    if not visits:
        return _empty("nothing succeeded")
    slowest = sorted(visit.slowest_s or 0.0 for visit in visits)
    # A few that take much longer must not flatten all others: they are triangles at the upper edge.
    up = _frame(max(1.2 * BUDGET_S, min(slowest[-1], 1.5 * slowest[int(0.98 * (len(slowest) - 1))])))
    across = _times(report.visit_list)
    late = [visit for visit in visits if (visit.slowest_s or 0.0) > BUDGET_S]
    in_time = [visit for visit in visits if (visit.slowest_s or 0.0) <= BUDGET_S]
    return Html(
        _svg(
            "latency of each visit over the night",
            _y_axis(up, "s after shutter close"),
            tag(
                "g",
                _dots(((v.received_tai, v.slowest_s or 0.0) for v in in_time), across, up, "dot-slowest"),
                _dots(((v.received_tai, v.median_s or 0.0) for v in visits), across, up, "dot-median"),
                class_="few" if len(visits) <= FEW else None,
            ),
            (_late_mark(visit, across, up) for visit in late),
            _x_axis(across, _hours(across.begin, across.end), "UTC", HEIGHT - BOTTOM),
            _line(LEFT, up(BUDGET_S), WIDTH - RIGHT, up(BUDGET_S), "budget"),
        )
        + legend({"c-good": "slowest detector in time", "c-late": "over the budget", "c-none": "median"})
    )


def _dots(points: Iterable[tuple[float, float]], across: _Scale, up: _Scale, class_: str) -> Html:
    """One path for all: a thousand elements would be slow, and large."""
    path = "".join(f"M{across(x):g} {up(min(y, up.end)):g}h0" for x, y in points)
    return tag("path", d=path, class_=class_)


def _late_mark(visit: NightVisit, across: _Scale, up: _Scale) -> Html:
    seconds, x = visit.slowest_s or 0.0, across(visit.received_tai)
    title = tag("title", f"{visit.group}: detector {visit.slowest_detector}, {seconds:.1f} s")
    y = up(min(seconds, up.end))
    shape = f"M{x - 3.5:g} {y + 5:g}h7l-3.5-7z" if seconds > up.end else f"M{x - 2.5:g} {y - 2.5:g}h5v5h-5z"
    return tag("path", title, d=shape, class_="c-late-dot")


# --- over the night --------------------------------------------------------------


def _bins(visits: Sequence[NightVisit]) -> tuple[float, list[tuple[float, list[NightVisit]]]]:
    """Return the width of round parts of the night, and the visits in each."""
    span_s = visits[-1].received_tai - visits[0].received_tai
    step_s = 60.0 * next((each for each in BINS_MIN if span_s / 60.0 / each < MOST_BINS), BINS_MIN[-1])
    parts: dict[float, list[NightVisit]] = {}
    for visit in visits:
        utc = visit.received_tai - TAI_MINUS_UTC_S
        parts.setdefault(utc // step_s * step_s + TAI_MINUS_UTC_S, []).append(visit)
    return step_s, sorted(parts.items())


def _stacks(
    report: NightReport,
    count: Callable[[NightVisit], Mapping[str, int]],
    words: Mapping[str, str],
    label: str,
    nothing: str,
) -> Html:
    """Draw stacked bars, one for each part of the night; `count` has numbers by class, `words` their
    meanings.
    """
    visits = report.visit_list
    if not any(sum(count(visit).values()) for visit in visits):
        return _empty(nothing)
    step_s, bins = _bins(visits)
    stacks = [(begin, sum((Counter(count(visit)) for visit in those), Counter())) for begin, those in bins]
    up = _frame(1.08 * max(stack.total() for _, stack in stacks))
    across = _Scale(stacks[0][0], stacks[-1][0] + step_s, LEFT, WIDTH - RIGHT)
    order = list(count(visits[0]))
    bars: list[Html] = []
    for begin, stack in stacks:
        below = 0
        for name in order:
            if stack[name]:
                title = f"{_clock(begin)} UTC: {stack[name]}"
                height = up(below) - up(below + stack[name])
                x, width = across(begin) + 0.5, across(begin + step_s) - across(begin) - 1
                bars.append(_rect(x, up(below + stack[name]), width, height, name, title))
            below += stack[name]
    return Html(
        _svg(
            label,
            _y_axis(up, f"visit-detectors in {step_s / 60:g} min"),
            bars,
            _x_axis(across, _hours(across.begin, across.end), "UTC, when accepted", HEIGHT - BOTTOM),
        )
        + legend(words)
    )


def outcome_chart(report: NightReport) -> Html:
    """Draw how many visit-detectors did not succeed over the night."""
    words = {name: word for name, (word, _) in GROUPS.items()}
    nothing = "all succeeded" if report.visit_list else "no visits"
    return _stacks(report, _others, words, "outcomes other than success over the night", nothing)


def _others(visit: NightVisit) -> Mapping[str, int]:
    return {
        name: sum(visit.outcomes.get(state, 0) for state in states) for name, (_, states) in GROUPS.items()
    }


def export_chart(report: NightReport) -> Html:
    """Draw how many outputs are in the central repo, and how many are not, over the night."""
    words = {"c-good": "exported", "c-open": "not yet"}
    return _stacks(report, _exports, words, "outputs exported over the night", "there were no outputs")


def _exports(visit: NightVisit) -> Mapping[str, int]:
    return {"c-open": visit.spooled - visit.exported, "c-good": visit.exported}


# --- detectors -------------------------------------------------------------------


def detector_name(instrument: str, detector: int) -> str:
    """Return number and name of a detector, as far as the camera is known."""
    try:
        return f"{detector}  {load_camera(instrument).detectors[detector].name}"
    except (ConfigError, KeyError):
        return str(detector)


def slowest_chart(report: NightReport) -> Html:
    """Draw the detectors with the longest latencies: median, 95 % and longest."""
    slowest = [each for each in report.detector_list if each.latency is not None][:SLOWEST]
    if not slowest:
        return _empty("nothing succeeded")
    longest = max(each.latency.p95_ms for each in slowest if each.latency) / 1e3
    across = _Scale(0.0, max(1.1 * BUDGET_S, 1.05 * longest), 92.0, WIDTH - 40.0)
    bottom = TOP + 18.0 * len(slowest)
    bars: list[object] = []
    for k, each in enumerate(slowest):
        assert each.latency is not None
        y, latency = TOP + 18.0 * k, each.latency
        p50, p95 = latency.p50_ms / 1e3, latency.p95_ms / 1e3
        title = (
            f"median {p50:.1f} s, longest {latency.max_ms / 1e3:.1f} s, {each.over_budget} over the budget"
        )
        width = max(1.0, across(p95) - across(0.0))
        bars += [
            _text(88, y + 12, detector_name(each.instrument, each.detector), "end"),
            _rect(across(0.0), y + 2, width, 13, "c-late" if p95 > BUDGET_S else "c-good", title),
            _line(across(p50), y + 1, across(p50), y + 16, "median"),
            _text(WIDTH - 4, y + 12, f"{p95:.1f}", "end"),
        ]
    ticks = ((each, f"{each:g}") for each in _ticks(across.end, 6))
    return _svg(
        "slowest detectors",
        bars,
        _x_axis(across, ticks, "s; bar: 95 % of visits, mark: median", bottom + 3),
        _line(across(BUDGET_S), TOP - 4, across(BUDGET_S), bottom + 3, "budget"),
        height=bottom + 36,
    )


FAILURE_STEPS = ((0.0, "m0", "none"), (0.01, "m1", "to 1 %"), (0.1, "m2", "to 10 %"), (1.0, "m3", "more"))
"""Up to which fraction: class, word."""
LATENCY_STEPS = (
    (30.0, "m0", "to 30 s"), (45.0, "m1", "to 45 s"), (BUDGET_S, "m2", "to 60 s"), (math.inf, "m3", "more"),
)  # fmt: skip


def failure_map(report: NightReport, instrument: str) -> Html:
    """Draw on the focal plane how often each detector failed."""

    def look(each: NightDetector) -> tuple[str, str]:
        share = each.bad / sum(each.outcomes.values())
        style = next(name for limit, name, _ in FAILURE_STEPS if share <= limit)
        return style, str(each.bad)

    return _focal_plane(report, instrument, look, FAILURE_STEPS, "failures of each detector")


def latency_map(report: NightReport, instrument: str) -> Html:
    """Draw on the focal plane the median latency of each detector."""

    def look(each: NightDetector) -> tuple[str, str]:
        if each.latency is None:
            return "m-none", "-"
        seconds = each.latency.p50_ms / 1e3
        return next(name for limit, name, _ in LATENCY_STEPS if seconds <= limit), f"{seconds:.0f}"

    return _focal_plane(report, instrument, look, LATENCY_STEPS, "median latency of each detector, s")


def _focal_plane(
    report: NightReport,
    instrument: str,
    look: Callable[[NightDetector], tuple[str, str]],
    steps: Sequence[tuple[float, str, str]],
    label: str,
) -> Html:
    known = {each.detector: each for each in report.detector_list if each.instrument == instrument}
    places = _places(instrument, known)
    if not places:
        return _empty("no detector")
    left = min(x - width / 2 for x, _, width, _ in places.values())
    right = max(x + width / 2 for x, _, width, _ in places.values())
    top = min(y - height / 2 for _, y, _, height in places.values())
    end = max(y + height / 2 for _, y, _, height in places.values())
    scale = WIDTH / max(right - left, end - top)
    cells = []
    for detector, (x, y, width, height) in places.items():
        each = known.get(detector)
        style, text = look(each) if each else ("m-none", "")
        outcomes = ", ".join(f"{n} {state}" for state, n in each.outcomes.items()) if each else "no visit"
        wide, high = scale * width, scale * height
        # Focal-plane y points up.
        across, down = scale * (x - left), scale * (end - y)
        cells.append(
            tag(
                "g",
                tag("title", f"{detector_name(instrument, detector)}: {outcomes}"),
                _rect(across - wide / 2, down - high / 2, wide, high, "cell"),
                tag("text", text, x=round(across, 1), y=round(down, 1), text_anchor="middle",
                    font_size=round(min(LARGEST_PX, 0.45 * high, 1.5 * wide / max(2, len(text))), 1)),
                class_=style,
            )
        )  # fmt: skip
    return Html(
        _svg(f"{instrument}: {label}", cells, height=round(scale * (end - top), 1))
        + legend({style: text for _, style, text in steps})
    )


def _places(
    instrument: str, known: Iterable[int]
) -> dict[int, tuple[float, float, float, float]]:  # fmt: skip
    """Return center and size of each detector; a grid for a camera without a table."""
    try:
        found = load_camera(instrument).detectors.values()
        return {each.id: (each.x_mm, each.y_mm, each.width_mm, each.height_mm) for each in found}
    except ConfigError:
        ordered = sorted(known)
        columns = math.ceil(math.sqrt(len(ordered) or 1))
        return {each: (k % columns, -(k // columns), 0.95, 0.95) for k, each in enumerate(ordered)}
