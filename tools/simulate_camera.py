#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Write raws as a camera would, at a cadence, with faults on request."""

import sys
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import pydantic

from ppdaemon.clock import Clock, tai_iso
from ppdaemon.ctl.submit import ANSWER_S, RelayClient
from ppdaemon.demo.delivery import Delivery, Faults, NoticeKind, NoticeSender, WriteMode
from ppdaemon.demo.geometry import CAMERA_NAME
from ppdaemon.demo.plan import ImageType
from ppdaemon.demo.sky import DEFAULT_DEC_DEG, DEFAULT_RA_DEG, Sky
from ppdaemon.demo.telescope import Happening, SimulatedCamera, Telescope, timeline
from ppdaemon.demo.truth import write_truth
from ppdaemon.demo.visits import Cadence, Pointing, VisitPlan, next_seq_num, plan_visits
from ppdaemon.errors import PPDaemonError
from ppdaemon.states import ExitCode
from ppdaemon.wire import explain

SUBSCRIBER_TIMEOUT_S = 10.0


def parse_detectors(text: str) -> tuple[int, ...]:
    """Read ``0,2,5-8``."""
    detectors: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        try:
            detectors.extend(range(int(first), int(last if dash else first) + 1))
        except ValueError:
            raise click.BadParameter(f"{part!r} is neither a number nor a range such as 3-7") from None
    return tuple(detectors)


