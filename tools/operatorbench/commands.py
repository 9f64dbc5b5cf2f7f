# SPDX-License-Identifier: BSD-3-Clause
"""Times of commands as an operator waits for them: a new process each, the start of Python included."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median

from benching.results import Scalar
from poolbench.node import BenchFailed

PYTHON = (sys.executable, "-c")
PPCTL = (*PYTHON, "from ppdaemon.ctl.cli import main; main()")
LIMIT_S = 60.0
BYTECODE = "PYTHONDONTWRITEBYTECODE"
"""Where it is set, each command would compile the whole package, which an installation has compiled."""
TERMINAL = {"TERM": "xterm", "COLUMNS": "80", "LINES": "24"}


@dataclass(slots=True)
class Times:
    """Of the repetitions of one command."""

    wall_ms: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)

    def results(self, name: str) -> dict[str, Scalar]:
        """Return the median and the shortest time, and the CPU time, which other load changes less."""
        wall, cpu = self.wall_ms, self.cpu_ms
        return {f"{name}_ms": median(wall), f"{name}_min_ms": min(wall), f"{name}_cpu_ms": median(cpu)}


def run(command: Sequence[str], times: Times) -> None:
    """Run a command once, with its output in a pipe. Raises `BenchFailed` if it fails."""
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, env=_environment())
    assert process.stdout is not None
    with process.stdout as output:
        while output.read(1 << 20):
            pass
    _ended(process, times, began)
    if process.returncode:
        raise BenchFailed(f"{' '.join(command[3:])} exited with {process.returncode}")


def first_frame(command: Sequence[str], shown: bytes, times: Times, listen: Callable[[], None]) -> None:
    """Run a command in a terminal of 80 x 24 until it has shown a text, then press q."""
    master, terminal = os.openpty()
    began = time.monotonic()
    process = subprocess.Popen(
        command,
        stdin=terminal,
        stdout=terminal,
        env=_environment() | TERMINAL,
        start_new_session=True,
    )
    os.close(terminal)
    with open(master, "r+b", buffering=0) as keyboard:
        output = b""
        while shown not in output:
            output += keyboard.read(65536)
            if time.monotonic() - began > LIMIT_S:
                process.kill()
                raise BenchFailed(f"no frame in {LIMIT_S:g} s: {output.decode(errors='replace')}")
        wall_ms = (time.monotonic() - began) * 1e3
        keyboard.write(b"q")
        listen()
        # The terminal must be read until the end: a program that writes into a full one waits.
        try:
            while keyboard.read(65536):
                pass
        except OSError:  # EIO: the program has closed it
            pass
    _ended(process, times, began)
    times.wall_ms[-1] = wall_ms


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != BYTECODE}


def _ended(process: subprocess.Popen[bytes], times: Times, began: float) -> None:
    """Wait for a process and note its times."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    times.wall_ms.append((time.monotonic() - began) * 1e3)
    times.cpu_ms.append((usage.ru_utime + usage.ru_stime) * 1e3)
