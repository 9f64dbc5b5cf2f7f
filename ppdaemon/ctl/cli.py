# SPDX-License-Identifier: BSD-3-Clause
"""The program ``ppctl``: queries and controls a ppdaemon, a pprelay or a ppbridge over its control socket.

Exit codes are those of `ppdaemon.states.ExitCode`, except that ``ppctl status``
follows LSB. No answer of a daemon makes it print a traceback.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import cast

import click

from ppdaemon import __version__
from ppdaemon.commandline import ended_by_reader
from ppdaemon.ctl import actions, queries
from ppdaemon.ctl.target import (
    BRIDGE_RUN,
    DEFAULT_SOCKET,
    RELAY_RUN,
    RELAY_SOCKET_VARIABLE,
    SOCKET_VARIABLE,
    bridge_of,
    node_of,
    relay_of,
)
from ppdaemon.errors import PPDaemonError
from ppdaemon.states import ExitCode
from ppdaemon.terminal import plain

__all__ = ("main",)


class _Commands(click.Group):
    """Commands, of which some are imported when they are named: the others must start at once."""

    elsewhere: Mapping[str, str] = {
        "compare": "ppdaemon.ctl.offline:compare",
        "import-config": "ppdaemon.ctl.offline:import_config",
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


_COMMANDS = (
    queries.check,
    queries.failed,
    queries.hosts,
    queries.late,
    queries.log_command,
    queries.night,
    queries.size,
    queries.status,
    queries.timeline,
    queries.top,
    queries.visit,
    queries.visits,
    queries.workers,
    actions.catchup_group,
    actions.demo,
    actions.drain,
    actions.export,
    actions.keygen,
    actions.kill,
    actions.reload,
    actions.requeue,
    actions.restart,
    actions.resume,
    actions.simulate,
)


@click.group(
    cls=_Commands,
    commands=_COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="ppctl")
@click.option(
    "--socket",
    "socket_path",
    type=click.Path(path_type=Path),
    help=f"Control socket of the daemon. Default: {DEFAULT_SOCKET}, of a relay {RELAY_RUN},"
    f" of a bridge {BRIDGE_RUN}."
    f"  [env: {SOCKET_VARIABLE}, {RELAY_SOCKET_VARIABLE}]",
)
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="Configuration file of the daemon: use the socket in it.",
)
@click.option("--relay", is_flag=True, help="Use a relay (pprelay) instead of a node (ppdaemon).")
@click.option("--bridge", is_flag=True, help="Use a bridge of object stores (ppbridge) instead of a node.")
@click.pass_context
def _ppctl(
    context: click.Context, socket_path: Path | None, config: Path | None, relay: bool, bridge: bool
) -> None:
    """Show the state of a ppdaemon, or with --relay of a pprelay, and control it.

    A relay has status, visits, visit, hosts, drain, resume and reload; a bridge
    of object stores (--bridge) has status and reload.
    """
    if socket_path and config:
        raise click.UsageError("give --socket or --config, not both")
    if relay and bridge:
        raise click.UsageError("give --relay or --bridge, not both")
    # Called by a command when its own options are read: its help needs no client.
    context.obj = partial(bridge_of if bridge else relay_of if relay else node_of, socket_path, config)


_ppctl.add_command(actions.requeue, "retry")


def _run(arguments: Sequence[str] | None) -> int:
    """Run one command; return its exit code."""
    try:
        with ended_by_reader():
            result = _ppctl.main(arguments, prog_name="ppctl", standalone_mode=False)
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return ExitCode.USAGE
    except (click.Abort, KeyboardInterrupt):
        return 130  # a shell's exit code for SIGINT
    except PPDaemonError as error:
        click.echo("\n".join(f"ppctl: {plain(line)}" for line in str(error).splitlines()), err=True)
        return error.exit_code
    except OSError as error:  # such as a full disk behind a redirected output
        click.echo(f"ppctl: {plain(error)}", err=True)
        return ExitCode.OS
    except Exception as error:  # operators get one line, not a traceback
        return _unexpected(error)
    return result if isinstance(result, int) else ExitCode.OK


def _unexpected(error: Exception) -> int:
    """Print an error in one line; return its exit code."""
    import pydantic  # which the help and the completion do not need

    from ppdaemon.wire import explain

    if isinstance(error, pydantic.ValidationError):  # an argument that no request may have
        click.echo(f"ppctl: {plain(explain(error))}", err=True)
        return ExitCode.USAGE
    click.echo(f"ppctl: internal error: {type(error).__name__}: {plain(error)}", err=True)
    return ExitCode.SOFTWARE


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``ppctl`` and exit; without arguments, those of the process."""
    # Otherwise pydantic searches the metadata of all installed packages for plugins before its first model: a
    # tenth of the time of a command, and more where more is installed. A site's own value counts.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    sys.exit(_run(arguments))
