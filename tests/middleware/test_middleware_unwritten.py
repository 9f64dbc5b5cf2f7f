# SPDX-License-Identifier: BSD-3-Clause
"""An output, a log or metadata that cannot be written costs that dataset; the others are exported."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from enginecompare import EACH_ENGINE, EXPOSURE, run_worker, start_worker
from fragiletasks import HALF, write_fragile
from lsst.daf.butler.logging import ButlerLogRecords, ButlerMDC
from lsst.pipe.base import TaskMetadata
from toycam import MakeRig

from ppdaemon.errors import VisitFailed
from ppdaemon.messages import Done, Process
from ppdaemon.middleware.direct import memory, writing
from ppdaemon.middleware.export.manifest import MANIFEST, Manifest, read_manifest
from ppdaemon.middleware.run.engine import RunResult, TaskFailure, Unwritten
from ppdaemon.states import Outcome

pytest_plugins = ("toyfixtures", "columnsclass")

LOST = "output toy_broken of task breaks cannot be written: ValueError: no such compression"
OTHERS = {"toy_isr", "isr_log", "isr_metadata", "breaks_log", "breaks_metadata", "toy_whole", "reads_log"}


@pytest.fixture(autouse=True)
def _usual(caplog: pytest.LogCaptureFixture, fragile_class: None) -> Iterator[None]:
    """Set the log level of a node's processes, and records that name their task."""
    caplog.set_level("INFO")
    ButlerMDC.add_mdc_log_record_factory()
    handlers = list(logging.getLogger().handlers)
    for handler in handlers:
        handler.addFilter(_can_be_reported)
    yield
    for handler in handlers:
        handler.removeFilter(_can_be_reported)
    ButlerMDC.restore_log_record_factory()


def _can_be_reported(record: logging.LogRecord) -> bool:
    """Return whether a process of pytest can send a record to another one."""
    exception = record.exc_info[1] if record.exc_info else ""
    return HALF not in f"{record.getMessage()} {exception}"


def process(
    rigs: MakeRig, kind: str, how: str, *, snaps: int = 1, no_return: bool = False, **settings: Any
) -> tuple[Done, Manifest]:
    """Process a visit whose task does something; return its result, and its checked spool."""
    settings |= {"no_return": ["reads"] if no_return else []}
    rig, worker = start_worker(rigs, kind, write=write_fragile, settings=settings, **{"breaks:how": how})
    worker.prepare(rig.order(main="Fragile", before="", nimages=snaps))
    exposures = tuple(EXPOSURE + snap for snap in range(snaps))
    for snap in range(snaps):
        worker.ingest(rig.raw(seq_num=1 + snap, CURINDEX=1 + snap, MAXINDEX=snaps))
    done = worker.process(Process(exposures=exposures))
    assert done.engine == kind
    manifest = read_manifest(Path(done.spool))
    names = {file.name for file in manifest.files}
    assert {path.name for path in Path(done.spool).iterdir()} == names | {MANIFEST}
    assert (len(names), manifest.failed) == (
        done.datasets,
        done.reason if done.outcome != "succeeded" else "",
    )
    return done, manifest


def types(manifest: Manifest) -> set[str]:
    return {ref.datasetType.name for file in manifest.files for ref in file.refs}  # type: ignore[union-attr]


def content(done: Done, manifest: Manifest, name: str) -> str:
    """Return the text of the first file of a dataset type."""
    (file, *_) = [file for file in manifest.files if file.refs[0].datasetType.name == name]  # type: ignore[union-attr]
    return Path(str(done.spool), file.name).read_text()


OUTPUT, LOG = (Unwritten(kind, f"a_{kind}", "a", "E: e") for kind in ("output", "log"))  # type: ignore[arg-type]
FAILURE = TaskFailure("b", "F: f", Outcome.OUT_OF_MEMORY)
NO_OUTPUT, NO_LOG = (f"{kind} a_{kind} of task a cannot be written: E: e" for kind in ("output", "log"))


