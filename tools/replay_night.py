#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Replay a recorded or generated night at any speed, with own nodes or at a relay; count what was lost."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import click
from benching.cli import SETTINGS, folder_options, progress, run
from benching.folders import BenchFolders, FolderRoots
from fanoutbench.observatory import Observatory, running
from nightreplay.nights import (
    Announcement,
    ReplayedVisit,
    generated,
    of_journal,
    of_ledger,
    of_lines,
    of_scheduler,
    replayed,
    to_lines,
)
from nightreplay.progressfile import ProgressFile
from nightreplay.replay import Follower, ReplayReport, SmallCamera, planned_events
from rich.console import Console
from rich.table import Table

from ppdaemon.clock import Clock
from ppdaemon.ctl.options import key_options
from ppdaemon.ctl.submit import VisitSubmitter
from ppdaemon.curve import ClientKeys
from ppdaemon.demo.delivery import Delivery
from ppdaemon.demo.geometry import CAMERA_NAME, FILTER_BANDS
from ppdaemon.demo.nightreport import NightMeter, night_facts
from ppdaemon.demo.telescope import SimulatedCamera, Telescope, TelescopeEvent, TelescopeStep
from ppdaemon.demo.visits import next_seq_num
from ppdaemon.night.page import write_page
from ppdaemon.states import ExitCode

START_S = 2.0
"""From the start of the replay to the first announcement of the plan."""
_PATH = click.Path(path_type=Path, exists=True)


def chosen_night(options: dict[str, Any]) -> tuple[str, list[Announcement]]:
    """Return the source of the night, and its announcements."""
    visits, instrument = options["visits"], options["instrument"]
    if options["ledger"] is not None:
        return f"ledger {options['ledger'].name}", of_ledger(options["ledger"])[:visits]
    if options["journal"] is not None:
        return f"journal {options['journal'].name}", of_journal(options["journal"])[:visits]
    if options["night"] is not None:
        with options["night"].open() as lines:
            return f"file {options['night'].name}", of_lines(lines, str(options["night"]))[:visits]
    if options["scheduler"]:
        return "rubin_scheduler", of_scheduler(visits, instrument)
    night = generated(visits, options["cadence"], options["seed"], instrument)
    return f"generated, seed {options['seed']}", night


def replay(
    visits: list[ReplayedVisit],
    source: str,
    options: dict[str, Any],
    relay: str,
    keys: ClientKeys | None,
    raw_root: Path | None,
    observatory: Observatory | None = None,
    note: Callable[[TelescopeEvent], None] = lambda event: None,
) -> ReplayReport:
    """Announce the visits at a relay, write raws if there is a raw root, and count."""
    meter, speed = NightMeter(), options["speed"]

    def on_event(event: TelescopeEvent) -> None:
        if speed and event.step is TelescopeStep.WRITE:
            meter.late_s.append(event.late_s)
        note(event)

    camera = SimulatedCamera if observatory is None else SmallCamera
    with VisitSubmitter(relay, keys=keys) as client:
        follower = Follower(
            client,
            len(visits),
            observatory=observatory,
            raws=raw_root is not None,
            open_visits=0 if speed else options["open_visits"],
            limit_s=options["limit"],
        )
        telescope = Telescope(
            camera(options["instrument"], range(options["detectors"])),
            Delivery(raw_root or Path(), Clock().tai),
            follower,  # type: ignore[arg-type]
            on_event=on_event,
        )
        telescope.run(planned_events(visits, speed, raws=raw_root is not None))
        follower.finish()
        return ReplayReport(
            **follower.totals.fields() | {"visits": follower.visits},
            **meter.fields(),
            announced=follower.announced,
            doubled=follower.totals.doubled,
            source=source,
            speed=speed,
            detectors=options["detectors"],
            own_nodes=None if observatory is None else options["nodes"],
            cancelled=follower.cancelled,
            differing=follower.differing,
            memory=follower.memory(),
        )


