# SPDX-License-Identifier: BSD-3-Clause
"""``ppctl simulate`` and ``tools/simulate_camera.py``: write raws as a camera would, at a cadence, with
faults on request.
"""

import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import Any, get_args

import click
import pydantic

from ppdaemon.clock import Clock, tai_iso
from ppdaemon.commandline import run_command
from ppdaemon.ctl.options import key_options
from ppdaemon.ctl.submit import ANSWER_S, VisitSubmitter
from ppdaemon.demo.delivery import Delivery, NoticeKind, NoticeSender, WriteMode
from ppdaemon.demo.faults import NOT_FITS, Faults, HeaderFault, Rewrite
from ppdaemon.demo.geometry import CAMERA_NAME, FILTER_BANDS
from ppdaemon.demo.oldfiles import write_old_files
from ppdaemon.demo.plan import ImageType
from ppdaemon.demo.sky import DEFAULT_DEC_DEG, DEFAULT_RA_DEG, demo_skies, sky_at
from ppdaemon.demo.telescope import Compression, SimulatedCamera, Telescope, TelescopeEvent, timeline
from ppdaemon.demo.truth import write_truth
from ppdaemon.demo.visits import Cadence, FieldPointing, VisitPlan, next_seq_num, plan_visits
from ppdaemon.errors import PPDaemonError
from ppdaemon.finiterange import FiniteRange
from ppdaemon.raws.layout import LayoutName
from ppdaemon.states import ExitCode
from ppdaemon.wire import explain

SUBSCRIBER_TIMEOUT_S = 10.0
# Older than every visit that a daemon may still wait for.
OLD_S = 2 * 86_400.0
LAYOUTS = get_args(LayoutName.__value__)
EPILOG = """\b
Examples:
  # A whole exposure of LSSTCam, now, beside a running daemon:
  simulate_camera.py --camera LSSTCam --raw-root /data/raw --exposure 0 --relay tcp://127.0.0.1:5570
  # Detectors 0 and 1 truncated, 2 missing, notices of all files over ZeroMQ:
  simulate_camera.py --raw-root /data/raw --truncate 5000 --faulty 0,1 --drop-detectors 2 --notices tcp://*:5580
  # 20,000 old files, and a visit that is announced after its raws:
  simulate_camera.py --raw-root /data/raw --storm 20000 --early 1 --relay tcp://127.0.0.1:5570
"""


def parse_detectors(text: str) -> tuple[int, ...]:
    """Parse a list of detectors such as ``0,2,5-8``."""
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
    """Parse the value of an option that is a list of detectors."""
    return None if value is None else parse_detectors(value)


SECONDS, POSITIVE = FiniteRange(0), FiniteRange(0, min_open=True)
FOLDER = click.Path(path_type=Path, file_okay=False)

type Kind = click.ParamType[Any] | None
type Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def combined_options(*options: Decorator) -> Decorator:
    """Make one decorator of several options, in the order of the help text."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def with_default(name: str, default: Any, text: str, kind: Kind = None) -> Decorator:
    """Return an option that shows its default: seconds, or of the default's type."""
    if isinstance(default, StrEnum):
        kind, default = click.Choice([each.value for each in type(default)], False), default.value
    elif isinstance(default, float):
        kind = kind or SECONDS
    return click.option(name, default=default, show_default=True, type=kind, help=text)


def fault(name: str, text: str, kind: Kind = None) -> Decorator:
    """Return an option that is off by default: a value, or a flag."""
    return click.option(name, type=kind, is_flag=kind is None, help=f"Fault: {text}")


def print_event(event: TelescopeEvent) -> None:
    """Print an event of the telescope as one line."""
    click.echo(f"{tai_iso(event.tai_s)} {event.step:9} {event.visit.group} {event.detail}")


# What is observed.
NIGHT = combined_options(
    with_default("--camera", CAMERA_NAME, "A camera of ppdaemon/cameras."),
    with_default("--visits", 1, "How many visits.", click.IntRange(1)),
    with_default("--cadence", 35.0, "Seconds between visits."),
    with_default("--lead", 20.0, "Seconds from the announcement to the exposure."),
    with_default("--exposure", 30.0, "Exposure time of a snap, seconds."),
    with_default("--readout", 2.0, "Seconds from the closed shutter to the raws."),
    with_default(
        "--speed", 1.0, "Factor by which the run is faster than the times in the headers.", POSITIVE
    ),
    with_default("--snaps", 1, "Exposures in each visit.", click.IntRange(1)),
    click.option("--group", help="Group of a single visit; by default its start time."),
    click.option(
        "--seq-num",
        type=click.IntRange(1, 99_999),
        help="First sequence number; by default the next free one.",
    ),
    with_default("--controller", "O", "Obsid letter.", click.Choice(["O", "S"])),
    with_default("--filters", "r_03", "Physical filters, used in turn: g_01,r_03."),
    with_default("--image-type", ImageType.SCIENCE, "Type of all images."),
    with_default("--program", "BLOCK-365", "The survey."),
    with_default("--ra", DEFAULT_RA_DEG, "Degrees; visits are dithered.", FiniteRange(0, 360, max_open=True)),
    with_default("--dec", DEFAULT_DEC_DEG, "Degrees.", FiniteRange(-90, 90)),
    with_default("--rotpa", 0.0, "Position angle of focal-plane +Y, degrees.", FiniteRange()),
    click.option(
        "--detectors", callback=detector_list, help="Detectors to read out, such as 0,2,5-8; by default all."
    ),
)

