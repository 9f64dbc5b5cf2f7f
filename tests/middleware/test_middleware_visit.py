# SPDX-License-Identifier: BSD-3-Clause
"""Visits from preload to spool, in a real Butler with real tasks."""

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import astropy.units as u
import pytest
import toycam
from lsst.daf.butler import Butler
from toycam import BEGIN_TAI, DAY, EPOCH, GROUP, NAME, MakeRig, Rig

from ppdaemon.errors import Unavailable, VisitFailed
from ppdaemon.messages import Process, StageReached
from ppdaemon.middleware import work
from ppdaemon.middleware.butlerwork import ButlerWork
from ppdaemon.middleware.export.manifest import read_manifest
from ppdaemon.states import Outcome, Stage

pytest_plugins = ("toyfixtures",)

EXPOSURE = DAY * 100000 + 1


def run_visit(rig: Rig, worker: ButlerWork, **order: Any) -> Any:
    worker.prepare(rig.order(**order))
    worker.ingest(rig.raw(order.get("detector", 1)))
    return worker.process(Process(exposures=(EXPOSURE,)))


def read_output(spool: str, dataset_type: str) -> Any:
    """Return the text of a spooled dataset."""
    manifest = read_manifest(Path(spool))
    (name,) = [file.name for file in manifest.files if file.refs[0].datasetType.name == dataset_type]
    return Path(spool, name).read_text()


def runs_in(spool: str) -> set[str]:
    return {str(ref.run) for file in read_manifest(Path(spool)).files for ref in file.refs}


def names_in(spool: str) -> set[str]:
    return {ref.datasetType.name for file in read_manifest(Path(spool)).files for ref in file.refs}


def test_a_visit_reads_the_datasets_for_its_time_position_and_filter(rigs: MakeRig) -> None:
    rig, worker = rigs()
    prepared = worker.prepare(rig.order())
    assert prepared.pipeline == "Full"
    assert prepared.detail["datasets"] == 8, "bias, flat, two shards, four patches"
    ingested = worker.ingest(rig.raw())
    assert ingested.shutter_close_tai == pytest.approx((BEGIN_TAI + 65 * u.s).unix_tai)
    done = worker.process(Process(exposures=(EXPOSURE,)))
    assert (done.outcome, done.pipeline, done.engine) == (Outcome.SUCCEEDED, "Full", "direct")
    text = read_output(done.spool, "toy_association")
    assert "epoch: new" in text
    assert "filter: r_03" in text
    assert "patches:\n  - 6\n  - 7\n  - 11\n  - 12" in text
    assert "width_deg: 0.227" in text, "0.2 degrees and twice 50.1 arcsec"
    stages = [fact.stage if isinstance(fact, StageReached) else fact.what for fact in rig.reports]
    assert stages == [Stage.FIRST_TASK, "associate", Stage.PROCESSED, Stage.SPOOLED]


def test_calibrations_are_those_of_the_time_of_the_visit(rigs: MakeRig) -> None:
    rig, worker = rigs()
    early = EPOCH - 10 * u.day
    worker.prepare(rig.order(main="Short", before="", startTime=early.unix_tai))
    day = early - 12 * u.hour
    header = {"DATE_BEG": early.isot, "DATE_END": (early + 30 * u.s).isot, "DAYOBS": day.strftime("%Y%m%d")}
    exposure = int(day.strftime("%Y%m%d")) * 100000 + 1
    worker.ingest(rig.raw(**header).model_copy(update={"exposure": exposure}))
    done = worker.process(Process(exposures=(exposure,)))
    assert "epoch: old" in read_output(done.spool, "toy_isr")
    (chain,) = read_manifest(Path(done.spool)).chains
    assert chain == f"{NAME}/prompt/output-2026-11-09"


def test_a_visit_across_a_change_of_calibrations_takes_those_of_the_exposure(rigs: MakeRig) -> None:
    rig, worker = rigs()
    announced = EPOCH - 30 * u.s
    prepared = worker.prepare(rig.order(main="Short", before="", startTime=announced.unix_tai))
    assert prepared.detail["datasets"] == 4, "both epochs' bias and flat"
    begin = EPOCH + 20 * u.s
    header = {"DATE_BEG": begin.isot, "DATE_END": (begin + 30 * u.s).isot, "DAYOBS": "20261119"}
    exposure = 2026111900001
    worker.ingest(rig.raw(**header).model_copy(update={"exposure": exposure}))
    done = worker.process(Process(exposures=(exposure,)))
    assert "epoch: new" in read_output(done.spool, "toy_isr")