@pytest.mark.parametrize(
    ("failure", "unwritten", "outcome", "failed", "reason"),
    [
        (None, (), Outcome.SUCCEEDED, "", "caveats"),
        (None, (LOG,), Outcome.SUCCEEDED, "", f"caveats; {NO_LOG}"),
        (None, (OUTPUT, OUTPUT), Outcome.FAILED, NO_OUTPUT, NO_OUTPUT),
        (None, (LOG, OUTPUT), Outcome.FAILED, NO_OUTPUT, f"{NO_OUTPUT}; {NO_LOG}"),
        (FAILURE, (OUTPUT,), Outcome.OUT_OF_MEMORY, *[f"task b: F: f; {NO_OUTPUT}"] * 2),
    ],
)
def test_a_missing_output_decides_about_the_outcome_and_a_missing_log_does_not(
    failure: TaskFailure | None, unwritten: tuple[Unwritten, ...], outcome: Outcome, failed: str, reason: str
) -> None:
    result = RunResult(failure, "caveats").without(unwritten)
    assert (result.outcome, result.failed, result.reason) == (outcome, failed, reason)


@pytest.mark.parametrize("no_return", [False, True])
@pytest.mark.parametrize(("snaps", "processes"), [(1, 1), (2, 2)])
def test_an_output_that_cannot_be_written_is_found_at_the_end_and_costs_only_itself(
    rigs: MakeRig, monkeypatch: pytest.MonkeyPatch, snaps: int, processes: int, no_return: bool
) -> None:
    monkeypatch.setattr(writing, "_MIN_FORK_BYTES", 0)  # children write, too
    monkeypatch.setattr(memory, "_MIN_BACKGROUND_BYTES", 0)  # and the thread
    done, manifest = process(rigs, "direct", "broken", snaps=snaps, processes=processes, no_return=no_return)
    assert (done.outcome, done.reason, done.retriable) == (Outcome.FAILED, LOST, False)
    assert types(manifest) >= OTHERS | {"toy_read", "reads_metadata"}
    assert "toy_broken" not in types(manifest)


@pytest.mark.parametrize("kind", ["separable", pytest.param("pipetask", marks=pytest.mark.slow)])
def test_an_output_that_cannot_be_written_fails_its_task_with_the_other_engines(
    rigs: MakeRig, kind: str
) -> None:
    done, manifest = process(rigs, kind, "broken", no_return=True)
    assert done.outcome == Outcome.FAILED
    assert done.reason.startswith("task breaks: RuntimeError: Failed to serialize dataset toy_broken")
    assert done.retriable is (kind == "separable"), "pipetask may have passed the point of no return"
    assert {"toy_isr", "isr_log", "isr_metadata", "breaks_log"} <= types(manifest)
    assert "toy_broken" not in types(manifest)


@pytest.mark.parametrize(("snaps", "processes"), [(1, 1), (2, 2)])
@pytest.mark.parametrize(("how", "memory_max"), [("uncopyable broken", 10**9), ("broken", 0)])
def test_what_can_be_neither_copied_nor_written_does_not_exist_for_other_tasks(
    rigs: MakeRig, how: str, memory_max: int, snaps: int, processes: int
) -> None:
    done, manifest = process(rigs, "direct", how, snaps=snaps, processes=processes, memory_max=memory_max)
    assert (done.outcome, done.reason, done.retriable) == (Outcome.FAILED, LOST, False)
    assert types(manifest) >= OTHERS
    assert not {"toy_broken", "toy_read"} & types(manifest)


@pytest.mark.parametrize("no_return", [False, True])
def test_a_full_disk_ends_the_visit(rigs: MakeRig, no_return: bool) -> None:
    with pytest.raises(VisitFailed, match="no space left for the spool") as caught:
        process(rigs, "direct", "full", no_return=no_return)
    assert (caught.value.outcome, caught.value.retriable) == (Outcome.STATE_FULL, not no_return)


@pytest.mark.parametrize(("snaps", "processes"), [(1, 1), (2, 2)])
def test_no_space_for_an_object_between_tasks_fails_its_task(
    rigs: MakeRig, snaps: int, processes: int
) -> None:
    done, manifest = process(rigs, "direct", "too large", snaps=snaps, processes=processes, memory_max=0)
    assert (done.outcome, done.retriable) == (Outcome.RAMDISK_FULL, True)
    assert done.reason.startswith("task breaks: RuntimeError: Failed to serialize dataset toy_broken")
    assert types(manifest) >= (OTHERS | {"toy_broken"}) - {"reads_log"}, "the spool has space"
    assert "reads_log" not in types(manifest)


