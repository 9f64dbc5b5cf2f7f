# SPDX-License-Identifier: BSD-3-Clause
"""Commands of ``ppctl`` that change nothing in a daemon or a relay."""

import contextlib
import json
import os
import shlex
import socket
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ppdaemon import __version__
from ppdaemon.ctl.options import (
    DEFAULT_CONFIG,
    any_command,
    as_json_option,
    common_command,
    config_option,
    daemon_command,
    for_daemon,
    given_config,
    limit_option,
    node_config,
    note_journal,
    read_detectors,
    show_data,
    show_rows,
)
from ppdaemon.ctl.selection import find_relay_visit, find_visit, parse_night, selecting
from ppdaemon.ctl.target import node_of, relay_of
from ppdaemon.detectorlist import ranges
from ppdaemon.errors import ConfigError, NotFound, NotRunning, PPDaemonError
from ppdaemon.finiterange import FiniteRange
from ppdaemon.states import ExitCode
from ppdaemon.terminal import plain, show, terminal_console

if TYPE_CHECKING:  # imported by the commands that need it: the help and the completion must come at once
    from rich.console import RenderableType

    from ppdaemon.config import NodeConfig
    from ppdaemon.ctl.client import BridgeDaemon, Daemon, RelayDaemon
    from ppdaemon.reports import VisitRow
    from ppdaemon.wire import Model

__all__ = (
    "check",
    "failed",
    "hosts",
    "late",
    "log_command",
    "night",
    "size",
    "status",
    "timeline",
    "top",
    "visit",
    "visits",
    "workers",
)


@click.command()
@any_command
@click.option("-v", "--verbose", is_flag=True, help="Show messages that were not understood, too.")
@click.option("--check", is_flag=True, help="Exit with 1 if it is not healthy: for monitoring.")
def status(daemon: "Daemon | RelayDaemon | BridgeDaemon", as_json: bool, verbose: bool, check: bool) -> None:
    """Show the state of the daemon.

    Slots, visits, export, sources of raws, limits, and problems to check. With
    --relay: nodes, detectors that wait or that no node serves, and the ledger.
    With --bridge: the last notice, the ring, and what each node lacks.

    Exit code: 0 running (with --check: and healthy), 1 with --check if it is
    degraded, drained, starting or stopping, 3 not running, 4 unknown.
    """
    try:
        report = daemon.status()
    except PPDaemonError as error:
        click.echo(f"ppctl: {plain(error)}", err=True)
        not_running = isinstance(error, NotRunning)
        code = ExitCode.LSB_NOT_RUNNING if not_running else ExitCode.LSB_UNKNOWN
        raise click.exceptions.Exit(code) from None
    from ppdaemon.ctl import relaytables, tables
    from ppdaemon.reports import RelayStatusReport, StatusReport

    if isinstance(report, StatusReport):
        show_data(report, partial(tables.status_view, verbose=verbose), as_json)
    elif isinstance(report, RelayStatusReport):
        show_data(report, relaytables.relay_status_view, as_json)
    else:
        show_data(report, relaytables.bridge_status_view, as_json)
    if check and not report.healthy:
        raise click.exceptions.Exit(ExitCode.FAILED)


@click.command()
@config_option
@daemon_command
def check(daemon: "Daemon", path: Path | None, as_json: bool) -> None:
    """Check this host and a node's configuration before the night.

    Versions, clock, configuration, pipelines, central repo, disks, raw roots,
    limits, keys, relay, inputs for tonight, and the running daemon. Changes
    nothing. Run it as the daemon's user, whose rights count.

    Exit code: 0 without errors (there may be warnings), 1 with errors, 78 if the
    configuration has errors.
    """
    from ppdaemon.ctl import check as checking  # imports what the other commands do not need

    given = given_config(path)
    if path is not None:
        with contextlib.suppress(ConfigError):  # the check reports it
            daemon = node_of(None, path)
    report = checking.run_checks(given or DEFAULT_CONFIG, daemon)
    show_data(report, checking.check_view, as_json)
    if code := checking.exit_code_of(report.findings):
        raise click.exceptions.Exit(code)