@pytest.mark.parametrize("filters", ["", "u_99", "g_01,r_03"])
def test_an_unknown_filter_brings_the_calibrations_of_all(rigs: MakeRig, filters: str) -> None:
    rig, worker = rigs(exposures={"filter": "ignore"})
    prepared = worker.prepare(rig.order(main="Short", before="", filters=filters))
    assert prepared.detail["datasets"] == 1 + 2
    worker.ingest(rig.raw())
    assert worker.process(Process(exposures=(EXPOSURE,))).outcome == Outcome.SUCCEEDED


def test_without_a_position_no_spatial_dataset_is_preloaded(
    rigs: MakeRig, caplog: pytest.LogCaptureFixture
) -> None:
    rig, worker = rigs()
    prepared = worker.prepare(rig.order(main="Full,Short", coordinateSystem=4))
    assert prepared.pipeline == "Short"
    assert prepared.detail["datasets"] == 2
    assert "not preloading toy_refcat, toy_template" in caplog.text
    worker.ingest(rig.raw())
    done = worker.process(Process(exposures=(EXPOSURE,)))
    assert (done.outcome, done.pipeline) == (Outcome.SUCCEEDED, "Short")


def test_a_missing_template_leaves_no_pipeline(rigs: MakeRig) -> None:
    rig, worker = rigs()
    with pytest.raises(VisitFailed, match="Full lacks toy_template") as caught:
        worker.prepare(rig.order(position=[toycam.RA + 2.0, toycam.DEC]))
    assert (caught.value.outcome, caught.value.retriable) == (Outcome.NO_PIPELINE, False)


def test_missing_inputs_of_a_pipeline_are_named(rigs: MakeRig) -> None:
    rig, worker = rigs()
    with pytest.raises(VisitFailed, match="NeedsModel lacks toy_model"):
        worker.prepare(rig.order(main="NeedsModel"))
    assert worker.prepare(rig.order(main="NeedsModel,Short")).pipeline == "Short"


def test_a_pipeline_that_cannot_be_built_falls_back_to_the_next(rigs: MakeRig) -> None:
    rig, worker = rigs()
    assert worker.prepare(rig.order(main="Unbuildable,Short")).pipeline == "Unbuildable"
    worker.ingest(rig.raw())
    done = worker.process(Process(exposures=(EXPOSURE,)))
    assert (done.outcome, done.pipeline) == (Outcome.SUCCEEDED, "Short")
    assert done.reason == f"fell back: {done.fallback}"
    assert done.fallback.startswith("Unbuildable cannot be built: ")


def test_subsets_of_one_file_are_two_pipelines_in_outcome_run_and_reason(rigs: MakeRig) -> None:
    rig, worker = rigs()
    rig.paths |= {"A": f"{rig.paths['Full']}#subtract", "B": f"{rig.paths['Full']}#isr"}
    assert worker.prepare(rig.order(main="A,B")).pipeline == "Full-subtract"
    worker.ingest(rig.raw())
    done = worker.process(Process(exposures=(EXPOSURE,)))
    assert (done.outcome, done.pipeline) == (Outcome.SUCCEEDED, "Full-isr")
    assert done.reason.startswith("fell back: Full-subtract ")
    assert {run.split("/")[-2] for run in runs_in(done.spool)} == {"Full-isr", "Known"}


def test_only_preferred_pipelines_are_reported_as_rejected(rigs: MakeRig) -> None:
    rig, worker = rigs()
    reasons = []
    for attempt, main in enumerate(("Full,Unbuildable,Short", "Short,Full"), start=1):
        done = run_visit(rig, worker, main=main, before="", attempt=attempt)
        assert (done.outcome, done.pipeline) == (Outcome.SUCCEEDED, "Short")
        reasons.append(done.reason)
    first, second = reasons
    assert first.index("Full lacks toy_known") < first.index("Unbuildable cannot be built")
    assert second == ""


def test_the_reasons_are_reported_if_no_pipeline_can_be_built(rigs: MakeRig) -> None:
    rig, worker = rigs()
    worker.prepare(rig.order(main="Unbuildable"))
    worker.ingest(rig.raw())
    with pytest.raises(VisitFailed, match="this exposure is not for this pipeline") as caught:
        worker.process(Process(exposures=(EXPOSURE,)))
    assert caught.value.outcome == Outcome.NO_PIPELINE


