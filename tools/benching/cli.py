# SPDX-License-Identifier: BSD-3-Clause
"""The command line of a bench: its common options, its output, its exit status."""

import functools
import json
import os
import signal
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from benching import floors
from benching.folders import FolderRoots
from benching.results import Goal, Results, Scalar, as_json, explain, flatten, missed, table
from ppdaemon.commandline import run_command
from ppdaemon.states import ExitCode
from ppdaemon.terminal import show

SETTINGS: Mapping[str, Any] = {"help_option_names": ["-h", "--help"], "show_default": True}
"""Of the command of each program."""
_FOLDER = click.Path(path_type=Path, file_okay=False, exists=True, writable=True)
_FOLDERS = (
    click.option("--ramdisk", default="/dev/shm", type=_FOLDER, help="Existing folder on a tmpfs."),
    click.option(
        "--scratch",
        default=tempfile.gettempdir,
        show_default="the system's",
        type=_FOLDER,
        help="Existing folder on a disk.",
    ),
)
_COMMON = (
    *_FOLDERS,
    click.option("--quick", is_flag=True, help="What make bench measures, for all options that are not set."),
    click.option("--check", is_flag=True, help="Exit with 1 if a goal is missed, and print which."),
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object."),
)


@dataclass(frozen=True, slots=True)
class Bench:
    """What the common options choose."""

    folders: FolderRoots
    as_json: bool = False
    check: bool = False
    load_at_start: float = field(default_factory=lambda: os.getloadavg()[0])
    starts: Sequence[floors.PythonStart] = field(default_factory=floors.python_starts)
    """Of Python, before the measurement."""

    def report(self, results: Results, goals: Mapping[str, Goal]) -> None:
        """Print results beside their goals, for people or as JSON; exit with 1 if they are checked and
        one is missed.
        """
        host: dict[str, Scalar] = {
            "cores": os.cpu_count(),
            "load_at_start": self.load_at_start,
            "load_at_end": os.getloadavg()[0],
            **floors.results([*self.starts, *floors.python_starts()]),
        }
        flat = flatten({"host": host, **results})
        if self.as_json:
            click.echo(json.dumps(as_json({"host": host, **results}, goals)))
        else:
            show(table(flat, goals))
        if self.check and (names := missed(flat, goals)):
            for name in names:
                click.echo(f"missed: {explain(name, flat[name], goals[name].beside_floor(flat))}", err=True)
            raise SystemExit(ExitCode.FAILED)


def folder_options[F: Callable[..., Any]](command: F) -> F:
    """Add the options ``scratch`` and ``ramdisk``."""
    return functools.reduce(lambda decorated, option: option(decorated), _FOLDERS, command)


def options[R](quick: Mapping[str, Any]) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Add the options that all benches have; the command gets them as a `Bench`, its first argument.

    `quick` has the values with ``--quick``, by name, of options that are not set.
    """

    def decorate(command: Callable[..., R]) -> Callable[..., R]:
        @functools.wraps(command)
        def with_bench(
            scratch: Path, ramdisk: Path, quick: bool, check: bool, as_json: bool, **chosen: Any
        ) -> R:
            if quick:
                source = click.get_current_context().get_parameter_source
                set_by_user = click.core.ParameterSource.COMMANDLINE
                chosen |= {name: value for name, value in small.items() if source(name) is not set_by_user}
            return command(Bench(FolderRoots(scratch, ramdisk), as_json, check), **chosen)

        for option in _COMMON:
            with_bench = option(with_bench)
        return with_bench

    small = dict(quick)
    return decorate


def progress(line: str) -> None:
    """Print a line of progress to stderr."""
    click.echo(line, err=True)


def run(command: click.Command) -> None:
    """Run a command line and exit with the status of its error."""
    # As after Ctrl-C: the folders of the measurement are deleted.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    run_command(command, str(command.name))
