# SPDX-License-Identifier: BSD-3-Clause
"""The command line of a bench: its options, what it prints, how it ends."""

import json
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from benching.figures import Goal, Scalar, missed, table
from ppdaemon.errors import PPDaemonError
from ppdaemon.states import ExitCode

__all__ = ("options", "progress", "run", "tell")

_FOLDER = click.Path(path_type=Path, file_okay=False, exists=True, writable=True)


def options[F: Callable[..., Any]](command: F) -> F:
    """Give a command the options that all benches have.

    Parameters
    ----------
    command : `~collections.abc.Callable`
        Takes ``as_json``, ``scratch`` and ``ramdisk``.

    Returns
    -------
    command : `~collections.abc.Callable`
        The same.
    """
    for option in (
        click.option(
            "--ramdisk", default="/dev/shm", show_default=True, type=_FOLDER, help="A folder on a tmpfs."
        ),
        click.option(
            "--scratch",
            default=tempfile.gettempdir,
            type=_FOLDER,
            help="A folder on a disk.  [default: the system's]",
        ),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object."),
    ):
        command = option(command)
    return command


def progress(line: str) -> None:
    """Tell what is being done.

    Parameters
    ----------
    line : `str`
        For people.
    """
    click.echo(line, err=True)


def tell(
    figures: Mapping[str, Scalar],
    goals: Mapping[str, Goal],
    *,
    as_json: bool,
    groups: Mapping[str, object] | None = None,
) -> None:
    """Print figures beside their goals.

    Parameters
    ----------
    figures : `~collections.abc.Mapping`
        What was measured.
    goals : `~collections.abc.Mapping`
        What it should be.
    as_json : `bool`
        Whether a program reads it.
    groups : `~collections.abc.Mapping`, optional
        The same figures, in the order that JSON has; as they are, if it is
        not given.
    """
    if as_json:
        shown = figures if groups is None else groups
        click.echo(json.dumps({**shown, "goals_missed": missed(figures, goals)}))
    else:
        Console().print(table(figures, goals))


def run(command: click.Command) -> None:
    """Run a command line and exit.

    Parameters
    ----------
    command : `click.Command`
        A bench.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # folders are deleted then, too
    try:
        sys.exit(command.main(prog_name=command.name, standalone_mode=False))
    except click.ClickException as error:
        error.show()
        sys.exit(ExitCode.USAGE)
    except click.Abort:
        sys.exit(ExitCode.FAILED)
    except PPDaemonError as error:
        click.echo(f"{command.name}: {error}", err=True)
        sys.exit(error.exit_code)
