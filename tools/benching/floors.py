# SPDX-License-Identifier: BSD-3-Clause
"""The start of Python, which a slow or busy machine lengthens as it does the times of the daemons."""

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

SAMPLES = 5
PYTHON_START, PYTHON_CPU = "host.python_start_ms", "host.python_cpu_ms"
"""Names of the results: until it has ended, and its CPU time."""


@dataclass(frozen=True, slots=True)
class PythonStart:
    """One process of Python without a program."""

    wall_ms: float
    cpu_ms: float


def python_starts(number: int = SAMPLES) -> Sequence[PythonStart]:
    """Start processes one after the other."""
    return [_start() for _ in range(number)]


def results(starts: Sequence[PythonStart]) -> dict[str, float]:
    """Return medians, as results of the group ``host``. Pure."""
    return {
        "python_start_ms": median(start.wall_ms for start in starts),
        "python_cpu_ms": median(start.cpu_ms for start in starts),
    }


def _start() -> PythonStart:
    began = time.monotonic()
    pid = os.posix_spawn(sys.executable, (sys.executable, "-c", "pass"), os.environ)
    _, _, usage = os.wait4(pid, 0)
    return PythonStart((time.monotonic() - began) * 1e3, (usage.ru_utime + usage.ru_stime) * 1e3)