def replay_with_own_nodes(
    visits: list[ReplayedVisit], source: str, options: dict[str, Any], folders: BenchFolders
) -> ReplayReport:
    """Run a relay and nodes with scripted workers, and replay there."""
    script = folders.scratch / "night.yaml"
    script.write_text(f"{{}}\n# script: {'' if options['raws'] else 'skip'} {options['script'] or ''}\n")
    progress(f"starting {options['nodes']} nodes for {options['detectors']} detectors")
    rules = {"main": [{"pipelines": [str(script)]}]}
    with running(folders, options["nodes"], options["detectors"], pipelines=rules) as observatory:
        telescope = observatory.telescope
        root = telescope.raws.root if options["raws"] else None
        return replay(visits, source, options, telescope.relay.submit, None, root, observatory)


def show(report: ReplayReport) -> None:
    """Print the report as a table."""
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    outcomes = ", ".join(f"{count} {name}" for name, count in report.outcomes.items())
    facts = [
        ("visits, visit-detectors", f"{report.visits}, {report.announced}"),
        *([("visits canceled", str(report.cancelled))] if report.cancelled else ()),
        ("outcomes", outcomes),
        ("lost, doubled, differing", f"{report.lost}, {report.doubled}, {report.differing}"),
        ("seconds", f"{report.total_s:.0f}"),
        *night_facts(report),
    ]
    if memory := report.memory:
        relay = f"relay {memory.relay_early_mb:.1f} to {memory.relay_late_mb:.1f}"
        facts.append(("MB", f"{relay}, nodes {memory.nodes_early_mb:.1f} to {memory.nodes_late_mb:.1f}"))
    for fact in facts:
        table.add_row(*fact)
    Console().print(table)


@click.command(name="replay_night", context_settings=SETTINGS)
@click.option("--ledger", type=_PATH, help="Replay the visits of a relay's ledger, a file or its folder.")
@click.option("--journal", type=_PATH, help="Replay the visits of a node's journal, a file or its folder.")
@click.option(
    "--night", type=_PATH, help="Replay a file with an event, or a message of kcat -J, in each line."
)
@click.option("--scheduler", is_flag=True, help="Replay a night that rubin-scheduler simulates.")
@click.option("--visits", default=1000, type=click.IntRange(1), help="Visits, at the most.")
@click.option(
    "--cadence", default=40.0, type=click.FloatRange(1), help="Seconds between visits of a generated night."
)
@click.option("--seed", default=1, type=int, help="Another seed, another night.")
@click.option("--instrument", default="LSSTCam", help="Visits of others are left out.")
@click.option("--detectors", default=205, type=click.IntRange(1), help="Detectors of a visit.")
@click.option(
    "--speed",
    default=0.0,
    type=click.FloatRange(0),
    help="Factor by which it is faster than the night; 0 as fast as visits end.",
)
@click.option(
    "--open-visits", default=4, type=click.IntRange(1), help="With --speed 0: visits that are open at once."
)
@click.option(
    "--nodes",
    default=4,
    type=click.IntRange(1),
    help="Own nodes with scripted workers, unless there is --relay.",
)
@click.option("--raws", is_flag=True, help="Own workers wait for raws, small files; else they end at once.")
@click.option(
    "--script",
    default="",
    show_default=False,
    help="What own workers do, in words of ppdaemon.testing.work: pace:40.",
)
@click.option("--relay", help="Submit socket of a relay that runs, instead of own nodes.")
@key_options
@click.option(
    "--raw-root",
    type=click.Path(path_type=Path, file_okay=False),
    help="With --relay: write small raws here, in the layout of LSST cameras.",
)
@click.option(
    "--resume",
    type=click.Path(path_type=Path, dir_okay=False),
    help="With --relay: note here what was done, and continue a replay that was interrupted.",
)
@click.option(
    "--limit",
    default=300.0,
    type=click.FloatRange(1),
    help="Seconds after its announcement when a visit without outcomes is given up.",
)
@click.option(
    "--report",
    default=Path("build/replay/report.json"),
    type=click.Path(path_type=Path, dir_okay=False),
    help="File of the report.",
)
@click.option(
    "--save",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the night to a file that --night reads, and replay nothing.",
)
@folder_options
def command(keys: ClientKeys | None, **options: Any) -> None:
    """Replay a night: one of a ledger, of a file, simulated by rubin-scheduler,
    or generated.

    A generated night has the filters of the survey's design, blocks of fields
    that are visited twice, and deep fields. Exits with 1 if a visit-detector
    has no outcome, was completed twice, or did not succeed at an own node.
    """
    files = sum(options[name] is not None for name in ("ledger", "journal", "night"))
    if files + options["scheduler"] > 1:
        raise click.UsageError("use one of --ledger, --journal, --night and --scheduler")
    if options["resume"] and not options["relay"]:
        raise click.UsageError("--resume needs --relay: own nodes end with the replay")
    if options["raw_root"] and not options["relay"]:
        raise click.UsageError("--raw-root needs --relay; own nodes have --raws")
    if options["relay"] and (options["raws"] or options["script"]):
        raise click.UsageError("--raws and --script are for own nodes, not for --relay")
    source, night = chosen_night(options)
    if options["save"] is not None:
        options["save"].write_text("".join(to_lines(night, Clock().tai())))
        return
    report = _replay(source, night, options, keys)
    options["report"].parent.mkdir(parents=True, exist_ok=True)
    report.write(options["report"])
    write_page(options["report"].with_name("night.html"), report, source)
    show(report)
    if not report.good:
        raise SystemExit(ExitCode.FAILED)


