# SPDX-License-Identifier: BSD-3-Clause
"""The program that ``ppctl`` uses: that of a socket, of a configuration, or of the default folders."""

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ppdaemon.errors import ConfigError
from ppdaemon.terminal import plain

if TYPE_CHECKING:  # imported when a command runs: the help and the completion must come at once
    from ppdaemon.ctl.client import BridgeDaemon, Daemon, RelayDaemon

__all__ = ("bridge_of", "node_of", "relay_of")

DEFAULT_SOCKET = Path("/run/ppdaemon/control.sock")
NODE_STATE = Path("/var/lib/ppdaemon/node")
RELAY_RUN = Path("/run/pprelay/control.sock")
RELAY_STATE = Path("/var/lib/ppdaemon/relay")
BRIDGE_RUN = Path("/run/ppbridge/control.sock")
SOCKET_VARIABLE = "PPDAEMON_SOCKET"
RELAY_SOCKET_VARIABLE = "PPRELAY_SOCKET"


def node_of(socket_path: Path | None, config: Path | None) -> "Daemon":
    """Return the daemon of a socket, of a configuration, or of the default paths."""
    from ppdaemon.ctl.client import Daemon
    from ppdaemon.reports import JOURNAL_NAME

    if config is None:
        daemon = Daemon(socket_path or _default_socket())
        if socket_path is None and SOCKET_VARIABLE not in os.environ:
            daemon.journal = NODE_STATE / JOURNAL_NAME
        return daemon
    daemon = _daemon_of(config)
    with contextlib.suppress(ConfigError):
        daemon.journal = _path_in(config, "node", "state_dir") / JOURNAL_NAME
    return daemon


def _daemon_of(config: Path) -> "Daemon":
    """Return the daemon of a node's configuration."""
    from ppdaemon.ctl.client import Daemon, is_there

    # Only this key: the variables of others may be set for the daemon alone.
    try:
        return Daemon(_path_in(config, "node", "control"))
    except ConfigError as error:
        # A file that somebody has just broken must not keep an operator from seeing the running daemon;
        # it may be another one, to which nothing is done.
        socket_path = _default_socket()
        if not (is_there(config) and is_there(socket_path)):
            raise
        click.echo(f"ppctl: warning: {plain(error)}; reading from {socket_path}", err=True)
        daemon = Daemon(socket_path)
        daemon.only_reading = f"{error}; name the daemon by --socket"
        return daemon


def _path_in(config: Path, *key: str, default: str | None = None) -> Path:
    """Return the path that a configuration file has, without a look at its other keys."""
    from ppdaemon.yamlfile import read_key

    return Path(read_key(config, key, os.environ, default))


def _default_socket() -> Path:
    return Path(os.environ.get(SOCKET_VARIABLE) or DEFAULT_SOCKET)


def relay_of(socket_path: Path | None, config: Path | None) -> "RelayDaemon":
    """Return the relay of a socket, of a configuration, or of the default folders."""
    from ppdaemon.ctl.client import RelayDaemon, is_there
    from ppdaemon.ledgerfile import LEDGER_NAME
    from ppdaemon.reports import RELAY_SOCKET

    folder = RELAY_STATE
    if config is None and socket_path is None and RELAY_SOCKET_VARIABLE in os.environ:
        socket_path = Path(os.environ[RELAY_SOCKET_VARIABLE])
    if config is not None:
        folder = _path_in(config, "state_dir")
        socket_path = _path_in(config, "control", default=str(folder / RELAY_SOCKET))
    # Not `is_there`: a folder that this user may not enter need not have the socket, and the one of a relay
    # that is down is not there.
    elif socket_path is None and (is_there(RELAY_RUN) or not os.path.exists(folder / RELAY_SOCKET)):
        socket_path = RELAY_RUN
    relay = RelayDaemon(socket_path or folder / RELAY_SOCKET)
    if config is not None or socket_path == RELAY_RUN:
        relay.ledger = folder / LEDGER_NAME
    return relay


def bridge_of(socket_path: Path | None, config: Path | None) -> "BridgeDaemon":
    """Return the bridge of a socket, of a configuration, or of the default path."""
    from ppdaemon.ctl.client import BridgeDaemon
    from ppdaemon.reports import BRIDGE_SOCKET

    if config is not None:
        folder = _path_in(config, "state_dir")
        socket_path = _path_in(config, "control", default=str(folder / BRIDGE_SOCKET))
    return BridgeDaemon(socket_path or BRIDGE_RUN)
