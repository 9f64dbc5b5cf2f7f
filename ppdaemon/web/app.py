# SPDX-License-Identifier: BSD-3-Clause
"""The program ``ppweb``: command line and exit codes."""

import os
from collections.abc import Sequence
from pathlib import Path

import click

from ppdaemon import log
from ppdaemon.clock import Clock
from ppdaemon.commandline import run_command
from ppdaemon.ctl.target import node_of
from ppdaemon.errors import ConfigError
from ppdaemon.tokenfile import read_token
from ppdaemon.web.access import Access, check_listen

__all__ = ("command", "main")


@click.command(name="ppweb", context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--socket",
    "socket_path",
    type=click.Path(path_type=Path),
    help="Control socket of the daemon, as of ppctl.",
)
@click.option(
    "--config", type=click.Path(path_type=Path), help="Configuration file of the daemon: use its socket."
)
@click.option(
    "--listen",
    default="127.0.0.1:8080",
    show_default=True,
    metavar="ADDRESS:PORT",
    help="Where to serve the page.",
)
@click.option(
    "--alerts",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Folder of alert files (Avro): show cutouts of the strongest alert of the newest one.",
)
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    help="File with a token that viewers must give; needed where other hosts can reach the address.",
)
@click.option(
    "--behind-proxy", is_flag=True, help="A proxy in front of this program asks viewers who they are."
)
def command(
    socket_path: Path | None,
    config: Path | None,
    listen: str,
    alerts: Path | None,
    token_file: Path | None,
    behind_proxy: bool,
) -> None:
    """Serve a web page with the state of a ppdaemon.

    It only reads, over the control socket; the daemon may be away and come back.
    """
    if socket_path and config:
        raise click.UsageError("give --socket or --config, not both")
    access = Access(read_token(token_file) if token_file else None, behind_proxy)
    host, port = check_listen(listen, access)
    try:
        from aiohttp import web

        from ppdaemon.web.server import make_app
    except ImportError as error:
        raise ConfigError([f"the page needs aiohttp: pip install 'ppdaemon[web]' ({error})"]) from None
    log.set_up("INFO", "json" if "JOURNAL_STREAM" in os.environ else "console", program="ppweb")
    app = make_app(node_of(socket_path, config), access, Clock(), alerts)
    # Viewers keep their connection open for a night: a stop does not wait for them.
    web.run_app(app, host=host, port=port, print=None, access_log=None, shutdown_timeout=0.5)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit; without arguments, those of the process."""
    run_command(command, "ppweb", arguments)


if __name__ == "__main__":
    main()