_positive = FiniteRange(0, min_open=True)


@click.command()
@config_option
@click.option("--camera", metavar="NAME", help="The instrument, if the node has several.")
@click.option("--detectors", type=click.IntRange(min=1), help="Detectors of a visit on this node.")
@click.option("--cadence", "cadence_s", type=_positive, help="Seconds between two visits.")
@click.option("--visit-s", type=_positive, help="Seconds that a visit-detector has a worker.")
@click.option("--run-s", type=_positive, help="Seconds of it without the wait for the raw.")
@click.option("--memory-gb", type=_positive, help="Memory of a worker, 10^9 bytes.")
@click.option("--ramdisk-gb", type=_positive, help="RAM disk of a worker, 10^9 bytes.")
@click.option("--cores", type=click.IntRange(min=1), help="Cores of the host.")
@click.option("--host-gb", type=_positive, help="Memory of the host, 10^9 bytes.")
@daemon_command
def size(
    daemon: "Daemon", path: Path | None, camera: str | None, as_json: bool, **given: float | None
) -> None:
    """Calculate how many workers, cores, and how much memory a node needs.

    From the times in the node's journal, the limits in its configuration, and the
    host on which this runs; each option replaces one of these numbers. Shows the
    source of each number, the formulas, and the resource that decides.

    Exit code: 0 if this host and workers.max are enough, 1 if not.
    """
    from ppdaemon.ctl import size as sizing
    from ppdaemon.ctl import sizefigures
    from ppdaemon.sizing import FEWEST

    file = given_config(path)
    if path is not None:
        daemon = node_of(None, path)
    figures = sizefigures.of_host(file, camera)
    figures |= sizefigures.of_journal(daemon, camera) | sizing.Figures.of("option", **given)
    if missing := [name for name in sizing.NEEDED if name not in figures.values]:
        options = ", ".join(sizefigures.OPTIONS[name] for name in missing)
        text = f"give these options; the journal is used if {FEWEST} of its visit-detectors succeeded"
        if file is None:
            text = f"there is no {DEFAULT_CONFIG}: name the configuration with --config, or {text}"
        raise click.UsageError(f"not known: {options}; {text}")
    report = sizing.size_of(figures)
    show_data(report, sizing.size_view, as_json)
    if not report.enough:
        raise click.exceptions.Exit(ExitCode.FAILED)


def _show_relay[T: "Model"](
    relay: "RelayDaemon", rows: Sequence[T], view: "Callable[[Sequence[T]], RenderableType]", as_json: bool
) -> None:
    """Print what a relay has answered, or its ledger."""
    if relay.from_ledger:
        click.echo("ppctl: the relay does not run; this is read from its ledger", err=True)
    show_data(rows, view, as_json)


@click.command()
@click.option(
    "--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="Maximum number of visits."
)
@selecting
@common_command
def visits(daemon: "Daemon | RelayDaemon", limit: int, selected: dict[str, Any], as_json: bool) -> None:
    """List visits, the newest first.

    One line each, with a letter for each detector of this node: "ppctl visit" shows
    one of them. Also while the daemon does not run, from its journal. With --relay:
    at most 1000.
    """
    from ppdaemon.ctl import relaytables, tables
    from ppdaemon.ctl.client import RelayDaemon

    if isinstance(daemon, RelayDaemon):
        if selected:
            raise click.UsageError("with --relay, only --limit selects visits")
        _show_relay(daemon, daemon.visits(limit), relaytables.relay_visits_table, as_json)
    else:
        show_rows(daemon, daemon.summaries(limit, **selected), tables.summaries_view, as_json)


