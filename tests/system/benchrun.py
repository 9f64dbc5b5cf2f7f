# SPDX-License-Identifier: BSD-3-Clause
"""Runs a bench of ``tools/`` with a small workload."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

TOOLS = Path(__file__).parents[2] / "tools"
LIMIT_S = 380


def run_bench(name: str, scratch: Path, ramdisk: Path, *options: str, **workload: float) -> dict[str, Any]:
    """Return the figures of a bench, which must leave nothing in its folders."""
    numbers = [text for option, number in workload.items() for text in (f"--{option}", str(number))]
    places = ["--scratch", scratch, "--ramdisk", ramdisk]
    command = [sys.executable, TOOLS / f"{name}.py", *options, *numbers, *places, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    assert list(scratch.iterdir()) == list(ramdisk.iterdir()) == []
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures
