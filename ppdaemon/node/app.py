# SPDX-License-Identifier: BSD-3-Clause
"""The program ``ppdaemon``."""

import asyncio
import datetime
import logging
import math
import os
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import NoReturn

import click

from ppdaemon import __version__, log
from ppdaemon.clock import TAI_MINUS_UTC_S, Clock
from ppdaemon.commandline import reporting_end, run_command
from ppdaemon.config import load_node
from ppdaemon.configfile import ConfigFile
from ppdaemon.environment import CHILD_ENVIRONMENT
from ppdaemon.errors import ConfigError
from ppdaemon.garbage import collect_seldom
from ppdaemon.node.processes.child import Lifeline
from ppdaemon.node.processes.names import Resolution, resolve
from ppdaemon.node.supervisor import Supervisor
from ppdaemon.notify import Notifier
from ppdaemon.plan.models import PlanOrder, requested_detectors
from ppdaemon.processes import set_title
from ppdaemon.states import ExitCode
from ppdaemon.terminal import plain
from ppdaemon.visitfile import read_visit

__all__ = ("main",)

_LOG = logging.getLogger(__name__)

SWITCH_INTERVAL_S = 0.0005
"""How long a thread waits at most after each system call while the event loop computes: threads that check
files make some 20 for each. With the usual 5 ms, 50 files take 16 to 47 ms beside a busy loop, so 3 ms."""
SECONDS_DIGITS = 10
"""Of an instant as seconds since 1970, from 2001 to 2286."""

_CONFIG = click.option(
    "--config",
    required=True,
    type=click.Path(path_type=Path),
    help="Configuration file of the node (YAML).",
)
_ALLOW_FALLBACK = click.option(
    "--allow-fallback",
    is_flag=True,
    help="Exit with 0 although the first pipeline of a rule is dropped for every detector.",
)


