# SPDX-License-Identifier: BSD-3-Clause
"""Terminal output of ``ppctl``: status, slots, visits, timelines.

Makes rich renderables of the reports; does not print.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import PurePath

from rich.console import Group, RenderableType
from rich.style import Style
from rich.table import Table
from rich.text import Text

from ppdaemon.clock import tai_iso
from ppdaemon.ctl.glyphs import glyph, legend
from ppdaemon.ctl.timeline import SPAN_NAMES, Bar, Timeline, elapsed_s
from ppdaemon.detectorlist import ranges
from ppdaemon.reports import (
    FALLBACK,
    GIVEN_UP,
    ArrivalSource,
    AskerReport,
    BridgeStatusReport,
    LateRow,
    RedisReport,
    RefusedRaw,
    RelayStatusReport,
    RequeueRow,
    SpoolReport,
    StatusReport,
    UncompressedReport,
    VisitRow,
    VisitSummary,
    WorkerRow,
)
from ppdaemon.retries import again
from ppdaemon.states import BAD_OUTCOMES, BUSY_STATES, PARTIAL, Outcome, SlotState, Stage
from ppdaemon.terminal import duration, new_table, number_of, plain, size

__all__ = (
    "STATE_STYLES",
    "counted",
    "failures_table",
    "head_line",
    "late_table",
    "problem_lines",
    "refused_table",
    "requeue_table",
    "status_view",
    "summaries_table",
    "summaries_view",
    "timeline_view",
    "visit_view",
    "visits_table",
    "workers_table",
)

STATE_STYLES = {
    "running": "bold green",
    "degraded": "bold red",
    "starting": "bold yellow",
    "draining": "bold yellow",
    "stopping": "bold yellow",
}
_TROUBLED_SLOTS = frozenset(
    {SlotState.KILLING, SlotState.UNKILLABLE, SlotState.BACKOFF, SlotState.QUARANTINED}
)
_ENDED = frozenset[str]({PARTIAL, *Outcome})
_SPAN_STYLES = {
    "queue": "dim",
    "prepare": "blue",
    "wait": "dim",
    "ingest": "black on yellow",
    "build": "black on red",
    "tasks": "black on green",
    "spool": "black on magenta",
    "export": "magenta",
}
_SPAN_LETTERS = {name: "." if name in ("queue", "wait") else name[0] for name in SPAN_NAMES}
"""Bars are readable without colors: prepare ``p``, wait ``.``, ingest ``i``..."""


def _outcome_text(row: VisitRow) -> Text:
    if row.outcome is None:
        return Text("under way", style="yellow")
    style = "green" if row.outcome == Outcome.SUCCEEDED else "red" if row.outcome in BAD_OUTCOMES else "dim"
    return Text(row.outcome + (" (partial)" if row.partial else ""), style=style)


def counted(counts: Iterable[tuple[str, int]]) -> str:
    """Return counts that are not 0 as text, such as ``2 idle, 1 starting``."""
    return ", ".join(f"{number} {plain(name)}" for name, number in counts if number) or "none"


def status_view(report: StatusReport, *, verbose: bool = False) -> RenderableType:
    """Show the state of the daemon; with `verbose`, also the samples of messages."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in _status_lines(report):
        grid.add_row(name, value)
    if verbose:
        for kind, sample in sorted(report.samples.items()):
            grid.add_row("sample", Text(f"{plain(kind)}: {plain(sample)}"))
    return Group(head_line(report), *problem_lines(report), grid)


def head_line(report: StatusReport) -> Text:
    """Return the state of the daemon in one line."""
    return Text.assemble(
        ("ppdaemon ", "bold"),
        (plain(report.node), "bold cyan"),
        "  ",
        (report.state, STATE_STYLES[report.state]),
        f"  {plain(report.text).removeprefix(f'{report.state}: ')}",
    )


def problem_lines(report: StatusReport | RelayStatusReport | BridgeStatusReport) -> list[Text]:
    """Return one line for each problem, with the time since it began; ``!`` limits the node now."""
    return [
        Text(
            f"{'!' if problem.degrades else '-'} {duration(report.tai - problem.since_tai)}:"
            f" {plain(problem.text)}",
            style="red" if problem.degrades else "yellow",
        )
        for problem in report.problems
    ]


