# SPDX-License-Identifier: BSD-3-Clause
"""Time per visit of finding and restoring what tasks leave in a worker's process."""

import importlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable

from benching.cli import progress
from benching.folders import BenchFolders
from benching.results import Scalar

from ppdaemon import log
from ppdaemon.worker.leftovers import Leftovers, ScratchFolder

ROUNDS = 200


def measure_leftovers(folders: BenchFolders) -> dict[str, Scalar]:
    """Measure in this process, with all modules of a real worker.

    Returns medians in milliseconds: of a check that finds nothing, with its CPU time, which other load
    changes less, and of one that restores everything that `ppdaemon.testing.leftovers` leaves.
    """
    progress("what tasks leave in a process")
    folder, temporary, variable = os.getcwd(), tempfile.tempdir, os.environ.get("TMPDIR")
    try:
        return _measure(folders)
    finally:
        # The scratch folder, in which this process was, is deleted.
        os.chdir(folder)
        tempfile.tempdir = temporary
        os.environ.pop("TMPDIR", None)
        if variable is not None:
            os.environ["TMPDIR"] = variable


def _measure(folders: BenchFolders) -> dict[str, Scalar]:
    importlib.import_module("ppdaemon.middleware.work").set_up_libraries()
    leave_all = importlib.import_module("ppdaemon.testing.leftovers").leave_all
    log.set_up("WARNING", "json")
    scratch = ScratchFolder(folders.ramdisk)
    scratch.use_for_temporary_files()
    scratch.enter()
    leftovers = Leftovers(["ppdaemon"])
    clean, clean_cpu, changed = [], [], []
    for _ in range(ROUNDS):
        before_s = time.process_time()
        clean.append(_milliseconds(leftovers.restore))
        clean_cpu.append((time.process_time() - before_s) * 1e3)
    for _ in range(ROUNDS // 10):
        leave_all()
        changed.append(_milliseconds(leftovers.restore))
        scratch.enter()
    return {
        "leftovers_ms": statistics.median(clean),
        "leftovers_cpu_ms": statistics.median(clean_cpu),
        "leftovers_restored_ms": statistics.median(changed),
    }


def _milliseconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - begin)
