# SPDX-License-Identifier: BSD-3-Clause
"""All engines have the same outputs and outcomes for a visit, whatever its tasks do."""

import logging
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest
from enginecompare import COMPARED, EACH_ENGINE, EXPOSURE, compare_engines, process_visit
from toycam import GROUP, NAME, MakeRig, Rig
from toyscripted import ScriptedTask, write_scripted

from ppdaemon.errors import VisitFailed
from ppdaemon.messages import Process, StageReached
from ppdaemon.middleware.export.manifest import read_manifest
from ppdaemon.middleware.pipetask import child
from ppdaemon.middleware.pipetask import engine as pipetask
from ppdaemon.middleware.pipetask.protocol import (
    MAX_PACKET_BYTES,
    MESSAGES,
    CommandFailed,
    GraphBuilt,
    Message,
    TaskFailed,
)
from ppdaemon.states import Outcome, Stage

pytest_plugins = ("toyfixtures",)
pytestmark = pytest.mark.usefixtures("logging_of_a_node")

ROOT = Path(__file__).parents[2]


RUN = {"packages", "prompt_deployment"}


@pytest.mark.slow
@COMPARED
def test_a_visit_with_preprocessing_is_the_same_in_each_engine(
    rigs: MakeRig, engines: tuple[str, str]
) -> None:
    result = compare_engines(rigs, engines, main="Full", before="Known")
    assert (result.outcome, result.reason, result.failed) == (Outcome.SUCCEEDED, "", "")
    assert {"toy_known", "toy_association", "known_config", "toy_schema"} | RUN <= result.types
    assert result.reports[:2] == [Stage.FIRST_TASK, "no return: associate"]
    (log,) = [content for (name, *_), content in result.contents.items() if name == "isr_log"]
    (context,) = map(dict, log[1])
    assert context.pop("LABEL").startswith("isr:{")
    assert context.pop("RUN")
    assert context == {"INSTRUMENT": NAME, "GROUP": GROUP, "DETECTOR": "1", "EXPOSURE": str(EXPOSURE)}


@pytest.mark.slow
@COMPARED
def test_two_snaps_are_the_same_in_each_engine(rigs: MakeRig, engines: tuple[str, str]) -> None:
    result = compare_engines(rigs, engines, main="Full", before="Known", snaps=(1, 2))
    assert len([name for name, *_ in result.contents if name == "toy_association"]) == 2


@COMPARED
def test_a_failing_task_stops_only_what_depends_on_it(rigs: MakeRig, engines: tuple[str, str]) -> None:
    result = compare_engines(rigs, engines, action="fail", main="Scripted,Short")
    assert (result.outcome, result.retriable, result.pipeline) == (Outcome.FAILED, True, "Scripted")
    assert result.reason == result.failed == "task scripted: RuntimeError: no stars"
    assert {"toy_isr", "toy_aside", "scripted_log"} <= result.types
    assert not {"toy_scripted", "scripted_metadata", "after_log"} & result.types


@COMPARED
def test_no_work_is_a_success_with_a_caveat(rigs: MakeRig, engines: tuple[str, str]) -> None:
    result = compare_engines(rigs, engines, action="no work")
    assert (result.outcome, result.reason) == (Outcome.SUCCEEDED, "no work for scripted, after")
    assert {"scripted_metadata", "after_metadata", "toy_aside"} <= result.types


