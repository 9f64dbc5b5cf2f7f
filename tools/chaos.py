#!/usr/bin/env python
# SPDX-License-Identifier: BSD-3-Clause
"""Run the real daemon under random faults, then check every visit.

With ``--nodes`` it is the real relay with several daemons. Exit status 0 if
every accepted visit-detector got exactly one outcome, no permanent write
happened twice and nothing was left over; 1 if not.
"""

import dataclasses
import json
import random
import shutil
import tempfile
import uuid
from pathlib import Path
from typing import Any

import click
from benching.cli import SETTINGS
from benching.cli import run as run_program
from chaos_node import ChaosNode
from chaos_plan import make_plan
from chaos_relay import ChaosRelay
from chaos_run import ChaosRun, Report
from chaos_scene import RunFolders, Scene, ScriptedScene
from chaos_storm import StormReport, run_storm
from rich.console import Console
from rich.table import Table

from ppdaemon.states import ExitCode
from ppdaemon.testing.hosts import why_not

KINDS = ("lost", "doubled", "leaked", "wrong")
"""Kinds of violations; ``wrong`` is a result that no fault explains."""
STORM_KINDS = (*KINDS, "open")
"""With several nodes; ``open`` has no outcome 30 s after the last fault."""


def make_scene(folders: RunFolders, *, demo: bool) -> Scene:
    """Return scripted workers, or the demo camera's pipelines."""
    if not demo:
        return ScriptedScene(folders)
    from chaos_demo import DemoScene  # imports LSST code

    return DemoScene(folders)


def run(folders: RunFolders, seconds: float, seed: int, workers: int, *, demo: bool) -> Report:
    """Run in empty folders."""
    scene = make_scene(folders, demo=demo)
    plan = make_plan(
        seed,
        seconds,
        scene.detectors,
        worker_faults=scene.worker_faults,
        process_faults=scene.process_faults,
        visit_every_s=scene.visit_every_s,
        fault_every_s=scene.fault_every_s,
    )
    draw = random.Random(f"victims of {seed}")
    node = ChaosNode(folders.scratch, scene.settings(workers), uuid.uuid4().hex)
    relay = ChaosRelay(folders.relay, draw)
    try:
        return ChaosRun(plan, scene, node, relay, draw).run()
    finally:
        relay.close()
        scene.close()


def summary(report: Report, seconds: float, seed: int) -> dict[str, Any]:
    """Return a report as plain values, for JSON."""
    return {
        "seed": seed,
        "seconds": seconds,
        "accepted": report.accepted,
        **{kind: report.count(kind) for kind in KINDS},
        "refused": report.refused,
        "attempts": report.attempts,
        "outcomes": dict(report.outcomes.most_common()),
        "faults": dict(sorted(report.faults.items())),
        "killed_while": dict(sorted(report.killed_while.items())),
        "lives": report.incarnations,
        "restarted_slots": report.restarted_slots,
        "slowest_answer_s": round(report.slowest_answer_s, 3),
        "supervisor": {
            name: dataclasses.asdict(used) for name, used in (("begin", report.begin), ("end", report.end))
        },
        "violations": violations_of(report),
    }


def storm_summary(report: StormReport, seconds: float, seed: int, nodes: int) -> dict[str, Any]:
    """Return a report of several nodes as plain values, for JSON."""
    return {
        "seed": seed,
        "seconds": seconds,
        "nodes": nodes,
        "accepted": report.accepted,
        **{kind: report.count(kind) for kind in STORM_KINDS},
        "moved": report.moved,
        "outcomes": dict(report.outcomes.most_common()),
        "faults": dict(sorted(report.faults.items())),
        "lives": report.incarnations,
        "calm_s": round(report.calm_s, 3),
        "violations": violations_of(report),
    }


def violations_of(report: Report | StormReport) -> list[dict[str, Any]]:
    """Return the violations as plain values."""
    return [
        {
            "kind": violation.kind,
            "what": violation.description,
            "visit": violation.key,
            "story": report.stories.get(violation.key[0], []) if violation.key else [],
        }
        for violation in report.violations
    ]


