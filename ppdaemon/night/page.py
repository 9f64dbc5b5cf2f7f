# SPDX-License-Identifier: BSD-3-Clause
"""The report of a night as HTML: one file that needs no other, and its parts for the web page."""

from collections.abc import Iterable, Iterator, Sequence
from importlib import resources
from pathlib import Path

from ppdaemon.markup import Html, tag
from ppdaemon.night import charts
from ppdaemon.night.report import ALERT_SPAN, NightNode, NightReport
from ppdaemon.night.tables import facts, span_words
from ppdaemon.pictures import CannotDraw

__all__ = ("CHARTS_CSS", "night_sections", "report_page", "write_page")

CHARTS_CSS = resources.files("ppdaemon.night").joinpath("night.css")
_PAGE_CSS = resources.files("ppdaemon.night").joinpath("report.css")


def report_page(report: NightReport, note: str) -> Html:
    """Return the page; `note` has where the numbers are from."""
    title = f"Night {report.day_obs}" if report.day_obs else "Simulated night"
    if report.shadow:
        title += ", shadow mode"
    # No text of others in them: they are files of this package.
    styles = Html(f"<style>\n{CHARTS_CSS.read_text()}{_PAGE_CSS.read_text()}</style>")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        styles,
    )
    top = tag("header", tag("h1", title), tag("span", note, class_="dim"))
    return Html("<!doctype html>\n" + tag("html", head, tag("body", top, night_sections(report)), lang="en"))


def write_page(path: Path, report: NightReport, note: str) -> None:
    """Write the page of `report_page` to a file; raises `~ppdaemon.pictures.CannotDraw` if that fails."""
    try:
        path.write_text(report_page(report, note), encoding="utf-8")
    except OSError as error:
        raise CannotDraw(f"{path}: {error.strerror}") from None


def night_sections(report: NightReport) -> Html:
    """Return numbers, charts and tables of a night."""
    instruments = sorted({each.instrument for each in report.detector_list})
    return tag(
        "div",
        charts.PATTERNS,
        _section("The night", _facts(report)),
        _section("Latency of each stage", _stages(report)),
        _section("Nodes", _nodes(report), wide=True) if report.nodes else None,
        _section("Latency", charts.histogram_chart(report)),
        _section("Visits against the budget", charts.latency_chart(report)),
        _section("Outcomes other than success", charts.outcome_chart(report)),
        _section("Export", charts.export_chart(report)),
        (
            (
                _section(f"{name}: failures", charts.failure_map(report, name)),
                _section(f"{name}: median latency, s", charts.latency_map(report, name)),
            )
            for name in instruments
        ),
        _section("Slowest detectors", charts.slowest_chart(report)),
        _section("Fallback pipelines", _fallbacks(report), wide=True) if report.fallbacks else None,
        _section("Reasons", _reasons(report), wide=True),
        class_="night",
    )


def _section(title: str, *parts: object, wide: bool = False) -> Html:
    return tag("section", tag("h2", title), *parts, class_="all" if wide else None)


def _facts(report: NightReport) -> Html:
    return tag("dl", ((tag("dt", name), tag("dd", text)) for name, text in facts(report)), class_="facts")


def _table(names: Sequence[str], rows: Iterable[Iterable[Html]], kind: str) -> Html:
    heads = (
        tag("th", name.rstrip(">"), scope="col", class_="number" if name.endswith(">") else None)
        for name in names
    )
    return tag(
        "div",
        tag("table", tag("thead", tag("tr", heads)), tag("tbody", (tag("tr", row) for row in rows))),
        class_=f"wide {kind}",
    )


def _stages(report: NightReport) -> Html:
    def row(name: str) -> Iterator[Html]:
        latency = report.latencies[name]
        yield tag("td", tag("strong", span_words(name)) if name == ALERT_SPAN else span_words(name))
        for each in (latency.p50_ms, latency.p95_ms, latency.p99_ms, latency.max_ms):
            yield tag("td", f"{each / 1e3:.2f}", class_="number")
        yield tag("td", latency.count, class_="number")

    names = ("s", "median>", "95 %>", "99 %>", "longest>", "number>")
    return _table(names, map(row, report.latencies), "stages")


def _nodes(report: NightReport) -> Html:
    def row(node: NightNode) -> Iterator[Html]:
        yield tag("td", node.name)
        for count in (node.accepted, node.succeeded, node.bad):
            yield tag("td", count, class_="number")
        latency = node.latency
        for ms in (latency.p50_ms, latency.p95_ms, latency.max_ms) if latency else ("", "", ""):
            yield tag("td", f"{ms / 1e3:.2f}" if isinstance(ms, float) else ms, class_="number")
        yield tag("td", node.over_budget, class_="number")

    names = ("node", "visit-detectors>", "succeeded>", "failed>", "median, s>", "95 %>", "longest>")
    return _table((*names, f"over {report.budget_s:g} s>"), map(row, report.nodes), "nodes")


def _fallbacks(report: NightReport) -> Html:
    return _table(
        ("count>", "not run", "ran instead", "reason of the first one", "visit", "detector>"),
        (
            (
                tag("td", each.count, class_="number"),
                tag("td", each.first),
                tag("td", each.pipeline),
                tag("td", each.reason, class_="reason"),
                tag("td", each.group),
                tag("td", each.detector, class_="number"),
            )
            for each in report.fallbacks
        ),
        "reasons",
    )


def _reasons(report: NightReport) -> Html:
    if not report.reasons:
        return tag("p", "no failure", class_="dim")
    return _table(
        ("count>", "outcome", "reason of the first one", "visit", "detector>"),
        (
            (
                tag("td", each.count, class_="number"),
                tag("td", each.outcome),
                tag("td", each.reason, class_="reason"),
                tag("td", each.group),
                tag("td", each.detector, class_="number"),
            )
            for each in report.reasons
        ),
        "reasons",
    )
