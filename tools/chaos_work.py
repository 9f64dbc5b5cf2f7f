# SPDX-License-Identifier: BSD-3-Clause
"""Work without LSST for chaos runs: what goes wrong is written in the survey.

A visit's survey is a list of words: ``pace:40`` (milliseconds of work in each
step) and deeds such as ``hang@process/3/1``. Every deed that is done is noted
in ``deeds.log`` of the state directory, every permanent write is one byte
appended to the visit-detector's file in ``writes``, every export a file in
``central``: by these the checker judges, not by what the daemon says.
"""

import ctypes
import errno
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from ppdaemon.errors import VisitFailed
from ppdaemon.folders import NodeFolders
from ppdaemon.messages import (
    Done,
    Exported,
    Ingested,
    PointOfNoReturn,
    Prepare,
    Prepared,
    Process,
    Raw,
    StageReached,
)
from ppdaemon.states import Outcome, Stage
from ppdaemon.wire import encode
from ppdaemon.work import Seat

__all__ = (
    "DEEDS_FILE",
    "STEPS",
    "Deed",
    "build_template",
    "open_exporter",
    "open_work",
    "set_up_libraries",
)

STEPS = ("prepare", "ingest", "process", "written", "spooling", "spooled")
"""Where a deed can be done, in the order of a visit; ``written`` is just after
the permanent write, ``spooling`` between the parts of a spool."""

DEEDS_FILE = "deeds.log"
LEAK_BYTES = 120_000_000
BURST_BYTES = 500_000_000
EXPORT_PAUSE_S = 0.02
"""Between registering and deleting a spool: a kill may come in between."""


@dataclass(frozen=True, slots=True)
class Deed:
    """Something that goes wrong in a worker."""

    name: str
    step: str
    detector: int | None = None
    """`None` means all of the visit."""
    attempt: int | None = 1
    """`None` means each."""

    def __str__(self) -> str:
        detector = "" if self.detector is None else self.detector
        return f"{self.name}@{self.step}/{detector}/{self.attempt or ''}"

    @classmethod
    def read(cls, word: str) -> Self:
        """Return the deed that a word of a survey names."""
        name, _, rest = word.partition("@")
        step, detector, attempt = rest.split("/")
        return cls(name, step, int(detector) if detector else None, int(attempt) if attempt else None)

    def concerns(self, step: str, detector: int, attempt: int) -> bool:
        """Tell whether it is to be done now."""
        return self.step == step and self.detector in (None, detector) and self.attempt in (None, attempt)


def set_up_libraries() -> None:
    """Nothing is imported that would need it."""


def build_template(seat: Seat) -> None:
    """Make a repo of one file."""
    seat.template.mkdir()
    (seat.template / "registry").write_text("template")


