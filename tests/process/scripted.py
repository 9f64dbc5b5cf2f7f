# SPDX-License-Identifier: BSD-3-Clause
"""Work without LSST: what a worker does is written in the visit's survey.

``survey`` is a space-separated list of ``stage:deed``, such as
``process:hang`` or ``prepare:die``. Every irrevocable write is a marker file
in the spool's parent, so that a test can count them.
"""

import ctypes
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from ppdaemon.errors import VisitFailed
from ppdaemon.folders import REFUSAL, NodeFolders
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
from ppdaemon.work import Seat


def set_up_libraries() -> None:
    """Nothing is imported that would need it."""


def build_template(seat: Seat) -> None:
    if (seat.config.node.state_dir / "template-fails").exists():
        raise RuntimeError("the template was told to fail")
    seat.template.mkdir()
    (seat.template / "registry").write_text("template")


class ScriptedWork:
    def __init__(self, seat: Seat):
        self._seat = seat
        self._copy()

    def _copy(self) -> None:
        (self._seat.repo / "registry").write_text((self._seat.template / "registry").read_text())

    def prepare(self, order: Prepare) -> Prepared:
        self._order = order
        self._deeds = dict(word.split(":", 1) for word in order.visit.survey.split() if ":" in word)
        self._attempt_only("prepare")
        return Prepared(pipeline="scripted")

    def ingest(self, raw: Raw) -> Ingested:
        self._note(raw)
        self._attempt_only("ingest")
        return Ingested(exposure=raw.exposure, shutter_close_tai=raw.seen_tai - 2)

    def process(self, order: Process) -> Done:
        self._stage(Stage.FIRST_TASK)
        if "early" in self._deeds:
            self._announce()
        self._attempt_only("process")
        if self._deeds.get("undone") == str(self._order.attempt):
            self._seat.report(PointOfNoReturn(what="marker"))
            return Done(outcome=Outcome.FAILED, reason="undone", retriable=True, nothing_permanent=True)
        if "early" not in self._deeds:
            self._announce()
        self._attempt_only("written")
        self._stage(Stage.PROCESSED)
        self._attempt_only("export")
        visit = self._order.visit
        key = (visit.instrument, visit.group, self._order.detector, self._order.attempt)
        folder = NodeFolders.of(self._seat.config).spooled(*key)
        partial = folder.with_name(f"{folder.name}.part")
        partial.mkdir()
        (partial / "manifest.json").write_text(json.dumps({"failed": self._deeds.get("failed", "")}))
        partial.rename(folder)
        self._stage(Stage.SPOOLED)
        self._attempt_only("spooled")
        return Done(
            outcome=Outcome.SUCCEEDED,
            pipeline="scripted",
            engine=",".join(self._seat.config.engine.no_return) or "none",
            spool=str(folder),
            datasets=1,
        )

    def reset(self) -> None:
        for path in self._seat.repo.iterdir():
            path.unlink()
        self._copy()

    def _note(self, raw: Raw) -> None:
        """Leave a line for each order to ingest: whose, and how many bytes it has."""
        path = Path(raw.path)
        size = path.stat().st_size if path.exists() else -1
        with (self._seat.config.node.state_dir / "ingested").open("a") as stream:
            stream.write(f"{raw.group} {raw.detector} {raw.exposure} {size}\n")

    def _stage(self, stage: Stage) -> None:
        self._seat.report(StageReached(stage=stage, tai=self._seat.clock.tai()))

    def _announce(self) -> None:
        """Say that there is no return, then leave a mark per permanent write."""
        self._seat.report(PointOfNoReturn(what="marker"))
        marks = self._seat.config.node.state_dir / "marks"
        marks.mkdir(exist_ok=True)
        visit = self._order.visit
        with (marks / f"{visit.group}~{self._order.detector}").open("a") as stream:
            stream.write("x")

    def _attempt_only(self, stage: str) -> None:
        """Do the deed of a stage: ``deed``, or ``deed@attempt``."""
        deed, _, attempt = self._deeds.get(stage, "").partition("@")
        if deed and attempt in ("", str(self._order.attempt)):
            DEEDS[deed](self._seat)


