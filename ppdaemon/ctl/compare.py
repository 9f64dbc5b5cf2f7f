# SPDX-License-Identifier: BSD-3-Clause
"""What differs between two runs of a night, for ``ppctl compare``."""

import csv
import io
import json
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from ppdaemon.errors import BadMessage, Unavailable
from ppdaemon.night.compare import CompareCell, CompareReport, CompareRow, Run
from ppdaemon.night.reading import is_journal, journals_at, last_rows
from ppdaemon.pipelinenames import output_chain
from ppdaemon.states import BAD_OUTCOMES, ExitCode
from ppdaemon.terminal import new_table, number_of, plain

__all__ = ("compare_csv", "compare_json", "compare_view", "run_of")


def _read_repo(run: Run, repo: str, pattern: str, timing: str) -> None:
    """Add what a central repo has of a night; the process that reads it imports LSST code."""
    command = [sys.executable, "-m", "ppdaemon.middleware.nightoutputs", repo, pattern, timing]
    run.has_repo = True
    run.sources.append(f"{repo} {pattern}")
    kinds: dict[str, dict[str, int]] = {}  # most visit-detectors have the same numbers: each once in memory
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            instrument, group, detector, latency_s, counts = json.loads(line)
            if counts not in kinds:
                kinds[counts] = json.loads(counts)
            run.outputs[instrument, group, detector] = kinds[counts]
            if latency_s is not None:
                run.latencies_s[instrument, group, detector] = latency_s
        if (code := process.wait()) != ExitCode.OK:
            errors.seek(0)
            last = plain((errors.read().strip().splitlines() or [f"exit code {code}"])[-1])
            raise BadMessage(last) if code == ExitCode.DATA else Unavailable(last)


def _read_journals(run: Run, sources: Iterable[str], day_obs: int) -> None:
    paths = journals_at(map(Path, sources))
    if paths:
        run.has_journal = True
        run.sources += map(str, paths)
        for row in last_rows(paths, day_obs):
            run.add(row)


def run_of(sources: Iterable[str], day_obs: int, collection: str | None, timing: str) -> Run:
    """Return what journals and central repos have of a night."""
    run, sources = Run(), list(sources)
    journals = [source for source in sources if is_journal(Path(source))]
    _read_journals(run, journals, day_obs)
    for source in sources:
        if source not in journals:
            _read_repo(run, source, collection or output_chain("*", day_obs), timing)
    return run


def compare_json(report: CompareReport, rows: Iterable[CompareRow]) -> Iterator[str]:
    """Yield the parts of the report as JSON, with these rows: as one text they would need 0.3 GB."""
    head, end = report.model_dump_json(indent=2), "]\n}"
    assert head.endswith(f'"rows": [{end}')
    yield head.removesuffix(end)
    between = ""
    for row in rows:
        yield f"{between}\n{textwrap.indent(row.model_dump_json(indent=2), '    ')}"
        between = ","
    yield f"\n  {end}\n" if between else f"{end}\n"


def compare_csv(rows: Iterable[CompareRow]) -> Iterator[str]:
    """Yield the lines of CSV, after a header."""
    names = ("outcome", "pipeline", "latency_s", "datasets")
    sides = [f"{name}_{side}" for side in "ab" for name in names]
    yield _csv_line(["instrument", "group", "detector", "differs", *sides])
    for row in rows:
        key = (row.instrument, row.group, row.detector, "; ".join(row.differs))
        yield _csv_line([*key, *_cells(row.a), *_cells(row.b)])


