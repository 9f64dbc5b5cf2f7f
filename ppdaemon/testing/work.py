# SPDX-License-Identifier: BSD-3-Clause
"""Work without LSST: a visit's survey scripts the steps and faults of its workers.

The configuration names it: ``workers: {work: ppdaemon.testing.work}``. The
survey is a space-separated list of words; the file of the first pipeline may have
more of them after ``# script:``.

``STEP:FAULT``
    A fault of `FAULTS` at one of `STEPS`: ``process:hang``. An attempt and a
    detector may follow, ``process:hang@1``, ``process:hang@1/3``,
    ``process:hang@/3``; without them it happens in all.
``pace:40``
    Milliseconds of work in each step.
``early:``
    The point of no return precedes the step ``process``.
``undone:1``
    This attempt fails after the point of no return, and has undone everything.
``failed:REASON``
    The spool has the outputs of a pipeline that failed in part.
``fallback:REASON``
    Another than the first pipeline has run.
``call:MODULE.FUNCTION``
    A function is called in the step ``process``.
``skip``
    The visit succeeds in ``prepare``.
``idle``
    Nothing permanent, and nothing to export.
``repeatable``
    Nothing permanent but what is exported.

It writes records into the state directory: ``marks`` has a file per
visit-detector, a byte longer with each permanent write; ``exported`` a file
per exported spool; ``prepared`` and ``ingested`` a line per order with the
time by the monotonic clock, ``released`` one when a visit has ended, ``crossed``
one per permission to write permanently, with the seconds that it was waited for
before the time;
``faults.log`` a line per fault. The exporter fails while there is a file
``central-down``, and refuses spools while there is ``central-refuses``; with a
file ``boot-fails`` or ``template-fails`` workers or the template fail, with
``template-unavailable`` as if the central repo were not available. The check of
names sends the findings in the file ``names``.
"""

import ctypes
import errno
import functools
import importlib
import json
import logging
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from ppdaemon.config import NodeConfig
from ppdaemon.errors import Unavailable, VisitFailed
from ppdaemon.folders import REFUSAL, NodeFolders, remove_spool
from ppdaemon.messages import (
    Connecting,
    Done,
    Exported,
    ImagesGivenUp,
    Ingested,
    NameFinding,
    Pipelines,
    Prepare,
    Prepared,
    Process,
    Raw,
    Resolving,
    StageReached,
    TaskNamesResolved,
)
from ppdaemon.processes import STOP_SIGNAL
from ppdaemon.states import Outcome, Stage
from ppdaemon.wire import encode
from ppdaemon.work import WorkerContext

__all__ = (
    "FAULTS",
    "STEPS",
    "ScriptedAsker",
    "ScriptedExporter",
    "ScriptedWork",
    "WorkerFault",
    "build_template",
    "open_asker",
    "open_exporter",
    "open_work",
    "resolve_names",
    "set_up_libraries",
    "warm_up",
)

STEPS = ("prepare", "ingest", "process", "written", "export", "spooling", "spooled")
"""Steps at which a fault can happen, in the order of a visit: ``written`` is just after the
permanent write, ``spooling`` between the parts of a spool.
"""

HOLD_S = 0.5
LEAK_BYTES = 60_000_000
BURST_BYTES = 500_000_000
EXPORT_PAUSE_S = 0.02
"""Between registering a spool and deleting it: a kill may come in between."""


@dataclass(frozen=True, slots=True)
class WorkerFault:
    """One fault of a worker, as a word of a survey writes it."""

    name: str
    step: str
    detector: int | None = None
    """`None` for all detectors."""
    attempt: int | None = None
    """`None` for all attempts."""

    def __str__(self) -> str:
        attempt = "" if self.attempt is None else self.attempt
        detector = "" if self.detector is None else f"/{self.detector}"
        return f"{self.step}:{self.name}" + (f"@{attempt}{detector}" if attempt or detector else "")

    @classmethod
    def read(cls, word: str) -> Self:
        """Return the fault that a word of a survey names."""
        step, _, rest = word.partition(":")
        name, _, where = rest.partition("@")
        attempt, _, detector = where.partition("/")
        return cls(name, step, int(detector) if detector else None, int(attempt) if attempt else None)

    def concerns(self, step: str, detector: int, attempt: int) -> bool:
        """Return whether the fault happens in this step, detector and attempt."""
        return self.step == step and self.detector in (None, detector) and self.attempt in (None, attempt)


