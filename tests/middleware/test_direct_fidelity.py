# SPDX-License-Identifier: BSD-3-Clause
"""The ``direct`` engine has the outputs of ``separable``, whatever tasks do with their Butler."""

import re
import shutil
import threading
from pathlib import Path

import astropy.units as u
import pytest
from directtasks import write_many
from enginecompare import PAIR, assert_equal, compare_engines, process_visit
from lsst.daf.butler import Butler, CollectionType, DatasetType, Timespan  # type: ignore[attr-defined]
from pandas import DataFrame
from toycam import DAY, EPOCH, MakeRig, Rig

from ppdaemon.errors import VisitFailed
from ppdaemon.messages import Process, StageReached
from ppdaemon.middleware import butlerwork
from ppdaemon.middleware.direct import exposures, memory
from ppdaemon.middleware.export.manifest import read_manifest
from ppdaemon.states import Outcome, Stage

pytest_plugins = ("toyfixtures",)
pytestmark = pytest.mark.usefixtures("logging_of_a_node")


@pytest.mark.slow
def test_components_conversions_lookups_and_deferred_loads_equal_those_of_separable_in_any_memory(
    rigs: MakeRig,
) -> None:
    result = process_visit(rigs, "separable", main="Many", write=write_many)
    for settings in ({}, {"memory_max": 1, "read_ahead_max": 0}):
        assert_equal(result, process_visit(rigs, "direct", main="Many", write=write_many, settings=settings))
    assert (result.outcome, result.reason) == (Outcome.SUCCEEDED, "")
    assert {"many_inputs", "many_late", "many_spoilt", "many_table"} <= result.types
    assert "many_never" not in result.types
    (text,) = [content for (name, *_), content in result.contents.items() if name == "many_inputs"]
    assert "epoch: new" in text


@pytest.mark.slow
def test_a_second_read_returns_a_fresh_object_and_put_outputs_do_not_change(rigs: MakeRig) -> None:
    result = compare_engines(rigs, PAIR, main="Again", write=write_many)
    made = {name: content for (name, *_), content in result.contents.items()}
    assert made["again_early"] != made["again_late"]


def test_results_of_lookup_functions_have_dimension_records(rigs: MakeRig) -> None:
    result = compare_engines(rigs, PAIR, main="Shards", write=write_many)
    (reported,) = [content for (name, *_), content in result.contents.items() if name == "many_shards"]
    assert "true" in reported
    assert "false" not in reported


def test_an_output_that_cannot_be_written_fails_its_task_alone(rigs: MakeRig) -> None:
    first, other = (process_visit(rigs, kind, main="Unwritable", write=write_many) for kind in PAIR)
    assert (first.outcome, first.types) == (Outcome.FAILED, other.types)
    assert "many_table" in first.types, "of the other task"
    reasons = [re.sub("id=[-0-9a-f]+", "", each.reason) for each in (first, other)]
    assert reasons[0] == reasons[1]
    assert reasons[0].startswith("task unwritable: RuntimeError: Failed to serialize dataset")


def test_a_pipeline_with_a_raw_prerequisite_is_run_by_separable(rigs: MakeRig) -> None:
    first = process_visit(rigs, "separable", main="RawFirst", write=write_many)
    assert process_visit(rigs, "direct", main="RawFirst", write=write_many, ran_by="separable") == first


@pytest.mark.slow
def test_two_snaps_are_two_quanta_with_separate_tasks(rigs: MakeRig) -> None:
    result = compare_engines(rigs, PAIR, main="Many", write=write_many, snaps=(1, 2))
    assert len([name for name, *_ in result.contents if name == "many_spoilt"]) == 2
    assert len([name for name, *_ in result.contents if name == "many_inputs"]) == 2


@pytest.mark.slow
def test_grouped_snaps_are_one_visit(rigs: MakeRig) -> None:
    grouped = {"visits": {"ToyCam": "by-group"}}
    result = compare_engines(rigs, PAIR, main="Many", write=write_many, snaps=(1, 2), butler=grouped)
    assert len([name for name, *_ in result.contents if name == "many_inputs"]) == 1
    assert result.records["visit_definition"] == 2