def _csv_line(cells: Iterable[Any]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()


def _cells(cell: CompareCell | None) -> tuple[Any, ...]:
    if cell is None:
        return ("missing", "", "", "")
    latency = "" if cell.latency_s is None else f"{cell.latency_s:.3f}"
    return (cell.outcome or "", cell.pipeline, latency, _datasets(cell))


def _datasets(cell: CompareCell) -> int | str:
    if cell.outputs is not None:
        return sum(cell.outputs.values())
    return "" if cell.exported is None else cell.exported


def compare_view(report: CompareReport, more: int = 0) -> RenderableType:
    """Show the report with its rows, and how many more there are."""
    grid = new_table("", "~")
    grid.show_header = False
    for name, text in _facts(report):
        grid.add_row(Text(name, style="dim"), plain(text))
    parts: list[RenderableType] = [Text(f"night {report.day_obs}: A and B", style="bold"), grid]
    if report.slower is not None:
        parts += [Text(), _latency_table(report)]
    if report.outcomes:
        parts += [Text(), _outcome_table(report)]
    if report.outputs:
        parts += [Text(), _output_table(report)]
    if report.rows:
        parts += [Text(), _row_table(report.rows, more)]
    return Group(*parts)


def _facts(report: CompareReport) -> Iterator[tuple[str, str]]:
    for name, side in (("A", report.a), ("B", report.b)):
        count = number_of(side.visit_detectors, "visit-detector")
        datasets = "" if side.datasets is None else f", {number_of(side.datasets, 'dataset')}"
        yield name, f"{count}{datasets}: {', '.join(side.sources)}"
    yield "in both", f"{report.both}, only in A {report.only_a}, only in B {report.only_b}"
    yield "compared", ", ".join(report.compared) or "only which visit-detectors there are"
    yield "different", number_of(report.differ, "visit-detector") if report.differ else "none"


def _latency_table(report: CompareReport) -> RenderableType:
    table = new_table("shutter close to end, s", "median>", "95 %>", "99 %>", "longest>", "number>")
    rows = (("A", report.a.latency), ("B", report.b.latency), ("B slower by", report.slower))
    for name, latency in rows:
        if latency is not None:
            ms = (latency.p50_ms, latency.p95_ms, latency.p99_ms, latency.max_ms)
            table.add_row(name, *(f"{each / 1e3:.2f}" for each in ms), str(latency.count))
    return table


def _outcome_table(report: CompareReport) -> RenderableType:
    table = new_table("A", "B", "number>")
    for each in report.outcomes:
        style = "" if each.a == each.b else "red" if each.b in BAD_OUTCOMES else "yellow"
        table.add_row(plain(each.a), plain(each.b), str(each.count), style=style)
    return table


def _output_table(report: CompareReport) -> RenderableType:
    table = new_table("dataset type", "A>", "B>", "different>")
    for each in report.outputs:
        style = "yellow" if each.differ else ""
        table.add_row(plain(each.dataset_type), str(each.a), str(each.b), str(each.differ), style=style)
    return table


def _row_table(rows: tuple[CompareRow, ...], more: int) -> RenderableType:
    table = new_table("visit", "det>", "differs", "A~", "B~")
    several = len({row.instrument for row in rows}) > 1  # which may have visits of the same name
    for row in rows:
        a, b = _words(row.a, row.b), _words(row.b, row.a)
        visit = f"{row.instrument} {row.group}" if several else row.group
        table.add_row(plain(visit), str(row.detector), ", ".join(row.differs), plain(a), plain(b))
    if more:
        table.add_row(f"and {more} more, see --json or --format csv")
    return table


def _words(cell: CompareCell | None, other: CompareCell | None) -> str:
    """Return what a run has of a visit-detector, of outputs only what the other one does not have."""
    if cell is None:
        return "missing"
    words: list[str] = [cell.outcome] if cell.outcome else []
    words += [cell.pipeline] if cell.pipeline else []
    words += [f"{cell.latency_s:.1f} s"] if cell.latency_s is not None else []
    words += (
        [number_of(cell.exported, "dataset")] if cell.exported is not None and cell.outputs is None else []
    )
    others = (other.outputs if other is not None else None) or {}
    for name, count in sorted((cell.outputs or {}).items()):
        if others.get(name, 0) != count and other is not None:
            words.append(f"{count} {name}")
    return ", ".join([*words, *([cell.reason] if cell.reason else [])])
