# SPDX-License-Identifier: BSD-3-Clause
"""The end of a program: its errors as lines without a traceback, and their exit codes."""

import logging
import os
import select
import signal
import sqlite3
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NoReturn

import click

from ppdaemon.errors import PPDaemonError
from ppdaemon.notify import Notifier
from ppdaemon.states import ExitCode
from ppdaemon.terminal import plain

__all__ = ("ended_by_reader", "reporting_end", "run_command", "run_server")

_LOG = logging.getLogger(__name__)

READER_ENDED = 128 + signal.SIGPIPE
"""A shell's exit code for a program that SIGPIPE has ended. Python does not end by it: the signal would
also come from a socket whose other end is closed."""


@contextmanager
def ended_by_reader() -> Iterator[None]:
    """Exit without a message if nobody reads the output any more, as after ``| head``."""
    output = sys.stdout
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:  # a program may be started with a closed output
                sys.stdout.flush()
    except BrokenPipeError:
        if not _is_unread():  # of a socket or another process
            raise
    except SystemExit as error:
        # click and rich exit with 1 then, which would be a result of the command: click after it has replaced
        # the output, rich while it handles the error.
        if sys.stdout is output and not isinstance(error.__context__, BrokenPipeError):
            raise
    else:
        return
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the flush at exit would raise the error again
    sys.exit(READER_ENDED)


def _is_unread() -> bool:
    poll = select.poll()
    for descriptor in (1, 2):
        poll.register(descriptor, 0)
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))


def run_command(
    command: click.Command, name: str, arguments: Sequence[str] | None = None, *, obj: object = None
) -> NoReturn:
    """Run a command line, by default that of the process, and exit with its code or that of its error.

    `name` is that of the program, `obj` what the commands get from ``click.pass_obj``.
    """
    try:
        with ended_by_reader():
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


@contextmanager
def reporting_end(environment: Mapping[str, str]) -> Iterator[Notifier]:
    """Yield the connection to the service manager, which is told why the program ends."""
    notifier = Notifier(environment.get("NOTIFY_SOCKET"))
    try:
        yield notifier
    except (PPDaemonError, OSError) as error:
        # `systemctl status` shows it until the next start.
        notifier.notify(STATUS=f"ended: {plain(error)}")
        raise


def run_server(command: click.Command, name: str, arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line of a server as `run_command` does; its commands get the environment. An
    internal error is logged.
    """
    try:
        run_command(command, name, arguments, obj=os.environ)
    except Exception:
        _LOG.exception("internal error; %s stops, please report this", name)
        sys.exit(ExitCode.SOFTWARE)
