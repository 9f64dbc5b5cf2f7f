# SPDX-License-Identifier: BSD-3-Clause
"""The inner part of ``ppdaemon plan``: a process with a worker's environment that looks and tells.

``ppdaemon`` reads and checks what the operator gave, then becomes this.
"""

import argparse
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.status import Status

from ppdaemon.clock import Clock
from ppdaemon.errors import PPDaemonError
from ppdaemon.plan.models import Plan, PlanOrder, exit_code
from ppdaemon.plan.sky import sky_png
from ppdaemon.plan.tables import plan_view
from ppdaemon.pointing import keep_astropy_offline
from ppdaemon.states import ExitCode
from ppdaemon.terminal import plain, terminal_console

__all__ = ("main",)


@contextmanager
def _status(text: str) -> Iterator[Status]:
    """Show what is going on, if somebody sees it; it is wiped in the end."""
    console = Console(stderr=True, quiet=not sys.stderr.isatty())
    with console.status(text, spinner="line") as status:
        yield status


def _look_up(order: PlanOrder) -> Plan:
    """Make the plan; it takes seconds, the imports alone about two."""
    config = order.config.butler
    assert config is not None  # or ppdaemon had not become this
    with (
        _status("importing what workers import") as status,
        tempfile.TemporaryDirectory(prefix="ppdaemon-plan-") as scratch,
    ):
        from ppdaemon.plan.planner import Planner

        keep_astropy_offline()
        count = len(order.detectors)
        status.update(f"asking {plain(config.central)} for {count} detector{'s' if count > 1 else ''}")
        with closing(Planner(order, config, Path(scratch), Clock())) as planner:
            return planner.plan(lambda done: status.update(f"{done} of {count} detectors"))


def _tell(plan: Plan, *, as_json: bool) -> None:
    if as_json:
        click.echo(plan.model_dump_json(indent=2, by_alias=True))
    else:
        terminal_console().print(plan_view(plan))
    sys.stdout.flush()


def _run() -> ExitCode:
    parser = argparse.ArgumentParser(prog="ppdaemon-plan", description=__doc__)
    parser.add_argument("--order", type=Path, required=True, help="what to plan, as JSON")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--plot", type=Path, help="also write a picture of the sky, a PNG file")
    options = parser.parse_args()
    plan = _look_up(PlanOrder.model_validate_json(options.order.read_bytes()))
    _tell(plan, as_json=options.json)
    if options.plot is not None:
        with _status("drawing"):
            sky_png(plan, options.plot)
    return exit_code(plan)


def main() -> None:
    """Look, tell, and end with the exit code that the plan has."""
    # What is logged about the visit becomes part of the plan.
    logging.getLogger().addHandler(logging.NullHandler())
    try:
        status = _run()
    except PPDaemonError as error:
        click.echo(f"ppdaemon: {error}", err=True)
        status = error.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the flush at exit would complain again
        status = ExitCode.OK
    except KeyboardInterrupt:
        status = ExitCode.FAILED
    except Exception as error:  # operators get one line, whatever went wrong
        click.echo(f"ppdaemon: internal error: {type(error).__name__}: {plain(error)}", err=True)
        status = ExitCode.SOFTWARE
    sys.exit(status)


if __name__ == "__main__":
    main()