@click.command()
@click.option("--needed", is_flag=True, help="Show how many nodes the cadence needs, instead.")
@common_command
def hosts(daemon: "Daemon | RelayDaemon", as_json: bool, needed: bool) -> None:
    """List all nodes of the relay on this host, with their worst problems.

    What each of them has and offers to have, when it sent its last message, whether
    it is full, draining or spare, its version, and the state that it reports of
    itself. --relay is needed only with --socket or --config.

    With --needed, how many such nodes the latest visits need: their cadence, their
    detectors, and how long a node has a visit-detector. For programs that add and
    release hosts: see needed and ready in --json.

    Exit code with --needed: 0 if there are enough, 1 if not, 75 if it is not known.
    """
    from ppdaemon.ctl import relaytables
    from ppdaemon.ctl.client import Daemon

    options = click.get_current_context().find_root().params
    if isinstance(daemon, Daemon):
        if options["socket_path"] or options["config"]:
            raise click.UsageError("ppctl hosts asks a relay: add --relay to its --socket or --config")
        daemon = relay_of(None, None)
    if not needed:
        show_data(daemon.nodes(), relaytables.hosts_view, as_json)
        return
    report = daemon.status().hosts
    show_data(report, relaytables.needed_view, as_json)
    if report.needed is None:
        raise click.exceptions.Exit(ExitCode.TRY_LATER)
    if report.missing > 0:
        raise click.exceptions.Exit(ExitCode.FAILED)


_FORMATS = ("table", "json", "csv", "pipetask", "bps")


@click.command()
@limit_option
@selecting
@click.option(
    "--format",
    "form",
    type=click.Choice(_FORMATS),
    default="table",
    show_default=True,
    help="json and csv for programs, pipetask for commands, bps for submit files.",
)
@config_option
@click.option(
    "--folder", type=click.Path(path_type=Path), help="For bps: where to write; see ppctl catchup run."
)
@daemon_command
def failed(
    daemon: "Daemon",
    limit: int,
    selected: dict[str, Any],
    form: str,
    path: Path | None,
    folder: Path | None,
    as_json: bool,
) -> None:
    """List visit-detectors that need daytime reprocessing.

    "again" is whether they may be processed again, by "ppctl retry" or by "ppctl
    catchup": done by the catch-up; in the catch-up; needs --force, because alerts may
    be written twice; may succeed; may fail again. Below them are the latest raws that
    were found but used by no visit. With --json these are not printed here: see
    "ppctl status --json".

    pipetask and bps need the node's configuration, read its journal, and leave out
    what is done and what needs --force. They name exposures whose raws have arrived;
    "ppctl catchup prepare" brings these into the central repo first, and "ppctl
    catchup run" does all of it.
    """
    if as_json and form not in ("table", "json"):
        raise click.UsageError(f"use either --json or --format {form}")
    if form in ("pipetask", "bps"):
        _print_catchup(node_config(path), form, folder, limit, selected)
        return
    rows = daemon.visits(limit, failed=True, **selected)
    if form == "csv":
        from ppdaemon.ctl import catchupfiles

        note_journal(daemon)
        click.echo(catchupfiles.failed_csv(rows), nl=False)
        return
    show_rows(daemon, rows, partial(_failed_view, daemon), as_json or form == "json")


def _print_catchup(
    config: "NodeConfig", form: str, folder: Path | None, limit: int, selected: dict[str, Any]
) -> None:
    """Print commands, or write submit files and print their names."""
    from ppdaemon.ctl import catchup, catchupfiles

    found = catchup.failed_of(config, limit, selected)
    if len(found) == limit:
        click.echo(f"# only the newest {limit}: see --limit", err=True)
    items, refused = catchup.items_of(config, found)
    for row in refused:
        click.echo(f"# {row.group} detector {row.detector}: {plain(row.text) or row.state}", err=True)
    for item in items:
        if not item.exposures:
            text = "no raw is known; ppctl catchup prepare searches for it"
            click.echo(f"# {item.group} detector {item.detector}: {text}", err=True)
    folder = (folder or catchup.folder_of(config, selected)).absolute()
    for unit in catchup.with_overrides(catchup.units_of_items(items), config):
        if form == "pipetask":
            click.echo(shlex.join(catchupfiles.pipetask_command(unit, config, os.cpu_count() or 1)))
            continue
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{unit.name}.yaml"
        file.write_text(catchupfiles.bps_file(unit, config, folder, os.cpu_count() or 1))
        click.echo(file)


