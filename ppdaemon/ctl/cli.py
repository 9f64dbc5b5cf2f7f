# SPDX-License-Identifier: BSD-3-Clause
"""The program ``ppctl``: asks a ppdaemon over its control socket.

Exit statuses are those of `ppdaemon.states.ExitCode`; ``ppctl status`` alone
follows LSB. Nothing a daemon does or says makes it show a traceback.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
import pydantic
from rich.console import Group, RenderableType

from ppdaemon import __version__
from ppdaemon.config import NodeConfig
from ppdaemon.configtypes import detector_set
from ppdaemon.ctl import tables
from ppdaemon.ctl.client import Daemon, NotRunning
from ppdaemon.ctl.plots import timeline_png
from ppdaemon.ctl.timeline import lay_out
from ppdaemon.ctl.top import follow
from ppdaemon.errors import PPDaemonError
from ppdaemon.reports import DrainRequest, KillRequest, ReloadRequest, RestartRequest, ResumeRequest, VisitRow
from ppdaemon.states import ExitCode
from ppdaemon.terminal import plain, terminal_console
from ppdaemon.wire import Model
from ppdaemon.yamlfile import load_model

__all__ = ("main",)

DEFAULT_SOCKET = Path("/run/ppdaemon/control.sock")
RELOAD_S = 300.0
"""Imports and a template take seconds; the daemon gives up before this."""

_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_daemon = click.make_pass_decorator(Daemon)


def _answers(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the daemon, and the option to print JSON."""
    return _as_json(_daemon(command))


def _show[T: Sequence[Model] | Model](data: T, view: Callable[[T], RenderableType], as_json: bool) -> None:
    """Print models as JSON, or a view of them."""
    if as_json:
        click.echo(pydantic.TypeAdapter[Any](Any).dump_json(data, indent=2).decode())
    else:
        terminal_console().print(view(data))


def _socket_of(config: Path) -> Path:
    """Return the control socket that a node's configuration names."""
    return load_model(config, NodeConfig, os.environ).node.control


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="ppctl")
@click.option(
    "--socket",
    "socket_path",
    type=click.Path(path_type=Path),
    help=f"The daemon's control socket; {DEFAULT_SOCKET} if not given.",
)
@click.option(
    "--config", type=click.Path(path_type=Path), help="The daemon's configuration, which names its socket."
)
@click.pass_context
def _ppctl(context: click.Context, socket_path: Path | None, config: Path | None) -> None:
    """Ask a ppdaemon how it is, and tell it what to do."""
    if socket_path and config:
        raise click.UsageError("give --socket or --config, not both")
    context.obj = Daemon(_socket_of(config) if config else socket_path or DEFAULT_SOCKET)


@_ppctl.command()
@_answers
def status(daemon: Daemon, as_json: bool) -> None:
    """Show the daemon in one screen.

    Exit status: 0 running, 3 not running, 4 unknown.
    """
    try:
        report = daemon.status()
    except PPDaemonError as error:
        click.echo(f"ppctl: {plain(error)}", err=True)
        not_running = isinstance(error, NotRunning)
        code = ExitCode.LSB_NOT_RUNNING if not_running else ExitCode.LSB_UNKNOWN
        raise click.exceptions.Exit(code) from None
    _show(report, tables.status_view, as_json)


_limit = click.option(
    "--limit", type=click.IntRange(1, 10_000), default=100, show_default=True, help="How many at the most."
)


@_ppctl.command()
@_limit
@_answers
def visits(daemon: Daemon, limit: int, as_json: bool) -> None:
    """List visit-detectors, the newest first."""
    _show(daemon.visits(limit), tables.visits_table, as_json)


@_ppctl.command()
@_limit
@_answers
def failed(daemon: Daemon, limit: int, as_json: bool) -> None:
    """List visit-detectors that daytime catch-up has to look at.

    Below them the last raws that were found and that no visit got; with
    --json these are in the status.
    """
    _show(daemon.visits(limit, failed=True), partial(_failed_view, daemon), as_json)


def _failed_view(daemon: Daemon, rows: Sequence[VisitRow]) -> RenderableType:
    return Group(tables.failures_table(rows), tables.refused_table(daemon.status().refused_raws))


@_ppctl.command()
@_limit
@_answers
def late(daemon: Daemon, limit: int, as_json: bool) -> None:
    """List raws that came after the outcome of their visit-detector.

    Those that another attempt has used are not listed any more.
    """
    _show(daemon.late(limit), tables.late_table, as_json)


