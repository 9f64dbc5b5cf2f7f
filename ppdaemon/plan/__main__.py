# SPDX-License-Identifier: BSD-3-Clause
"""The inner process of ``ppdaemon plan``: makes a plan in a worker's environment and prints it.

``ppdaemon`` checks the command line and the configuration, then executes this module.
"""

import argparse
import logging
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.status import Status

from ppdaemon.clock import Clock
from ppdaemon.commandline import ended_by_reader
from ppdaemon.errors import PPDaemonError
from ppdaemon.plan.models import Plan, PlanOrder, exit_code
from ppdaemon.plan.sky import sky_png
from ppdaemon.plan.tables import plan_view
from ppdaemon.pointing import disable_astropy_downloads
from ppdaemon.states import ExitCode
from ppdaemon.terminal import number_of, plain, show

__all__ = ("main",)


@contextmanager
def _status(text: str) -> Iterator[Status]:
    """Show the present step on a terminal; the line is erased at the end."""
    console = Console(stderr=True, markup=False, quiet=not sys.stderr.isatty())
    with console.status(text, spinner="line") as status:
        yield status


def _make_plan(order: PlanOrder) -> Plan:
    """Make the plan. This takes seconds: the imports alone take about two."""
    config = order.config.butler
    assert config is not None  # ppdaemon has checked it before it executed this module
    with (
        _status("importing the LSST libraries") as status,
        tempfile.TemporaryDirectory(prefix="ppdaemon-plan-") as scratch,
    ):
        from ppdaemon.plan.planner import Planner

        disable_astropy_downloads()
        count = len(order.detectors)
        status.update(f"querying {plain(config.central)} for {number_of(count, 'detector')}")
        with closing(Planner(order, config, Path(scratch), Clock())) as planner:
            return planner.plan(lambda done: status.update(f"{done} of {count} detectors"))


def _print(plan: Plan, *, as_json: bool) -> None:
    if as_json:
        click.echo(plan.model_dump_json(indent=2, by_alias=True))
    else:
        show(plan_view(plan))


def _run() -> ExitCode:
    parser = argparse.ArgumentParser(prog="ppdaemon-plan", description=__doc__)
    parser.add_argument("--order", type=Path, required=True, help="what to plan, as JSON")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--plot", type=Path, help="also write a picture of the sky, a PNG file")
    parser.add_argument("--allow-fallback", action="store_true", help="exit 0 with later pipelines, too")
    options = parser.parse_args()
    plan = _make_plan(PlanOrder.model_validate_json(options.order.read_bytes()))
    _print(plan, as_json=options.json)
    if options.plot is not None:
        with _status("drawing"):
            sky_png(plan, options.plot)
    return exit_code(plan, allow_fallback=options.allow_fallback)


def main() -> None:
    """Make and print the plan; exit with the plan's exit code."""
    # The planner collects log records for the notes of the plan; they must not be printed, too.
    logging.getLogger().addHandler(logging.NullHandler())
    try:
        with ended_by_reader():
            status = _run()
    except PPDaemonError as error:
        click.echo(f"ppdaemon: {error}", err=True)
        status = error.exit_code
    except KeyboardInterrupt:
        status = ExitCode.FAILED
    except Exception as error:  # an operator gets one line instead of a traceback
        click.echo(f"ppdaemon: internal error: {type(error).__name__}: {plain(error)}", err=True)
        status = ExitCode.SOFTWARE
    sys.exit(status)


if __name__ == "__main__":
    main()