def _failed_view(daemon: "Daemon", rows: "Sequence[VisitRow]") -> "RenderableType":
    from rich.console import Group

    from ppdaemon.ctl import tables

    refused = () if daemon.from_journal else daemon.status().refused_raws
    return Group(tables.failures_table(rows), tables.refused_table(refused))


def _read_night(context: click.Context, _: click.Parameter, value: str | None) -> int | None:
    try:
        return None if value is None else parse_night(value)
    except ValueError as error:
        raise click.BadParameter(str(error), context) from None


@click.command()
@click.argument("day_obs", required=False, callback=_read_night)
@click.option(
    "--journal",
    "journals",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Read this journal instead of that of the daemon, such as a copy from another host; or all of a "
    "folder. With several, the night of all their nodes.",
)
@click.option(
    "--copy",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the journal of this night to this file, for --journal on another host.",
)
@click.option("--html", type=click.Path(path_type=Path), help="Write a page with charts to this file.")
@daemon_command
def night(
    daemon: "Daemon",
    day_obs: int | None,
    journals: tuple[Path, ...],
    copy: Path | None,
    html: Path | None,
    as_json: bool,
) -> None:
    """Report a night: outcomes, latencies, slowest detectors, reasons, exports.

    DAY_OBS is the night, such as 20261122; without it, that of the newest visit.
    The last attempt at each visit-detector counts. Reads the journal itself, beside
    the daemon or without it. The page of --html needs no other file and no network.
    """
    from ppdaemon.clock import Clock
    from ppdaemon.night.page import write_page  # numpy, which the other commands do not need
    from ppdaemon.night.reading import copy_night, journals_at, names_of, read_night
    from ppdaemon.night.tables import night_view

    paths = journals_at(journals) or [daemon.journal_path()]
    if copy is not None:
        if len(paths) > 1:
            raise click.UsageError("--copy is for one journal")
        click.echo(f"wrote night {copy_night(paths[0], day_obs, Clock(), copy)} to {copy}", err=True)
        return
    report = read_night(paths, day_obs, Clock())
    if html is not None:
        names = ", ".join(names_of(paths)) if len(paths) > 1 else paths[0].name
        write_page(html, report, f"{names} on {socket.gethostname()}, version {__version__}")
    if as_json or html is None:
        show_data(report, night_view, as_json)


@click.command()
@limit_option
@selecting
@daemon_command
def late(daemon: "Daemon", limit: int, selected: dict[str, Any], as_json: bool) -> None:
    """List raws that arrived after the end of their visit.

    A raw that another attempt has used is no longer listed. Use "ppctl requeue"
    to process such visits again.
    """
    from ppdaemon.ctl import tables

    show_rows(daemon, daemon.late(limit, **selected), tables.late_table, as_json)


@click.command()
@click.argument("group")
@common_command
def visit(daemon: "Daemon | RelayDaemon", group: str, as_json: bool) -> None:
    """Show the details of one visit: stages, slots, reasons.

    GROUP is the group of the visit, the beginning of only one, or "latest".
    With --relay: the node and the outcome of each detector, also while the relay
    does not run.
    """
    from ppdaemon.ctl import relaytables, tables
    from ppdaemon.ctl.client import RelayDaemon

    if isinstance(daemon, RelayDaemon):
        _show_relay(daemon, find_relay_visit(daemon, group), relaytables.relay_visit_view, as_json)
    else:
        rows = find_visit(daemon, group)
        show_rows(daemon, rows, tables.visit_view, as_json)
        if not as_json:
            from ppdaemon.ctl import log

            folder = log.logs_folder(daemon)
            click.echo(
                f"log: ppctl log {shlex.quote(rows[0].group)} [DETECTOR], from {folder}/worker-SLOT.log"
            )


