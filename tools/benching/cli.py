# SPDX-License-Identifier: BSD-3-Clause
"""The command line of a bench: its common options, its output, its exit status."""

import json
import signal
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from benching.results import Goal, Scalar, missed, table
from ppdaemon.commandline import run_command

__all__ = ("options", "progress", "run", "print_results")

_FOLDER = click.Path(path_type=Path, file_okay=False, exists=True, writable=True)


def options[F: Callable[..., Any]](command: F) -> F:
    """Add the options that all benches have: ``as_json``, ``scratch``, ``ramdisk``."""
    for option in (
        click.option(
            "--ramdisk",
            default="/dev/shm",
            show_default=True,
            type=_FOLDER,
            help="Existing folder on a tmpfs.",
        ),
        click.option(
            "--scratch",
            default=tempfile.gettempdir,
            type=_FOLDER,
            help="Existing folder on a disk.  [default: the system's]",
        ),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object."),
    ):
        command = option(command)
    return command


def progress(line: str) -> None:
    """Print a line of progress to stderr."""
    click.echo(line, err=True)


def print_results(
    results: Mapping[str, Scalar],
    goals: Mapping[str, Goal],
    *,
    as_json: bool,
    groups: Mapping[str, object] | None = None,
) -> None:
    """Print results beside their goals, for people or as JSON.

    `groups` are the same results in the structure that the JSON output has;
    without it the JSON has `results` as they are.
    """
    if as_json:
        shown = results if groups is None else groups
        click.echo(json.dumps({**shown, "goals_missed": missed(results, goals)}))
    else:
        Console().print(table(results, goals))


def run(command: click.Command) -> None:
    """Run a command line and exit with the status of its error."""
    # As after Ctrl-C: the folders of the measurement are deleted.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    run_command(command, str(command.name))