def set_up_libraries() -> None:
    """Do nothing: no library is imported."""


def warm_up(config: NodeConfig) -> None:
    """Do nothing: visits of a new worker do not take longer."""


def build_template(context: WorkerContext) -> None:
    """Create a repo of one file."""
    if (context.config.node.state_dir / "template-fails").exists():
        raise RuntimeError("the template fails by order of the test")
    context.report(Connecting(what="the central repo of the test"))
    if (context.config.node.state_dir / "template-unavailable").exists():
        raise Unavailable("the central repo is not available by order of the test")
    context.template.mkdir()
    (context.template / "registry").write_text("template")


class ScriptedWork:
    """Goes through all stages of a visit, with the faults in its survey."""

    def __init__(self, context: WorkerContext):
        self.context = context
        self.state = context.config.node.state_dir
        self._state = str(self.state)
        self._copy()

    def prepare(self, order: Prepare) -> Prepared | Done:
        """Read the script."""
        self.order = order
        self._append_line("prepared", f"{order.visit.group} {order.detector}")
        words = [*order.visit.survey.split(), *_script_of(order.pipelines)]
        self._settings = dict(word.partition(":")[::2] for word in words)
        self._faults = [WorkerFault.read(word) for word in words if word.partition(":")[0] in STEPS]
        if "skip" in self._settings:
            return Done(outcome=Outcome.SUCCEEDED)
        self._step("prepare")
        return Prepared(pipeline="scripted", ran_tasks=bool(self._faults))

    def ingest(self, raw: Raw) -> Ingested:
        """Record the raw and its size."""
        size = os.stat(raw.path).st_size if os.path.exists(raw.path) else -1
        self._append_line("ingested", f"{raw.group} {raw.detector} {raw.exposure} {size}")
        self._step("ingest")
        return Ingested(exposure=raw.exposure, shutter_close_tai=raw.seen_tai - 2)

    def process(self, order: Process) -> Done:
        """Write once permanently, then spool."""
        if "idle" in self._settings:
            return Done(outcome=Outcome.SUCCEEDED)
        began = self._report_stage(Stage.FIRST_TASK)
        early = "early" in self._settings
        if early:
            self._write_permanently()
        self._step("process")
        if "call" in self._settings:
            module, _, function = self._settings["call"].rpartition(".")
            getattr(importlib.import_module(module), function)()
        if self._settings.get("undone") == str(self.order.attempt):
            self.context.cross("marker")
            return Done(outcome=Outcome.FAILED, reason="undone", retriable=True, nothing_permanent=True)
        if not early:
            self._write_permanently()
        self._step("written")
        traced = self.context.config.traces.endpoint is not None
        tasks = [("scripted", began, self.context.clock.tai(), None)] if traced else []
        self._report_stage(Stage.PROCESSED, **({"tasks": tasks} if traced else {}))
        self._step("export")
        done = Done(
            outcome=Outcome.SUCCEEDED,
            pipeline="scripted",
            engine=",".join(self.context.config.engine.no_return) or "none",
            fallback=self._settings.get("fallback", ""),
            spool=str(self._spool()),
            datasets=1,
        )
        self._report_stage(Stage.SPOOLED)
        self.last_message = done.model_copy(update={"visit_number": self.order.visit_number})
        self._step("spooled")
        return done

    def reset(self) -> None:
        """Empty the repo and copy the template again."""
        self._append_line("released", f"{self.order.visit.group} {self.order.detector}")
        for entry in os.scandir(self.context.repo):
            if entry.is_file():
                os.unlink(entry.path)
        self._copy()

    def _copy(self) -> None:
        # A link: a copy takes longer than all else that a worker does for a cancellation.
        os.link(f"{self.context.template}/registry", f"{self.context.repo}/registry")

    def _append_line(self, file: str, text: str) -> None:
        """Append a line with the time, in one write: other processes append, too."""
        now = time.monotonic()
        # Without the layers of `open`, which take more time than the real work between two messages.
        descriptor = os.open(f"{self._state}/{file}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.write(descriptor, f"{text} {now!r}\n".encode())
        os.close(descriptor)

    def _report_stage(self, stage: Stage, **detail: Any) -> float:
        tai = self.context.clock.tai()
        self.context.report(StageReached(stage=stage, tai=tai, detail=detail))
        return tai

    def _step(self, step: str) -> None:
        """Take the scripted time, then the scripted faults."""
        if "pace" in self._settings:
            time.sleep(int(self._settings["pace"]) / 1000)
        detector, attempt = self.order.detector, self.order.attempt
        for fault in self._faults:
            if fault.concerns(step, detector, attempt):
                group = self.order.visit.group
                self._append_line("faults.log", f"{fault.name} {step} {group} {detector} {attempt}")
                FAULTS[fault.name](self)

    def _write_permanently(self) -> None:
        """Wait at the point of no return, then write irrevocably."""
        if "repeatable" in self._settings:
            return
        self._cross("marker")
        marks = self.state / "marks"
        marks.mkdir(exist_ok=True)
        with (marks / f"{self.order.visit.group}~{self.order.detector}").open("a") as stream:
            stream.write("x")

    def _cross(self, what: str) -> None:
        began = time.monotonic()
        self.context.cross(what)
        waited_s = time.monotonic() - began
        self._append_line("crossed", f"{self.order.visit.group} {self.order.detector} {waited_s!r}")

    def _spool(self) -> Path:
        visit = self.order.visit
        key = (visit.instrument, visit.group, self.order.detector, self.order.attempt)
        folder = NodeFolders.of(self.context.config).spooled(*key)
        partial = folder.with_name(f"{folder.name}.part")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        (partial / "dataset").write_text("pixels")
        self._step("spooling")
        (partial / "manifest.json").write_text(json.dumps({"failed": self._settings.get("failed", "")}))
        self._cross("")
        partial.rename(folder)
        return folder


class ScriptedExporter:
    """Registers each spool once, also if it is exported again."""

    def __init__(self, context: WorkerContext):
        self._context = context
        self._state = context.config.node.state_dir

    def export(self, spools: Sequence[Path]) -> Exported:
        """Register, then delete; report those that are not there, as the real exporter."""
        if (self._state / "central-down").exists():
            raise ConnectionError("the central repo is down")
        if (self._state / "central-refuses").exists():
            return self._refuse(spools)
        central = self._state / "exported"
        central.mkdir(exist_ok=True)
        present = [spool for spool in spools if spool.exists()]
        for spool in present:
            if not (central / spool.name).exists():
                (central / spool.name).write_text((spool / "manifest.json").read_text())
        time.sleep(EXPORT_PAUSE_S)
        for spool in spools:
            remove_spool(spool)
        names, gone = tuple(map(str, present)), tuple(map(str, set(spools).difference(present)))
        return Exported(spools=names, gone=gone, tai=self._context.clock.tai(), datasets=len(present))

    def give_up_images(self, folders: Sequence[Path], excess_bytes: int) -> ImagesGivenUp:
        """Delete all files with the ending ``.fits``, whatever their size."""
        files = [file for folder in folders for file in folder.glob("*/*.fits")]
        size_bytes = sum(file.stat().st_size for file in files)
        for file in files:
            file.unlink()
        return ImagesGivenUp(spools={str(file.parent): file.stem for file in files}, size_bytes=size_bytes)

    def mark_datastore(self) -> str:
        """Return a text; nothing is marked."""
        if (self._state / "central-down").exists():
            raise ConnectionError("the central repo is down")
        return "marked"

    def _refuse(self, spools: Sequence[Path]) -> Exported:
        refused = NodeFolders.of(self._context.config).refused
        refused.mkdir(exist_ok=True)
        for spool in spools:
            (spool / REFUSAL).write_text("refused by order of the test")
            spool.rename(refused / spool.name)
        names = tuple(map(str, spools))
        return Exported(spools=(), refused=names, tai=self._context.clock.tai(), datasets=0)


class ScriptedAsker:
    """Fails when it is woken; its pid and template are a line of the file ``askers``."""

    def __init__(self, context: WorkerContext):
        self._context = context
        self._doorbell = context.repo / "doorbell"
        self._doorbell.unlink(missing_ok=True)
        os.mkfifo(self._doorbell)
        self._descriptor = os.open(self._doorbell, os.O_RDWR | os.O_NONBLOCK)
        self._taken: list[bytes] = []

    def fileno(self) -> int:
        """Return the FIFO ``doorbell`` in the folder of the process."""
        return self._descriptor

    def prepare(self, report: Callable[[Sequence[float]], None]) -> None:
        """Record the start."""
        with (self._context.config.node.state_dir / "askers").open("a") as starts:
            starts.write(f"{os.getpid()} {self._context.template.name}\n")

    def answer(self, report: Callable[[Sequence[float]], None]) -> None:
        """Do what is written: ``grow`` takes 100 MB, ``answer`` reports two answers, ``hang`` never returns;
        anything else fails.
        """
        match os.read(self._descriptor, 100):
            case b"grow":
                self._taken.append(b"x" * 100_000_000)
            case b"answer":
                report([0.01, 0.02])
            case b"hang":
                while True:
                    time.sleep(1)
            case other:
                raise RuntimeError(other)


def _script_of(pipelines: Pipelines) -> list[str]:
    """Return the words of the first pipeline's file, in a line that begins with ``# script:``."""
    path = pipelines.main[0].partition("#")[0]
    return _read_script(path, os.stat(path).st_mtime_ns)


@functools.lru_cache(maxsize=16)
def _read_script(path: str, _written_ns: int) -> list[str]:
    _, _, script = Path(path).read_text().partition("# script:")
    return script.partition("\n")[0].split()


def open_work(context: WorkerContext) -> ScriptedWork:
    """Return the work of one process."""
    if (context.config.node.state_dir / "boot-fails").exists():
        raise RuntimeError("the worker fails by order of the test")
    return ScriptedWork(context)


def open_exporter(context: WorkerContext) -> ScriptedExporter:
    """Return an exporter."""
    return ScriptedExporter(context)


def open_asker(context: WorkerContext) -> ScriptedAsker:
    """Return an asker."""
    return ScriptedAsker(context)


def resolve_names(config: NodeConfig) -> Iterator[Resolving | NameFinding | TaskNamesResolved]:
    """Yield the findings of the file ``names``, one as JSON on each line; hang before while there is a
    file ``task-names-hang``, and after the names of tasks while there is ``names-hang``.
    """
    state = config.node.state_dir
    yield Resolving(what="the names of the test")
    while (state / "task-names-hang").exists():
        time.sleep(0.01)
    if (state / "names").exists():
        yield from map(NameFinding.model_validate_json, (state / "names").read_text().splitlines())
    yield TaskNamesResolved()
    while (state / "names-hang").exists():
        time.sleep(0.01)


# --- what goes wrong ---------------------------------------------------------

LEAKED: list[bytes] = []


def _hang(work: ScriptedWork) -> None:
    """Never return; the stop signal of the supervisor ends it."""
    while True:
        time.sleep(60)


def _deaf(work: ScriptedWork) -> None:
    """Never return; only KILL ends it."""
    signal.signal(STOP_SIGNAL, signal.SIG_IGN)
    _hang(work)


def _spin(work: ScriptedWork) -> None:
    while True:
        sum(range(1_000_000))


def _wait_at_gate(work: ScriptedWork) -> None:
    """Wait until the test opens the visit's gate."""
    gates = work.state / "gates"
    gates.mkdir(exist_ok=True)
    (gates / f"{work.order.visit.group}.reached").touch()
    while not (gates / f"{work.order.visit.group}.open").exists():
        time.sleep(0.01)


def _leak(work: ScriptedWork) -> None:
    """Retain memory after the visit."""
    LEAKED.append(b"x" * LEAK_BYTES)


def _burst(work: ScriptedWork) -> None:
    """Allocate much memory at once, and hang."""
    LEAKED.append(b"x" * BURST_BYTES)
    _hang(work)


def _fill(work: ScriptedWork) -> None:
    """Fail as a write to a full RAM disk does."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(work.context.repo))


class _WithoutText(Exception):  # the name is in the reason
    def __str__(self) -> str:
        raise ValueError("an error of the error")


def _fail_without_text(work: ScriptedWork) -> None:
    raise _WithoutText


def _fail_with_bytes(work: ScriptedWork) -> None:
    """Fail as for a file whose name is not UTF-8."""
    raise FileNotFoundError("no file /data/\udc80")


def _refuse_at_length(work: ScriptedWork) -> None:
    raise VisitFailed(Outcome.BAD_RAW, "a long text " * 100_000)


def _refuse(work: ScriptedWork) -> None:
    raise VisitFailed(Outcome.BAD_RAW, "refused by order of the test")


def _send_garbage(work: ScriptedWork) -> None:
    """Send an invalid message, and continue."""
    os.write(_channel(), b'{"type": "done", "outcome": "splendid"}')


def _send_invalid(work: ScriptedWork) -> None:
    """Send an invalid message, and hang."""
    _send_garbage(work)
    _hang(work)


def _send_for_another(work: ScriptedWork) -> None:
    """Send a result of a visit that was not assigned."""
    os.write(_channel(), encode(Done(outcome=Outcome.SUCCEEDED, visit_number=work.order.visit_number + 7)))


def _send_twice(work: ScriptedWork) -> None:
    """Send the result that is sent afterwards, too; possible at ``spooled`` only."""
    os.write(_channel(), encode(work.last_message))


def _leave_child(work: ScriptedWork) -> None:
    """Leave a child that only KILL ends; its process id is in ``grandchild``."""
    pid = os.fork()
    if pid == 0:
        signal.signal(STOP_SIGNAL, signal.SIG_IGN)
        time.sleep(600)
        os._exit(0)
    (work.state / "grandchild").write_text(str(pid))


def _leave_daemon(work: ScriptedWork) -> None:
    """Leave a grandchild in a separate session."""
    child = os.fork()
    if child == 0:
        os.setsid()
        _leave_child(work)
        os._exit(0)
    os.waitpid(child, 0)


def _leave_thread(work: ScriptedWork) -> None:
    threading.Thread(target=time.sleep, args=(600,), name="left behind", daemon=True).start()


# The module imports numpy, which most scripted workers do not need.
def _leave_all(work: ScriptedWork) -> None:
    importlib.import_module("ppdaemon.testing.leftovers").leave_all()


def _describe(work: ScriptedWork) -> None:
    """Add the state of the process to ``described``, a JSON object in a line."""
    describe = importlib.import_module("ppdaemon.testing.leftovers").describe
    with (work.state / "described").open("a") as stream:
        stream.write(json.dumps(describe()) + "\n")


def _channel() -> int:
    """Return the descriptor of the channel to the supervisor: the last socket."""
    return max(int(name) for name in os.listdir("/proc/self/fd") if _is_socket(name))


def _is_socket(name: str) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
    except FileNotFoundError:
        return False


FAULTS: dict[str, Callable[[ScriptedWork], object]] = {
    "die": lambda work: os.kill(os.getpid(), signal.SIGKILL),
    "segv": lambda work: ctypes.string_at(0),
    "abort": lambda work: os.abort(),
    "exit": lambda work: os._exit(0),
    "system_exit": lambda work: sys.exit(0),
    "raise": lambda work: 1 / 0,
    "raise_without_text": _fail_without_text,
    "raise_bytes": _fail_with_bytes,
    "refuse": _refuse,
    "refuse_at_length": _refuse_at_length,
    "hang": _hang,
    "deaf": _deaf,
    "spin": _spin,
    "hold": lambda work: time.sleep(HOLD_S),
    "gate": _wait_at_gate,
    "leak": _leak,
    "burst": _burst,
    "fill": _fill,
    "garbage": _send_garbage,
    "invalid": _send_invalid,
    "other_visit": _send_for_another,
    "sent_twice": _send_twice,
    "fork": _leave_child,
    "detach": _leave_daemon,
    "thread": _leave_thread,
    "chdir": lambda work: os.chdir("/"),
    "leave": _leave_all,
    "describe": _describe,
    "log": lambda work: logging.getLogger("lsst.scripted").info("logged by a task"),
}
"""All faults, by their names in surveys."""