@click.command("log")
@click.argument("group")
@click.argument("detectors", required=False, callback=read_detectors)
@as_json_option
@for_daemon
def log_command(daemon: "Daemon", group: str, detectors: tuple[int, ...] | None, as_json: bool) -> None:
    """Show what was logged for one visit, or for some of its detectors.

    GROUP may be the beginning of only one group, or "latest"; DETECTORS is a list
    such as 0-8,12. Reads the logs of the workers on this host, which are named by
    "ppctl visit", and the log of the daemon if systemd has it. Times are UTC.
    """
    rows = [row for row in find_visit(daemon, group) if detectors is None or row.detector in detectors]
    if not rows:
        raise NotFound(f"the visit has none of these detectors: {ranges(detectors or ())}")
    note_journal(daemon)
    from ppdaemon.ctl import log

    lines = log.visit_lines(daemon, rows)
    if as_json:
        for line in lines:
            click.echo(json.dumps({"source": line.source, **line.fields, "more": line.more}, default=str))
        return
    for line in lines:
        show(log.line_text(line), fold=False)
    if not lines:
        click.echo(f"ppctl: {log.logs_folder(daemon)} has no line of this visit", err=True)


@click.command()
@daemon_command
def workers(daemon: "Daemon", as_json: bool) -> None:
    """List the slots and their workers."""
    from ppdaemon.ctl import tables

    show_data(daemon.workers(), tables.workers_table, as_json)


@click.command()
@for_daemon
def top(daemon: "Daemon") -> None:
    """Show the state of the daemon continuously, until Ctrl-C."""
    from ppdaemon.ctl.top import follow

    with contextlib.suppress(KeyboardInterrupt):
        follow(daemon, terminal_console())


@click.command()
@click.argument("groups", metavar="GROUP...", nargs=-1)
@click.option(
    "--limit", type=click.IntRange(1, 1000), default=5, show_default=True, help="Visits without GROUP."
)
@selecting
@click.option("--png", type=click.Path(path_type=Path), help="Write the chart to this PNG file.")
@daemon_command
def timeline(
    daemon: "Daemon",
    groups: tuple[str, ...],
    limit: int,
    selected: dict[str, Any],
    png: Path | None,
    as_json: bool,
) -> None:
    """Show the stages of each detector over time, as a chart.

    Of each GROUP, which may be "latest" or the beginning of only one; or of the
    visits that the options select.
    """
    from ppdaemon.ctl import tables
    from ppdaemon.ctl.timeline import build_timelines

    rows = _rows_of_visits(daemon, groups, limit, selected)
    note_journal(daemon)
    if png:
        from ppdaemon.ctl.plots import timeline_png

        timeline_png(rows, png)
        click.echo(f"wrote {png}", err=as_json)
    if as_json:
        show_data(rows, tables.visits_table, as_json=True)
    elif not png:
        console = terminal_console()
        if not rows:
            click.echo("no visits")
        for each in build_timelines(rows):
            show(tables.timeline_view(each, min(console.width, 160)))


def _rows_of_visits(
    daemon: "Daemon", groups: Sequence[str], limit: int, selected: dict[str, Any]
) -> "list[VisitRow]":
    """Return the visits that arguments name or options select, each once."""
    if groups and selected:
        raise click.UsageError("use either GROUP or options that select visits")
    if not groups and not selected:
        raise click.UsageError("name a GROUP, such as latest, or select visits, such as --since 1h")
    if selected:
        visits = [daemon.visit(row.group) for row in daemon.summaries(limit, **selected)]
    else:
        visits = [find_visit(daemon, group) for group in groups]
    return [row for rows in {rows[0].group: rows for rows in visits}.values() for row in rows]
