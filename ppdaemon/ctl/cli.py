# SPDX-License-Identifier: BSD-3-Clause
"""The program ``ppctl``: queries and controls a ppdaemon, or a pprelay, over its control socket.

Exit codes are those of `ppdaemon.states.ExitCode`, except that ``ppctl status``
follows LSB. No answer of a daemon makes it print a traceback.
"""

import contextlib
import functools
import json
import os
import re
import shlex
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, Literal, cast

import click
import pydantic
from rich.console import Group, RenderableType

from ppdaemon import __version__
from ppdaemon.clock import Clock
from ppdaemon.ctl import relaytables, tables
from ppdaemon.ctl.client import ControlClient, Daemon, NotFound, NotRunning, RelayDaemon, is_there
from ppdaemon.ctl.selection import find_visit, parse_night, selecting
from ppdaemon.ctl.timeline import build_timelines
from ppdaemon.detectorlist import parse_detector_list, ranges
from ppdaemon.errors import ConfigError, PPDaemonError, StateUnusable
from ppdaemon.ledgerfile import LEDGER_NAME
from ppdaemon.reports import (
    JOURNAL_NAME,
    RELAY_SOCKET,
    DrainNodeRequest,
    DrainRequest,
    ExportRequest,
    KillRequest,
    ReloadRequest,
    RestartRequest,
    ResumeNodeRequest,
    ResumeRequest,
    StatusReport,
    VisitRow,
)
from ppdaemon.states import ExitCode
from ppdaemon.terminal import plain, show, terminal_console
from ppdaemon.wire import Model, explain

if TYPE_CHECKING:  # imported by the commands that need them: the others must start at once
    from ppdaemon.catchup import CatchupItem, CatchupRow
    from ppdaemon.config import NodeConfig
    from ppdaemon.ctl.catchup import Catchup

__all__ = ("main", "node_of")

DEFAULT_CONFIG = Path("/etc/ppdaemon/ppdaemon.yaml")
DEFAULT_SOCKET = Path("/run/ppdaemon/control.sock")
NODE_STATE = Path("/var/lib/ppdaemon/node")
RELAY_RUN = Path("/run/pprelay/control.sock")
RELAY_STATE = Path("/var/lib/ppdaemon/relay")
SOCKET_VARIABLE = "PPDAEMON_SOCKET"
RELAY_SOCKET_VARIABLE = "PPRELAY_SOCKET"
RELOAD_S = 300.0
"""A reload takes seconds for imports and the template repo; the daemon's own limit
is shorter than this one."""

EXPORT_INIT_S = 120.0
"""Waits for the export that runs, and looks for some of the repo's files."""

KEY_FOLDER = Path("/etc/ppdaemon/keys")
KEYGEN_TEXT = """\
wrote {secret} (secret: keep it on this host; its program must run as this user)
wrote {public} (public: copy it to the other end)

a relay:      security.key of pprelay.yaml is {secret};
              copy {name}.key to each node (relay.server) and each client (--server)
a node:       security.key of ppdaemon.yaml is {secret}; the name of the node is {name};
              copy {name}.key into the folder security.nodes of the relay
a client:     send_visit --key {secret} --server RELAY.key;
              copy {name}.key into the folder security.submit of the relay
After a change in these folders: systemctl reload pprelay"""

_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")


