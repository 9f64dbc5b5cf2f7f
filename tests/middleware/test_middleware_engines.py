# SPDX-License-Identifier: BSD-3-Clause
"""The engines make the same of the same visit, whatever its tasks do."""

import logging
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from lsst.daf.butler.logging import ButlerMDC
from seen import ENGINES, EXPOSURE, same, see
from toycam import GROUP, NAME, MakeRig
from toydeeds import DeedTask, write_deeds

from ppdaemon.errors import VisitFailed
from ppdaemon.messages import Process
from ppdaemon.middleware.export.spool import read_manifest
from ppdaemon.middleware.pipetask import child
from ppdaemon.middleware.pipetask import engine as pipetask
from ppdaemon.middleware.pipetask.arguments import PACKET, WORDS, Broken, Built, Failed, Word
from ppdaemon.states import Outcome, Stage

pytest_plugins = ("toyfixtures",)

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _logging_of_a_node(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Have the level of a node's processes, and records that carry their task."""
    caplog.set_level("INFO")
    ButlerMDC.add_mdc_log_record_factory()
    yield
    ButlerMDC.restore_log_record_factory()


RUN = {"packages", "prompt_deployment"}


def test_a_visit_with_preprocessing_is_the_same_in_each_engine(rigs: MakeRig) -> None:
    seen = same(rigs, main="Full", before="Known")
    assert (seen.outcome, seen.reason, seen.failed) == (Outcome.SUCCEEDED, "", "")
    assert {"toy_known", "toy_association", "known_config", "toy_schema"} | RUN <= seen.types
    assert seen.said[:2] == [Stage.FIRST_TASK, "no return: associate"]
    (log,) = [content for (name, *_), content in seen.contents.items() if name == "isr_log"]
    (context,) = map(dict, log[1])
    assert context.pop("LABEL").startswith("isr:{")
    assert context.pop("RUN")
    assert context == {"INSTRUMENT": NAME, "GROUP": GROUP, "DETECTOR": "1", "EXPOSURE": str(EXPOSURE)}


def test_two_snaps_are_the_same_in_each_engine(rigs: MakeRig) -> None:
    seen = same(rigs, main="Full", before="Known", snaps=(1, 2))
    assert len([name for name, *_ in seen.contents if name == "toy_association"]) == 2


def test_a_failing_task_stops_only_what_depends_on_it(rigs: MakeRig) -> None:
    seen = same(rigs, deed="fail", main="Deed,Short")
    assert (seen.outcome, seen.retriable, seen.pipeline) == (Outcome.FAILED, True, "Deed")
    assert seen.reason == seen.failed == "task deed: RuntimeError: no stars"
    assert {"toy_isr", "toy_aside", "deed_log"} <= seen.types
    assert not {"toy_deed", "deed_metadata", "after_log"} & seen.types


def test_no_work_is_a_success_with_a_remark(rigs: MakeRig) -> None:
    seen = same(rigs, deed="no work")
    assert (seen.outcome, seen.reason) == (Outcome.SUCCEEDED, "no work for deed, after")
    assert {"deed_metadata", "after_metadata", "toy_aside"} <= seen.types


def test_partial_outputs_are_a_success_with_a_remark(rigs: MakeRig) -> None:
    seen = same(rigs, deed="partial")
    assert (seen.outcome, seen.reason) == (Outcome.SUCCEEDED, "partial outputs of deed; no work for after")
    assert "toy_deed" in seen.types
    assert not {"toy_other", "toy_after"} & seen.types


@pytest.mark.parametrize(
    ("deed", "outcome", "text"),
    [
        ("exit", Outcome.CRASHED, "SystemExit: 0"),
        ("full", Outcome.RAMDISK_FULL, "RuntimeError: put failed"),
        ("memory", Outcome.OUT_OF_MEMORY, "MemoryError: 4 TB"),
    ],
)
def test_what_ends_a_task_is_called_by_its_name(
    rigs: MakeRig, deed: str, outcome: Outcome, text: str
) -> None:
    seen = same(rigs, deed=deed)
    assert (seen.outcome, seen.reason, seen.retriable) == (outcome, f"task deed: {text}", True)
    assert {"toy_isr", "deed_log"} <= seen.types


def test_an_interrupt_in_a_task_is_a_crash(rigs: MakeRig) -> None:
    seen = see(rigs, "separable", deed="interrupt")
    assert (seen.outcome, seen.reason) == (Outcome.CRASHED, "task deed: KeyboardInterrupt")


@pytest.mark.parametrize("kind", ENGINES)
def test_a_task_that_cannot_be_constructed_fails_and_does_not_fall_back(
    rigs: MakeRig, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    engine, overrides = {"kind": kind}, {"deed:early": "fail"}
    rig, worker = rigs(engine=engine, pipelines={"overrides": overrides})
    write_deeds(rig)
    assert worker.prepare(rig.order(main="Deed,Short", before="")).pipeline == "Deed"
    assert "Deed is not ready: task deed: RuntimeError: no stars" in caplog.text
    worker.ingest(rig.raw())
    done = worker.process(Process(exposures=(EXPOSURE,)))
    assert (done.outcome, done.pipeline, done.retriable) == (Outcome.FAILED, "Deed", True)
    assert done.reason == "task deed: RuntimeError: no stars"
    assert Stage.FIRST_TASK not in [fact.stage for fact in rig.said]


def test_a_task_that_cannot_be_constructed_any_more_is_told_by_its_own_exception(
    rigs: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig, worker = rigs(engine={"kind": "separable"})
    write_deeds(rig)
    worker.prepare(rig.order(main="Deed", before=""))
    worker.ingest(rig.raw())

    def refuse(self: Any, **kwargs: Any) -> None:
        raise ConnectionError("alert database is away")

    monkeypatch.setattr(DeedTask, "__init__", refuse)
    done = worker.process(Process(exposures=(EXPOSURE,)))
    assert done.reason == "task deed: ConnectionError: alert database is away"


@pytest.mark.parametrize("kind", ["direct", "separable"])
def test_a_task_that_can_be_constructed_again_runs_with_its_init_outputs(
    rigs: MakeRig, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig, worker = rigs(engine={"kind": kind}, export={"types": [".*"]})
    write_deeds(rig)

    def refuse(self: Any, **kwargs: Any) -> None:
        raise ConnectionError("alert database is away")

    with monkeypatch.context() as patch:
        patch.setattr(DeedTask, "__init__", refuse)
        worker.prepare(rig.order(main="Deed", before=""))
    worker.ingest(rig.raw())
    done = worker.process(Process(exposures=(EXPOSURE,)))
    assert (done.outcome, done.engine) == (Outcome.SUCCEEDED, kind)
    spooled = {ref.datasetType.name for file in read_manifest(Path(done.spool)).files for ref in file.refs}
    assert {"deed_config", "toy_deed_schema", "packages"} <= spooled


@pytest.mark.parametrize("kind", ENGINES)
def test_a_pipeline_that_cannot_be_built_gives_way_to_the_next(rigs: MakeRig, kind: str) -> None:
    seen = see(rigs, kind, main="Unbuildable,Short")
    assert (seen.outcome, seen.pipeline) == (Outcome.SUCCEEDED, "Short")
    assert (
        seen.types
        == {"toy_isr", "isr_metadata", "isr_log", "isr_config", "regionTimeInfo", "preload_metrics"} | RUN
    )
    assert seen.said == [Stage.FIRST_TASK, Stage.PROCESSED, Stage.SPOOLED]


def test_a_command_that_ends_without_a_word_is_a_crash(rigs: MakeRig) -> None:
    with pytest.raises(VisitFailed, match="pipetask ended with exit status 0 in mid-run") as caught:
        see(rigs, "pipetask", deed="die")
    assert (caught.value.outcome, caught.value.retriable) == (Outcome.CRASHED, True)


class FullDisk:
    """Stands for a command that finds the disk full: while it builds, or once its graph is built."""

    words: ClassVar[list[Word]] = []

    def __init__(self, *args: Any):
        pass

    def hear(self) -> Word:
        return self.words.pop(0) if self.words else Broken(text="no space", outcome=Outcome.RAMDISK_FULL)

    def go_on(self) -> None:
        pass

    def end(self) -> str:
        return "exit status 1"


@pytest.mark.parametrize("words", [[], [Built(labels=("known",))]], ids=["building", "built"])
def test_a_command_that_finds_the_disk_full_ends_the_visit_as_such(
    rigs: MakeRig, monkeypatch: pytest.MonkeyPatch, words: list[Word]
) -> None:
    monkeypatch.setattr(pipetask, "_Command", FullDisk)
    rig, worker = rigs(engine={"kind": "pipetask"})
    monkeypatch.setattr(FullDisk, "words", list(words))
    with pytest.raises(VisitFailed, match="no space") as caught:
        worker.prepare(rig.order(main="Short", before="Known"))
    assert (caught.value.outcome, caught.value.retriable) == (Outcome.RAMDISK_FULL, True)
    worker.reset()
    worker.prepare(rig.order(main="Short", before=""))
    worker.ingest(rig.raw())
    monkeypatch.setattr(FullDisk, "words", list(words))
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
from ppdaemon.processes import adopt_orphans
adopt_orphans()
worker = subprocess.Popen([sys.executable, "-c", {WORKER!r}], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
command = int(worker.stdout.readline())
deadline = time.monotonic() + 60
while not os.path.realpath(f"/proc/{{command}}/fd/3").rpartition("/")[2].startswith("socket:"):
    assert time.monotonic() < deadline  # it takes its channel once it is tied to the worker
worker.kill()
worker.wait()
print(os.waitstatus_to_exitcode(os.waitpid(command, 0)[1]))
"""


def test_a_command_dies_with_its_worker() -> None:
    shown = subprocess.run(
        [sys.executable, "-c", REAPER], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True, timeout=100
    )
    assert shown.stdout.strip() == "-9"


def test_the_worker_is_told_of_the_first_failure_of_pipetask_and_of_no_other() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        ours.settimeout(10.0)
        log, witness = logging.Logger("pipetask"), child._Witness(theirs)
        log.addHandler(witness)
        log.error("without an exception")
        failed = RuntimeError("no stars\nat all")
        failed.mdc = {"LABEL": "deed:{instrument: 'Toy'}"}  # type: ignore[attr-defined]
        log.error("a task has failed", exc_info=failed)
        witness.note(SystemExit(1))
        told = WORDS.validate_json(ours.recv(PACKET))
        assert told == Failed(label="deed", text="RuntimeError: no stars", outcome=Outcome.FAILED)
        ours.setblocking(False)
        with pytest.raises(BlockingIOError):
            ours.recv(PACKET)


def test_what_fails_outside_of_tasks_is_told_in_few_words() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        ours.settimeout(10.0)
        child._Witness(theirs).note(MemoryError("x" * 100_000))
        told = WORDS.validate_json(ours.recv(PACKET))
    assert isinstance(told, Broken)
    assert (told.outcome, len(told.text)) == (Outcome.OUT_OF_MEMORY, 4000)