@EACH_ENGINE
def test_a_raw_that_is_gone_when_its_task_begins_is_a_failure_and_not_no_work(
    rigs: MakeRig, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`SingleQuantumExecutor` takes it for an input that no earlier task has made: a success."""
    deleted = []

    def delete_raws(rig: Rig, what: str) -> None:
        for folder in (rig.raws, rig.context.repo):
            for path in [each for each in folder.rglob("*.fits") if each.is_file()]:
                path.unlink()
                deleted.append(path)

    monkeypatch.setattr(Rig, "_cross", delete_raws)
    result = process_visit(rigs, kind, settings={"no_return": ["isr"]})
    assert deleted
    assert result.outcome == Outcome.FAILED
    assert result.reason.startswith("task isr: FileNotFoundError: ")
    assert "isr_metadata" not in result.types


@COMPARED
def test_partial_outputs_are_a_success_with_a_caveat(rigs: MakeRig, engines: tuple[str, str]) -> None:
    result = compare_engines(rigs, engines, action="partial")
    assert (result.outcome, result.reason) == (
        Outcome.SUCCEEDED,
        "partial outputs of scripted; no work for after",
    )
    assert "toy_scripted" in result.types
    assert not {"toy_other", "toy_after"} & result.types


@COMPARED
@pytest.mark.parametrize(
    ("action", "outcome", "text"),
    [
        pytest.param("exit", Outcome.CRASHED, "SystemExit: 0", marks=pytest.mark.slow),
        ("full", Outcome.RAMDISK_FULL, "RuntimeError: put failed"),
        ("memory", Outcome.OUT_OF_MEMORY, "MemoryError: 4 TB"),
    ],
)
def test_the_exception_that_ends_a_task_decides_the_outcome(
    rigs: MakeRig, engines: tuple[str, str], action: str, outcome: Outcome, text: str
) -> None:
    result = compare_engines(rigs, engines, action=action)
    assert (result.outcome, result.reason, result.retriable) == (outcome, f"task scripted: {text}", True)
    assert {"toy_isr", "scripted_log"} <= result.types


def test_an_interrupt_in_a_task_is_a_crash(rigs: MakeRig) -> None:
    result = process_visit(rigs, "separable", action="interrupt")
    assert (result.outcome, result.reason) == (Outcome.CRASHED, "task scripted: KeyboardInterrupt")


@EACH_ENGINE
def test_a_task_that_cannot_be_constructed_fails_and_does_not_fall_back(
    rigs: MakeRig, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    engine, overrides = {"kind": kind}, {"scripted:at_init": "fail"}
    rig, worker = rigs(engine=engine, pipelines={"overrides": overrides})
    write_scripted(rig)
    assert worker.prepare(rig.order(main="Scripted,Short", before="")).pipeline == "Scripted"
    assert (
        "cannot prepare Scripted, it is tried again with the image: task scripted: RuntimeError: no stars"
        in caplog.text
    )
    worker.ingest(rig.raw())
    done = worker.process(Process(exposures=(EXPOSURE,)))
    assert (done.outcome, done.pipeline, done.retriable) == (Outcome.FAILED, "Scripted", True)
    assert done.reason == "task scripted: RuntimeError: no stars"
    assert Stage.FIRST_TASK not in [fact.stage for fact in rig.reports if isinstance(fact, StageReached)]


def test_a_task_that_can_no_longer_be_constructed_is_reported_with_its_exception(
    rigs: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig, worker = rigs(engine={"kind": "separable"})
    write_scripted(rig)
    worker.prepare(rig.order(main="Scripted", before=""))
    worker.ingest(rig.raw())

    def refuse(self: Any, **kwargs: Any) -> None:
        raise ConnectionError("alert database is away")

    monkeypatch.setattr(ScriptedTask, "__init__", refuse)
    done = worker.process(Process(exposures=(EXPOSURE,)))
    assert done.reason == "task scripted: ConnectionError: alert database is away"


@pytest.mark.parametrize("kind", ["direct", pytest.param("separable", marks=pytest.mark.slow)])
def test_a_task_that_can_be_constructed_again_runs_with_its_init_outputs(
    rigs: MakeRig, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig, worker = rigs(engine={"kind": kind}, export={"types": [".*"]})
    write_scripted(rig)

    def refuse(self: Any, **kwargs: Any) -> None:
        raise ConnectionError("alert database is away")

    with monkeypatch.context() as patch:
        patch.setattr(ScriptedTask, "__init__", refuse)
        worker.prepare(rig.order(main="Scripted", before=""))
    worker.ingest(rig.raw())
    done = worker.process(Process(exposures=(EXPOSURE,)))
    assert (done.outcome, done.engine) == (Outcome.SUCCEEDED, kind)
    spooled = {ref.datasetType.name for file in read_manifest(Path(done.spool)).files for ref in file.refs}
    assert {"scripted_config", "toy_scripted_schema", "packages"} <= spooled


@EACH_ENGINE
def test_a_pipeline_that_cannot_be_built_is_replaced_by_the_next(rigs: MakeRig, kind: str) -> None:
    result = process_visit(rigs, kind, main="Unbuildable,Short")
    assert (result.outcome, result.pipeline) == (Outcome.SUCCEEDED, "Short")
    assert (
        result.types
        == {"toy_isr", "isr_metadata", "isr_log", "isr_config", "regionTimeInfo"}
        | {"preload_metrics", "promptPreload_metrics"}
        | RUN
    )
    assert result.reports == [Stage.FIRST_TASK, Stage.PROCESSED, Stage.SPOOLED]


def test_a_command_that_exits_without_a_message_is_a_crash(rigs: MakeRig) -> None:
    with pytest.raises(
        VisitFailed, match="pipetask ended with status 0 without reporting a result"
    ) as caught:
        process_visit(rigs, "pipetask", action="die")
    assert (caught.value.outcome, caught.value.retriable) == (Outcome.CRASHED, True)


class FullDisk:
    """Replaces a command that fails on a full disk: while it builds, or after that."""

    messages: ClassVar[list[Message]] = []

    def __init__(self, *args: Any):
        pass

    def receive(self) -> Message:
        return (
            self.messages.pop(0)
            if self.messages
            else CommandFailed(text="no space", outcome=Outcome.RAMDISK_FULL)
        )

    def start_tasks(self) -> None:
        pass

    def wait(self) -> str:
        return "ended with status 1"


@pytest.mark.parametrize("messages", [[], [GraphBuilt(labels=("known",))]], ids=["building", "built"])
def test_a_command_on_a_full_disk_ends_the_visit_with_ramdisk_full(
    rigs: MakeRig, monkeypatch: pytest.MonkeyPatch, messages: list[Message]
) -> None:
    monkeypatch.setattr(pipetask, "_Command", FullDisk)
    rig, worker = rigs(engine={"kind": "pipetask"})
    monkeypatch.setattr(FullDisk, "messages", list(messages))
    with pytest.raises(VisitFailed, match="no space") as caught:
        worker.prepare(rig.order(main="Short", before="Known"))
    assert (caught.value.outcome, caught.value.retriable) == (Outcome.RAMDISK_FULL, True)
    worker.reset()
    worker.prepare(rig.order(main="Short", before=""))
    worker.ingest(rig.raw())
    monkeypatch.setattr(FullDisk, "messages", list(messages))
    with pytest.raises(VisitFailed, match="no space") as caught:
        worker.process(Process(exposures=(EXPOSURE,)))
    assert (caught.value.outcome, caught.value.retriable) == (Outcome.RAMDISK_FULL, True)


WORKER = """
import os, socket, subprocess, sys
ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
command = [sys.executable, "-m", "ppdaemon.middleware.pipetask.command", str(os.getpid()), "{}"]
print(subprocess.Popen(command, stdin=theirs).pid, flush=True)
sys.stdin.read()
"""
REAPER = f"""
import os, subprocess, sys, time
from ppdaemon.processes import become_subreaper
become_subreaper()
worker = subprocess.Popen([sys.executable, "-c", {WORKER!r}], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
command = int(worker.stdout.readline())
deadline = time.monotonic() + 60
while not os.path.realpath(f"/proc/{{command}}/fd/3").rpartition("/")[2].startswith("socket:"):
    assert time.monotonic() < deadline  # it takes its channel after die_with_parent
worker.kill()
worker.wait()
print(os.waitstatus_to_exitcode(os.waitpid(command, 0)[1]))
"""


def test_a_command_dies_with_its_worker() -> None:
    shown = subprocess.run(
        [sys.executable, "-c", REAPER], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True, timeout=100
    )
    assert shown.stdout.strip() == "-9"


def test_only_the_first_failure_of_pipetask_is_reported() -> None:
    worker_end, command_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with worker_end, command_end:
        worker_end.settimeout(10.0)
        log, reporter = logging.Logger("pipetask"), child._FailureReporter(command_end)
        log.addHandler(reporter)
        log.error("without an exception")
        failed = RuntimeError("no stars\nat all")
        failed.mdc = {"LABEL": "scripted:{instrument: 'Toy'}"}  # type: ignore[attr-defined]
        log.error("a task has failed", exc_info=failed)
        reporter.report(SystemExit(1))
        reported = MESSAGES.validate_json(worker_end.recv(MAX_PACKET_BYTES))
        assert reported == TaskFailed(label="scripted", text="RuntimeError: no stars", outcome=Outcome.FAILED)
        worker_end.setblocking(False)
        with pytest.raises(BlockingIOError):
            worker_end.recv(MAX_PACKET_BYTES)


def test_a_long_error_outside_of_tasks_is_cut() -> None:
    worker_end, command_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with worker_end, command_end:
        worker_end.settimeout(10.0)
        child._FailureReporter(command_end).report(MemoryError("x" * 100_000))
        reported = MESSAGES.validate_json(worker_end.recv(MAX_PACKET_BYTES))
    assert isinstance(reported, CommandFailed)
    assert (reported.outcome, len(reported.text)) == (Outcome.OUT_OF_MEMORY, 4000)