def _entries(redis: RedisReport, tai: float) -> str:
    """Return the numbers of entries in the streams, and when the last one was taken."""
    last = (
        "none taken" if redis.last_tai is None else f"the last one taken {duration(tai - redis.last_tai)} ago"
    )
    return f"{redis.held} held, {redis.pending} of all consumers, {redis.waiting} waiting, {last}"


def _asker_text(asker: AskerReport) -> str:
    """Return what the asker does and has done."""
    text = "serves" if asker.serving else "late, see above" if asker.late_s is not None else "not ready"
    text += f", {asker.questions} questions answered in {asker.batches} batches"
    if asker.wait_p50_ms is not None and asker.wait_p99_ms is not None:
        text += f", {asker.wait_p50_ms:.0f} ms after they were asked, 99 % within {asker.wait_p99_ms:.0f} ms"
    if asker.memory_mb is not None:
        text += f", {asker.memory_mb:.0f} MB"
    return f"{text}, {asker.replaced} replaced" if asker.replaced else text


def _source_text(source: ArrivalSource) -> Text:
    """Return the state of a source of raws, and what it has found."""
    alive = Text("live", style="green") if source.live else Text("dead", style="red")
    figures = f"{source.files} raws found first"
    if source.lag_p50_ms is not None and source.lag_p99_ms is not None:
        figures += (
            f" {source.lag_p50_ms:.0f} ms after they were written, 99 % within {source.lag_p99_ms:.0f} ms"
        )
    if source.last_notice_s is not None:
        figures += f", last notice {duration(source.last_notice_s)} ago"
    note = f", {plain(source.note)}" if source.note else ""
    return Text.assemble(f"{plain(source.name)}: ", alive, f", {figures}{note}")


def _export_lines(report: StatusReport) -> Iterable[tuple[str, RenderableType]]:
    """Yield the lines about outputs on their way to the central repo."""
    waiting = f", {report.spooled_mb:.0f} MB" if report.spooled else ""
    if report.oldest_spool_s is not None:
        waiting += f", the first one for {duration(report.oldest_spool_s)}"
    rate = f", {report.exported_per_min:.0f} exported in the last minute" if report.exported_per_min else ""
    is_above = any(
        f"failing: {text.removeprefix('export: ')}" == report.exporter for text in report.problem_texts
    )
    exporter = "failing, see above" if is_above else plain(report.exporter)
    yield "export", f"{exporter}, {report.spooled} in the spool{waiting}{rate}"
    if report.spools and (len(report.spools) > 1 or report.spools[0].max_mb is not None):
        names = {"ramdisk": "RAM disk", "spill": "disk"}
        yield "spool", ", ".join(f"{names[each.name]} {_filled(each)}" for each in report.spools)
    if report.uncompressed.images or report.uncompressed.declining:
        yield "packing", _packing(report.uncompressed)
    if report.images_given_up:
        lost = size(report.images_given_up_mb * 1e6)
        yield "given up", f"images of {report.images_given_up} visit-detectors, {lost}"


def _status_lines(report: StatusReport) -> Iterable[tuple[str, RenderableType]]:
    """Yield name and value of each line below the first one."""
    yield (
        "process",
        f"{report.pid}, version {plain(report.version)}, up {duration(report.tai - report.started_tai)}",
    )
    if report.redis is None:
        yield "relay", plain(report.relay)
    else:
        yield "redis", f"{plain(report.relay)}; {_entries(report.redis, report.tai)}"
    slots = sum(report.slots.values())
    less = "" if report.capacity == report.workers_max else f", {report.capacity} offered to the relay"
    yield "workers", f"{slots} of {report.workers_max} slots{less}: {counted(sorted(report.slots.items()))}"
    yield "visits", f"{report.open_visits} open, {report.queued} of them queued"
    if report.takes_until_tai is not None and (left_s := report.takes_until_tai - report.tai) > 0:
        yield (
            "until",
            f"takes no more visits after {tai_iso(report.takes_until_tai)[:16]}, in {duration(left_s)}",
        )
    yield "outcomes", counted(sorted(report.outcomes.items(), key=lambda item: -item[1]))
    if report.late_raws:
        yield "late raws", f"{report.late_raws}, see ppctl late"
    yield from _export_lines(report)
    if report.asker is not None:
        yield "asker", _asker_text(report.asker)
    for place in report.publish:
        counts = f"{place.sent} sent, {place.waiting} waiting, {place.dropped} dropped"
        yield "publish", plain(f"{place.name}: {counts}")
    for source in report.arrivals:
        yield "arrivals", _source_text(source)
    if report.refused_raws:
        yield "refused raws", f"{len(report.refused_raws)} lately, see ppctl failed"
    memory = (("supervisor", report.supervisor_mb), ("RAM disk", report.ramdisk_mb))
    if shown := ", ".join(f"{name} {size:.0f} MB" for name, size in memory if size is not None):
        yield "memory", shown
    for name, limited_by in report.limits.items():
        yield f"limit: {plain(name)}", plain(limited_by)
    if report.template_ms is not None:
        yield "template", f"made in {duration(report.template_ms / 1000)}"
    if report.reloaded_tai is not None:
        ago = duration(report.tai - report.reloaded_tai)
        yield "configuration", f"generation {report.generation}, reloaded {ago} ago"
    if report.leftovers_removed:
        yield "cleaned", f"{report.leftovers_removed} RAM-disk folders of previous runs"
    if any(report.counters.values()):
        yield "counted", counted(sorted(report.counters.items()))


