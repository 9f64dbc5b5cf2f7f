# SPDX-License-Identifier: BSD-3-Clause
"""The program ``ppbridge``: command line, exit codes, construction of the parts."""

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click
import zmq.asyncio

from ppdaemon import log
from ppdaemon.bridge import outlet
from ppdaemon.bridge.bridge import Bridge
from ppdaemon.bridge.config import BridgeConfig, load_bridge, unprotected
from ppdaemon.bridge.ring import Ring
from ppdaemon.clock import Clock
from ppdaemon.commandline import reporting_end, run_server
from ppdaemon.curve import admitting
from ppdaemon.errors import ConfigError, Unavailable
from ppdaemon.garbage import collect_seldom
from ppdaemon.notify import Notifier, passed_sockets
from ppdaemon.routers import bind
from ppdaemon.statelock import lock_state

if TYPE_CHECKING:
    from ppdaemon.bridge.http import HttpSource

__all__ = ("main",)

_LOG = logging.getLogger(__name__)

SWITCH_INTERVAL_S = 0.0005
"""How long the thread that writes the ring waits at most after each statement while the event loop reads
requests. With the usual 5 ms, no notice of a burst would be written before all are read."""


@click.command(name="ppbridge", context_settings={"help_option_names": ["-h", "--help"]})
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
    """Take the notices of object stores and pass them on to nodes.

    Notices come by HTTP POST or from Kafka, and are kept for nodes that are away.
    run (the default) serves until SIGTERM; SIGHUP reads the file again, and if it
    has an error, the old configuration stays in use. check-config reads the file,
    lists all errors in it, and exits.
    """
    if action == "check-config":
        config = load_bridge(path, environment)
        click.echo(f"{path}: valid; HTTP at {config.http.listen}, nodes at {config.nodes}")
        return
    with reporting_end(environment) as notifier:
        config = load_bridge(path, environment)
        log.set_up(
            config.log.level, config.log.format, config.log.levels, program="ppbridge", bridge=config.name
        )
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        read_config = partial(load_bridge, path, environment)
        asyncio.run(_serve(config, read_config, _listener(config, environment), notifier))


def _listener(config: BridgeConfig, environment: Mapping[str, str]) -> socket.socket | None:
    """Return the socket of HTTP: that of systemd, which is open while this program is down, or our own."""
    listen = config.http.listen
    if passed := passed_sockets(environment):
        listener, *others = passed
        for other in others:
            other.close()
        listen = "{}:{}".format(*listener.getsockname()[:2])
    elif listen is None:
        return None
    else:
        host, _, port = listen.rpartition(":")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            listener = socket.create_server((host.strip("[]"), int(port)), family=family)
        except OSError as error:
            # The library adds the address, which is named here.
            reason = str(error.strerror).partition(" (while ")[0]
            raise Unavailable(f"http.listen: cannot listen on {listen}: {reason}") from None
    if not config.security.insecure and (problem := unprotected(listen, config.http.token)):
        listener.close()
        raise ConfigError([problem])
    return listener


def _http(config: BridgeConfig, bridge: Bridge) -> "HttpSource":
    try:
        from ppdaemon.bridge.http import HttpSource, http_certificate, http_token
    except ImportError as error:
        raise ConfigError([f"HTTP needs aiohttp: pip install 'ppdaemon[bridge]' ({error})"]) from None
    return HttpSource(bridge.store, bridge.throttle, http_token(config.http), http_certificate(config.http))


async def _serve(
    config: BridgeConfig,
    read_config: Callable[[], BridgeConfig],
    listener: socket.socket | None,
    notifier: Notifier,
) -> None:
    clock = Clock()
    bridge: Bridge
    for number in (signal.SIGTERM, signal.SIGINT):  # the loop calls it later, when `bridge` is set
        asyncio.get_running_loop().add_signal_handler(number, lambda: bridge.request_stop())
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, lambda: bridge.request_reload())
    # The lock first and released last: neither ring nor sockets are shared with another bridge.
    with (
        closing(lock_state(config.state_dir, "ppbridge")),
        zmq.asyncio.Context() as context,
        # Before the socket is bound: until it runs, nobody is admitted.
        admitting(context, config.security.key, config.security.read_allow_lists) as gatekeeper,
        closing(bind(context, outlet.NODES, config.nodes, outlet.OPTIONS, gatekeeper)) as nodes,
    ):
        ring = Ring(config.state_dir, config.ring)
        bridge = Bridge(config, ring, nodes, gatekeeper, clock, notifier, read_config)
        http = None if listener is None else _http(config, bridge)
        collect_seldom()
        await bridge.run(listener, http)
    _LOG.info("stopped")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit; without arguments, those of the process."""
    run_server(_command, "ppbridge", arguments)


if __name__ == "__main__":
    main()
