# SPDX-License-Identifier: BSD-3-Clause
"""The command ``ppctl compare``: what differs between two runs of a night."""

import csv
import io
import itertools
import json
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click
from rich.console import Group, RenderableType
from rich.text import Text

from ppdaemon.clock import Clock
from ppdaemon.ctl.options import as_json_option
from ppdaemon.ctl.selection import parse_night
from ppdaemon.errors import BadMessage, Unavailable
from ppdaemon.night.compare import CompareCell, CompareReport, CompareRow, Run, compare, compare_rows
from ppdaemon.night.reading import is_journal, journals_at, last_rows, newest_night
from ppdaemon.pipelinenames import output_chain
from ppdaemon.states import BAD_OUTCOMES, ExitCode
from ppdaemon.terminal import new_table, number_of, plain, show

__all__ = ("command", "compare_csv", "compare_json", "compare_view")

SHOWN = 20
"""Visit-detectors in a terminal; JSON and CSV have all."""


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


def _run_of(sources: Iterable[str], day_obs: int, collection: str | None, timing: str) -> Run:
    run, sources = Run(), list(sources)
    journals = [source for source in sources if is_journal(Path(source))]
    _read_journals(run, journals, day_obs)
    for source in sources:
        if source not in journals:
            _read_repo(run, source, collection or output_chain("*", day_obs), timing)
    return run


@click.command("compare")
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@click.option("--also-a", multiple=True, metavar="SOURCE", help="Another source of A; can be repeated.")
@click.option("--also-b", multiple=True, metavar="SOURCE", help="Another source of B; can be repeated.")
@click.option(
    "--night",
    metavar="DAY_OBS",
    help="The night, such as 20261122. Default: the newest of a journal; of those of A and B, the earlier.",
)
@click.option("--collection-a", metavar="PATTERN", help="Outputs of A.  [default: */prompt/output-NIGHT]")
@click.option("--collection-b", metavar="PATTERN", help="Outputs of B.  [default: */prompt/output-NIGHT]")
@click.option(
    "--timing",
    default="",
    metavar="TYPE",
    help="Type of metadata, such as associateApdb_metadata, whose end counts for the latency where there is"
    " no journal. Reads one file of each visit-detector.",
)
@click.option("--all", "all_rows", is_flag=True, help="List visit-detectors without a difference, too.")
@click.option(
    "--format",
    "form",
    type=click.Choice(("table", "json", "csv")),
    default="table",
    show_default=True,
    help="json and csv for programs.",
)
@as_json_option
def command(
    a: str,
    b: str,
    also_a: tuple[str, ...],
    also_b: tuple[str, ...],
    night: str | None,
    collection_a: str | None,
    collection_b: str | None,
    timing: str,
    all_rows: bool,
    form: str,
    as_json: bool,
) -> None:
    """Compare two runs of a night: outcome, latency and outputs of each visit-detector.

    A and B are journals (a file, a state folder, or a folder of copies, as for
    "ppctl night --journal") or central repos (root, configuration file or alias), of
    which the outputs of the night are counted by type. A run may have both: name the
    other one with --also-a or --also-b. Rubin's service for prompt processing leaves a
    central repo only: outcomes are then not compared.

    Exit code: 0 if nothing differs but latencies; 1 if something does; 65 if a repo has
    no such collection, or no source anything of the night; 69 if a source cannot be
    read.
    """
    sources_a, sources_b = (a, *also_a), (b, *also_b)
    try:
        day_obs = None if night is None else parse_night(night)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--night") from None
    if day_obs is None:
        sides = [[path for path in map(Path, each) if is_journal(path)] for each in (sources_a, sources_b)]
        if not any(sides):
            raise click.UsageError("none of the sources is a journal: name the night with --night")
        # One of them may have been running since the night that both have.
        day_obs = min(newest_night(journals_at(journals), Clock()) for journals in sides if journals)
    run_a = _run_of(sources_a, day_obs, collection_a, timing)
    run_b = _run_of(sources_b, day_obs, collection_b, timing)
    report = compare(day_obs, run_a, run_b)
    if not (report.a.visit_detectors or report.b.visit_detectors):
        raise BadMessage(f"no source has a visit-detector of the night {day_obs}: see --night")
    rows = compare_rows(run_a, run_b, all_rows=all_rows)
    if as_json or form == "json":
        _write(compare_json(report, rows))
    elif form == "csv":
        _write(compare_csv(rows))
    else:
        few = tuple(itertools.islice(rows, SHOWN))
        show(compare_view(report.model_copy(update={"rows": few}), sum(1 for _ in rows)))
    if report.differ:
        raise click.exceptions.Exit(ExitCode.FAILED)


def _write(parts: Iterator[str]) -> None:
    """Print parts of a text, many at once."""
    while text := "".join(itertools.islice(parts, 1000)):
        click.echo(text, nl=False)


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