def show(report_values: dict[str, Any], console: Console) -> None:
    """Print a report as tables, then the violations."""
    table = Table(title=f"chaos, seed {report_values['seed']}, {report_values['seconds']:g} s")
    table.add_column("event")
    table.add_column("count", justify="right")
    for name in ("accepted", "attempts", "moved", *STORM_KINDS):
        if name in report_values:
            table.add_row(name, str(report_values[name]))
    table.add_section()
    for group in ("outcomes", "faults"):
        for name, count in report_values[group].items():
            table.add_row(name, str(count))
        table.add_section()
    for state, count in report_values.get("killed_while", {}).items():
        table.add_row(f"killed while {state}", str(count))
    console.print(table)
    stories = {each["visit"][0]: each["story"] for each in report_values["violations"] if each["visit"]}
    for group, story in stories.items():
        print(f"story of {group}:", *story, sep="\n    ", file=console.file)
    print(*result_lines(report_values), sep="\n", file=console.file)


def result_lines(report_values: dict[str, Any]) -> list[str]:
    """Return a line for each violation, and their numbers.

    They are the last lines of the output, where a failed test shows them.
    """
    lines = []
    for violation in report_values["violations"]:
        where = "{} detector {}: ".format(*violation["visit"]) if violation["visit"] else ""
        lines.append(f"{violation['kind']}: {where}{violation['what']}")
    first = f"; the first: {lines[0].splitlines()[0]}" if lines else ""
    counts = ", ".join(f"{report_values[kind]} {kind}" for kind in STORM_KINDS if kind in report_values)
    return [*lines, f"seed {report_values['seed']}: {counts}{first}"]


@click.command(name="chaos", context_settings=SETTINGS)
@click.option(
    "--seconds",
    default=40.0,
    type=click.FloatRange(8),
    help="Seconds in which visits are announced and faults happen.",
)
@click.option("--seed", default=1, type=int, help="The same seed draws the same faults.")
@click.option("--workers", default=6, type=click.IntRange(2), help="Slots at the most.")
@click.option(
    "--nodes", type=click.IntRange(1), help="Run the real relay with this number of daemons, not one alone."
)
@click.option(
    "--namespaces", is_flag=True, help="With --nodes, as root: hosts whose connections are cut, too."
)
@click.option("--demo", is_flag=True, help="Use the demo camera's pipelines instead of scripted workers.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--keep", is_flag=True, help="Keep journal, logs and raws, and print their folder.")
def main(
    seconds: float,
    seed: int,
    workers: int,
    nodes: int | None,
    namespaces: bool,
    demo: bool,
    as_json: bool,
    keep: bool,
) -> None:
    """Run the real daemon under random faults, then check every visit."""
    if namespaces and (reason := "--namespaces needs --nodes" if nodes is None else why_not()):
        raise click.UsageError(reason)
    if nodes is not None and demo:
        raise click.UsageError("--demo runs one daemon only")
    scratch = Path(tempfile.mkdtemp(prefix="chaos-"))
    shm = Path("/dev/shm")
    ramdisk = Path(tempfile.mkdtemp(prefix="chaos-", dir=shm if shm.is_dir() else None))
    try:
        folders = RunFolders(scratch, ramdisk)
        if nodes is None:
            report_values = summary(run(folders, seconds, seed, workers, demo=demo), seconds, seed)
        else:
            report = run_storm(folders, seconds, seed, nodes, workers, namespaces=namespaces)
            report_values = storm_summary(report, seconds, seed, nodes)
    finally:
        shutil.rmtree(ramdisk, ignore_errors=True)
        if keep:
            click.echo(f"journal, logs and raws: {scratch}", err=True)
        else:
            shutil.rmtree(scratch, ignore_errors=True)
    if as_json:
        click.echo(json.dumps(report_values, indent=1))
        click.echo("\n".join(result_lines(report_values)), err=True)
    else:
        show(report_values, Console())
    if any(report_values.get(kind) for kind in STORM_KINDS):
        raise SystemExit(ExitCode.FAILED)


if __name__ == "__main__":
    run_program(main)
