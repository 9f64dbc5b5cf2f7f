# SPDX-License-Identifier: BSD-3-Clause
"""``send_visit`` and ``ppctl send``: announce a visit to a relay, or cancel one, as the script queue
would.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ppdaemon.commandline import run_command
from ppdaemon.ctl.options import key_options
from ppdaemon.finiterange import FiniteRange

if TYPE_CHECKING:  # imported by the command: its help is part of that of ppctl
    from ppdaemon.ctl.submit import VisitSubmitter
    from ppdaemon.curve import ClientKeys
    from ppdaemon.messages import Accepted

__all__ = ("command", "main")

OUTCOMES_S = 600.0
"""Longer than any visit: its duration, its processing, and a retry."""


@click.command(name="send_visit", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option("--instrument", help="Short name, such as LSSTCam.")
@click.option("--ra", type=FiniteRange(0, 360), help="Right ascension of the boresight, degrees.")
@click.option("--dec", type=FiniteRange(-90, 90), help="Declination of the boresight, degrees.")
@click.option("--angle", type=FiniteRange(), help="Position angle of focal-plane +Y, degrees.")
@click.option("--filter", help="Acceptable physical filters, comma-separated.")
@click.option("--nimages", type=click.IntRange(0), help="Number of snaps, 0 if not known.  [default: 1]")
@click.option("--survey", help="Purpose of the images, such as BLOCK-365.")
@click.option("--duration", type=FiniteRange(0), help="Duration estimated by the script, seconds.")
@click.option("--group", help="Name of the visit.  [default: now, TAI]")
@click.option(
    "--relay", default="tcp://127.0.0.1:5570", show_default=True, help="Submit socket of the relay."
)
@key_options
@click.option("--cancel", metavar="GROUP", help="Cancel this visit instead of sending one.")
@click.option("--wait", is_flag=True, help="Wait until each detector has its outcome.")
@click.option(
    "--timeout", type=FiniteRange(0.1), help="Time limit in seconds.  [default: 5, with --wait 600]"
)
@click.option("--json", "as_json", is_flag=True, help="Print the relay's answer as JSON.")
def command(
    file: Path | None,
    relay: str,
    cancel: str | None,
    wait: bool,
    timeout: float | None,
    as_json: bool,
    keys: "ClientKeys | None",
    **visit_options: Any,
) -> None:
    """Send one visit, described by options or by FILE, JSON with SAL names.

    Exits with 0 if the visit was accepted (with --wait: if all detectors
    succeeded), 1 if a detector did not succeed, 65 if the visit was refused or
    FILE is invalid, 69 if the relay does not answer, 75 if the time limit was
    reached.
    """
    from ppdaemon.clock import Clock
    from ppdaemon.ctl import submit
    from ppdaemon.visitfile import read_event
    from ppdaemon.wire import encode

    has_options = any(value is not None for value in visit_options.values())
    if sum((file is not None, cancel is not None, has_options)) != 1:
        raise click.UsageError("use either options that describe the visit, or FILE, or --cancel GROUP")
    if cancel is not None:
        fields = {"groupId": cancel}
    elif file is not None:
        fields = read_event(file)
    else:
        fields = submit.make_event(visit_options, Clock().tai())
    answer_s = timeout or submit.ANSWER_S
    if wait:
        answer_s = min(answer_s, submit.ANSWER_S)
    with submit.VisitSubmitter(relay, answer_s, keys) as client:
        answer = client.ask(fields)
        followed = wait and answer.status in ("accepted", "duplicate")
        if not as_json:
            click.echo(submit.summary(answer))
        if followed:
            answer = _follow(client, answer, timeout or OUTCOMES_S, quiet=as_json)
    if as_json:
        click.echo(encode(answer))
    sys.exit(submit.exit_code(answer, followed=wait, cancelling=cancel is not None))


def _follow(client: "VisitSubmitter", answer: "Accepted", timeout_s: float, *, quiet: bool) -> "Accepted":
    from ppdaemon.ctl import submit
    from ppdaemon.terminal import show, terminal_console

    console = terminal_console()
    console.quiet = quiet
    with submit.watching(console) as show_answer:
        answer = submit.follow(client, answer.group, timeout_s=timeout_s, show=show_answer)
    if not quiet:
        show(submit.outcome_table(answer.outcomes or ()))
    return answer


def main() -> None:
    """Run the command line and exit."""
    run_command(command, "send_visit")
