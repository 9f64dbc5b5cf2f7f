# SPDX-License-Identifier: BSD-3-Clause
"""``python -m ppdaemon.demo``: run the whole system on a simulated camera."""

import signal
import sys
from pathlib import Path

import click
from rich.console import Console

from ppdaemon.commandline import run_command
from ppdaemon.states import ExitCode


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for report.json and the pictures.  [default: build/demo, with --stay build/playground]",
)
@click.option(
    "--workers", default=27, show_default=True, type=click.IntRange(1), help="Largest number of workers."
)
@click.option("--keep", is_flag=True, help="Keep the repo, raws, alerts and logs below the output folder.")
@click.option(
    "--stay",
    is_flag=True,
    help="Take a visit every 40 s until Ctrl-C; keep repo and journal for the next time.",
)
@click.option("--open", "open_page", is_flag=True, help="With --stay: open the web page in a browser.")
def main(output: Path | None, workers: int, keep: bool, stay: bool, open_page: bool) -> None:
    """Take a few visits with a simulated camera, from next_visit to alerts.

    The raws of a visit land when the one before is expected to have ended:
    the machine decides how often visits are taken. Exits 0 only if every
    announced visit-detector succeeded and no process or repo is left over.
    With --stay it is a playground: commands to try in another terminal are
    printed, and Ctrl-C ends it.
    """
    if open_page and not stay:
        raise click.UsageError("--open needs --stay")
    # As after Ctrl-C: all processes are stopped.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        from ppdaemon.demo.playground import play
        from ppdaemon.demo.quickstart import demonstrate
    except ModuleNotFoundError as error:
        click.echo(f"demo: {error}; install it with: pip install 'ppdaemon[demo]'", err=True)
        sys.exit(ExitCode.UNAVAILABLE)
    console = Console(markup=False, emoji=False)
    try:
        if stay:
            left = play(output or Path("build/playground"), console, workers=workers, open_page=open_page)
            for name in left:
                console.print(f"left over: {name}")
            sys.exit(ExitCode.FAILED if left else ExitCode.OK)
        report = demonstrate(output or Path("build/demo"), console, workers=workers, keep=keep)
    except KeyboardInterrupt:
        click.echo("demo: interrupted; all processes were stopped", err=True)
        sys.exit(130)
    if not report.good:
        console.print("the demo failed: see the outcomes and the summary above", style="bold red")
        sys.exit(ExitCode.FAILED)


if __name__ == "__main__":
    run_command(main, "ppctl demo")
