# SPDX-License-Identifier: BSD-3-Clause
"""Commands of ``ppctl`` that change something: orders to a daemon or a relay, the catch-up, keys, and
the programs of the demo.
"""

import functools
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from ppdaemon.ctl.options import (
    any_command,
    common_command,
    config_option,
    daemon_command,
    node_config,
    read_detectors,
    show_data,
)
from ppdaemon.ctl.selection import find_visit, selecting
from ppdaemon.ctl.target import node_of
from ppdaemon.errors import StateUnusable
from ppdaemon.states import ExitCode
from ppdaemon.terminal import plain

if TYPE_CHECKING:  # imported by the commands that need it: the help and the completion must come at once
    from ppdaemon.catchup import CatchupItem, CatchupRow
    from ppdaemon.ctl.catchup import Catchup
    from ppdaemon.ctl.client import BridgeDaemon, Daemon, RelayDaemon
    from ppdaemon.ctl.controlclient import ControlClient
    from ppdaemon.wire import Model

__all__ = (
    "catchup_group",
    "demo",
    "drain",
    "export",
    "keygen",
    "kill",
    "reload",
    "requeue",
    "restart",
    "resume",
    "simulate",
)

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


def _send_request(
    daemon: "ControlClient", request: "Model", done: str, as_json: bool, *, timeout_s: float | None = None
) -> None:
    data = daemon.ask(request, timeout_s=timeout_s)
    if as_json:
        _print_json(data)
    else:
        # The answer to a reload has a line for each warning.
        lines = map(plain, data.splitlines()) if isinstance(data, str) else [done]
        click.echo("\n".join(lines))


def _print_json(data: Any) -> None:
    """Print the answer to a request."""
    import pydantic

    click.echo(pydantic.TypeAdapter[Any](Any).dump_json({"type": "ok", "data": data}).decode())


def _node_of_relay(daemon: "Daemon | RelayDaemon", node: str | None) -> str | None:
    """Check that a node is named for a relay, and only for a relay."""
    from ppdaemon.ctl.client import Daemon, RelayDaemon

    if isinstance(daemon, RelayDaemon) and node is None:
        raise click.UsageError("name the node: ppctl --relay drain NODE, or resume NODE")
    if isinstance(daemon, Daemon) and node is not None:
        raise click.UsageError("NODE needs --relay")
    return node


@click.command()
@click.argument("node", required=False)
@common_command
def drain(daemon: "Daemon | RelayDaemon", node: str | None, as_json: bool) -> None:
    """Accept no more visits; the running ones are finished.

    Also after a restart of the daemon, until "ppctl resume".
    With --relay: NODE gets nothing new from the relay until it is resumed, also
    after a restart of the relay or of the node.
    """
    from ppdaemon.reports import DrainNodeRequest, DrainRequest

    if (name := _node_of_relay(daemon, node)) is not None:
        _send_request(daemon, DrainNodeRequest(node=name), f"{name} gets nothing new", as_json)
    else:
        _send_request(daemon, DrainRequest(), "draining", as_json)


@click.command()
@click.argument("node", required=False)
@common_command
def resume(daemon: "Daemon | RelayDaemon", node: str | None, as_json: bool) -> None:
    """Accept visits again, after drain.

    With --relay: NODE gets visits again.

    Exit code 1: the drain has ended, but something else keeps visits away, such
    as a full state disk. It is printed.
    """
    from ppdaemon.reports import Resumed, ResumeNodeRequest, ResumeRequest

    name = _node_of_relay(daemon, node)
    data = daemon.ask(ResumeRequest() if name is None else ResumeNodeRequest(node=name))
    resumed = Resumed.model_validate(data)
    if as_json:
        _print_json(data)
    elif resumed.closed:
        done = "the drain has ended; no visits are taken yet"
        click.echo("\n".join(f"{done}: {plain(text)}" for text in resumed.closed))
    else:
        click.echo("taking visits" if name is None else f"{name} gets visits")
        for text in resumed.problems:
            click.echo(f"not healthy: {plain(text)}")
    if resumed.closed:
        raise click.exceptions.Exit(ExitCode.FAILED)


@click.command()
@any_command
def reload(daemon: "Daemon | RelayDaemon | BridgeDaemon", as_json: bool) -> None:
    """Read the configuration file again and use it for new workers.

    Returns when new workers can start. Running visits are finished with the old
    configuration. If the file has an error, the old configuration stays in use.
    With --relay: it counts for visits that are accepted or sent from then on.
    With --bridge: also tokens, certificates and keys are read again.
    """
    from ppdaemon.reports import ReloadRequest

    daemon.status()  # fails within 5 s if the daemon hangs; a reload may take longer
    _send_request(daemon, ReloadRequest(), "reloaded", as_json, timeout_s=RELOAD_S)