@pytest.mark.slow
def test_values_missing_in_the_announcement_are_taken_from_the_raw(rigs: MakeRig) -> None:
    sal = {"filters": "", "duration": 0.0}
    assert compare_engines(rigs, PAIR, main="Many", write=write_many, sal=sal).outcome == Outcome.SUCCEEDED


@pytest.mark.slow
def test_a_pipeline_with_a_hook_is_run_by_separable_and_logged_once(
    rigs: MakeRig, caplog: pytest.LogCaptureFixture
) -> None:
    first = process_visit(rigs, "separable", main="Hooked", write=write_many)
    rig, worker = rigs(engine={"kind": "direct", "no_return": []}, export={"types": [".*"]})
    write_many(rig)
    for snap in (1, 2):
        worker.prepare(rig.order(main="Hooked", before="", attempt=snap))
        worker.ingest(rig.raw(seq_num=snap))
        done = worker.process(Process(exposures=(DAY * 100000 + snap,)))
        assert (done.outcome, done.engine) == (Outcome.SUCCEEDED, "separable")
    logged = [record.message for record in caplog.records if "separable runs it" in record.message]
    reason = "hooked: its connections override adjust_all_quanta"
    assert logged == [f"Hooked cannot be run by the direct engine, separable runs it: {reason}"]
    assert why_not_direct(rig) == [reason] * 2
    names = {ref.datasetType.name for file in read_manifest(Path(done.spool)).files for ref in file.refs}
    assert names == first.types | {"prompt_provenance"}


def test_a_fallback_of_an_unsupported_pipeline_reports_its_reason(rigs: MakeRig) -> None:
    """The first pipeline is unsupported and cannot be built: then the raws are in the repo."""
    rig, worker = rigs(engine={"kind": "direct", "no_return": []}, export={"types": [".*"]})
    write_many(rig)
    worker.prepare(rig.order(main="HookedInVain,Short", before=""))
    worker.ingest(rig.raw())
    done = worker.process(Process(exposures=(DAY * 100000 + 1,)))
    assert (done.outcome, done.pipeline, done.engine) == (Outcome.SUCCEEDED, "Short", "separable")
    assert why_not_direct(rig) == ["the raws are already ingested in the worker's repo"]


@pytest.mark.slow
def test_no_file_of_a_visit_stays_on_the_ram_disk(rigs: MakeRig) -> None:
    rig, worker = rigs(engine={"kind": "direct", "no_return": [], "memory_max": 1}, export={"types": [".*"]})
    write_many(rig)
    folder = rig.context.repo / "direct"
    worker.prepare(rig.order(main="Many", before=""))
    worker.ingest(rig.raw())
    worker.process(Process(exposures=(DAY * 100000 + 1,)))
    assert why_not_direct(rig) == [None]
    assert any(folder.iterdir())
    worker.reset()
    assert not folder.exists()


