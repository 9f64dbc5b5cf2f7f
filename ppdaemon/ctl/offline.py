# SPDX-License-Identifier: BSD-3-Clause
"""Commands of ``ppctl`` that ask no program: about two runs of a night, and about another service.

What they need is imported when they run, because their help is part of that of ``ppctl``.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path

import click

from ppdaemon.ctl.options import as_json_option
from ppdaemon.ctl.selection import parse_night
from ppdaemon.errors import BadMessage
from ppdaemon.states import ExitCode
from ppdaemon.terminal import show

__all__ = ("compare", "import_config")

SHOWN = 20
"""Visit-detectors in a terminal; JSON and CSV have all."""


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
def compare(
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
    from ppdaemon.clock import Clock
    from ppdaemon.ctl.compare import compare_csv, compare_json, compare_view, run_of
    from ppdaemon.night.compare import compare as compared
    from ppdaemon.night.compare import compare_rows
    from ppdaemon.night.reading import is_journal, journals_at, newest_night

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
    run_a = run_of(sources_a, day_obs, collection_a, timing)
    run_b = run_of(sources_b, day_obs, collection_b, timing)
    report = compared(day_obs, run_a, run_b)
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


@click.command("import-config")
@click.argument("environment", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--fan-out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The fan-out's file of detectors by instrument (its INSTRUMENT_CONFIG_FILE).",
)
@click.option(
    "--fan-out-env",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The environment of the fan-out, for the topics of the observatory's events.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(),
    help="Folder of the files.  [default: this one]",
)
def import_config(environment: Path, fan_out: Path | None, fan_out_env: Path | None, output: Path) -> None:
    """Write ppdaemon.yaml and pprelay.yaml from the configuration of Rubin's prompt processing service.

    With raws in a bucket, ppbridge.yaml is written, too.
    ENVIRONMENT has the environment variables of the service: the output of env or
    env -0 in one of its containers, or YAML of Kubernetes. What cannot be carried
    over is written as comments. Existing files are not overwritten.
    """
    from ppdaemon.ctl.importconfig import import_files

    for path in import_files(environment, fan_out, fan_out_env, output):
        click.echo(f"{path} written: read its comments, then check it")