class ChaosWork:
    """Goes through all stages of a visit, and does the deeds on its way."""

    def __init__(self, seat: Seat):
        self._seat = seat
        self._state = seat.config.node.state_dir
        self._copy()

    def prepare(self, order: Prepare) -> Prepared:
        """Read what is to go wrong."""
        self._order = order
        words = order.visit.survey.split()
        self._deeds = [Deed.read(word) for word in words if "@" in word]
        self._pace_s = sum(int(word[5:]) for word in words if word.startswith("pace:")) / 1000
        self._step("prepare")
        return Prepared(pipeline="chaos")

    def ingest(self, raw: Raw) -> Ingested:
        """Take any raw."""
        self._step("ingest")
        return Ingested(exposure=raw.exposure, shutter_close_tai=raw.seen_tai - 2)

    def process(self, order: Process) -> Done:
        """Write once what is permanent, then spool."""
        self._stage(Stage.FIRST_TASK)
        self._step("process")
        self._write_for_ever()
        self._step("written")
        self._stage(Stage.PROCESSED)
        folder = self._spool()
        self._stage(Stage.SPOOLED)
        done = Done(outcome=Outcome.SUCCEEDED, pipeline="chaos", engine="none", spool=str(folder), datasets=1)
        self._last_words = done.model_copy(update={"serial": self._order.serial})
        self._step("spooled")
        return done

    def reset(self) -> None:
        """Empty the repo and copy the template again."""
        for path in self._seat.repo.iterdir():
            path.unlink()
        self._copy()

    def _copy(self) -> None:
        (self._seat.repo / "registry").write_text((self._seat.template / "registry").read_text())

    def _stage(self, stage: Stage) -> None:
        self._seat.report(StageReached(stage=stage, tai=self._seat.clock.tai()))

    def _write_for_ever(self) -> None:
        """Announce, and only then write what can never be taken back."""
        self._seat.report(PointOfNoReturn(what="chaos"))
        time.sleep(self._pace_s)
        folder = self._state / "writes"
        folder.mkdir(exist_ok=True)
        append(folder / f"{self._order.visit.group}~{self._order.detector}", "x")

    def _spool(self) -> Path:
        visit = self._order.visit
        key = (visit.instrument, visit.group, self._order.detector, self._order.attempt)
        folder = NodeFolders.of(self._seat.config).spooled(*key)
        partial = folder.with_name(f"{folder.name}.part")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        (partial / "dataset").write_text("pixels")
        self._step("spooling")
        (partial / "manifest.json").write_text("{}")
        partial.rename(folder)
        return folder

    def _step(self, step: str) -> None:
        """Take some time, then do what is to go wrong here."""
        time.sleep(self._pace_s)
        order = self._order
        for deed in self._deeds:
            if deed.concerns(step, order.detector, order.attempt):
                line = f"{deed.name} {step} {order.visit.group} {order.detector} {order.attempt}\n"
                append(self._state / DEEDS_FILE, line)
                DEEDS[deed.name](self)

    # --- what goes wrong -------------------------------------------------

    def hang(self) -> None:
        """Never return; TERM ends it."""
        while True:
            time.sleep(60)

    def deaf(self) -> None:
        """Never return; only KILL ends it."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self.hang()

    def leak(self) -> None:
        """Keep memory after the visit."""
        LEAKED.append(b"x" * LEAK_BYTES)

    def burst(self) -> None:
        """Take much memory at once, and hold it."""
        LEAKED.append(b"x" * BURST_BYTES)
        self.hang()

    def fill_ramdisk(self) -> None:
        """Fail as a write to a full RAM disk does."""
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._seat.repo))

    def refuse(self) -> None:
        """Fail as a pipeline does that knows why."""
        raise VisitFailed(Outcome.FAILED, "told to fail", retriable=False)

    def say_garbage(self) -> None:
        """Send what is no message."""
        os.write(self._channel(), b'{"type": "done", "outcome": "splendid"')

    def speak_for_another(self) -> None:
        """Send a result of a visit that was never given."""
        other = Done(outcome=Outcome.SUCCEEDED, serial=self._order.serial + 7)
        os.write(self._channel(), encode(other))

    def say_twice(self) -> None:
        """Send the result that will be sent anyway."""
        os.write(self._channel(), encode(self._last_words))

    def leave_child(self) -> None:
        """Leave a child that ignores TERM."""
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(600)
            os._exit(0)

    def leave_daemon(self) -> None:
        """Leave a grandchild in a session of its own."""
        if (child := os.fork()) == 0:
            os.setsid()
            self.leave_child()
            os._exit(0)
        os.waitpid(child, 0)

    def change_process(self) -> None:
        """Leave the process different from how it was."""
        os.chdir("/")
        os.umask(0o77)

    @staticmethod
    def _channel() -> int:
        """Return the descriptor on which the supervisor hears."""
        sockets = [name for name in os.listdir("/proc/self/fd") if _is_socket(name)]
        return max(map(int, sockets))


LEAKED: list[bytes] = []

DEEDS: dict[str, Callable[[ChaosWork], object]] = {
    "hang": ChaosWork.hang,
    "deaf": ChaosWork.deaf,
    "leak": ChaosWork.leak,
    "burst": ChaosWork.burst,
    "segfault": lambda work: ctypes.string_at(0),
    "abort": lambda work: os.abort(),
    "exit_0": lambda work: os._exit(0),
    "system_exit": lambda work: sys.exit(0),
    "exception": lambda work: {}["nothing"],
    "refuse": ChaosWork.refuse,
    "garbage": ChaosWork.say_garbage,
    "other_visit": ChaosWork.speak_for_another,
    "said_twice": ChaosWork.say_twice,
    "ramdisk_full": ChaosWork.fill_ramdisk,
    "child": ChaosWork.leave_child,
    "detached": ChaosWork.leave_daemon,
    "changed": ChaosWork.change_process,
}
"""All deeds, by the names that surveys and reports use."""


class ChaosExporter:
    """Registers each spool once, however often it is asked."""

    def __init__(self, seat: Seat):
        self._seat = seat
        self._state = seat.config.node.state_dir

    def export(self, spools: Sequence[Path]) -> Exported:
        """Register, then delete."""
        if (self._state / "central-down").exists():
            raise ConnectionError("the central repo is down")
        central = self._state / "central"
        central.mkdir(exist_ok=True)
        for spool in spools:
            if not (central / spool.name).exists():
                # Without its manifest a spool is not what the worker left.
                (central / spool.name).write_text((spool / "manifest.json").read_text())
        time.sleep(EXPORT_PAUSE_S)
        for spool in spools:
            shutil.rmtree(spool)
        return Exported(spools=tuple(map(str, spools)), tai=self._seat.clock.tai(), datasets=len(spools))


def open_work(seat: Seat) -> ChaosWork:
    """Be a worker."""
    return ChaosWork(seat)


def open_exporter(seat: Seat) -> ChaosExporter:
    """Be the exporter."""
    return ChaosExporter(seat)


def append(path: Path, text: str) -> None:
    """Append in one write: other processes append to the same file."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _is_socket(name: str) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
    except FileNotFoundError:
        return False
