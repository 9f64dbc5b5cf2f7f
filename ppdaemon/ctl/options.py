# SPDX-License-Identifier: BSD-3-Clause
"""Arguments and options that several commands of ``ppctl`` have, and how their answers are printed."""

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from ppdaemon.detectorlist import parse_detector_list
from ppdaemon.errors import ConfigError
from ppdaemon.terminal import show

if TYPE_CHECKING:  # imported by what needs it: a list of the commands, and their completion, come at once
    from rich.console import RenderableType

    from ppdaemon.config import NodeConfig
    from ppdaemon.ctl.client import Daemon
    from ppdaemon.wire import Model

__all__ = (
    "any_command",
    "as_json_option",
    "common_command",
    "config_option",
    "daemon_command",
    "for_daemon",
    "given_config",
    "key_options",
    "limit_option",
    "node_config",
    "note_journal",
    "read_detectors",
    "show_data",
    "show_rows",
)

DEFAULT_CONFIG = Path("/etc/ppdaemon/ppdaemon.yaml")


as_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")


def _for(*programs: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add the client of a program as an argument to a command that one of these can do."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @click.pass_context
        @functools.wraps(command)
        def run(context: click.Context, *args: Any, **options: Any) -> Any:
            client = context.obj()
            if client.program not in programs:
                used = "--bridge" if client.program == "ppbridge" else "--relay"
                raise click.UsageError(f"ppctl {context.info_name} is for a node, not for {used}")
            return command(client, *args, **options)

        return run

    return decorate


for_daemon = _for("ppdaemon")


def any_command(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the daemon, the relay or the bridge as an argument and ``--json`` as an option to a command."""
    return as_json_option(_for("ppdaemon", "pprelay", "ppbridge")(command))


def daemon_command(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the daemon as an argument and ``--json`` as an option to a command."""
    return as_json_option(for_daemon(command))


def common_command(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the daemon or the relay as an argument and ``--json`` as an option to a command."""
    return as_json_option(_for("ppdaemon", "pprelay")(command))


def show_data[T: "Sequence[Model] | Model"](
    data: T, view: "Callable[[T], RenderableType]", as_json: bool
) -> None:
    """Print models, as JSON or as text."""
    if as_json:
        import pydantic

        click.echo(pydantic.TypeAdapter[Any](Any).dump_json(data, indent=2).decode())
    else:
        show(view(data))


def note_journal(daemon: "Daemon") -> None:
    """Print that an answer is not that of a daemon."""
    if daemon.from_journal:
        click.echo("ppctl: the daemon does not run; this is read from its journal", err=True)


def show_rows[T: "Model"](
    daemon: "Daemon", rows: Sequence[T], view: "Callable[[Sequence[T]], RenderableType]", as_json: bool
) -> None:
    """Print what a daemon has answered, or its journal."""
    note_journal(daemon)
    show_data(rows, view, as_json)


config_option = click.option(
    "--config",
    "path",
    type=click.Path(path_type=Path),
    help=f"Configuration file of the node. Default: that of ppctl --config, or {DEFAULT_CONFIG}.",
)


def given_config(path: Path | None) -> Path | None:
    """Return the configuration file of a command, or of ``ppctl``, or the default one if it exists."""
    from ppdaemon.ctl.client import is_there

    given: Path | None = path or click.get_current_context().find_root().params["config"]
    return given or (DEFAULT_CONFIG if is_there(DEFAULT_CONFIG) else None)


def node_config(path: Path | None) -> "NodeConfig":
    """Read the configuration of a node that processes images."""
    from ppdaemon.config import load_node

    given = given_config(path) or DEFAULT_CONFIG
    config = load_node(given, os.environ, writing=False)
    if config.butler is None:
        raise ConfigError([f"{given}: butler: missing key, it names the central repo"])
    return config


def key_options[F: Callable[..., Any]](command: F) -> F:
    """Add the option ``keys`` to a command: those of an encrypted connection, or `None`."""

    @click.option(
        "--key",
        envvar="PPDAEMON_KEY",
        type=click.Path(path_type=Path),
        help="File with the secret key of this client (ppctl keygen).  [env: PPDAEMON_KEY]",
    )
    @click.option(
        "--server",
        envvar="PPDAEMON_SERVER",
        type=click.Path(path_type=Path),
        help="File with the public key of the relay.  [env: PPDAEMON_SERVER]",
    )
    @functools.wraps(command)
    def with_keys(*args: Any, key: Path | None, server: Path | None, **options: Any) -> Any:
        if (key is None) != (server is None):
            raise click.UsageError("--key and --server belong together")
        from ppdaemon.curve import ClientKeys
        from ppdaemon.keyfiles import UnusableKey

        try:
            keys = ClientKeys.read(key, server)
        except UnusableKey as error:
            raise click.UsageError(str(error)) from None
        return command(*args, keys=keys, **options)

    return cast("F", with_keys)


limit_option = click.option(
    "--limit", type=click.IntRange(1, 10_000), default=100, show_default=True, help="Maximum number of lines."
)


def read_detectors(context: click.Context, _: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    """Read an argument that is a list of detectors."""
    try:
        return None if value is None else parse_detector_list(value)
    except ValueError as error:
        raise click.BadParameter(str(error), context) from None