def detector_list(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> tuple[int, ...] | None:
    """Read an option's detectors."""
    return None if value is None else parse_detectors(value)


def tell(happening: Happening) -> None:
    """Print one line."""
    click.echo(f"{tai_iso(happening.tai_s)} {happening.step:9} {happening.visit.group} {happening.detail}")


@click.command()
@click.option("--camera", default=CAMERA_NAME, show_default=True, help="A camera of ppdaemon/cameras.")
@click.option(
    "--raw-root", required=True, type=click.Path(path_type=Path, file_okay=False), help="Where raws go."
)
@click.option("--visits", default=1, show_default=True, type=click.IntRange(1), help="How many visits.")
@click.option(
    "--cadence", default=35.0, show_default=True, type=click.FloatRange(0), help="Seconds between visits."
)
@click.option("--lead", default=20.0, show_default=True, type=click.FloatRange(0), help="Seconds of warning.")
@click.option(
    "--exposure", default=30.0, show_default=True, type=click.FloatRange(0), help="Seconds of a snap."
)
@click.option(
    "--readout", default=2.0, show_default=True, type=click.FloatRange(0), help="Seconds until raws land."
)
@click.option(
    "--speed",
    default=1.0,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="Play so many times faster than the headers say.",
)
@click.option("--snaps", default=1, show_default=True, type=click.IntRange(1), help="Exposures of a visit.")
@click.option("--group", help="Group of a single visit; by default its start time.")
@click.option(
    "--seq-num", type=click.IntRange(1, 99_999), help="First sequence number; by default the next free one."
)
@click.option(
    "--controller", type=click.Choice(["O", "S"]), default="O", show_default=True, help="Obsid letter."
)
@click.option(
    "--filters", default="r_03", show_default=True, help="Physical filters, used in turn: g_01,r_03."
)
@click.option(
    "--image-type",
    type=click.Choice([each.value for each in ImageType], case_sensitive=False),
    default=ImageType.SCIENCE.value,
    show_default=True,
)
@click.option("--program", default="BLOCK-365", show_default=True, help="The survey.")
@click.option("--ra", default=DEFAULT_RA_DEG, show_default=True, type=click.FloatRange(0, 360, max_open=True))
@click.option("--dec", default=DEFAULT_DEC_DEG, show_default=True, type=click.FloatRange(-90, 90))
@click.option("--rotpa", default=0.0, show_default=True, help="Position angle of focal-plane +Y, degrees.")
@click.option("--detectors", callback=detector_list, help="Those read out, such as 0,2,5-8; by default all.")
@click.option(
    "--mode",
    type=click.Choice([each.value for each in WriteMode]),
    default=WriteMode.RENAME.value,
    show_default=True,
    help="Files appear whole, or grow.",
)
@click.option("--relay", help="Announce visits to the relay's submit socket, tcp://127.0.0.1:5570.")
@click.option(
    "--relay-timeout",
    default=ANSWER_S,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="Seconds to wait for its answer.",
)
@click.option("--notices", help="Publish arrival notices on this ZeroMQ address.")
@click.option(
    "--notice-kind",
    type=click.Choice([each.value for each in NoticeKind]),
    default=NoticeKind.S3.value,
    show_default=True,
    help="Bucket notifications, or plain paths.",
)
@click.option(
    "--notices-bind/--notices-connect", default=True, show_default=True, help="What to do with the address."
)
@click.option(
    "--truth", type=click.Path(path_type=Path, file_okay=False), help="Write what DemoCam shows here."
)
@click.option("--drop-detectors", callback=detector_list, help="Fault: these never come.")
@click.option("--truncate", type=click.IntRange(0), help="Fault: FITS files end after so many bytes.")
@click.option("--cancel", is_flag=True, help="Fault: visits are announced, then cancelled.")
def main(**options: Any) -> None:
    """Write raws as a camera would, at a cadence, with faults on request.

    DemoCam shows a real sky; other cameras write small valid files with full
    headers. With --relay it plays the whole telescope: announce, wait, expose,
    write.
    """
    try:
        with ExitStack() as stack:
            delivered = run(options, stack)
    except (PPDaemonError, OSError) as error:
        click.echo(f"simulate_camera: {error}", err=True)
        sys.exit(error.exit_code if isinstance(error, PPDaemonError) else ExitCode.CANNOT_CREATE)
    except pydantic.ValidationError as error:
        click.echo(f"simulate_camera: {explain(error)}", err=True)
        sys.exit(ExitCode.USAGE)
    except ValueError as error:
        click.echo(f"simulate_camera: {error}", err=True)
        sys.exit(ExitCode.USAGE)
    click.echo(f"{delivered} detector images written below {options['raw_root']}")


def write_truths(folder: Path, visits: Iterable[VisitPlan]) -> None:
    """Write a table of transients and variables for each exposure of the sky."""
    sky = Sky()
    for plan in (exposure for visit in visits for exposure in visit.exposures):
        if plan.instrument != CAMERA_NAME or plan.image_type is not ImageType.SCIENCE:
            raise ValueError(f"--truth is for science exposures of {CAMERA_NAME}: nothing else shows the sky")
        write_truth(folder / f"{plan.obs_id}.ecsv", sky, plan)


def run(options: dict[str, Any], stack: ExitStack) -> int:
    """Put the telescope together and play."""
    clock = Clock()
    relay = None
    if options["cancel"] and not options["relay"]:
        raise ValueError("--cancel needs --relay: without it nobody knows of the visits")
    options["raw_root"].mkdir(parents=True, exist_ok=True)
    camera = SimulatedCamera(options["camera"], options["detectors"])
    if options["relay"]:
        relay = stack.enter_context(RelayClient(options["relay"], options["relay_timeout"]))
    notices = None
    if options["notices"]:
        kind = NoticeKind(options["notice_kind"])
        notices = stack.enter_context(NoticeSender(options["notices"], kind, bind=options["notices_bind"]))
        notices.wait_for_subscriber(SUBSCRIBER_TIMEOUT_S)
    faults = Faults(frozenset(options["drop_detectors"] or ()), options["truncate"])
    delivery = Delivery(
        options["raw_root"], clock.tai, mode=WriteMode(options["mode"]), faults=faults, notices=notices
    )
    cadence = Cadence(
        options["cadence"],
        options["lead"] if relay else 0.0,
        options["exposure"],
        options["readout"],
        options["speed"],
    )
    visits = plan_visits(
        options["visits"],
        clock.tai(),
        cadence,
        instrument=camera.instrument,
        snaps=options["snaps"],
        filters=[name.strip() for name in options["filters"].split(",")],
        pointing=Pointing(options["ra"], options["dec"], options["rotpa"]),
        image_type=ImageType(options["image_type"]),
        program=options["program"],
        group=options["group"],
        first_seq_num=options["seq_num"] or next_seq_num(delivery.root, camera.instrument, clock.tai()),
        controller=options["controller"],
    )
    if options["truth"]:
        write_truths(options["truth"], visits)
    telescope = Telescope(camera, delivery, relay, clock=clock, watch=tell)
    return telescope.play(timeline(visits, cadence, announce=relay is not None, cancel=options["cancel"]))


def cli() -> None:
    """Run the program; wrong usage ends with status 64."""
    try:
        main.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(ExitCode.USAGE)
    except click.Abort:
        sys.exit(ExitCode.FAILED)


if __name__ == "__main__":
    cli()