@click.command()
@click.argument("action", type=click.Choice(["now", "init"]))
@daemon_command
def export(daemon: "Daemon", action: Literal["now", "init"], as_json: bool) -> None:
    """Export the pending outputs now, or allow exports to a datastore.

    "now": try again without the pause after a failure, for example when the
    database of the central repo is back.

    "init": mark the datastore of the central repo as its own. Needed once for a
    repo that has datasets already. Check before that the datastore's filesystem
    is mounted: where the mark is, outputs are written. Refused if none of the
    repo's files is there.
    """
    from ppdaemon.reports import ExportRequest

    daemon.status()  # fails within 5 s if the daemon hangs; the database may take longer
    request = ExportRequest(action=action)
    timeout_s = EXPORT_INIT_S if action == "init" else None
    _send_request(daemon, request, "exporting", as_json, timeout_s=timeout_s)


@click.command()
@click.argument("slot", type=click.IntRange(min=0))
@click.option("--now", is_flag=True, help="Interrupt the visit-detector that the slot has.")
@daemon_command
def restart(daemon: "Daemon", slot: int, now: bool, as_json: bool) -> None:
    """Replace the worker of a slot; also ends a quarantine.

    If the slot has a visit-detector, its worker is replaced after it. With --now
    it is interrupted, and tried again once if nothing permanent was written.
    """
    from ppdaemon.reports import RestartRequest

    _send_request(daemon, RestartRequest(slot=slot, now=now), f"slot {slot} restarts", as_json)


@click.command()
@click.argument("slot", type=click.IntRange(min=0))
@daemon_command
def kill(daemon: "Daemon", slot: int, as_json: bool) -> None:
    """Kill the worker of a slot at once, without waiting."""
    from ppdaemon.reports import KillRequest

    _send_request(daemon, KillRequest(slot=slot), f"slot {slot} is killed", as_json)


@click.command()
@click.argument("group")
@click.argument("detectors", required=False, callback=read_detectors)
@click.option(
    "--force",
    is_flag=True,
    help="Process detectors even if alerts may be written twice or another node may process them.",
)
@daemon_command
def requeue(
    daemon: "Daemon", group: str, detectors: tuple[int, ...] | None, force: bool, as_json: bool
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
    from ppdaemon.ctl import tables

    daemon.status()  # fails within 5 s if the daemon hangs; a requeue may take longer
    rows = daemon.requeue(find_visit(daemon, group)[0].group, detectors, force=force)
    show_data(rows, tables.requeue_table, as_json)
    refused = [row for row in rows if row.attempt is None]
    if refused and (detectors is not None or len(refused) == len(rows)):
        raise click.exceptions.Exit(ExitCode.FAILED)


@click.group("catchup")
def catchup_group() -> None:
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
    @config_option
    @click.option(
        "--folder",
        type=click.Path(path_type=Path),
        help="For files and logs. Default: catchup/DAY_OBS, or catchup/all, in the state directory.",
    )
    @click.option("--pipeline", metavar="FILE", help="Use this pipeline instead of the configured ones.")
    @click.option("--force", is_flag=True, help="Also what may have written alerts, or is done.")
    @daemon_command
    @functools.wraps(command)
    def run(
        daemon: "Daemon",
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

        config = node_config(path)
        if path is not None:
            daemon = node_of(None, path)
        found = catchup.failed_of(config, limit, selected)
        items, others = catchup.items_of(config, found, force=force, pipeline=pipeline)
        where = (folder or catchup.folder_of(config, selected)).absolute()
        rows = command(catchup.Catchup(daemon, config, where, force=force), items, **options)
        report = CatchupReport(rows=(*rows, *others))
        show_data(report, catchup.catchup_view, as_json)
        if any(row.state not in ("done", "prepared") for row in report.rows):
            raise click.exceptions.Exit(ExitCode.FAILED)

    return run


@catchup_group.command("prepare")
@_catchup_command
def prepare_catchup(work: "Catchup", items: "Sequence[CatchupItem]") -> "list[CatchupRow]":
    """Bring raws, exposures and visits of what failed into the central repo.

    Raws are searched in the central repo and below arrivals.roots. What is there is
    neither changed nor copied again. Also makes the collections of the catch-up.

    Exit code 1: some visit-detectors have no raw, or are refused.
    """
    return work.prepare(items)


@catchup_group.command("check")
@_catchup_command
def check_catchup(work: "Catchup", items: "Sequence[CatchupItem]") -> "list[CatchupRow]":
    """Ask the central repo what a catch-up has made, and note in the journal what is done.

    For work that was submitted by hand, or at a site whose "bps submit" does not wait.

    Exit code 1: some visit-detectors are not done.
    """
    return work.check(items)


@catchup_group.command("run")
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


@click.command()
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


def _other_program(function: Callable[..., None]) -> click.Command:
    """Make a command of which all arguments are those of another program."""
    settings = {"ignore_unknown_options": True, "help_option_names": []}
    return click.command(context_settings=settings, add_help_option=False)(
        click.argument("args", nargs=-1, type=click.UNPROCESSED)(function)
    )


@_other_program
def simulate(args: tuple[str, ...]) -> None:
    """Write raws as a camera would (ppctl simulate --help)."""
    os.execv(sys.executable, [sys.executable, "-m", "ppdaemon.demo.simulate", *args])


@_other_program
def demo(args: tuple[str, ...]) -> None:
    """Run the system with a simulated camera (ppctl demo --help)."""
    os.execv(sys.executable, [sys.executable, "-m", "ppdaemon.demo", *args])