def workers_table(rows: Sequence[WorkerRow]) -> RenderableType:
    """Show the slots."""
    if not rows:
        return Text("no slots", style="dim")
    table = new_table("slot>", "state", "for>", "left>", "pid>", "MB>", "visits>", "group", "det>")
    for row in rows:
        style = "red" if row.state in _TROUBLED_SLOTS else "yellow" if row.state in BUSY_STATES else "green"
        table.add_row(
            str(row.slot),
            Text(row.state, style=style),
            duration(row.since_s),
            duration(row.deadline_s),
            plain(row.pid),
            "" if row.memory_mb is None else f"{row.memory_mb:.0f}",
            str(row.visits),
            plain(row.group),
            plain(row.detector),
        )
    return Group(table, *(Text(f"slot {row.slot}: {plain(row.note)}") for row in rows if row.note))


def summaries_view(rows: Sequence[VisitSummary]) -> RenderableType:
    """Show visits, one line each with a letter for each detector; below them why detectors failed."""
    reasons = [
        Text(f"{plain(row.group)} detector {row.failed_detector}: {plain(row.reason)}", style="red")
        for row in rows
        if row.failed_detector is not None
    ]
    note = Text("slowest: from shutter close to the end of the last task", style="dim")
    return Group(summaries_table(rows), *reasons, *((legend(), note) if rows else ()))


def summaries_table(rows: Sequence[VisitSummary], letters: int | None = None) -> RenderableType:
    """Show visits, one line each with a letter for each detector; if there are more than `letters`, with
    the number of each letter.
    """
    if not rows:
        return Text("no visits", style="dim")
    table = new_table("group", "survey", "detectors~", "ended>", "slowest>")
    for row in rows:
        states = (row.detectors[detector] for detector in sorted(row.detectors))
        # Most neighbors are alike: a table of a thousand visits has 200,000 letters.
        runs = [(state, len([*same])) for state, same in groupby(states)]
        fallbacks = (f"  fallback pipeline: {row.fallbacks}" if row.fallbacks else "", "yellow")
        ended = sum(number for state, number in runs if state in _ENDED)
        table.add_row(
            plain(row.group),
            plain(row.survey),
            Text.assemble(_letters(runs, letters), fallbacks),
            f"{ended}/{len(row.detectors)}",
            duration(row.slowest_s),
        )
    return table


def _letters(runs: Sequence[tuple[str, int]], most: int | None) -> Text:
    letters = [(glyph(state), number) for state, number in runs]
    if most is None or sum(number for _, number in runs) <= most:
        return Text.assemble(*((letter.plain * number, letter.style) for letter, number in letters))
    counts: Counter[tuple[str, str | Style]] = Counter()
    for letter, number in letters:
        counts[letter.plain, letter.style] += number
    return Text(" ").join(
        Text(f"{letter}{number}", style) for (letter, style), number in counts.most_common()
    )