def test_the_writer_of_a_visit_that_was_not_spooled_ends_at_the_reset(
    rigs: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig, worker = rigs(engine={"kind": "direct", "no_return": []}, export={"types": [".*"]})
    write_many(rig)
    worker.prepare(rig.order(main="Many", before=""))
    worker.ingest(rig.raw())
    # All exported datasets are written in the background.
    monkeypatch.setattr(memory, "_MIN_BACKGROUND_BYTES", 0)

    def refuse(*args: object, **options: object) -> None:
        raise OSError("no such device")

    monkeypatch.setattr(butlerwork, "write_spool", refuse)
    with pytest.raises(OSError, match="no such device"):
        worker.process(Process(exposures=(DAY * 100000 + 1,)))
    worker.reset()
    assert all(thread.name != "background-writer" for thread in threading.enumerate())


@pytest.mark.slow
def test_the_repo_defines_a_dataset_type_as_soon_as_it_has_it(
    rigs: MakeRig, tmp_path: Path, toy_central: Path
) -> None:
    reported = []
    for kind in PAIR:
        central = Path(shutil.copytree(toy_central, tmp_path / kind))
        rig, worker = rigs(central, engine={"kind": kind, "no_return": []}, export={"types": [".*"]})
        write_many(rig)
        for snap in (1, 2):
            worker.prepare(rig.order(main="Later", before="", attempt=snap))
            worker.ingest(rig.raw(seq_num=snap))
            done = worker.process(Process(exposures=(DAY * 100000 + snap,)))
            assert done.engine == kind
            files = read_manifest(Path(done.spool)).files
            (name,) = [file.name for file in files if file.refs[0].datasetType.name == "many_later"]
            reported.append(Path(done.spool, name).read_text())
            if snap == 1:
                add_later(central)
    assert reported == ["later: NoneType\n", "later: Table\n"] * 2


def add_later(central: Path) -> None:
    """Register a dataset type in the central repo with another storage class than in the pipeline."""
    with Butler.from_config(str(central), writeable=True) as butler:
        butler.registry.registerDatasetType(
            DatasetType("toy_later", butler.dimensions.conform(("instrument",)), "DataFrame")
        )
        butler.collections.register("ToyCam/later")
        butler.put(DataFrame({"a": [1.0]}), "toy_later", instrument="ToyCam", run="ToyCam/later")
        chain = butler.collections.get_info("ToyCam/calib").children
        butler.collections.redefine_chain("ToyCam/calib", [*chain, "ToyCam/later"])


def why_not_direct(rig: Rig) -> list[str | None]:
    """Return the reasons that go into the journal with each first task."""
    return [
        fact.detail.get("not_direct")
        for fact in rig.reports
        if isinstance(fact, StageReached) and fact.stage == Stage.FIRST_TASK
    ]


@pytest.mark.slow
def test_ambiguous_calibrations_are_reported_by_separable(
    rigs: MakeRig, tmp_path: Path, toy_central: Path
) -> None:
    """Two biases are valid at the time: the error is that of ``separable``."""
    result = []
    for kind in PAIR:
        central = Path(shutil.copytree(toy_central, tmp_path / kind))
        with Butler.from_config(str(central), writeable=True) as butler:
            collection = "ToyCam/calib/doubtful"
            butler.collections.register(collection, CollectionType.CALIBRATION)
            chain = butler.collections.get_info("ToyCam/calib").children
            butler.collections.redefine_chain("ToyCam/calib", [collection, *chain])
            for number, span in enumerate((Timespan(EPOCH, None), Timespan(None, EPOCH))):
                run = f"ToyCam/calib/doubtful/{number}"
                butler.collections.register(run)
                ref = butler.put({"n": number}, "bias", instrument="ToyCam", detector=1, run=run)
                butler.registry.certify(collection, [ref], span)
        rig, worker = rigs(central, engine={"kind": kind, "no_return": []}, export={"types": [".*"]})
        write_many(rig)
        across = EPOCH - 10 * u.s
        worker.prepare(rig.order(main="AnyBias,Short", before="", startTime=across.unix_tai))
        day = (across - 12 * u.hour).strftime("%Y%m%d")
        begin, end = across.isot, (across + 30 * u.s).isot
        exposure = int(day) * 100000 + 1
        raw = rig.raw(DATE_BEG=begin, DATE_END=end, DAYOBS=day).model_copy(update={"exposure": exposure})
        worker.ingest(raw)
        try:
            done = worker.process(Process(exposures=(exposure,)))
            result.append((done.outcome, done.pipeline, done.reason, done.engine == "separable"))
        except VisitFailed as error:
            result.append((error.outcome, str(error)))
    assert result[0] == result[1]
    assert "CalibrationLookupError: Ambiguous calibration" in result[0][1]


def test_without_filters_in_the_repo_no_quanta_are_predicted_and_the_visit_succeeds(
    rigs: MakeRig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    choose = exposures._likely_filter
    monkeypatch.setattr(exposures, "_likely_filter", lambda filters, names: choose((), names))
    assert process_visit(rigs, "direct", main="Short").outcome == Outcome.SUCCEEDED
    assert "quanta of Short cannot be predicted" in caplog.text
