# SPDX-License-Identifier: BSD-3-Clause
"""The program ``ppdaemon``."""

import asyncio
import logging
import os
import signal
import sqlite3
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import click
import setproctitle

from ppdaemon import __version__, log
from ppdaemon.clock import Clock
from ppdaemon.config import NodeConfig, load_node
from ppdaemon.errors import PPDaemonError
from ppdaemon.node.supervisor import Supervisor
from ppdaemon.notify import Notifier
from ppdaemon.states import ExitCode

__all__ = ("main",)

_LOG = logging.getLogger(__name__)

_CONFIG = click.option(
    "--config",
    required=True,
    type=click.Path(path_type=Path),
    help="The node's configuration, a YAML file.",
)


async def _run(config: NodeConfig, path: Path, environment: Mapping[str, str]) -> None:
    watchdog_us = environment.get("WATCHDOG_USEC")
    # What is meant for this process is not handed on to its children.
    handed_on = {
        name: value
        for name, value in environment.items()
        if name not in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID")
    }
    supervisor = Supervisor(
        config,
        partial(load_node, path, environment),
        handed_on,
        Clock(),
        Notifier(environment.get("NOTIFY_SOCKET")),
        int(watchdog_us) / 1e6 if watchdog_us else None,
    )
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, supervisor.stop)
    loop.add_signal_handler(signal.SIGHUP, supervisor.reload)
    await supervisor.run()


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """Prompt processing on one node: a pool of workers, one visit-detector each."""


@cli.command()
@_CONFIG
def run(config: Path) -> None:
    """Run the daemon until SIGTERM; a second SIGTERM ends it at once.

    SIGHUP reads the configuration again; one that cannot be used changes
    nothing.
    """
    settings = load_node(config, os.environ)
    log.set_up(settings.log.level, settings.log.format, node=settings.node.name)
    setproctitle.setproctitle(f"ppdaemon supervisor {settings.node.name}")
    asyncio.run(_run(settings, config, os.environ))


@cli.command("check-config")
@_CONFIG
def check_config(config: Path) -> None:
    """Say whether a configuration can be used; name every error."""
    settings = load_node(config, os.environ)
    click.echo(f"{config}: good, node {settings.node.name}")


def main() -> None:
    """Run the program and end with its exit code."""
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Exit as done:
        sys.exit(done.exit_code)
    except click.UsageError as error:
        error.show()
        sys.exit(ExitCode.USAGE)
    except click.Abort:
        sys.exit(ExitCode.FAILED)
    except PPDaemonError as error:
        click.echo(f"ppdaemon: {error}", err=True)
        sys.exit(error.exit_code)
    except (OSError, sqlite3.OperationalError) as error:
        _LOG.debug("the daemon ends", exc_info=True)
        click.echo(f"ppdaemon: {error}", err=True)
        sys.exit(ExitCode.OS)


if __name__ == "__main__":
    main()
