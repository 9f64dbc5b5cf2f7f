# SPDX-License-Identifier: BSD-3-Clause
"""Runs ``bps submit`` or ``pipetask run`` for the catch-up, shows its progress, and ends what it started.

Exit codes decide nothing: ``bps submit`` with Parsl exits with 0 although quanta have failed. What was made
is asked of the central repo afterwards.
"""

import contextlib
import os
import re
import select
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ppdaemon.config import NodeConfig
from ppdaemon.ctl.catchupfiles import CatchupUnit, bps_file, pipetask_command
from ppdaemon.errors import ConfigError, PPDaemonError
from ppdaemon.processes import become_subreaper, children, die_with_parent, process_tree
from ppdaemon.states import ExitCode
from ppdaemon.terminal import duration

__all__ = ("Interrupted", "Runner", "reason_in", "run_program")

GRACE_S = 10.0
"""A process may take this long to end after TERM."""
PROGRESS_S = 2.0
"""How often logs are read; jobs take seconds to hours."""
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

_TOTAL = re.compile(r"QuantumGraph contains (\d+) quant")
_EXECUTED = re.compile(r"Executed (\d+) quanta successfully, (\d+) failed")
_BAD_LINE = re.compile(r"^(?:ERROR|CRITICAL|FATAL) \S+ \S+ \(.*?\)\(\S+\) - (.+)$", re.MULTILINE)
_EXCEPTION = re.compile(r"^(?:\w+\.)*\w+(?:Error|Exception): .+$", re.MULTILINE)


class Interrupted(PPDaemonError):
    """The catch-up was ended by a signal: call it again to continue."""

    exit_code = ExitCode.FAILED


@dataclass
class Runner:
    """Runs units one after the other."""

    kind: Literal["bps", "pipetask"]
    config: NodeConfig
    environment: Mapping[str, str]
    folder: Path
    cores: int
    site: Path | None
    report: Callable[[str], None]
    """Gets a line when something has changed."""
    reasons: dict[str, str] = field(default_factory=dict)
    """By output run: why quanta were not run, if its logs have a reason."""
    started: bool = False
    """Whether a pipeline may have run."""

    def run(self, unit: CatchupUnit) -> None:
        """Process one unit. Raises `Interrupted` after a signal; then no process of it is left."""
        self.folder.mkdir(parents=True, exist_ok=True)
        log = self.folder / f"{unit.name}.log"
        command = self._command(unit)
        self.report(f"{unit.name}: {len(unit.exposures)} exposure-detectors; log: {log}")
        self.started = True
        begin, last = time.monotonic(), ""

        def show_progress() -> None:
            nonlocal last
            if (now := self._progress(log)) != last:
                last = now
                self.report(f"{unit.name}: {now} after {duration(time.monotonic() - begin)}")

        try:
            code = run_program(command, self.environment, self.folder, output=log, tick=show_progress)
        finally:
            self.reasons[unit.run] = reason_in(self._texts(log))
        self.report(f"{unit.name}: ended with exit code {code}")

    def _command(self, unit: CatchupUnit) -> list[str]:
        if self.kind == "pipetask":
            return pipetask_command(unit, self.config, self.cores)
        file = self.folder / f"{unit.name}.yaml"
        file.write_text(bps_file(unit, self.config, self.folder, self.cores, site=self.site))
        return ["bps", "submit", str(file)]

    def _submit_folder(self, log: Path) -> Path | None:
        found = re.search(r"^Submit dir: (.+)$", _read(log), re.MULTILINE)
        return None if found is None else Path(found[1])

    def _progress(self, log: Path) -> str:
        """Return how many quanta have begun, from the logs."""
        submit = self._submit_folder(log)
        text = _read(log if submit is None else submit / "quantumGraphGeneration.out")
        total = next(iter(_TOTAL.findall(text)), None)
        if total is None:
            return "building the graph"
        if submit is None:
            succeeded, failed = (_EXECUTED.findall(text) or [("0", "0")])[-1]
            return f"{succeeded} of {total} quanta, {failed} failed"
        begun = sum(1 for path in (submit / "logs").glob("*/**/*.stderr") if "_" in path.stem)
        return f"{begun} of {total} quanta begun"

    def _texts(self, log: Path) -> Iterator[str]:
        """Yield the logs that may have the reason why there are no quanta, the best first."""
        submit = self._submit_folder(log)
        if submit is not None:
            yield _read(submit / "quantumGraphGeneration.out")
            yield _read(submit / "logs" / "pipetaskInit" / "pipetaskInit.stderr")
            yield _read(submit / "logs" / "finalJob" / "finalJob.stderr")
        yield _read(log)