def _for(*kinds: type[ControlClient]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add the daemon or the relay as an argument to a command that one of them, or both, can do."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @click.pass_context
        @functools.wraps(command)
        def run(context: click.Context, *args: Any, **options: Any) -> Any:
            if not isinstance(context.obj, kinds):
                raise click.UsageError(f"ppctl {context.info_name} is for a node, not for --relay")
            return command(context.obj, *args, **options)

        return run

    return decorate


_daemon = _for(Daemon)
_either = _for(Daemon, RelayDaemon)


def _daemon_command(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the daemon as an argument and ``--json`` as an option to a command."""
    return _as_json(_daemon(command))


def _common_command(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the daemon or the relay as an argument and ``--json`` as an option to a command."""
    return _as_json(_either(command))


def _show[T: Sequence[Model] | Model](data: T, view: Callable[[T], RenderableType], as_json: bool) -> None:
    """Print models, as JSON or as text."""
    if as_json:
        click.echo(pydantic.TypeAdapter[Any](Any).dump_json(data, indent=2).decode())
    else:
        show(view(data))


def node_of(socket_path: Path | None, config: Path | None) -> Daemon:
    """Return the daemon of a socket, of a configuration, or of the default paths."""
    if config is None:
        daemon = Daemon(socket_path or _default_socket())
        if socket_path is None and SOCKET_VARIABLE not in os.environ:
            daemon.journal = NODE_STATE / JOURNAL_NAME
        return daemon
    daemon = _daemon_of(config)
    with contextlib.suppress(ConfigError):
        daemon.journal = _path_in(config, "node", "state_dir") / JOURNAL_NAME
    return daemon


def _daemon_of(config: Path) -> Daemon:
    """Return the daemon of a node's configuration."""
    # Only this key: the variables of others may be set for the daemon alone.
    try:
        return Daemon(_path_in(config, "node", "control"))
    except ConfigError as error:
        # A file that somebody has just broken must not keep an operator from seeing the running daemon;
        # it may be another one, to which nothing is done.
        socket_path = _default_socket()
        if not (is_there(config) and is_there(socket_path)):
            raise
        click.echo(f"ppctl: warning: {plain(error)}; reading from {socket_path}", err=True)
        daemon = Daemon(socket_path)
        daemon.only_reading = f"{error}; name the daemon by --socket"
        return daemon


def _path_in(config: Path, *key: str, default: str | None = None) -> Path:
    """Return the path that a configuration file has, without a look at its other keys."""
    from ppdaemon.yamlfile import read_key

    return Path(read_key(config, key, os.environ, default))


def _default_socket() -> Path:
    return Path(os.environ.get(SOCKET_VARIABLE) or DEFAULT_SOCKET)


def _relay(socket_path: Path | None, config: Path | None) -> RelayDaemon:
    """Return the relay of a socket, of a configuration, or of the default folders."""
    folder = RELAY_STATE
    if config is None and socket_path is None and RELAY_SOCKET_VARIABLE in os.environ:
        socket_path = Path(os.environ[RELAY_SOCKET_VARIABLE])
    if config is not None:
        folder = _path_in(config, "state_dir")
        socket_path = _path_in(config, "control", default=str(folder / RELAY_SOCKET))
    # Not `is_there`: a folder that this user may not enter need not have the socket, and the one of a relay
    # that is down is not there.
    elif socket_path is None and (is_there(RELAY_RUN) or not os.path.exists(folder / RELAY_SOCKET)):
        socket_path = RELAY_RUN
    relay = RelayDaemon(socket_path or folder / RELAY_SOCKET)
    if config is not None or socket_path == RELAY_RUN:
        relay.ledger = folder / LEDGER_NAME
    return relay


class _Commands(click.Group):
    """Commands, of which some are imported when they are named: the others must start at once."""

    elsewhere: Mapping[str, str] = {
        "install-files": "ppdaemon.ctl.installfiles:install_files",
        "send": "ppdaemon.ctl.send:command",
        "web": "ppdaemon.ctl.webpage:web",
    }

    def list_commands(self, context: click.Context) -> list[str]:
        """Return the names of all commands."""
        return sorted({*super().list_commands(context), *self.elsewhere})

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """Return a command, or `None` if there is none of this name."""
        if name in self.elsewhere:
            return cast(click.Command, resolve_name(self.elsewhere[name]))
        return super().get_command(context, name)


@click.group(
    cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, prog_name="ppctl")
@click.option(
    "--socket",
    "socket_path",
    type=click.Path(path_type=Path),
    help=f"Control socket of the daemon. Default: {DEFAULT_SOCKET}, of a relay {RELAY_RUN}."
    f"  [env: {SOCKET_VARIABLE}, {RELAY_SOCKET_VARIABLE}]",
)
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="Configuration file of the daemon: use the socket in it.",
)
@click.option("--relay", is_flag=True, help="Use a relay (pprelay) instead of a node (ppdaemon).")
@click.pass_context
def _ppctl(context: click.Context, socket_path: Path | None, config: Path | None, relay: bool) -> None:
    """Show the state of a ppdaemon, or with --relay of a pprelay, and control it.

    A relay has status, visits, visit, hosts, drain, resume and reload.
    """
    if socket_path and config:
        raise click.UsageError("give --socket or --config, not both")
    if relay:
        context.obj = _relay(socket_path, config)
        return
    context.obj = node_of(socket_path, config)


@_ppctl.command()
@_common_command
@click.option("-v", "--verbose", is_flag=True, help="Show messages that were not understood, too.")
@click.option("--check", is_flag=True, help="Exit with 1 if it is not healthy: for monitoring.")
def status(daemon: Daemon | RelayDaemon, as_json: bool, verbose: bool, check: bool) -> None:
    """Show the state of the daemon.

    Slots, visits, export, sources of raws, limits, and problems to check. With
    --relay: nodes, detectors that wait or that no node serves, and the ledger.

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
    if isinstance(report, StatusReport):
        _show(report, partial(tables.status_view, verbose=verbose), as_json)
    else:
        _show(report, relaytables.relay_status_view, as_json)
    if check and not report.healthy:
        raise click.exceptions.Exit(ExitCode.FAILED)


_file = click.option(
    "--config",
    "path",
    type=click.Path(path_type=Path),
    help=f"Configuration file of the node. Default: that of ppctl --config, or {DEFAULT_CONFIG}.",
)


def _given_config(path: Path | None) -> Path | None:
    """Return the configuration file of a command, or of ``ppctl``, or the default one if it exists."""
    given: Path | None = path or click.get_current_context().find_root().params["config"]
    return given or (DEFAULT_CONFIG if is_there(DEFAULT_CONFIG) else None)


@_ppctl.command()
@_file
@_daemon_command
def check(daemon: Daemon, path: Path | None, as_json: bool) -> None:
    """Check this host and a node's configuration before the night.

    Versions, clock, configuration, pipelines, central repo, disks, raw roots,
    limits, keys, relay, inputs for tonight, and the running daemon. Changes
    nothing. Run it as the daemon's user, whose rights count.

    Exit code: 0 without errors (there may be warnings), 1 with errors, 78 if the
    configuration has errors.
    """
    from ppdaemon.ctl import check as checking  # imports what the other commands do not need

    given = _given_config(path)
    if path is not None:
        with contextlib.suppress(ConfigError):  # the check reports it
            daemon = node_of(None, path)
    report = checking.run_checks(given or DEFAULT_CONFIG, daemon)
    _show(report, checking.check_view, as_json)
    if code := checking.exit_code_of(report.findings):
        raise click.exceptions.Exit(code)


_positive = click.FloatRange(min=0, min_open=True)


@_ppctl.command()
@_file
@click.option("--camera", metavar="NAME", help="The instrument, if the node has several.")
@click.option("--detectors", type=click.IntRange(min=1), help="Detectors of a visit on this node.")
@click.option("--cadence", "cadence_s", type=_positive, help="Seconds between two visits.")
@click.option("--visit-s", type=_positive, help="Seconds that a visit-detector has a worker.")
@click.option("--run-s", type=_positive, help="Seconds of it without the wait for the raw.")
@click.option("--memory-gb", type=_positive, help="Memory of a worker, 10^9 bytes.")
@click.option("--ramdisk-gb", type=_positive, help="RAM disk of a worker, 10^9 bytes.")
@click.option("--cores", type=click.IntRange(min=1), help="Cores of the host.")
@click.option("--host-gb", type=_positive, help="Memory of the host, 10^9 bytes.")
@_daemon_command
def size(daemon: Daemon, path: Path | None, camera: str | None, as_json: bool, **given: float | None) -> None:
    """Calculate how many workers, cores, and how much memory a node needs.

    From the times in the node's journal, the limits in its configuration, and the
    host on which this runs; each option replaces one of these numbers. Shows the
    source of each number, the formulas, and the resource that decides.

    Exit code: 0 if this host and workers.max are enough, 1 if not.
    """
    from ppdaemon.ctl import size as sizing
    from ppdaemon.ctl import sizefigures

    file = _given_config(path)
    if path is not None:
        daemon = node_of(None, path)
    figures = sizefigures.of_host(file, camera)
    figures |= sizefigures.of_journal(daemon, camera) | sizing.Figures.of("option", **given)
    if missing := [name for name in sizing.NEEDED if name not in figures.values]:
        options = ", ".join(sizefigures.OPTIONS[name] for name in missing)
        text = f"give these options; the journal is used if {sizing.FEWEST} of its visit-detectors succeeded"
        if file is None:
            text = f"there is no {DEFAULT_CONFIG}: name the configuration with --config, or {text}"
        raise click.UsageError(f"not known: {options}; {text}")
    report = sizing.size_of(figures)
    _show(report, sizing.size_view, as_json)
    if not report.enough:
        raise click.exceptions.Exit(ExitCode.FAILED)


_limit = click.option(
    "--limit", type=click.IntRange(1, 10_000), default=100, show_default=True, help="Maximum number of lines."
)


def _note_journal(daemon: Daemon) -> None:
    """Print that an answer is not that of a daemon."""
    if daemon.from_journal:
        click.echo("ppctl: the daemon does not run; this is read from its journal", err=True)


def _show_rows[T: Model](
    daemon: Daemon, rows: Sequence[T], view: Callable[[Sequence[T]], RenderableType], as_json: bool
) -> None:
    """Print what a daemon has answered, or its journal."""
    _note_journal(daemon)
    _show(rows, view, as_json)


def _show_relay[T: Model](
    relay: RelayDaemon, rows: Sequence[T], view: Callable[[Sequence[T]], RenderableType], as_json: bool
) -> None:
    """Print what a relay has answered, or its ledger."""
    if relay.from_ledger:
        click.echo("ppctl: the relay does not run; this is read from its ledger", err=True)
    _show(rows, view, as_json)


@_ppctl.command()
@click.option(
    "--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="Maximum number of visits."
)
@selecting
@_common_command
def visits(daemon: Daemon | RelayDaemon, limit: int, selected: dict[str, Any], as_json: bool) -> None:
    """List visits, the newest first.

    One line each, with a letter for each detector of this node: "ppctl visit" shows
    one of them. Also while the daemon does not run, from its journal. With --relay:
    at most 1000.
    """
    if isinstance(daemon, RelayDaemon):
        if selected:
            raise click.UsageError("with --relay, only --limit selects visits")
        _show_relay(daemon, daemon.visits(limit), relaytables.relay_visits_table, as_json)
    else:
        _show_rows(daemon, daemon.summaries(limit, **selected), tables.summaries_view, as_json)


@_ppctl.command()
@_common_command
def hosts(daemon: Daemon | RelayDaemon, as_json: bool) -> None:
    """List all nodes of the relay on this host, with their worst problems.

    What each of them has and offers to have, when it sent its last message, whether
    it is full, draining or spare, its version, and the state that it reports of
    itself. --relay is needed only with --socket or --config.
    """
    options = click.get_current_context().find_root().params
    if isinstance(daemon, Daemon):
        if options["socket_path"] or options["config"]:
            raise click.UsageError("ppctl hosts asks a relay: add --relay to its --socket or --config")
        daemon = _relay(None, None)
    _show(daemon.nodes(), relaytables.hosts_view, as_json)


_FORMATS = ("table", "json", "csv", "pipetask", "bps")


@_ppctl.command()
@_limit
@selecting
@click.option(
    "--format",
    "form",
    type=click.Choice(_FORMATS),
    default="table",
    show_default=True,
    help="json and csv for programs, pipetask for commands, bps for submit files.",
)
@_file
@click.option(
    "--folder", type=click.Path(path_type=Path), help="For bps: where to write; see ppctl catchup run."
)
@_daemon_command
def failed(
    daemon: Daemon,
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
    if form in ("pipetask", "bps"):
        _print_catchup(_node_config(path), form, folder, limit, selected)
        return
    rows = daemon.visits(limit, failed=True, **selected)
    if form == "csv":
        from ppdaemon.ctl import catchupfiles

        _note_journal(daemon)
        click.echo(catchupfiles.failed_csv(rows), nl=False)
        return
    _show_rows(daemon, rows, partial(_failed_view, daemon), as_json or form == "json")


def _node_config(path: Path | None) -> "NodeConfig":
    """Read the configuration of a node that processes images."""
    from ppdaemon.config import load_node

    given = _given_config(path) or DEFAULT_CONFIG
    config = load_node(given, os.environ, writing=False)
    if config.butler is None:
        raise ConfigError([f"{given}: butler: missing key, it names the central repo"])
    return config


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


def _failed_view(daemon: Daemon, rows: Sequence[VisitRow]) -> RenderableType:
    refused = () if daemon.from_journal else daemon.status().refused_raws
    return Group(tables.failures_table(rows), tables.refused_table(refused))


def _read_night(context: click.Context, _: click.Parameter, value: str | None) -> int | None:
    try:
        return None if value is None else parse_night(value)
    except ValueError as error:
        raise click.BadParameter(str(error), context) from None


@_ppctl.command()
@click.argument("day_obs", required=False, callback=_read_night)
@click.option(
    "--journal",
    type=click.Path(path_type=Path),
    help="Read this journal, such as a copy from another host, instead of that of the daemon.",
)
@click.option("--html", type=click.Path(path_type=Path), help="Write a page with charts to this file.")
@_daemon_command
def night(
    daemon: Daemon, day_obs: int | None, journal: Path | None, html: Path | None, as_json: bool
) -> None:
    """Report a night: outcomes, latencies, slowest detectors, reasons, exports.

    DAY_OBS is the night, such as 20261122; without it, that of the newest visit.
    The last attempt at each visit-detector counts. Reads the journal itself, beside
    the daemon or without it. The page of --html needs no other file and no network.
    """
    from ppdaemon.night.page import write_page  # numpy, which the other commands do not need
    from ppdaemon.night.reading import read_night
    from ppdaemon.night.tables import night_view

    path = journal or daemon.journal_path()
    report = read_night(path, day_obs, Clock())
    if html is not None:
        write_page(html, report, f"{path.name} on {socket.gethostname()}, version {__version__}")
    if as_json or html is None:
        _show(report, night_view, as_json)


@_ppctl.command()
@_limit
@selecting
@_daemon_command
def late(daemon: Daemon, limit: int, selected: dict[str, Any], as_json: bool) -> None:
    """List raws that arrived after the end of their visit.

    A raw that another attempt has used is no longer listed. Use "ppctl requeue"
    to process such visits again.
    """
    _show_rows(daemon, daemon.late(limit, **selected), tables.late_table, as_json)


def _read_detectors(context: click.Context, _: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    try:
        return None if value is None else parse_detector_list(value)
    except ValueError as error:
        raise click.BadParameter(str(error), context) from None


@_ppctl.command()
@click.argument("group")
@click.argument("detectors", required=False, callback=_read_detectors)
@click.option(
    "--force",
    is_flag=True,
    help="Process detectors even if alerts may be written twice or another node may process them.",
)
@_daemon_command
def requeue(
    daemon: Daemon, group: str, detectors: tuple[int, ...] | None, force: bool, as_json: bool
) -> None:
    """Process detectors of a visit again that have ended.

    GROUP may be the beginning of only one group, or "latest". DETECTORS is a list
    such as 0-8,12; without it, all detectors that did not succeed are processed
    again, with the raws that have arrived by now.

    Detectors that succeeded, are being processed, or have outputs that wait for
    export are refused. Without --force, detectors are also refused if something
    permanent may have been written. Exit code 1: one of DETECTORS was refused,
    or there is no detector to process.
    """
    daemon.status()  # fails within 5 s if the daemon hangs; a requeue may take longer
    rows = daemon.requeue(find_visit(daemon, group)[0].group, detectors, force=force)
    _show(rows, tables.requeue_table, as_json)
    refused = [row for row in rows if row.attempt is None]
    if refused and (detectors is not None or len(refused) == len(rows)):
        raise click.exceptions.Exit(ExitCode.FAILED)


_ppctl.add_command(requeue, "retry")


@_ppctl.group("catchup")
def _catchup() -> None:
    """Process by day, in the central repo, what failed in a night.

    Of what "ppctl failed" lists, all but what is done, is under way, or has passed the
    point of no return. Outputs are in the run .../PIPELINE/catchup of the day's chain.
    """


def _catchup_command(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that all commands of the catch-up have; the command gets what they select."""

    @click.option(
        "--limit",
        type=click.IntRange(1, 10_000),
        default=10_000,
        show_default=True,
        help="Maximum number of visit-detectors, the newest ones.",
    )
    @selecting
    @_file
    @click.option(
        "--folder",
        type=click.Path(path_type=Path),
        help="For files and logs. Default: catchup/DAY_OBS, or catchup/all, in the state directory.",
    )
    @click.option("--pipeline", metavar="FILE", help="Use this pipeline instead of the configured ones.")
    @click.option("--force", is_flag=True, help="Also what may have written alerts, or is done.")
    @_daemon_command
    @functools.wraps(command)
    def run(
        daemon: Daemon,
        limit: int,
        selected: dict[str, Any],
        path: Path | None,
        folder: Path | None,
        pipeline: str | None,
        force: bool,
        as_json: bool,
        **options: Any,
    ) -> None:
        from ppdaemon.catchup import CatchupReport
        from ppdaemon.ctl import catchup

        config = _node_config(path)
        if path is not None:
            daemon = node_of(None, path)
        found = catchup.failed_of(config, limit, selected)
        items, others = catchup.items_of(config, found, force=force, pipeline=pipeline)
        where = (folder or catchup.folder_of(config, selected)).absolute()
        rows = command(catchup.Catchup(daemon, config, where, force=force), items, **options)
        report = CatchupReport(rows=(*rows, *others))
        _show(report, catchup.catchup_view, as_json)
        if any(row.state not in ("done", "prepared") for row in report.rows):
            raise click.exceptions.Exit(ExitCode.FAILED)

    return run


@_catchup.command("prepare")
@_catchup_command
def prepare_catchup(work: "Catchup", items: "Sequence[CatchupItem]") -> "list[CatchupRow]":
    """Bring raws, exposures and visits of what failed into the central repo.

    Raws are searched in the central repo and below arrivals.roots. What is there is
    neither changed nor copied again. Also makes the collections of the catch-up.

    Exit code 1: some visit-detectors have no raw, or are refused.
    """
    return work.prepare(items)


@_catchup.command("check")
@_catchup_command
def check_catchup(work: "Catchup", items: "Sequence[CatchupItem]") -> "list[CatchupRow]":
    """Ask the central repo what a catch-up has made, and note in the journal what is done.

    For work that was submitted by hand, or at a site whose "bps submit" does not wait.

    Exit code 1: some visit-detectors are not done.
    """
    return work.check(items)


@_catchup.command("run")
@click.option(
    "--with",
    "kind",
    type=click.Choice(["bps", "pipetask"]),
    default="bps",
    show_default=True,
    help="bps submit, with Parsl on this host or at --site; or one pipetask run.",
)
@click.option(
    "--cores",
    type=click.IntRange(min=1),
    default=os.cpu_count() or 1,
    show_default="all",
    help="Processes at once.",
)
@click.option(
    "--site",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Settings of another site for bps, such as etc/bps/slurm.yaml.",
)
@_catchup_command
def run_catchup(
    work: "Catchup", items: "Sequence[CatchupItem]", kind: Literal["bps", "pipetask"], **options: Any
) -> "list[CatchupRow]":
    """Prepare, process and check what failed; end all that was started after TERM or Ctrl-C.

    The daemon does not retry meanwhile what the catch-up has, and later not what it
    has done. Call it again to continue: what has succeeded is not repeated.

    Exit code 1: some visit-detectors are not done; the last column has the reason.
    """
    return work.run(items, kind, **options)


@_ppctl.command()
@click.argument("group")
@_common_command
def visit(daemon: Daemon | RelayDaemon, group: str, as_json: bool) -> None:
    """Show the details of one visit: stages, slots, reasons.

    GROUP is the group of the visit, the beginning of only one, or "latest".
    With --relay: the node and the outcome of each detector, also while the relay
    does not run.
    """
    if isinstance(daemon, RelayDaemon):
        _show_relay(daemon, daemon.visit(group), relaytables.relay_visit_view, as_json)
    else:
        rows = find_visit(daemon, group)
        _show_rows(daemon, rows, tables.visit_view, as_json)
        if not as_json:
            from ppdaemon.ctl import log

            folder = log.logs_folder(daemon)
            click.echo(f"log: ppctl log {rows[0].group} [DETECTOR], from {folder}/worker-SLOT.log")


@_ppctl.command("log")
@click.argument("group")
@click.argument("detectors", required=False, callback=_read_detectors)
@_as_json
@_daemon
def log_command(daemon: Daemon, group: str, detectors: tuple[int, ...] | None, as_json: bool) -> None:
    """Show what was logged for one visit, or for some of its detectors.

    GROUP may be the beginning of only one group, or "latest"; DETECTORS is a list
    such as 0-8,12. Reads the logs of the workers on this host, which are named by
    "ppctl visit", and the log of the daemon if systemd has it. Times are UTC.
    """
    rows = [row for row in find_visit(daemon, group) if detectors is None or row.detector in detectors]
    if not rows:
        raise NotFound(f"the visit has none of these detectors: {ranges(detectors or ())}")
    _note_journal(daemon)
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


@_ppctl.command()
@_daemon_command
def workers(daemon: Daemon, as_json: bool) -> None:
    """List the slots and their workers."""
    _show(daemon.workers(), tables.workers_table, as_json)


@_ppctl.command()
@_daemon
def top(daemon: Daemon) -> None:
    """Show the state of the daemon continuously, until Ctrl-C."""
    from ppdaemon.ctl.top import follow

    with contextlib.suppress(KeyboardInterrupt):
        follow(daemon, terminal_console())


def _send_request(
    daemon: ControlClient, request: Model, done: str, as_json: bool, *, timeout_s: float | None = None
) -> None:
    data = daemon.ask(request, timeout_s=timeout_s)
    if as_json:
        click.echo(pydantic.TypeAdapter[Any](Any).dump_json({"type": "ok", "data": data}).decode())
    else:
        # The answer to a reload has a line for each warning.
        lines = map(plain, data.splitlines()) if isinstance(data, str) else [done]
        click.echo("\n".join(lines))


def _node_of_relay(daemon: Daemon | RelayDaemon, node: str | None) -> str | None:
    """Check that a node is named for a relay, and only for a relay."""
    if isinstance(daemon, RelayDaemon) and node is None:
        raise click.UsageError("name the node: ppctl --relay drain NODE, or resume NODE")
    if isinstance(daemon, Daemon) and node is not None:
        raise click.UsageError("NODE needs --relay")
    return node


@_ppctl.command()
@click.argument("node", required=False)
@_common_command
def drain(daemon: Daemon | RelayDaemon, node: str | None, as_json: bool) -> None:
    """Accept no more visits; the running ones are finished.

    Also after a restart of the daemon, until "ppctl resume".
    With --relay: NODE gets nothing new from the relay until it is resumed, also
    after a restart of the relay or of the node.
    """
    if (name := _node_of_relay(daemon, node)) is not None:
        _send_request(daemon, DrainNodeRequest(node=name), f"{name} gets nothing new", as_json)
    else:
        _send_request(daemon, DrainRequest(), "draining", as_json)


@_ppctl.command()
@click.argument("node", required=False)
@_common_command
def resume(daemon: Daemon | RelayDaemon, node: str | None, as_json: bool) -> None:
    """Accept visits again, after drain.

    With --relay: NODE gets visits again.
    """
    if (name := _node_of_relay(daemon, node)) is not None:
        _send_request(daemon, ResumeNodeRequest(node=name), f"{name} gets visits", as_json)
    else:
        _send_request(daemon, ResumeRequest(), "taking visits", as_json)


@_ppctl.command()
@_common_command
def reload(daemon: Daemon | RelayDaemon, as_json: bool) -> None:
    """Read the configuration file again and use it for new workers.

    Returns when new workers can start. Running visits are finished with the old
    configuration. If the file has an error, the old configuration stays in use.
    With --relay: it counts for visits that are accepted or sent from then on.
    """
    daemon.status()  # fails within 5 s if the daemon hangs; a reload may take longer
    _send_request(daemon, ReloadRequest(), "reloaded", as_json, timeout_s=RELOAD_S)


@_ppctl.command()
@click.argument("action", type=click.Choice(["now", "init"]))
@_daemon_command
def export(daemon: Daemon, action: Literal["now", "init"], as_json: bool) -> None:
    """Export the pending outputs now, or allow exports to a datastore.

    "now": try again without the pause after a failure, for example when the
    database of the central repo is back.

    "init": mark the datastore of the central repo as its own. Needed once for a
    repo that has datasets already. Check before that the datastore's filesystem
    is mounted: where the mark is, outputs are written. Refused if none of the
    repo's files is there.
    """
    daemon.status()  # fails within 5 s if the daemon hangs; the database may take longer
    request = ExportRequest(action=action)
    timeout_s = EXPORT_INIT_S if action == "init" else None
    _send_request(daemon, request, "exporting", as_json, timeout_s=timeout_s)


@_ppctl.command()
@click.argument("slot", type=click.IntRange(min=0))
@click.option("--now", is_flag=True, help="Interrupt the visit-detector that the slot has.")
@_daemon_command
def restart(daemon: Daemon, slot: int, now: bool, as_json: bool) -> None:
    """Replace the worker of a slot; also ends a quarantine.

    If the slot has a visit-detector, its worker is replaced after it. With --now
    it is interrupted, and tried again once if nothing permanent was written.
    """
    _send_request(daemon, RestartRequest(slot=slot, now=now), f"slot {slot} restarts", as_json)


@_ppctl.command()
@click.argument("slot", type=click.IntRange(min=0))
@_daemon_command
def kill(daemon: Daemon, slot: int, as_json: bool) -> None:
    """Kill the worker of a slot at once, without waiting."""
    _send_request(daemon, KillRequest(slot=slot), f"slot {slot} is killed", as_json)


@_ppctl.command()
@click.argument("groups", metavar="GROUP...", nargs=-1)
@click.option(
    "--limit", type=click.IntRange(1, 1000), default=5, show_default=True, help="Visits without GROUP."
)
@selecting
@click.option("--png", type=click.Path(path_type=Path), help="Write the chart to this PNG file.")
@_daemon_command
def timeline(
    daemon: Daemon,
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
    rows = _rows_of_visits(daemon, groups, limit, selected)
    _note_journal(daemon)
    if png:
        from ppdaemon.ctl.plots import timeline_png

        timeline_png(rows, png)
        click.echo(f"wrote {png}", err=as_json)
    if as_json:
        _show(rows, tables.visits_table, as_json=True)
    elif not png:
        console = terminal_console()
        for each in build_timelines(rows):
            show(tables.timeline_view(each, min(console.width, 160)))


def _rows_of_visits(
    daemon: Daemon, groups: Sequence[str], limit: int, selected: dict[str, Any]
) -> list[VisitRow]:
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


@_ppctl.command()
@click.argument("name")
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=KEY_FOLDER,
    show_default=True,
    help="Folder for the two files; created if it does not exist.",
)
def keygen(name: str, folder: Path) -> None:
    """Make the keys of one program for encrypted connections.

    NAME is node.name of a node, or any other name of a relay, a publisher or a
    client. Writes NAME.key_secret, which stays on this host and must belong to the
    user of the program, and NAME.key, which is copied to the other end. Existing
    files are not overwritten.
    """
    from ppdaemon.curve import new_key_pair  # with asyncio and ZeroMQ
    from ppdaemon.keyfiles import write_key_pair
    from ppdaemon.privatefiles import check_path

    if not re.fullmatch(r"\w[\w.-]*", name):
        text = "use letters, digits, dots, hyphens and underscores only, and a letter or digit first"
        raise click.UsageError(f"{name!r}: {text}")
    try:
        if not folder.exists():
            folder.mkdir(0o700, parents=True)
        check_path(folder.resolve() / name)
        secret, public = write_key_pair(folder.resolve(), name, new_key_pair())
    except OSError as error:
        raise StateUnusable(f"{error.filename}: {error.strerror}; nothing was overwritten") from None
    click.echo(KEYGEN_TEXT.format(name=name, secret=secret, public=public))


_other_program = _ppctl.command(
    context_settings={"ignore_unknown_options": True, "help_option_names": []}, add_help_option=False
)


@_other_program
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def simulate(args: tuple[str, ...]) -> None:
    """Write raws as a camera would (ppctl simulate --help)."""
    os.execv(sys.executable, [sys.executable, "-m", "ppdaemon.demo.simulate", *args])


@_other_program
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def demo(args: tuple[str, ...]) -> None:
    """Run the system with a simulated camera (ppctl demo --help)."""
    os.execv(sys.executable, [sys.executable, "-m", "ppdaemon.demo", *args])


def _run(arguments: Sequence[str] | None) -> int:
    """Run one command; return its exit code."""
    try:
        result = _ppctl.main(arguments, prog_name="ppctl", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return ExitCode.USAGE
    except (click.Abort, KeyboardInterrupt):
        return 130  # a shell's exit code for SIGINT
    except pydantic.ValidationError as error:  # an argument that no request may have
        click.echo(f"ppctl: {plain(explain(error))}", err=True)
        return ExitCode.USAGE
    except PPDaemonError as error:
        click.echo("\n".join(f"ppctl: {plain(line)}" for line in str(error).splitlines()), err=True)
        return error.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the flush at exit would raise the error again
        return ExitCode.OK
    except OSError as error:  # such as a full disk behind a redirected output
        click.echo(f"ppctl: {plain(error)}", err=True)
        return ExitCode.OS
    except Exception as error:  # operators get one line, not a traceback
        click.echo(f"ppctl: internal error: {type(error).__name__}: {plain(error)}", err=True)
        return ExitCode.SOFTWARE
    return result if isinstance(result, int) else ExitCode.OK


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``ppctl`` and exit; without arguments, those of the process."""
    sys.exit(_run(arguments))
