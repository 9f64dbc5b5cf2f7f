# SPDX-License-Identifier: BSD-3-Clause
"""What a visit makes is not visited by the garbage collector while its raws arrive."""

import subprocess
import sys

CODE = """
import gc
from ppdaemon.garbage import YOUNG_OBJECTS, collect_seldom
runs = []
collect_seldom()
gc.callbacks.append(lambda phase, info: runs.append(info["generation"]))
visits = [[each] for each in range(YOUNG_OBJECTS - 1000)]
assert not runs, runs
assert gc.get_freeze_count() > 1000
cycles = []
for _ in range(3 * YOUNG_OBJECTS):
    cycles = [cycles]
    cycles.append(cycles)
assert 0 in runs, runs
"""


def test_the_collector_runs_seldom_but_finds_garbage():
    subprocess.run([sys.executable, "-c", CODE], check=True)