def _hang(seat: Seat) -> None:
    while True:
        time.sleep(60)


def _spin(seat: Seat) -> None:
    while True:
        sum(range(1_000_000))


def _wait_at_gate(seat: Seat) -> None:
    """Wait until the test opens the gate."""
    state = seat.config.node.state_dir
    (state / "at-gate").touch()
    while not (state / "gate").exists():
        time.sleep(0.01)


def _ignore_term(seat: Seat) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _hang(seat)


def _eat(seat: Seat) -> None:
    eaten = []
    while True:
        eaten.append(bytearray(os.urandom(1_000_000)) * 10)
        time.sleep(0.02)


def _leak(seat: Seat) -> None:
    LEAKED.append(bytearray(os.urandom(1_000_000)) * 60)


def _nonsense(seat: Seat) -> None:
    fd = max(int(name) for name in os.listdir("/proc/self/fd") if _is_channel(name))
    os.write(fd, b'{"type": "done", "outcome": "splendid"}')
    _hang(seat)


def _is_channel(name: str) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
    except FileNotFoundError:
        return False


def _fill(seat: Seat) -> None:
    raise OSError(28, "No space left on device", str(seat.repo))


def _refuse(seat: Seat) -> None:
    raise VisitFailed(Outcome.BAD_RAW, "told to refuse")


def _grandchild(seat: Seat) -> None:
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)
        os._exit(0)
    Path(seat.config.node.state_dir, "grandchild").write_text(str(pid))


def _detach(seat: Seat) -> None:
    if os.fork() == 0:
        os.setsid()
        _grandchild(seat)
        os._exit(0)
    os.wait()


def _thread(seat: Seat) -> None:
    threading.Thread(target=time.sleep, args=(600,), name="left behind", daemon=True).start()


LEAKED: list[bytearray] = []

DEEDS = {
    "die": lambda seat: os.kill(os.getpid(), signal.SIGKILL),
    "segv": lambda seat: ctypes.string_at(0),
    "abort": lambda seat: os.abort(),
    "exit": lambda seat: os._exit(0),
    "system_exit": lambda seat: sys.exit(0),
    "spin": _spin,
    "raise": lambda seat: 1 / 0,
    "hang": _hang,
    "hold": lambda seat: time.sleep(0.5),
    "gate": _wait_at_gate,
    "deaf": _ignore_term,
    "eat": _eat,
    "leak": _leak,
    "nonsense": _nonsense,
    "fill": _fill,
    "refuse": _refuse,
    "fork": _grandchild,
    "detach": _detach,
    "chdir": lambda seat: os.chdir("/"),
    "umask": lambda seat: os.umask(0o77),
    "handler": lambda seat: signal.signal(signal.SIGUSR1, lambda *_: None),
    "thread": _thread,
}


class ScriptedExporter:
    def __init__(self, seat: Seat):
        self._seat = seat

    def export(self, spools: Sequence[Path]) -> Exported:
        state = self._seat.config.node.state_dir
        if (state / "central-down").exists():
            raise ConnectionError("the central repo is down")
        if (state / "central-refuses").exists():
            refused = NodeFolders.of(self._seat.config).refused
            refused.mkdir(exist_ok=True)
            for spool in spools:
                (spool / REFUSAL).write_text("as it was told")
                spool.rename(refused / spool.name)
            return Exported(
                spools=(), refused=tuple(map(str, spools)), tai=self._seat.clock.tai(), datasets=0
            )
        with (state / "exported").open("a") as stream:
            for spool in spools:
                stream.write(f"{spool.name}\n")
        for spool in spools:
            for path in spool.iterdir():
                path.unlink()
            spool.rmdir()
        return Exported(spools=tuple(map(str, spools)), tai=self._seat.clock.tai(), datasets=len(spools))


def open_work(seat: Seat) -> ScriptedWork:
    if (seat.config.node.state_dir / "boot-fails").exists():
        raise RuntimeError("the worker was told to fail")
    return ScriptedWork(seat)


def open_exporter(seat: Seat) -> ScriptedExporter:
    return ScriptedExporter(seat)