@EACH_ENGINE
def test_metadata_that_cannot_be_read_again_do_not_end_the_visit(rigs: MakeRig, kind: str) -> None:
    done, manifest = process(rigs, kind, "no float")
    assert (done.outcome, done.reason) == (Outcome.SUCCEEDED, "")
    assert types(manifest) >= OTHERS | {"toy_broken"}


@EACH_ENGINE
def test_text_that_cannot_be_encoded_is_replaced_in_logs_and_metadata(rigs: MakeRig, kind: str) -> None:
    done, manifest = process(rigs, kind, "text")
    assert (done.outcome, done.reason) == (Outcome.SUCCEEDED, "")
    assert types(manifest) >= OTHERS | {"toy_broken", "toy_read", "reads_metadata"}
    log = ButlerLogRecords.from_raw(content(done, manifest, "breaks_log"))
    found = {record.message: record.exc_info for record in log}
    assert "half ? in a log" in found
    assert "ValueError: half ?" in str(found["with a traceback"])
    assert log[0].MDC["LABEL"].startswith("breaks:{")
    text = content(done, manifest, "breaks_metadata")
    metadata = TaskMetadata.model_validate_json(text)["breaks"]
    assert (metadata["text"], metadata.getArray("texts")) == ("half ?", ["half ?", "whole"])
    assert metadata["half ?"] != metadata["half ?"], "it is not a number"
    assert json.loads(text)["metadata"]["breaks"]["scalars"]["count"] == 2**60


@EACH_ENGINE
def test_an_object_in_metadata_is_replaced_by_its_text(rigs: MakeRig, kind: str) -> None:
    done, manifest = process(rigs, kind, "object")
    assert (done.outcome, done.reason) == (Outcome.SUCCEEDED, "")
    metadata = TaskMetadata.model_validate_json(content(done, manifest, "breaks_metadata"))
    assert metadata["breaks"]["object"] == "<class 'fragiletasks.Uncopyable'>"


@EACH_ENGINE
def test_a_failure_whose_text_cannot_be_encoded_is_reported_and_logged(rigs: MakeRig, kind: str) -> None:
    done, manifest = process(rigs, kind, "raise")
    assert (done.outcome, done.reason) == (Outcome.FAILED, "task breaks: RuntimeError: half ?")
    log = ButlerLogRecords.from_raw(content(done, manifest, "breaks_log"))
    assert log.extra["exception"]["message"] == "half ?"
    assert log.extra["metadata"]["metadata"]["breaks"]["scalars"]["text"] == "half ?"
    assert {"toy_isr", "isr_log", "isr_metadata"} <= types(manifest)


def test_a_log_that_cannot_be_written_is_a_caveat(rigs: MakeRig) -> None:
    done, manifest = process(rigs, "direct", "no log", no_return=True)
    reason = "log breaks_log of task breaks cannot be written: ValueError: not this one"
    assert (done.outcome, done.reason, done.retriable) == (Outcome.SUCCEEDED, reason, False)
    assert types(manifest) >= (OTHERS | {"toy_broken", "toy_read"}) - {"breaks_log"}
    assert "breaks_log" not in types(manifest)


@pytest.mark.parametrize("kind", ["separable", pytest.param("pipetask", marks=pytest.mark.slow)])
def test_a_log_that_cannot_be_written_fails_its_task_with_the_other_engines(rigs: MakeRig, kind: str) -> None:
    done, manifest = process(rigs, kind, "no log", no_return=True)
    assert done.outcome == Outcome.FAILED
    assert done.reason.startswith("task breaks: RuntimeError: Failed to serialize dataset breaks_log")
    assert types(manifest) >= (OTHERS | {"toy_broken"}) - {"breaks_log", "reads_log"}


@pytest.mark.slow
def test_two_snaps_with_replaced_texts_are_the_same_in_one_and_two_processes(rigs: MakeRig) -> None:
    results = [
        run_worker(
            *start_worker(
                rigs, "direct", write=write_fragile, settings={"processes": n}, **{"breaks:how": "text"}
            ),
            "direct",
            main="Fragile",
            snaps=(1, 2),
        )
        for n in (1, 2)
    ]
    assert results[0] == results[1]
