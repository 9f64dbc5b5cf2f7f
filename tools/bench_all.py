#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Run the quick settings of all benches, and compare them with their goals and the baseline."""

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import click
from benching.cli import SETTINGS, folder_options, progress, run
from benching.results import Baseline, baseline_of
from benching.suite import Measured, measured_by, rows, suite_table

from ppdaemon.states import ExitCode
from ppdaemon.terminal import show

TOOLS = Path(__file__).parent
BASELINE = TOOLS / "baseline.json"
SECONDS = {
    "bench_engine": 200,
    "bench_preload": 50,
    "bench_export": 30,
    "bench_pool": 60,
    "bench_arrival": 80,
    "bench_fanout": 50,
    "bench_operator": 50,
    "bench_night": 75,
    "bench_sources": 30,
}
"""What each takes with ``--quick`` on two idle cores, in the order of running."""
SLOWER = 10
"""A bench that takes so many times longer has failed."""


def run_bench(name: str, folders: list[str]) -> Measured | str:
    """Run a bench; return what it measured, or why it failed."""
    command = [sys.executable, str(TOOLS / f"{name}.py"), "--quick", "--json", *folders]
    limit_s = SLOWER * SECONDS[name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as process:
        try:
            printed, _ = process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            return f"not within {limit_s} s"
        finally:
            process.terminate()  # if it still runs: it deletes its folders
    return f"exited with {process.returncode}" if process.returncode else measured_by(json.loads(printed))


def run_all(names: list[str], folders: list[str]) -> dict[str, Measured | str]:
    """Run benches one after the other."""
    found: dict[str, Measured | str] = {}
    began, load = time.monotonic(), os.getloadavg()[0]
    for number, name in enumerate(names, start=1):
        left = sum(SECONDS[each] for each in names[number - 1 :])
        passed = time.monotonic() - began
        progress(f"--- {number} of {len(names)}: {name}; {passed:.0f} s passed, about {left} s left")
        found[name] = run_bench(name, folders)
    loads = f"{load:.1f} before, {os.getloadavg()[0]:.1f} now"
    progress(f"--- {time.monotonic() - began:.0f} s; load {loads}")
    return found


@click.command(name="bench_all", context_settings=SETTINGS)
@click.option("--only", multiple=True, type=click.Choice([*SECONDS]), help="This bench; may be repeated.")
@click.option(
    "--baseline",
    "path",
    default=BASELINE,
    show_default="tools/baseline.json",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="File of ratios of an earlier run.",
)
@click.option("--renew", is_flag=True, help="Write the ratios of this run to the baseline.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@folder_options
def command(
    only: tuple[str, ...], path: Path, renew: bool, as_json: bool, scratch: Path, ramdisk: Path
) -> None:
    """Run all benches, one after the other, and print one table of what has a goal.

    Takes eleven minutes on two idle cores; other load misses absolute goals. A
    ratio is also compared with the baseline. Exits with 1 if a goal is missed,
    a ratio is worse than the baseline by more than its tolerance, or a bench
    fails. All files are deleted.
    """
    chosen = [name for name in SECONDS if name in (only or SECONDS)]
    found = run_all(chosen, ["--scratch", str(scratch), "--ramdisk", str(ramdisk)])
    baseline = baseline_of(json.loads(path.read_text()))
    results = list(rows(found, baseline))
    bad = [row for row in results if not row.good]
    if as_json:
        click.echo(json.dumps({"results": [row.as_json() for row in results], "good": not bad}))
    else:
        show(suite_table(results))
        for row in bad:
            text = f"{row.name} {row.verdict}" if row.goal else row.verdict
            click.echo(f"{row.bench}: {text}", err=True)
    if renew:
        write(
            path, baseline.renewed({name: each for name, each in found.items() if not isinstance(each, str)})
        )
    if bad:
        raise SystemExit(ExitCode.FAILED)


def write(path: Path, baseline: Baseline) -> None:
    """Write a baseline."""
    path.write_text(json.dumps(asdict(baseline), indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    run(command)
