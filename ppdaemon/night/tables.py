# SPDX-License-Identifier: BSD-3-Clause
"""The report of a night in a terminal."""

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.text import Text

from ppdaemon.night.report import ALERT_SPAN, NightReport
from ppdaemon.states import BAD_OUTCOMES, Outcome
from ppdaemon.terminal import new_table, plain, size

__all__ = ("facts", "night_view", "span_words")

SHOWN = 10
"""Detectors and reasons in a terminal; the JSON has more."""

_SPAN_WORDS = {
    "queue_ms": "wait for a worker",
    "prepare_ms": "prepare",
    "shutter_to_raw_ms": "shutter close to raw",
    "raw_to_first_task_ms": "raw to first task",
    "tasks_ms": "tasks",
    ALERT_SPAN: "shutter close to end",
    "spool_ms": "spool",
    "central_ms": "spool to central repo",
}


def span_words(name: str) -> str:
    """Return what is measured."""
    return _SPAN_WORDS.get(name) or name.removesuffix("_ms").replace("_", " ")


def _share(part: int, whole: int) -> str:
    return f"{part} of {whole} ({part / whole:.2%})" if whole else "none"


def facts(report: NightReport) -> Iterator[tuple[str, str]]:
    """Yield names and values of what a night was."""
    opened = report.accepted - sum(report.outcomes.values())
    if report.shadow:
        yield "mode", "shadow, beside the present service"
    yield "visits", f"{report.visits} with {report.accepted} visit-detectors"
    partial = f", {report.partial} of them partial" if report.partial else ""
    yield "succeeded", f"{_share(report.succeeded, report.accepted)}{partial}"
    yield "failed", _share(report.failed, report.accepted) if report.failed else "none"
    others = [f"{count} {outcome}" for outcome, count in report.outcomes.items()]
    yield "outcomes", ", ".join([*others, *([f"{opened} without one yet"] if opened else [])]) or "none"
    if latency := report.latencies.get(ALERT_SPAN):
        yield f"within {report.budget_s:g} s", _share(latency.count - report.over_budget, latency.count)
    if report.fallbacks:
        fallbacks = (f"{each.count} {each.pipeline} for {each.first}" for each in report.fallbacks)
        yield "fallback pipelines", ", ".join(fallbacks)
    yield "retried", str(report.retried)
    if report.late_raws is not None:
        yield "late raws", str(report.late_raws)
    if report.recycled is not None:
        causes = ", ".join(f"{count} {cause}" for cause, count in report.recycled.items())
        yield "replaced workers", f"{sum(report.recycled.values())}{f': {causes}' if causes else ''}"
    cache = report.cache
    if cache.hit_rate is not None:
        fetched = f"{size(cache.fetched_mb * 1e6)} of {size(cache.taken_mb * 1e6)} fetched"
        yield "cache", f"{cache.hit_rate:.1%} of files were there, {fetched}, {cache.evicted} evicted"
    exports = report.exports
    text = f"{_share(exports.exported, exports.spooled)}, {exports.datasets} datasets"
    if exports.not_exported:
        text += f", {exports.not_exported} with datasets that the repo has from others"
    if exports.given_up:
        text += f", {exports.given_up} without images, which were given up"
    yield "exported", text if exports.spooled else "nothing"


def night_view(report: NightReport) -> RenderableType:
    """Show the report."""
    title = Text(f"night {report.day_obs}{', shadow mode' if report.shadow else ''}", style="bold")
    if not report.visits:
        return Group(title, Text("no visits", style="dim"))
    grid = new_table("", "~")
    grid.show_header = False
    for name, text in facts(report):
        grid.add_row(Text(name, style="dim"), plain(text))
    parts: list[RenderableType] = [title, grid]
    if report.nodes:
        parts += [Text(), _node_table(report)]
    if report.latencies:
        parts += [Text(), _latency_table(report)]
    if any(each.latency for each in report.detector_list):
        parts += [Text(), _detector_table(report)]
    if report.fallbacks:
        parts += [Text(), _fallback_table(report)]
    if report.reasons:
        parts += [Text(), _reason_table(report)]
    return Group(*parts)


def _node_table(report: NightReport) -> RenderableType:
    names = (
        "number>",
        "succeeded>",
        "failed>",
        "median>",
        "95 %>",
        "longest>",
        f"over {report.budget_s:g} s>",
    )
    table = new_table("node", *names)
    for each in report.nodes:
        ms = (each.latency.p50_ms, each.latency.p95_ms, each.latency.max_ms) if each.latency else ()
        seconds = [f"{each_ms / 1e3:.2f}" for each_ms in ms] or [""] * 3
        counts = str(each.accepted), str(each.succeeded), Text(str(each.bad), style="red" if each.bad else "")
        table.add_row(plain(each.name), *counts, *seconds, str(each.over_budget))
    return table


def _latency_table(report: NightReport) -> RenderableType:
    table = new_table("s", "median>", "95 %>", "99 %>", "longest>", "number>")
    for name, latency in report.latencies.items():
        seconds = [each / 1e3 for each in (latency.p50_ms, latency.p95_ms, latency.p99_ms, latency.max_ms)]
        cells = [
            Text(f"{each:.2f}", style="red" if name == ALERT_SPAN and each > report.budget_s else "")
            for each in seconds
        ]
        label = Text(span_words(name), style="bold" if name == ALERT_SPAN else "")
        table.add_row(label, *cells, str(latency.count))
    return table


def _detector_table(report: NightReport) -> RenderableType:
    table = new_table("slowest>", "median>", "95 %>", "longest>", f"over {report.budget_s:g} s>", "failed>")
    for each in report.detector_list[:SHOWN]:
        if each.latency is not None:
            seconds = (each.latency.p50_ms, each.latency.p95_ms, each.latency.max_ms)
            cells = (f"{ms / 1e3:.2f}" for ms in seconds)
            table.add_row(str(each.detector), *cells, str(each.over_budget), str(each.bad))
    return table


def _fallback_table(report: NightReport) -> RenderableType:
    table = new_table("count>", "not run", "ran instead", "first visit", "det>", "reason~")
    for each in report.fallbacks[:SHOWN]:
        pipelines = plain(each.first), Text(plain(each.pipeline), style="yellow")
        table.add_row(str(each.count), *pipelines, plain(each.group), str(each.detector), plain(each.reason))
    return table


def _reason_table(report: NightReport) -> RenderableType:
    table = new_table("count>", "outcome", "first visit", "det>", "reason~")
    for each in report.reasons[:SHOWN]:
        style = "red" if each.outcome in BAD_OUTCOMES else "dim" if each.outcome != Outcome.SUCCEEDED else ""
        outcome = Text(each.outcome, style=style)
        table.add_row(str(each.count), outcome, plain(each.group), str(each.detector), plain(each.reason))
    return table