def visits_table(rows: Sequence[VisitRow]) -> RenderableType:
    """Show visit-detectors, one line each.

    ``start`` is the time from the raw's arrival to the pipeline's first task,
    ``done`` from shutter close to the end of the last task.
    """
    table = new_table("group", "det>", "try>", "outcome", "pipeline", "start>", "tasks>", "done>", "reason~")
    for row in rows:
        processed = row.stages.get(Stage.PROCESSED)
        close = row.shutter_close_tai
        fallback = " (fallback)" if FALLBACK in row.figures else ""
        table.add_row(
            plain(row.group),
            str(row.detector),
            str(row.attempt),
            _outcome_text(row),
            Text.assemble(PurePath(plain(row.pipeline)).stem, (fallback, "yellow")),
            duration(elapsed_s(row, Stage.ARRIVED, Stage.FIRST_TASK)),
            duration(elapsed_s(row, Stage.FIRST_TASK, Stage.PROCESSED)),
            "" if close is None or processed is None else duration(processed - close),
            Text(plain(row.reason), no_wrap=True, overflow="ellipsis"),
        )
    return table if rows else Text("no visits", style="dim")


def failures_table(rows: Sequence[VisitRow], *, one_line: bool = False) -> RenderableType:
    """Show visit-detectors with a bad outcome, and the reasons; with `one_line` as much of them as fits."""
    if not rows:
        return Text("nothing failed", style="dim")
    table = new_table("group", "det>", "try>", "outcome", "again", "why~")
    for row in rows:
        name = plain(row.group)
        reason = Text(plain(row.reason), no_wrap=one_line, overflow="ellipsis" if one_line else "fold")
        table.add_row(name, str(row.detector), str(row.attempt), _outcome_text(row), again(row), reason)
    return table


def refused_table(raws: Sequence[RefusedRaw]) -> RenderableType:
    """Show raws that no visit used; nothing if there are none. Times are TAI."""
    if not raws:
        return Group()
    table = new_table("given up", "kind", "why~")
    for raw in raws:
        table.add_row(tai_iso(raw.seen_tai), plain(raw.kind), plain(raw.reason))
    return Group(Text("raws that no visit used:"), table)


def late_table(rows: Sequence[LateRow]) -> RenderableType:
    """Show raws that arrived after their visit-detector had ended. Times are TAI."""
    if not rows:
        return Text("no late raws", style="dim")
    table = new_table("group", "det>", "try>", "outcome", "seen", "path~")
    for row in rows:
        outcome = "under way" if row.outcome is None else str(row.outcome)
        seen = tai_iso(row.seen_tai)
        table.add_row(plain(row.group), str(row.detector), str(row.attempt), outcome, seen, plain(row.path))
    return table


def requeue_table(rows: Sequence[RequeueRow]) -> RenderableType:
    """Show the new attempts of visit-detectors, and the reasons of refusals."""
    table = new_table("det>", "result", "note~")
    for row in rows:
        result = Text("refused", style="yellow")
        if row.attempt is not None:
            result = Text(f"attempt {row.attempt}", style="green")
        table.add_row(str(row.detector), result, plain(row.text))
    return table


def visit_view(rows: Sequence[VisitRow]) -> RenderableType:
    """Show the details of one visit; `rows` must not be empty."""
    later = [stage for stage in Stage if stage != Stage.ACCEPTED]
    stages = new_table("det>", "try>", *(f"{stage}>" for stage in later))
    processes = new_table("det>", "try>", "slot>", "pid>", "engine", "spooled>", "exposures")
    for row in rows:
        accepted = row.stages.get(Stage.ACCEPTED)
        seconds = (_seconds_since(row.stages.get(stage), accepted) for stage in later)
        stages.add_row(str(row.detector), str(row.attempt), *seconds)
        processes.add_row(
            str(row.detector),
            str(row.attempt),
            plain(row.slot),
            plain(row.pid),
            plain(row.engine),
            str(row.datasets),
            " ".join(map(str, row.exposures)),
        )
    first = min((row.stages[Stage.ACCEPTED] for row in rows if Stage.ACCEPTED in row.stages), default=None)
    survey = f", survey {plain(rows[0].survey)}" if rows[0].survey else ""
    accepted_at = f", {tai_iso(first)} TAI" if first is not None else ""
    head = Text(f"{plain(rows[0].instrument)} {plain(rows[0].group)}{survey}{accepted_at}", style="bold")
    note = Text("seconds since acceptance:", style="dim")
    texts = [(row.detector, plain(row.reason)) for row in rows if row.reason]
    for row in rows:
        if text := row.figures.get("not_exported"):
            texts.append((row.detector, f"not exported, {plain(text)}"))
        if text := row.figures.get(GIVEN_UP):
            texts.append((row.detector, f"given up, because too much waited for export: {plain(text)}"))
    return Group(head, visits_table(rows), *_by_detectors(texts), Text(), note, stages, Text(), processes)