def _read_detectors(context: click.Context, _: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    try:
        return None if value is None else detector_set(value)
    except ValueError as error:
        raise click.BadParameter(str(error), context) from None


@_ppctl.command()
@click.argument("group")
@click.argument("detectors", required=False, callback=_read_detectors)
@click.option(
    "--force", is_flag=True, help="Even if alerts or sources may then be there twice, or two nodes do it."
)
@_answers
def requeue(
    daemon: Daemon, group: str, detectors: tuple[int, ...] | None, force: bool, as_json: bool
) -> None:
    """Try detectors of a visit again that had their outcome.

    All that did not succeed, or DETECTORS such as 0-8,12. Whatever raws are
    there by now are used. Refused: what has succeeded, is under way, or whose
    outputs wait for export; without --force also what went past a point of no
    return. Exit status 1: one of DETECTORS was refused, or nothing is left.
    """
    daemon.status()  # a hung daemon is told from one that looks for raws
    rows = daemon.requeue(group, detectors, force=force)
    _show(rows, tables.requeue_table, as_json)
    refused = [row for row in rows if row.attempt is None]
    if refused and (detectors is not None or len(refused) == len(rows)):
        raise click.exceptions.Exit(ExitCode.FAILED)


@_ppctl.command()
@click.argument("group")
@_answers
def visit(daemon: Daemon, group: str, as_json: bool) -> None:
    """Show all about one visit: stages, slots, reasons."""
    _show(daemon.visit(group), tables.visit_view, as_json)


@_ppctl.command()
@_answers
def workers(daemon: Daemon, as_json: bool) -> None:
    """List the slots and who sits in them."""
    _show(daemon.workers(), tables.workers_table, as_json)


@_ppctl.command()
@_daemon
def top(daemon: Daemon) -> None:
    """Follow the daemon live; Ctrl-C ends."""
    with contextlib.suppress(KeyboardInterrupt):
        follow(daemon, terminal_console())


def _tell(
    daemon: Daemon, request: Model, done: str, as_json: bool, *, timeout_s: float | None = None
) -> None:
    data = daemon.ask(request, timeout_s=timeout_s)
    if as_json:
        click.echo(pydantic.TypeAdapter[Any](Any).dump_json({"type": "ok", "data": data}).decode())
    else:
        click.echo(plain(data) if isinstance(data, str) else done)


@_ppctl.command()
@_answers
def drain(daemon: Daemon, as_json: bool) -> None:
    """Take no more visits; end those that run."""
    _tell(daemon, DrainRequest(), "draining", as_json)


@_ppctl.command()
@_answers
def resume(daemon: Daemon, as_json: bool) -> None:
    """Take visits again."""
    _tell(daemon, ResumeRequest(), "taking visits", as_json)


@_ppctl.command()
@_answers
def reload(daemon: Daemon, as_json: bool) -> None:
    """Read the configuration again; one that cannot be used changes nothing.

    Waits until new workers can start. Running visits end as they began.
    """
    daemon.status()  # a hung daemon is told from a long reload
    _tell(daemon, ReloadRequest(), "reloaded", as_json, timeout_s=RELOAD_S)


@_ppctl.command()
@click.argument("slot", type=click.IntRange(min=0))
@_answers
def restart(daemon: Daemon, slot: int, as_json: bool) -> None:
    """Replace a slot's worker; a quarantined slot starts anew."""
    _tell(daemon, RestartRequest(slot=slot), f"slot {slot} restarts", as_json)


@_ppctl.command()
@click.argument("slot", type=click.IntRange(min=0))
@_answers
def kill(daemon: Daemon, slot: int, as_json: bool) -> None:
    """Kill a slot's worker now."""
    _tell(daemon, KillRequest(slot=slot), f"slot {slot} is killed", as_json)


@_ppctl.command()
@click.argument("groups", metavar="GROUP...", nargs=-1, required=True)
@click.option("--png", type=click.Path(path_type=Path), help="Draw a picture into this file.")
@_answers
def timeline(daemon: Daemon, groups: tuple[str, ...], png: Path | None, as_json: bool) -> None:
    """Show when each detector of a visit went through which stage."""
    rows = [row for group in dict.fromkeys(groups) for row in daemon.visit(group)]
    if png:
        timeline_png(rows, png)
        click.echo(f"wrote {png}", err=as_json)
    if as_json:
        _show(rows, tables.visits_table, as_json=True)
    elif not png:
        console = terminal_console()
        for each in lay_out(rows):
            console.print(tables.timeline_view(each, min(console.width, 160)))


@_ppctl.command(
    context_settings={"ignore_unknown_options": True, "help_option_names": []}, add_help_option=False
)
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def demo(args: tuple[str, ...]) -> None:
    """Run the whole system on a simulated camera: `ppctl demo --help`."""
    os.execv(sys.executable, [sys.executable, "-m", "ppdaemon.demo", *args])


def _run(arguments: Sequence[str] | None) -> int:
    """Run one command; return its exit status."""
    try:
        result = _ppctl.main(arguments, prog_name="ppctl", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return ExitCode.USAGE
    except (click.Abort, KeyboardInterrupt):
        return 130  # as a shell says of SIGINT
    except PPDaemonError as error:
        click.echo("\n".join(f"ppctl: {plain(line)}" for line in str(error).splitlines()), err=True)
        return error.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the flush at exit would complain again
        return ExitCode.OK
    except Exception as error:  # operators get one line, whatever went wrong
        click.echo(f"ppctl: internal error: {type(error).__name__}: {plain(error)}", err=True)
        return ExitCode.SOFTWARE
    return result if isinstance(result, int) else ExitCode.OK


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``ppctl`` and exit."""
    sys.exit(_run(arguments))