def _for_children(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without the variables for this process only."""
    own = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID")
    return {name: value for name, value in environment.items() if name not in own}


def _instant(context: click.Context, parameter: click.Parameter, value: str | None) -> float:
    """Return the monotonic time of an instant, infinite if there is none."""
    if value is None:
        return math.inf
    try:
        if value.isdecimal():
            # A date without separators would be seconds of 1970, with a time of day those of the year 8000.
            if len(value) != SECONDS_DIGITS:
                raise ValueError
            instant = float(value)
        elif _is_date(value):
            raise click.BadParameter(f"{value} has no time of day; write for instance {value}T05:40:00")
        else:
            instant = datetime.datetime.fromisoformat(value).timestamp()
    except ValueError:
        text = f"{value} is no time; write for instance 2026-11-30T05:40:00, or seconds since 1970"
        raise click.BadParameter(f"{text} ({SECONDS_DIGITS} digits)") from None
    clock = Clock()
    return clock.mono() + instant + TAI_MINUS_UTC_S - clock.tai()


def _is_date(value: str) -> bool:
    try:
        datetime.date.fromisoformat(value)
    except ValueError:
        return False
    return True


async def _run(file: ConfigFile, environment: Mapping[str, str], notifier: Notifier, ends_at: float) -> None:
    watchdog_us = environment.get("WATCHDOG_USEC")
    supervisor = Supervisor(
        file,
        partial(ConfigFile.read, file.path, environment),
        _for_children(environment),
        Clock(),
        notifier,
        int(watchdog_us) / 1e6 if watchdog_us else None,
        ends_at,
    )
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, supervisor.stop)
    loop.add_signal_handler(signal.SIGHUP, supervisor.reload)
    await supervisor.run()


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """Prompt processing on one node: runs workers, each with one detector of one visit."""


@cli.command()
@_CONFIG
@click.option(
    "--until",
    "ends_at",
    metavar="TIME",
    callback=_instant,
    help="When this host is given back, such as at the end of a job: visits that could end later are not"
    " taken. As 2026-11-30T05:40:00, in local time or with a zone, or in seconds since 1970.",
)
def run(config: Path, ends_at: float) -> None:
    """Run the daemon until SIGTERM. A second SIGTERM ends it at once.

    SIGHUP reads the configuration file again. If the file has an error, the old
    configuration stays in use.
    """
    with reporting_end(os.environ) as notifier:
        file = ConfigFile.read(config, os.environ)
        settings = file.config
        log.set_up(settings.log.level, settings.log.format, settings.log.levels, node=settings.node.name)
        for remark in file.remarks():
            _LOG.warning("%s", remark)
        collect_seldom()
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        set_title(f"ppdaemon supervisor {settings.node.name}")
        asyncio.run(_run(file, os.environ, notifier, ends_at))


@cli.command("check-config")
@_CONFIG
@_ALLOW_FALLBACK
def check_config(config: Path, allow_fallback: bool) -> None:
    """Check a configuration file and list all errors.

    Also resolves the names in it, in the environment of a worker: of tasks, dataset
    types, modules, classes and databases; in the central repo, if it is available,
    those of collections, sky map, instruments, detectors and filters. Lists the
    rules whose first pipeline no visit can get, because the repo lacks an input for
    every detector. What cannot be resolved now is a warning.

    Exit code: 0 if the file is valid; 1 if there is such a rule (0 with
    --allow-fallback); 78 if the configuration has errors.
    """
    file = ConfigFile.read(config, os.environ)
    # The process that resolves names is logged about in the daemon only.
    logging.getLogger().addHandler(logging.NullHandler())
    resolution = asyncio.run(_resolve_once(file))
    warnings = (*file.remarks(), *resolution.warnings, *resolution.unavailable)
    if allow_fallback:
        warnings += resolution.fallbacks
    for text in warnings:
        click.echo(f"ppdaemon: warning: {plain(text)}", err=True)
    if resolution.errors:
        raise ConfigError([plain(text) for text in (*resolution.errors, *resolution.fallbacks)])
    for text in () if allow_fallback else resolution.fallbacks:
        click.echo(f"ppdaemon: {plain(text)}", err=True)
    click.echo(f"{config}: valid, node {file.config.node.name}")
    if resolution.fallbacks and not allow_fallback:
        sys.exit(ExitCode.FAILED)


async def _resolve_once(file: ConfigFile) -> Resolution:
    lifeline = Lifeline()
    with tempfile.TemporaryDirectory(prefix="ppdaemon-check-") as folder, closing(lifeline):
        return await resolve(file, lifeline, _for_children(os.environ), Path(folder, "log"))


@cli.command()
@_CONFIG
@click.option(
    "--visit",
    required=True,
    type=click.Path(path_type=Path),
    help="File with a next_visit: JSON with SAL field names, as for send_visit. - reads standard input.",
)
@click.option(
    "--detector",
    "detectors",
    required=True,
    multiple=True,
    help="Detectors: a list such as 4 or 0-8,12, or all. The option can be repeated.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
@click.option(
    "--plot",
    metavar="PNG",
    type=click.Path(path_type=Path),
    help="Also write a PNG chart of the footprints and the inputs around them.",
)
@_ALLOW_FALLBACK
def plan(
    config: Path,
    visit: Path,
    detectors: Sequence[str],
    as_json: bool,
    plot: Path | None,
    allow_fallback: bool,
) -> None:
    """Show which pipelines and inputs a visit would use, without processing it.

    Reads the central repo like the preload of a worker. Changes nothing and does
    not affect a running daemon.

    Exit code: 0 if a pipeline would run for each detector; 1 if some detectors
    would be ignored or have no pipeline that can run, or if the first pipeline of
    a rule is dropped for all of them (0 with --allow-fallback); 65 if the visit is not
    valid; 69 if the central repo is not available; 73 if the PNG file cannot be
    written; 78 if the configuration has errors.
    """
    settings = load_node(config, os.environ, writing=False)
    if settings.butler is None:
        raise ConfigError([f"{config}: butler: missing key, it names the central repo"])
    announced = read_visit(visit)
    try:
        requested = requested_detectors(detectors, announced.instrument, settings.node.instruments)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--detector") from None
    order = PlanOrder(
        config_path=config, config=settings, visit=announced, now_tai=Clock().tai(), detectors=requested
    )
    options = ["--json"] * as_json + ["--allow-fallback"] * allow_fallback
    _exec_planner(order, options + ([f"--plot={plot}"] if plot else []))


def _exec_planner(order: PlanOrder, options: Sequence[str]) -> NoReturn:
    """Replace this process by one that may import pipelines."""
    descriptor = os.memfd_create("plan", 0)  # inherited: without MFD_CLOEXEC
    with open(descriptor, "wb", closefd=False) as file:
        file.write(order.model_dump_json(by_alias=True).encode())
    command = [sys.executable, "-m", "ppdaemon.plan", f"--order=/proc/self/fd/{descriptor}", *options]
    environment = {**os.environ, **order.config.workers.environment, **CHILD_ENVIRONMENT}
    os.execve(sys.executable, command, environment)


def main() -> None:
    """Run the program and exit with its code."""
    run_command(cli, "ppdaemon")


if __name__ == "__main__":
    main()