def _by_detectors(texts: Iterable[tuple[int, str]]) -> Iterable[Text]:
    """Yield each text once, with all its detectors: most reasons are those of a whole visit."""
    detectors: dict[str, set[int]] = {}
    for detector, text in texts:
        detectors.setdefault(text, set()).add(detector)
    for text, those in detectors.items():
        yield Text(f"detector{'s' if len(those) > 1 else ''} {ranges(those)}: {text}")


def _packing(images: UncompressedReport) -> str:
    waiting = f"{number_of(images.images, 'image')} ({size(images.mb * 1e6)} of {size(images.max_mb * 1e6)})"
    declined = f"; no room for {images.declined}, workers compressed them" if images.declining else ""
    return f"{waiting} uncompressed{declined}"


def _filled(spool: SpoolReport) -> str:
    limit = "" if spool.max_mb is None else f" of {size(spool.max_mb * 1e6)}"
    return f"{spool.spooled} ({size(spool.mb * 1e6)}{limit})"


def _seconds_since(tai: float | None, zero: float | None) -> str:
    return "" if tai is None or zero is None else f"{tai - zero:.3f}"


def timeline_view(timeline: Timeline, width: int) -> RenderableType:
    """Show a visit's spans as bars of letters on one time axis, `width` columns wide."""
    columns = max(20, width - 28)
    span_s = max(timeline.end_s - timeline.begin_s, 1e-3)
    scale = columns / span_s
    grid = Table.grid(padding=(0, 1))
    grid.add_column(justify="right", no_wrap=True)
    grid.add_column(no_wrap=True, width=columns + 1)
    grid.add_column(no_wrap=True)
    for bar in timeline.bars:
        grid.add_row(
            str(bar.row.detector), _bar_text(bar, timeline.begin_s, scale, columns), _outcome_text(bar.row)
        )
    grid.add_row("", _axis_text(timeline, scale, columns), f"s since {timeline.zero}")
    legend = Text("  ").join(
        Text(f"{_SPAN_LETTERS[name]} {name}", style=_SPAN_STYLES[name])
        for name in SPAN_NAMES
        if name != "queue"
    )
    head = Text(f"{plain(timeline.bars[0].row.instrument)} {plain(timeline.group)}", style="bold")
    return Group(head, grid, legend, Text("x: ended here without success", style="dim"))


def _bar_text(bar: Bar, begin_s: float, scale: float, columns: int) -> Text:
    """Draw a bar; each span has at least one letter, later spans overwrite earlier ones."""
    text = Text(" " * (columns + 1))
    letters = [" "] * (columns + 1)
    styles: dict[int, str] = {}
    for span in bar.spans:
        first = min(columns, int((span.begin_s - begin_s) * scale))
        last = min(columns, max(first, int((span.end_s - begin_s) * scale)))
        for k in range(first, last + 1):
            letters[k], styles[k] = _SPAN_LETTERS[span.name], _SPAN_STYLES[span.name]
        if not span.finished:
            letters[last], styles[last] = "x", "bold red"
    text = Text("".join(letters))
    for k, style in styles.items():
        text.stylize(style, k, k + 1)
    return text


def _axis_text(timeline: Timeline, scale: float, columns: int) -> str:
    """Write the first, last and zero second below the bars if there is room."""
    letters = [" "] * (columns + 1)
    for seconds in (timeline.begin_s, timeline.end_s, 0.0):
        label = f"{seconds:.1f}" if seconds else "0"
        column = min(columns + 1 - len(label), int((seconds - timeline.begin_s) * scale))
        if column >= 0 and all(
            letter == " " for letter in letters[max(0, column - 1) : column + len(label) + 1]
        ):
            letters[column : column + len(label)] = label
    return "".join(letters)