# How the files are written.
FILES = combined_options(
    click.option("--raw-root", required=True, type=FOLDER, help="Folder for the raws."),
    with_default("--layout", "lsst", "Layout of the paths below it.", click.Choice(LAYOUTS)),
    with_default("--compression", Compression.NONE, "Ending of the files, and their compression."),
    with_default(
        "--mode",
        WriteMode.RENAME,
        "Files appear complete (rename, link), grow (slow), or are closed and opened again (reopen).",
    ),
    with_default("--slow", 0.5, "Seconds in which a file grows, or for which it is closed."),
    click.option(
        "--truth", type=FOLDER, help="Folder for tables of the transients and variables that DemoCam shows."
    ),
)

# Which announcements and notices are sent.
MESSAGES = combined_options(
    click.option("--relay", help="Announce visits to the relay's submit socket, tcp://127.0.0.1:5570."),
    with_default("--relay-timeout", ANSWER_S, "Seconds to wait for its answer.", POSITIVE),
    click.option("--notices", help="Publish arrival notices on this ZeroMQ address."),
    with_default("--notice-kind", NoticeKind.S3, "Form of the notices: bucket notifications or plain paths."),
    with_default("--notices-bind/--notices-connect", True, "Bind that address, or connect to it."),
)

# Faults on purpose.
FAULTS = combined_options(
    click.option("--drop-detectors", callback=detector_list, help="Fault: these detectors write no files."),
    click.option(
        "--faulty",
        callback=detector_list,
        help="Detectors with the faults below, such as 0,2; by default all.",
    ),
    fault("--truncate", "FITS files end after this number of bytes.", click.IntRange(1)),
    fault("--empty", "FITS files are empty."),
    fault("--not-fits", "FITS files contain text."),
    fault(
        "--wrong-header",
        "the FITS header, but not its sidecar, names another detector or group.",
        click.Choice([each.value for each in HeaderFault]),
    ),
    fault("--no-sidecar", "there are no sidecars."),
    fault("--late-sidecar", "sidecars are written this number of seconds after their images.", POSITIVE),
    fault(
        "--duplicate",
        "FITS files are written twice; the second replaces or overwrites the first.",
        click.Choice([each.value for each in Rewrite]),
    ),
    with_default("--duplicate-after", 1.0, "Seconds between the two files.", POSITIVE),
    fault("--early", "visits are announced this number of seconds after their raws were written.", SECONDS),
    with_default("--late", 0.0, "Fault: raws are written this number of seconds too late."),
    fault("--cancel", "visits are announced, then canceled."),
    with_default("--storm", 0, "Fault: first write this number of files of past nights.", click.IntRange(0)),
)


