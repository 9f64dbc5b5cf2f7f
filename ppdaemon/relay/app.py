# SPDX-License-Identifier: BSD-3-Clause
"""The program ``pprelay``: command line, exit codes, construction of the parts."""

import asyncio
import logging
import resource
import secrets
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

import click
import zmq.asyncio

from ppdaemon import log
from ppdaemon.clock import Clock
from ppdaemon.commandline import reporting_end, run_server
from ppdaemon.curve import admitting
from ppdaemon.garbage import collect_seldom
from ppdaemon.notify import Notifier
from ppdaemon.relay.config import RelayConfig, load_relay
from ppdaemon.relay.ledger import Ledger
from ppdaemon.relay.link import NODE_OPTIONS, NODES, SUBMIT, SUBMIT_OPTIONS
from ppdaemon.relay.relay import Relay
from ppdaemon.routers import bind
from ppdaemon.statelock import lock_state

__all__ = ("main",)

_LOG = logging.getLogger(__name__)


@click.command(name="pprelay", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("action", type=click.Choice(["run", "check-config"]), default="run")
@click.option(
    "--config",
    "path",
    required=True,
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Configuration file (YAML).",
)
@click.pass_obj
def _command(environment: Mapping[str, str], action: str, path: Path) -> None:
    """Receive next_visit events and send each detector to a node.

    run (the default) serves until SIGTERM; SIGHUP reads the file again, and if it
    has an error, the old configuration stays in use. check-config reads the file,
    lists all errors in it, and exits.
    """
    if action == "check-config":
        config = load_relay(path, environment)
        click.echo(f"{path}: valid; instruments: {', '.join(config.instruments)}")
        return
    with reporting_end(environment) as notifier:
        config = load_relay(path, environment)
        log.set_up(
            config.log.level, config.log.format, config.log.levels, program="pprelay", relay=config.name
        )
        _allow_many_connections()
        asyncio.run(_serve(config, partial(load_relay, path, environment), notifier))


def _allow_many_connections() -> None:
    """Raise the limit of open files as far as allowed: silent connections, which are closed after
    the time of a handshake, must not use up all of them. Nothing here calls select().
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _serve(config: RelayConfig, read_config: Callable[[], RelayConfig], notifier: Notifier) -> None:
    clock = Clock()
    relay: Relay
    for number in (signal.SIGTERM, signal.SIGINT):  # the loop calls it later, when `relay` is set
        asyncio.get_running_loop().add_signal_handler(number, lambda: relay.request_stop())
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, lambda: relay.request_reload())
    # The lock first and released last: neither ledger nor sockets are shared with another relay.
    with (
        closing(lock_state(config.state_dir, "pprelay")),
        zmq.asyncio.Context() as context,
        # Before the sockets are bound: until it runs, nobody is admitted.
        admitting(context, config.security.key, config.security.read_allow_lists) as gatekeeper,
        closing(bind(context, SUBMIT, config.submit, SUBMIT_OPTIONS, gatekeeper)) as submit,
        closing(bind(context, NODES, config.nodes, NODE_OPTIONS, gatekeeper)) as nodes,
    ):
        relay = Relay(
            config,
            Ledger(config.state_dir, clock, shadow=config.shadow),
            submit,
            nodes,
            clock=clock,
            notifier=notifier,
            incarnation=secrets.token_hex(8),
            gatekeeper=gatekeeper,
            read_config=read_config,
        )
        collect_seldom()
        await relay.run()
    _LOG.info("stopped")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit; without arguments, those of the process."""
    run_server(_command, "pprelay", arguments)


if __name__ == "__main__":
    main()
