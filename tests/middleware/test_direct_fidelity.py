# SPDX-License-Identifier: BSD-3-Clause
"""The ``direct`` engine against ``separable``: whatever tasks do with their Butler, they get the same."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import astropy.units as u
import pytest
from directtasks import write_many
from enginecompare import compare_engines, process_visit
from lsst.daf.butler import Butler, CollectionType, DatasetType, Timespan  # type: ignore[attr-defined]
from lsst.daf.butler.logging import ButlerMDC
from pandas import DataFrame
from toycam import DAY, EPOCH, MakeRig, Rig, make_central

from ppdaemon.errors import VisitFailed
from ppdaemon.messages import Process, StageReached
from ppdaemon.middleware import butlerwork
from ppdaemon.middleware.direct import exposures, memory
from ppdaemon.middleware.export.spool import read_manifest
from ppdaemon.states import Outcome, Stage

pytest_plugins = ("toyfixtures",)

PAIR = ("separable", "direct")


@pytest.fixture(autouse=True)
def _logging_of_a_node(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level("INFO")
    ButlerMDC.add_mdc_log_record_factory()
    yield
    ButlerMDC.restore_log_record_factory()


def test_parts_conversions_lookups_and_deferred_loads_are_those_of_the_reference(rigs: MakeRig) -> None:
    result = compare_engines(rigs, PAIR, main="Many", write=write_many)
    assert (result.outcome, result.reason) == (Outcome.SUCCEEDED, "")
    assert {"many_seen", "many_late", "many_spoilt", "many_table"} <= result.types
    assert "many_never" not in result.types
    (text,) = [content for (name, *_), content in result.contents.items() if name == "many_seen"]
    assert "epoch: new" in text


def test_what_is_read_again_is_fresh_and_what_was_put_does_not_change(rigs: MakeRig) -> None:
    result = compare_engines(rigs, PAIR, main="Again", write=write_many)
    made = {name: content for (name, *_), content in result.contents.items()}
    assert made["again_early"] != made["again_late"]


def test_what_a_lookup_finds_has_its_records(rigs: MakeRig) -> None:
    result = compare_engines(rigs, PAIR, main="Shards", write=write_many)
    (reported,) = [content for (name, *_), content in result.contents.items() if name == "many_shards"]
    assert "true" in reported
    assert "false" not in reported


def test_a_raw_among_the_prerequisites_is_left_to_the_reference(rigs: MakeRig) -> None:
    first = process_visit(rigs, "separable", main="RawFirst", write=write_many)
    assert process_visit(rigs, "direct", main="RawFirst", write=write_many, ran_by="separable") == first


def test_two_snaps_are_two_quanta_each_with_a_task_of_its_own(rigs: MakeRig) -> None:
    result = compare_engines(rigs, PAIR, main="Many", write=write_many, snaps=(1, 2))
    assert len([name for name, *_ in result.contents if name == "many_spoilt"]) == 2
    assert len([name for name, *_ in result.contents if name == "many_seen"]) == 2


def test_grouped_snaps_are_one_visit(rigs: MakeRig) -> None:
    grouped = {"visits": {"ToyCam": "by-group"}}
    result = compare_engines(rigs, PAIR, main="Many", write=write_many, snaps=(1, 2), butler=grouped)
    assert len([name for name, *_ in result.contents if name == "many_seen"]) == 1
    assert result.records["visit_definition"] == 2


def test_memory_that_is_too_small_only_costs_time(rigs: MakeRig) -> None:
    small = {"memory_max": 1, "read_ahead_max": 0}
    result = compare_engines(rigs, PAIR, main="Many", write=write_many, settings=small)
    assert result.outcome == Outcome.SUCCEEDED


def test_what_is_not_announced_is_found_when_it_is_there(rigs: MakeRig) -> None:
    sal = {"filters": "", "duration": 0.0}
    assert compare_engines(rigs, PAIR, main="Many", write=write_many, sal=sal).outcome == Outcome.SUCCEEDED


def test_a_pipeline_with_a_hook_is_run_by_separable_and_that_is_said_once(
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
    assert logged == [
        "Hooked cannot be run by the direct engine, separable runs it: hooked: its connections override adjust_all_quanta"
    ]
    assert why_not_direct(rig) == ["hooked: its connections override adjust_all_quanta"] * 2
    names = {ref.datasetType.name for file in read_manifest(Path(done.spool)).files for ref in file.refs}
    assert names == first.types


def test_who_stands_in_for_a_pipeline_that_is_not_run_directly_has_its_reason_too(rigs: MakeRig) -> None:
    """The first one is not handled, and cannot be built either: the raws are in the repo then."""
    rig, worker = rigs(engine={"kind": "direct", "no_return": []}, export={"types": [".*"]})
    write_many(rig)
    worker.prepare(rig.order(main="HookedInVain,Short", before=""))
    worker.ingest(rig.raw())
    done = worker.process(Process(exposures=(DAY * 100000 + 1,)))
    assert (done.outcome, done.pipeline, done.engine) == (Outcome.SUCCEEDED, "Short", "separable")
    assert why_not_direct(rig) == ["the raws are already ingested in the worker's repo"]


def test_no_file_of_a_visit_stays_on_the_ram_disk(rigs: MakeRig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig, worker = rigs(engine={"kind": "direct", "no_return": []}, export={"types": [".*"]})
    write_many(rig)
    folder = rig.context.repo / "direct"
    worker.prepare(rig.order(main="Many", before=""))
    worker.ingest(rig.raw())
    monkeypatch.setattr(
        memory, "_MIN_BACKGROUND_BYTES", 0
    )  # all that is exported is written beside the tasks
    worker.process(Process(exposures=(DAY * 100000 + 1,)))
    assert why_not_direct(rig) == [None]
    assert any(folder.iterdir())
    worker.reset()
    assert not folder.exists()


def test_the_writer_of_a_visit_that_was_not_spooled_ends_with_it(
    rigs: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig, worker = rigs(engine={"kind": "direct", "no_return": []}, export={"types": [".*"]})
    write_many(rig)
    worker.prepare(rig.order(main="Many", before=""))
    worker.ingest(rig.raw())
    monkeypatch.setattr(
        memory, "_MIN_BACKGROUND_BYTES", 0
    )  # all that is exported is written beside the tasks

    def refuse(*args: object) -> None:
        raise OSError("no such device")

    monkeypatch.setattr(butlerwork, "write_spool", refuse)
    with pytest.raises(OSError, match="no such device"):
        worker.process(Process(exposures=(DAY * 100000 + 1,)))
    worker.reset()
    assert all(thread.name != "background-writer" for thread in threading.enumerate())


def test_a_type_that_the_repo_gets_to_know_later_is_what_the_repo_says(rigs: MakeRig, tmp_path: Path) -> None:
    reported = []
    for kind in PAIR:
        central = make_central(tmp_path / kind)
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
    """Let the central repo have a type as something else than a pipeline reads it."""
    with Butler.from_config(str(central), writeable=True) as butler:
        butler.registry.registerDatasetType(
            DatasetType("toy_later", butler.dimensions.conform(("instrument",)), "DataFrame")
        )
        butler.collections.register("ToyCam/later")
        butler.put(DataFrame({"a": [1.0]}), "toy_later", instrument="ToyCam", run="ToyCam/later")
        chain = butler.collections.get_info("ToyCam/calib").children
        butler.collections.redefine_chain("ToyCam/calib", [*chain, "ToyCam/later"])


def why_not_direct(rig: Rig) -> list[str | None]:
    """Return what goes into the journal with each first task."""
    return [
        fact.detail.get("not_direct")
        for fact in rig.reports
        if isinstance(fact, StageReached) and fact.stage == Stage.FIRST_TASK
    ]


def test_what_is_ambiguous_when_the_image_is_there_is_left_to_the_reference(
    rigs: MakeRig, tmp_path: Path
) -> None:
    """Two biases are valid at the time: the reference finds the words for it."""
    result = []
    for kind in PAIR:
        central = make_central(tmp_path / kind)
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


def test_without_filters_in_the_repo_nothing_is_foreseen_and_all_is_done(
    rigs: MakeRig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    query = exposures._likely_filter

    def none_known(butler: Butler, *words: Any) -> str:
        with monkeypatch.context() as patch:
            patch.setattr(type(butler), "query_dimension_records", lambda *words, **more: [])
            return query(butler, *words)

    monkeypatch.setattr(exposures, "_likely_filter", none_known)
    assert process_visit(rigs, "direct", main="Short").outcome == Outcome.SUCCEEDED
    assert "quanta of Short cannot be predicted" in caplog.text
