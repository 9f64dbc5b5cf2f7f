# SPDX-License-Identifier: BSD-3-Clause
"""``python -m ppdaemon.demo``: run the whole system on a simulated camera."""

import sys
from pathlib import Path

import click
from rich.console import Console

from ppdaemon.errors import PPDaemonError
from ppdaemon.states import ExitCode


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--output",
    default=Path("build/demo"),
    show_default=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for report.json and the pictures.",
)
@click.option(
    "--workers", default=27, show_default=True, type=click.IntRange(1), help="Largest number of workers."
)
@click.option("--keep", is_flag=True, help="Keep the repo, raws, alerts and logs below the output folder.")
def main(output: Path, workers: int, keep: bool) -> None:
    """Take a few visits with a simulated camera, from next_visit to alerts.

    Exits 0 only if every announced visit-detector succeeded and no process or
    repo is left over.
    """
    try:
        from ppdaemon.demo.quickstart import demonstrate
    except ModuleNotFoundError as error:
        click.echo(f"demo: {error}; install it with: pip install 'ppdaemon[demo]'", err=True)
        sys.exit(ExitCode.UNAVAILABLE)
    console = Console()
    try:
        report = demonstrate(output, console, workers=workers, keep=keep)
    except PPDaemonError as error:
        click.echo(f"demo: {error}", err=True)
        sys.exit(error.exit_code)
    except OSError as error:
        click.echo(f"demo: {error}", err=True)
        sys.exit(ExitCode.CANNOT_CREATE)
    except KeyboardInterrupt:
        click.echo("demo: interrupted; all processes were stopped", err=True)
        sys.exit(130)
    if not report.good:
        console.print("[bold red]the demo failed: see the outcomes and the summary above[/bold red]")
        sys.exit(ExitCode.FAILED)


if __name__ == "__main__":
    main(prog_name="ppctl demo")
