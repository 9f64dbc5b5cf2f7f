# SPDX-License-Identifier: BSD-3-Clause
"""The end of a program: its errors as lines without a traceback, and their exit codes."""

import logging
import sqlite3
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from ppdaemon.errors import PPDaemonError
from ppdaemon.states import ExitCode

__all__ = ("run_command",)

_LOG = logging.getLogger(__name__)


def run_command(
    command: click.Command, name: str, arguments: Sequence[str] | None = None, *, obj: object = None
) -> NoReturn:
    """Run a command line, by default that of the process, and exit with its code or that of its error.

    `name` is that of the program, `obj` what the commands get from ``click.pass_obj``.
    """
    try:
        code = command.main(arguments, prog_name=name, standalone_mode=False, obj=obj)
    except click.ClickException as error:
        error.show()
        code = ExitCode.USAGE
    except click.Abort:
        code = ExitCode.FAILED
    except PPDaemonError as error:
        click.echo("".join(f"{name}: {line}\n" for line in str(error).splitlines()), err=True, nl=False)
        code = error.exit_code
    except (OSError, sqlite3.OperationalError) as error:
        _LOG.debug("%s exits", name, exc_info=True)
        click.echo(f"{name}: {error}", err=True)
        code = ExitCode.OS
    sys.exit(code if isinstance(code, int) else ExitCode.OK)