@click.command(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@NIGHT
@FILES
@MESSAGES
@FAULTS
@key_options
def main(**options: Any) -> None:
    """Write raws as a camera would, at a cadence, with faults on request.

    DemoCam shows a realistic sky; other cameras write small valid files with
    full headers. With --relay the whole telescope is simulated: announce,
    wait, expose, write. Faults can be combined. --speed shortens --early and
    --late as all times of the night, but not the time in which a file is
    written.
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
    """Write a table of transients and variables for each science exposure."""
    skies = demo_skies()
    for plan in (exposure for visit in visits for exposure in visit.exposures):
        if plan.instrument != CAMERA_NAME or plan.image_type is not ImageType.SCIENCE:
            raise ValueError(
                f"--truth is for science exposures of {CAMERA_NAME}: no other image shows the sky"
            )
        sky = sky_at(skies, plan.ra_deg or 0.0, plan.dec_deg or 0.0)
        write_truth(folder / f"{plan.obs_id}.ecsv", sky, plan)


def refuse_contradictions(options: dict[str, Any]) -> None:
    """Raise `ValueError` for options that cannot be combined; `Faults` checks its own."""
    need_relay = [name for name in ("cancel", "early") if options[name] not in (None, False)]
    if need_relay and not options["relay"]:
        raise ValueError(f"--{need_relay[0]} needs --relay: without a relay no visit is announced")
    if options["cancel"] and (options["early"] is not None or options["late"]):
        raise ValueError("--cancel cannot be combined with --early or --late: a canceled visit has no raws")
    if options["early"] is not None and options["late"]:
        raise ValueError("raws cannot be both --early and --late")
    if options["empty"] and options["truncate"] is not None:
        raise ValueError("--empty cannot be combined with --truncate: choose one of the two")
    if options["storm"] and options["layout"] != "lsst":
        raise ValueError("--storm needs --layout lsst: only this layout has a folder per day")
    for name in filters(options) if options["camera"] == CAMERA_NAME else ():
        if name not in FILTER_BANDS:
            raise ValueError(f"--filters: {CAMERA_NAME} has {', '.join(FILTER_BANDS)}, not {name!r}")


def filters(options: dict[str, Any]) -> list[str]:
    """Return the physical filters, used in turn."""
    return [name.strip() for name in options["filters"].split(",")]


def faults_of(options: dict[str, Any]) -> Faults:
    """Return the faults of the files."""
    chosen = options["faulty"]
    return Faults(
        drop_detectors=frozenset(options["drop_detectors"] or ()),
        only=None if chosen is None else frozenset(chosen),
        truncate_bytes=0 if options["empty"] else options["truncate"],
        not_fits=options["not_fits"],
        header_fault=HeaderFault(options["wrong_header"]) if options["wrong_header"] else None,
        no_sidecar=options["no_sidecar"],
        late_sidecar_s=options["late_sidecar"] or 0.0,
        rewrite=Rewrite(options["duplicate"]) if options["duplicate"] else None,
        rewrite_after_s=options["duplicate_after"],
    )


def plan_night(
    options: dict[str, Any], instrument: str, cadence: Cadence, now_tai_s: float
) -> list[VisitPlan]:
    """Plan the requested visits."""
    return plan_visits(
        options["visits"],
        now_tai_s,
        cadence,
        instrument=instrument,
        snaps=options["snaps"],
        filters=filters(options),
        pointing=FieldPointing(options["ra"], options["dec"], options["rotpa"]),
        image_type=ImageType(options["image_type"]),
        program=options["program"],
        group=options["group"],
        first_seq_num=options["seq_num"]
        or next_seq_num(options["raw_root"], instrument, now_tai_s, options["layout"]),
        controller=options["controller"],
    )


def run(options: dict[str, Any], stack: ExitStack) -> int:
    """Set up the telescope and run it; return the number of images written."""
    clock = Clock()
    relay = notices = None
    refuse_contradictions(options)
    faults = faults_of(options)
    camera = SimulatedCamera(
        options["camera"],
        options["detectors"],
        layout=options["layout"],
        compression=Compression(options["compression"]),
        faults=faults,
    )
    options["raw_root"].mkdir(parents=True, exist_ok=True)
    if options["relay"]:
        relay = stack.enter_context(
            VisitSubmitter(options["relay"], options["relay_timeout"], options["keys"])
        )
    if options["notices"]:
        kind = NoticeKind(options["notice_kind"])
        notices = stack.enter_context(NoticeSender(options["notices"], kind, bind=options["notices_bind"]))
        notices.wait_for_subscriber(SUBSCRIBER_TIMEOUT_S)
    delivery = Delivery(
        options["raw_root"],
        clock.tai,
        mode=WriteMode(options["mode"]),
        faults=faults,
        notices=notices,
        slow_s=options["slow"],
    )
    if options["storm"]:
        old_tai_s = clock.tai() - OLD_S
        write_old_files(delivery.root, camera.instrument, options["storm"], old_tai_s, content=NOT_FITS)
    announced_before = relay is not None and options["early"] is None
    cadence = Cadence(
        options["cadence"],
        options["lead"] if announced_before else 0.0,
        options["exposure"],
        options["readout"],
        options["speed"],
    )
    visits = plan_night(options, camera.instrument, cadence, clock.tai())
    if options["truth"]:
        write_truths(options["truth"], visits)
    events = timeline(
        visits,
        cadence,
        announce=relay is not None,
        cancel=options["cancel"],
        announce_after_s=options["early"],
        late_s=options["late"],
    )
    return Telescope(camera, delivery, relay, clock=clock, on_event=print_event).run(events)


def cli(name: str = "simulate_camera") -> None:
    """Run the program; wrong usage exits with status 64."""
    run_command(main, name)


if __name__ == "__main__":
    cli("ppctl simulate")