def reason_in(texts: Iterator[str]) -> str:
    """Return the last error in the first log that has one: an exception, else the last messages."""
    for text in texts:
        if exceptions := _EXCEPTION.findall(text):
            return str(exceptions[-1])
        if lines := _BAD_LINE.findall(text):
            return "; ".join(dict.fromkeys(lines[-2:]))
    return ""


def _read(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(errors="replace")
    return ""


def run_program(
    command: Sequence[str],
    environment: Mapping[str, str],
    folder: Path,
    *,
    output: Path,
    errors: Path | None = None,
    given: bytes = b"",
    tick: Callable[[], None] = lambda: None,
) -> int:
    """Run a program until it ends, and end what it leaves; return its exit code.

    ``output`` gets its standard output, also its errors if they have no file of their own. ``given`` is its
    standard input. Raises `Interrupted` after a signal; then it and all that it started have ended.
    """
    become_subreaper()
    with ExitStack() as opened:
        reader = opened.enter_context(tempfile.TemporaryFile())
        reader.write(given)
        reader.seek(0)
        out = opened.enter_context(output.open("wb"))
        stopping = opened.enter_context(_stop_signals())
        try:
            process = subprocess.Popen(
                command,
                stdin=reader,
                stdout=out,
                stderr=subprocess.STDOUT if errors is None else opened.enter_context(errors.open("wb")),
                env=dict(environment),
                cwd=folder,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        except FileNotFoundError:
            raise ConfigError([f"there is no command {command[0]}: pip install 'ppdaemon[bps]'"]) from None
        try:
            number = _wait(process, stopping, tick)
        finally:
            _end_all(process)
    if number:
        raise Interrupted(f"ended by {signal.Signals(number).name}; call it again to continue")
    return process.returncode


def _wait(process: subprocess.Popen[bytes], stopping: socket.socket, tick: Callable[[], None]) -> int:
    """Wait until the process has ended, or a signal has come, whose number is returned."""
    pidfd = os.pidfd_open(process.pid)
    try:
        while True:
            ready, _, _ = select.select([pidfd, stopping.fileno()], [], [], PROGRESS_S)
            if stopping.fileno() in ready:
                return stopping.recv(1)[0]
            if pidfd in ready:
                return 0
            tick()
    finally:
        os.close(pidfd)


@contextmanager
def _stop_signals() -> Iterator[socket.socket]:
    """Yield a socket that gets the numbers of signals that would end this process."""
    reader, writer = socket.socketpair()
    with reader, writer:
        writer.setblocking(False)
        # The children that are started now get the default handlers again when they execute a program.
        before = {number: signal.signal(number, lambda *_: None) for number in STOPPING}
        wakeup = signal.set_wakeup_fd(writer.fileno())
        try:
            yield reader
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)


def _end_all(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it has started, also in sessions of their own: TERM, then KILL.

    This process is the parent of those whose parent has ended.
    """
    deadline = time.monotonic() + GRACE_S
    _signal_all(signal.SIGTERM)
    while _reaped(process) and time.monotonic() < deadline:
        time.sleep(0.05)
    while _reaped(process):
        _signal_all(signal.SIGKILL)
        time.sleep(0.05)


def _signal_all(number: signal.Signals) -> None:
    for child in children():
        for pid in process_tree(child):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


def _reaped(process: subprocess.Popen[bytes]) -> bool:
    """Reap what has ended; return whether anything is left."""
    process.poll()
    for child in children() - {process.pid}:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(child, os.WNOHANG)
    return bool(children())