def test_a_broken_pipeline_file_falls_back_to_the_next(rigs: MakeRig) -> None:
    rig, worker = rigs()
    Path(rig.paths["Frame"]).write_text("tasks: {a: no.such.Task}\n")
    assert worker.prepare(rig.order(main="Frame,Short")).pipeline == "Short"
    with pytest.raises(VisitFailed, match=r"Frame\.yaml cannot be constructed") as caught:
        worker.prepare(rig.order(main="Frame"))
    assert caught.value.outcome == Outcome.NO_PIPELINE


def test_a_failing_task_never_falls_back_and_keeps_what_others_made(rigs: MakeRig) -> None:
    rig, worker = rigs(pipelines={"overrides": {"calibrate:fail": "no stars\nat all"}})
    done = run_visit(rig, worker, main="Frame,Short", before="")
    assert (done.outcome, done.pipeline) == (Outcome.FAILED, "Frame")
    assert read_manifest(Path(done.spool)).failed == done.reason != ""
    assert done.reason == "task calibrate: RuntimeError: no stars"
    assert done.retriable
    assert "toy_isr" in names_in(done.spool)
    assert "toy_image" not in names_in(done.spool)


TRACES = {"endpoint": "http://127.0.0.1:4318/v1/traces"}


def stages_of(rig: Rig) -> dict[Stage, StageReached]:
    return {fact.stage: fact for fact in rig.reports if isinstance(fact, StageReached)}


@pytest.mark.parametrize("kind", ["direct", "separable", pytest.param("pipetask", marks=pytest.mark.slow)])
def test_where_there_are_traces_the_times_of_tasks_are_reported(rigs: MakeRig, kind: str) -> None:
    rig, worker = rigs(traces=TRACES, engine={"kind": kind})
    done = run_visit(rig, worker, main="Frame", before="")
    assert (done.outcome, done.engine) == (Outcome.SUCCEEDED, kind)
    stages = stages_of(rig)
    tasks = stages[Stage.PROCESSED].detail["tasks"]
    assert sorted(label for label, *_ in tasks) == ["calibrate", "isr"]
    begin, end = stages[Stage.FIRST_TASK].tai, stages[Stage.PROCESSED].tai
    for _, task_begin, task_end, problem in tasks:
        assert begin <= task_begin < task_end <= end
        assert problem is None
    assert tasks == sorted(tasks, key=lambda task: task[1])


def test_the_time_of_a_task_that_failed_is_reported_with_its_error(rigs: MakeRig) -> None:
    rig, worker = rigs(traces=TRACES, pipelines={"overrides": {"calibrate:fail": "no stars"}})
    run_visit(rig, worker, main="Frame", before="")
    isr, (label, begin, end, problem) = stages_of(rig)[Stage.PROCESSED].detail["tasks"]
    assert (isr[0], label, problem) == ("isr", "calibrate", "RuntimeError: no stars")
    assert isr[2] <= begin < end


def test_without_traces_no_times_of_tasks_are_reported(rigs: MakeRig) -> None:
    rig, worker = rigs()
    run_visit(rig, worker, main="Frame", before="")
    assert stages_of(rig)[Stage.PROCESSED].detail == {}


def test_a_failure_after_a_point_of_no_return_is_not_retried(rigs: MakeRig) -> None:
    rig, worker = rigs(pipelines={"overrides": {"associate:fail": "half written"}})
    done = run_visit(rig, worker)
    assert (done.outcome, done.retriable) == (Outcome.FAILED, False)
    assert "half written" in done.reason


def test_a_failing_preprocessing_may_be_retried(rigs: MakeRig) -> None:
    rig, worker = rigs(pipelines={"overrides": {"known:fail": "alert database is away"}})
    with pytest.raises(VisitFailed, match="alert database is away") as caught:
        worker.prepare(rig.order())
    assert (caught.value.outcome, caught.value.retriable) == (Outcome.PRELOAD_FAILED, True)
    assert worker.prepare(rig.order(main="Full,Frame")).pipeline == "Frame"


def test_two_snaps_are_two_exposures_of_one_run(rigs: MakeRig) -> None:
    rig, worker = rigs()
    worker.prepare(rig.order(main="Frame", before="", nimages=2))
    for seq_num in (1, 2):
        worker.ingest(rig.raw(seq_num=seq_num))
    done = worker.process(Process(exposures=(EXPOSURE, EXPOSURE + 1)))
    assert done.outcome == Outcome.SUCCEEDED
    visits = [
        dict(ref.dataId.dataId)["visit"]
        for file in read_manifest(Path(done.spool)).files
        for ref in file.refs
        if ref.datasetType.name == "toy_image"
    ]
    assert sorted(visits) == [EXPOSURE, EXPOSURE + 1]