def _replay(
    source: str, night: list[Announcement], options: dict[str, Any], keys: ClientKeys | None
) -> ReplayReport:
    instrument, raw_root = options["instrument"], options["raw_root"]
    begin_tai = Clock().tai() + START_S
    seq_num = next_seq_num(raw_root, instrument, begin_tai) if raw_root else 1
    visits, record = replayed(night, begin_tai, instrument, seq_num, options["speed"]), None
    if options["resume"]:
        record = ProgressFile(options["resume"], source, len(visits), begin_tai, seq_num)
        visits = _continued(record, night, options, begin_tai)
        if not visits:
            raise click.UsageError(f"{options['resume']}: that replay has ended")
    if not visits:
        raise click.UsageError(f"{source}: no visit of {instrument} with images")
    if raw_root and instrument == CAMERA_NAME:
        names = {exposure.physical_filter for visit in visits for exposure in visit.exposures}
        if unknown := names - set(FILTER_BANDS):
            raise click.UsageError(f"{CAMERA_NAME} has no filter {', '.join(sorted(unknown))}")
    progress(f"{len(visits)} visits: {source}")
    if record is not None:
        with closing(record):
            return replay(visits, source, options, options["relay"], keys, raw_root, note=record.note)
    if options["relay"]:
        return replay(visits, source, options, options["relay"], keys, raw_root)
    with FolderRoots(options["scratch"], options["ramdisk"]).temporary() as folders:
        return replay_with_own_nodes(visits, source, options, folders)


def _continued(
    record: ProgressFile,
    night: list[Announcement],
    options: dict[str, Any],
    begin_tai: float,
) -> list[ReplayedVisit]:
    """Return the visits that are left, the first of them now, under the names of the first run."""
    raws, speed = options["raw_root"] is not None, options["speed"]

    def beginning(at_tai: float) -> list[ReplayedVisit]:
        return replayed(night, at_tai, options["instrument"], record.seq_num, speed, record.begin_tai_s)

    named = beginning(begin_tai)
    left = record.rest(named, planned_events(named, speed, raws=raws))
    if not left:
        return []
    shifted = beginning(begin_tai - (left[0].announced_tai_s - begin_tai))
    return [shifted[visit.number] for visit in left]


if __name__ == "__main__":
    run(command)