def test_a_reset_releases_the_visit(rigs: MakeRig) -> None:
    rig, worker = rigs()
    first = run_visit(rig, worker, main="Short", before="")
    worker.reset()
    with pytest.raises(VisitFailed, match="no visit is prepared"):
        worker.ingest(rig.raw(seq_num=2))
    second = run_visit(rig, worker, main="Short", before="", attempt=2, detector=2)
    assert second.outcome == Outcome.SUCCEEDED
    assert Path(first.spool).name.endswith("~1~1")
    assert Path(second.spool).name.endswith("~2~2")


def test_many_visits_leave_no_descriptor_behind(rigs: MakeRig) -> None:
    rig, worker = rigs()
    worker.prepare(rig.order(main="Short", before=""))
    worker.reset()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        worker.prepare(rig.order(main="Short", before=""))
        worker.reset()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_workers_share_files_by_hard_link(rigs: MakeRig) -> None:
    rig, worker = rigs()
    first = worker.prepare(rig.order()).detail
    assert first["fetched_bytes"] == first["bytes"] > 0
    cached = [path for path in rig.context.cache.iterdir() if not path.name.startswith(".")]
    assert len(cached) == 8
    assert {path.stat().st_nlink for path in cached} == {2}
    worker.reset()
    assert {path.stat().st_nlink for path in cached} == {1}
    assert worker.prepare(rig.order()).detail["fetched_bytes"] == 0


def test_where_links_cannot_be_made_files_are_copied(rigs: MakeRig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig, worker = rigs()

    def refuse(source: Any, target: Any, **kwargs: Any) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    assert run_visit(rig, worker, main="Short", before="").outcome == Outcome.SUCCEEDED


def test_a_full_ram_disk_has_its_outcome(rigs: MakeRig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig, worker = rigs()

    def refuse(source: Any, target: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(VisitFailed, match="no space left") as caught:
        worker.prepare(rig.order(main="Short"))
    assert (caught.value.outcome, caught.value.retriable) == (Outcome.RAMDISK_FULL, True)


def test_the_preload_fails_while_the_central_repo_is_away(
    rigs: MakeRig, tmp_path: Path, toy_central: Path
) -> None:
    central = tmp_path / "moved"
    rig, worker = rigs(central)
    with pytest.raises(VisitFailed, match=r"central repo .*moved cannot be read") as caught:
        worker.prepare(rig.order())
    assert (caught.value.outcome, caught.value.retriable) == (Outcome.PRELOAD_FAILED, True)
    with pytest.raises(Unavailable, match="cannot be read"):
        work.build_template(rig.context)
    shutil.copytree(toy_central, central)
    assert worker.prepare(rig.order(main="Short")).pipeline == "Short"


def test_overrides_reach_the_tasks_and_change_the_deployment(rigs: MakeRig) -> None:
    runs = []
    for note in ("first", "second"):
        rig, worker = rigs(pipelines={"overrides": {"isr:note": note, "other:x": 1}})
        done = run_visit(rig, worker, main="Short", before="")
        assert f"note: {note}" in read_output(done.spool, "toy_isr")
        (wanted,) = read_manifest(Path(done.spool)).chains.values()
        runs.append(wanted[0])
    assert runs[0] != runs[1]
    assert all(run.startswith(f"{NAME}/prompt/output-2026-11-22/Short/") for run in runs)


def test_overlapping_visits_in_two_slots_are_independent(rigs: MakeRig) -> None:
    (one, first), (two, second) = rigs(), rigs()
    first.prepare(one.order(0, main="Short", before=""))
    second.prepare(two.order(3, main="Short", before=""))
    first.ingest(one.raw(0))
    second.ingest(two.raw(3))
    assert second.process(Process(exposures=(EXPOSURE,))).outcome == Outcome.SUCCEEDED
    assert first.process(Process(exposures=(EXPOSURE,))).outcome == Outcome.SUCCEEDED


def test_the_central_repo_is_only_read(rigs: MakeRig, toy_central: Path) -> None:
    rig, worker = rigs()
    run_visit(rig, worker, main="Short", before="")
    with Butler.from_config(str(toy_central)) as central:
        assert not list(central.query_dimension_records("exposure", explain=False))
        assert GROUP not in {
            record.name for record in central.query_dimension_records("group", explain=False)
        }
