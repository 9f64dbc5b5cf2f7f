# SPDX-License-Identifier: BSD-3-Clause
"""Preloads: what is searched, copied, cached and missing, and which repo an error is attributed to."""

import errno
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import preloadtasks
import pytest
from astropy.table import Table
from clocks import FakeClock
from lsst.daf.butler import Butler, CollectionType, DatasetType, Timespan
from lsst.resources.file import FileResourcePath
from sqlalchemy.exc import DatabaseError
from toycam import DAY, EPOCH, NAME, MakeRig, Rig, load_toy_camera

from ppdaemon.clock import Clock
from ppdaemon.errors import VisitFailed
from ppdaemon.messages import Prepare, Process
from ppdaemon.middleware.butler.central import CentralReader, Definitions, known_dataset_type
from ppdaemon.middleware.butler.datafiles import without_member
from ppdaemon.middleware.butler.failures import ramdisk_full_errors
from ppdaemon.middleware.butler.repo import LocalRepo
from ppdaemon.middleware.butler.timings import Timings
from ppdaemon.middleware.pipelines.graph import PipelineLibrary
from ppdaemon.middleware.preload import answers, cache
from ppdaemon.middleware.preload.cache import SharedCache
from ppdaemon.middleware.preload.findings import PreloadPlan
from ppdaemon.middleware.preload.preload import Preload
from ppdaemon.middleware.preload.questions import HostQuestions, Turn
from ppdaemon.middleware.raws.regions import footprint_of
from ppdaemon.states import Outcome

pytest_plugins = ("toyfixtures",)


class PreloadSetup:
    """A worker's preload, run step by step."""

    def __init__(self, rig: Rig):
        assert rig.config.butler is not None
        self.rig = rig
        self.config = rig.config.butler
        self.timings = Timings(Clock())
        self.central = CentralReader(rig.config.butler.central)
        shared = SharedCache(rig.context.cache, rig.config.preload.cache_max)
        self.preload = Preload(rig.config.butler, self.central, shared, PipelineLibrary({}))
        self.repo = LocalRepo(rig.context.template, rig.context.repo)

    def order(self, *tasks: str, **order: Any) -> Prepare:
        """Order a visit, with pipelines of `preloadtasks` if tasks are named."""
        usual = self.rig.order(**({"before": ""} if tasks else {}) | order)
        if not tasks:
            return usual
        paths = tuple(preloadtasks.write_one(self.rig.raws, task) for task in tasks)
        return usual.model_copy(update={"pipelines": usual.pipelines.model_copy(update={"main": paths})})

    def find(self, order: Prepare, **more: Any) -> PreloadPlan:
        footprint = footprint_of(
            order.visit,
            order.detector,
            load_toy_camera(NAME),
            padding_arcsec=30.0,
            image_deadline_s=100.0,
            now_tai=0.0,
        )
        return self.preload.find(order, footprint, self.timings, **more)

    def fetch(self, order: Prepare, plan: PreloadPlan | None = None) -> set[str]:
        """Renew the repo and preload; return types and file contents of all its datasets."""
        self.timings = Timings(Clock())
        self.repo.renew()
        self.preload.fetch(plan or self.find(order), self.repo, self.timings)
        butler = self.repo.butler
        refs = butler.query_all_datasets("*", find_first=False)
        return {f"{ref.datasetType.name}: {Path(butler.getURI(ref).ospath).read_text()}" for ref in refs}

    @property
    def stats(self) -> dict[str, Any]:
        """Durations and counts of the last preload."""
        return self.timings.values

    def close(self) -> None:
        self.repo.close()
        self.central.close()


type MakeContext = Callable[..., PreloadSetup]


@pytest.fixture
def contexts(rigs: MakeRig) -> Iterator[MakeContext]:
    """Yield a function that makes a context; all are closed at the end."""
    opened: list[PreloadSetup] = []

    def make(**changes: Any) -> PreloadSetup:
        rig, worker = rigs(**changes)
        worker.close()
        opened.append(PreloadSetup(rig))
        return opened[-1]

    yield make
    for each in opened:
        each.close()


@pytest.fixture
def context(contexts: MakeContext) -> PreloadSetup:
    return contexts()


@pytest.fixture
def own_central(tmp_path: Path, toy_central: Path) -> Path:
    """Return a central repo that the test may write to."""
    return shutil.copytree(toy_central, tmp_path / "own")


def certify_bias(central: Path, epoch: str, span: Timespan, detector: int = 1) -> None:
    with Butler.from_config(str(central), writeable=True) as butler:
        run, collection = f"{NAME}/calib/{epoch}", f"{NAME}/calib/{epoch}-certified"
        butler.collections.register(run)
        butler.collections.register(collection, CollectionType.CALIBRATION)
        ref = butler.put({"epoch": epoch}, "bias", {"instrument": NAME, "detector": detector}, run=run)
        butler.registry.certify(collection, [ref], span)
        butler.collections.prepend_chain(f"{NAME}/calib", collection)


# --- finding -----------------------------------------------------------------


def test_finding_returns_what_is_there_and_changes_nothing(context: PreloadSetup) -> None:
    order = context.order()
    plan = context.find(order)
    assert plan.counts == {"bias": 1, "flat": 1, "toy_refcat": 2, "toy_template": 4}
    assert [each.name for each in plan.preprocessing] == ["Known"]
    assert [each.name for each in plan.main] == ["Full"]
    assert all(each.query_ms > 0 for each in plan.found)
    assert plan.reasons == ()
    assert plan.sizes == {}
    cache, questions = context.rig.context.cache, ".questions-0"
    assert [path.name for path in cache.iterdir()] == [questions], "no file is fetched"
    assert [path.name for path in (cache / questions).iterdir()] == [".lock"], "no question is left"
    assert list(context.repo.butler.query_all_datasets("*", find_first=False)) == []


def test_finding_returns_sizes_if_requested(context: PreloadSetup) -> None:
    plan = context.find(context.order(), sizes=True)
    (shards,) = [each.refs for each in plan.found if each.dataset_type.name == "toy_refcat"]
    assert set(plan.sizes) == {ref.id for each in plan.found for ref in each.refs}
    assert [plan.sizes[ref.id].size_bytes for ref in shards] == [
        len(f"shard {ref.dataId['htm7']}") for ref in shards
    ]


def test_a_missing_type_is_reported_with_its_search(
    contexts: MakeContext, context: PreloadSetup, own_central: Path
) -> None:
    far = context.find(context.order(position=[200.0, 50.0], filters="g_01"))
    path = context.rig.paths["Full"]
    assert [(each.name, each.required) for each in far.missing[path]] == [
        ("toy_refcat", True),
        ("toy_template", True),
    ]
    assert far.main == ()
    (reason,) = far.reasons
    assert reason.startswith("Full lacks toy_refcat (around RA 199.8")
    assert "toy_template (skymap toy, band g, around RA 199.8" in reason
    assert f"in {NAME}/templates, refcats/toy, {NAME}/calib/certified" in reason
    with Butler.from_config(str(own_central), writeable=True) as butler:
        record = {"instrument": NAME, "id": 9, "full_name": "S09", "purpose": "SCIENCE"}
        butler.registry.insertDimensionData("detector", record)
    context = contexts(central=own_central)
    early = context.find(context.order(main="Short", before="", detector=9))
    (reason,) = early.reasons
    assert "bias (detector 9, valid in [" in reason
    assert "flat (detector 9, filter r_03, valid in [" in reason
    assert f"in {NAME}/calib/certified)" in reason


def test_without_a_sky_position_the_reason_is_that_it_is_missing(context: PreloadSetup) -> None:
    plan = context.find(context.order(main="Full,Short", coordinateSystem=1, rotationSystem=1))
    assert [each.name for each in plan.main] == ["Short"]
    assert plan.preprocessing == ()
    text = "; ".join(plan.reasons)
    assert "Known lacks regionTimeInfo (position on the sky unknown)" in text
    assert "toy_template (position on the sky unknown)" in text


def test_a_type_that_the_central_repo_does_not_know_is_missing(context: PreloadSetup) -> None:
    plan = context.find(context.order(main="NeedsModel,Short"))
    assert [each.name for each in plan.main] == ["Short"]
    assert any(reason.startswith("NeedsModel lacks toy_model (in ") for reason in plan.reasons)


def test_a_type_that_is_new_in_the_central_repo_is_found(contexts: MakeContext, own_central: Path) -> None:
    context = contexts(central=own_central)
    order = context.order(main="NeedsModel")
    assert context.find(order).main == ()
    with Butler.from_config(str(own_central), writeable=True) as butler:
        butler.registry.registerDatasetType(
            DatasetType("toy_model", (), "StructuredDataDict", universe=butler.dimensions)
        )
        butler.collections.register("refcats/models")
        butler.collections.prepend_chain("refcats", "refcats/models")
        butler.put({"a": 1}, "toy_model", run="refcats/models")
    plan = context.find(order)
    assert plan.counts == {"toy_model": 1}
    assert [each.name for each in plan.main] == ["NeedsModel"]


def test_only_inputs_that_the_central_repo_does_not_know_are_asked_for_with_each_visit(
    context: PreloadSetup, monkeypatch: pytest.MonkeyPatch, toy_central: Path
) -> None:
    """A Butler has a query for each; most outputs are never registered."""
    asked: set[str] = set()

    def record(repo: Definitions, name: str) -> DatasetType | None:
        asked.add(name)
        return known_dataset_type(repo, name)

    def unknown() -> set[str]:
        asked.clear()
        context.find(order)
        return asked - registered

    monkeypatch.setattr(answers, "known_dataset_type", record)
    with Butler.from_config(str(toy_central)) as butler:
        registered = {each.name for each in butler.registry.queryDatasetTypes()}
    clock, order = FakeClock(), context.order(main="NeedsModel,Short")
    context.timings = Timings(clock)
    first = unknown()
    assert {"toy_model", "isr_metadata"} <= first
    assert unknown() == {"toy_model", "regionTimeInfo"}, "pipelines read these"
    clock.advance(61)
    assert unknown() == first


def test_what_preprocessing_cannot_produce_is_missing(context: PreloadSetup) -> None:
    order = context.order(main="Full,Short")
    early = preloadtasks.write_one(context.rig.raws, "Early")
    pipelines = order.pipelines.model_copy(update={"preprocessing": (early,)})
    plan = context.find(order.model_copy(update={"pipelines": pipelines}))
    assert plan.preprocessing == ()
    assert [each.name for each in plan.main] == ["Short"]
    assert plan.reasons[0].startswith("Early lacks toy_model (")
    assert plan.reasons[1].startswith("Full lacks toy_known (no preprocessing pipeline produces it)")


def test_a_missing_optional_input_is_a_warning(
    context: PreloadSetup, caplog: pytest.LogCaptureFixture
) -> None:
    order = context.order("Optional")
    plan = context.find(order)
    assert [each.name for each in plan.main] == ["Optional"]
    assert [(each.name, each.required) for each in plan.missing[plan.main[0].path]] == [
        ("toy_defects", False)
    ]
    assert context.fetch(order) == {"bias: epoch: new\n"}, "found by its validity, not by a function"
    assert "processing continues without: toy_defects (detector 1, valid in" in caplog.text


def test_nothing_is_copied_if_no_pipeline_can_run(context: PreloadSetup) -> None:
    with pytest.raises(VisitFailed, match=r"no pipeline can run: NeedsModel lacks toy_model \(in ") as caught:
        context.fetch(context.order(main="NeedsModel"))
    assert (caught.value.outcome, caught.value.retriable) == (Outcome.NO_PIPELINE, False)
    assert [path.name for path in context.rig.context.cache.iterdir()] == [".questions-0"]


def test_only_what_usable_pipelines_read_is_copied(context: PreloadSetup) -> None:
    contents = context.fetch(context.order(main="Full,Short", position=[200.0, 50.0]))
    assert contents == {"bias: epoch: new\n", "flat: epoch: new\nfilter: r_03\n"}


def test_parts_of_datasets_and_other_classes_are_found(contexts: MakeContext, own_central: Path) -> None:
    with Butler.from_config(str(own_central), writeable=True) as butler:
        butler.collections.register("refcats/tables")
        butler.collections.prepend_chain("refcats", "refcats/tables")
        for name in ("toy_table", "toy_frame"):
            universe = butler.dimensions
            butler.registry.registerDatasetType(
                DatasetType(name, ("instrument",), "ArrowAstropy", universe=universe)
            )
            butler.put(Table({"a": [1]}), name, instrument=NAME, run="refcats/tables")
    context = contexts(central=own_central)
    plan = context.find(order := context.order("Table"))
    assert plan.counts == {"toy_frame": 1, "toy_table": 1}
    assert [each.name for each in plan.main] == ["Table"]
    context.preload.fetch(plan, context.repo, context.timings)
    assert order.detector == 1
    assert context.repo.butler.get("toy_table.columns", instrument=NAME, collections="refcats/tables") == [
        "a"
    ]
    copied = context.repo.butler.get_dataset_type("toy_frame")
    assert copied.storageClass_name == "ArrowAstropy", "as the central repo has it"


# --- copying -----------------------------------------------------------------


def test_the_second_preload_of_the_same_copies_nothing(
    context: PreloadSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = context.fetch(context.order())
    assert (context.stats["misses"], context.stats["hits"], context.stats["datasets"]) == (8, 0, 8)
    assert context.stats["fetched_bytes"] == context.stats["bytes"] > 0
    size = context.stats["bytes"]

    def refuse(*args: Any) -> None:
        raise AssertionError("a file is copied")

    monkeypatch.setattr(cache, "_copy", refuse)
    assert context.fetch(context.order(groupId="another")) == first
    assert (context.stats["misses"], context.stats["hits"], context.stats["datasets"]) == (0, 8, 8)
    assert (context.stats["fetched_bytes"], context.stats["bytes"]) == (0, size)


def test_workers_of_a_host_fetch_each_file_once(contexts: MakeContext, tmp_path: Path) -> None:
    one, other = contexts(), contexts()
    shared = SharedCache(tmp_path / "shared", 10**6)
    for each in (one, other):
        config = each.rig.config.butler
        assert config is not None
        each.preload = Preload(config, each.central, shared, PipelineLibrary({}))
    assert one.fetch(one.order()) == other.fetch(other.order())
    assert (one.stats["misses"], other.stats["misses"]) == (8, 0)
    neighbor = other.fetch(other.order(detector=0))
    assert len(neighbor) == 2 + 2 + 4
    assert other.stats["hits"] > 0, "patches that lie under both detectors"


def test_an_unknown_filter_is_logged_by_its_worker(
    context: PreloadSetup, caplog: pytest.LogCaptureFixture
) -> None:
    context.find(context.order(filters="r_03, unheard_of"))
    assert f"the announced filter unheard_of is not one of {NAME} in the central repo" in caplog.text


def test_workers_of_two_configurations_do_not_ask_each_other(rigs: MakeRig) -> None:
    rig, worker = rigs()
    seen: list[Any] = []

    def answer(turn: Turn[Any]) -> list[str]:
        """Of a worker of the configuration before a reload, with other collections or another repo."""
        seen.append(worker.prepare(rig.order()).detail["asked_for"])
        seen.extend(turn.others())
        seen.extend(folder.glob("*.answer"))
        return ["of its own configuration"]

    folder = SharedCache(rig.context.cache, 0).questions("template-0")
    assert HostQuestions[str, str](folder).ask("old", answer, Timings(Clock())) == "of its own configuration"
    assert seen == [1]
    worker.close()


@pytest.mark.parametrize("change", [{"detector": 2}, {"filters": "g_01"}, {"main": "Short", "before": ""}])
def test_nothing_of_a_previous_visit_is_in_the_next(
    context: PreloadSetup, contexts: MakeContext, change: dict[str, Any]
) -> None:
    usual = [context.fetch(context.order()) for _ in range(3)]
    assert usual == [usual[0]] * 3
    fresh = contexts()
    assert context.fetch(context.order(**change)) == fresh.fetch(fresh.order(**change))


def test_a_calibration_certified_since_is_taken(contexts: MakeContext, own_central: Path) -> None:
    context = contexts(central=own_central)
    assert "bias: epoch: new\n" in context.fetch(context.order(main="Short", before=""))
    certify_bias(own_central, "newest", Timespan(EPOCH, None))
    contents = context.fetch(context.order(main="Short", before=""))
    assert {"bias: epoch: newest\n", "bias: epoch: new\n"} <= contents
    assert context.find(context.order()).search.calibs[0] == f"{NAME}/calib/newest-certified"


def test_a_calibration_decertified_since_is_not_taken(contexts: MakeContext, own_central: Path) -> None:
    context = contexts(central=own_central)
    certify_bias(own_central, "wrong", Timespan(EPOCH, None))
    assert "bias: epoch: wrong\n" in context.fetch(context.order(main="Short", before=""))
    with Butler.from_config(str(own_central), writeable=True) as butler:
        butler.registry.decertify(f"{NAME}/calib/wrong-certified", "bias", Timespan(None, None))
    assert "bias: epoch: wrong\n" not in context.fetch(context.order(main="Short", before=""))


def test_validity_is_copied_with_the_calibrations(context: PreloadSetup) -> None:
    order = context.order(main="Short", before="", startTime=EPOCH.unix_tai)
    assert len(context.fetch(order)) == 4, "both epochs of both types may be needed"
    for epoch, span in (("old", Timespan(None, EPOCH)), ("new", Timespan(EPOCH, None))):
        found = context.repo.butler.find_dataset(
            "bias", instrument=NAME, detector=1, collections=f"{NAME}/calib/certified", timespan=span
        )
        assert found is not None
        assert found.run == f"{NAME}/calib/{epoch}"


@pytest.fixture(params=["copy", "direct"])
def zipped(request: pytest.FixtureRequest, tmp_path: Path, own_central: Path) -> Path:
    """Return an archive, in the central repo or elsewhere, that has all its calibrations and templates."""
    folder = tmp_path / "away %41#1"
    folder.mkdir()
    with Butler.from_config(str(own_central), writeable=True) as butler:
        types = ["bias", "flat", "toy_template"]
        refs = butler.query_all_datasets("*", name=types, find_first=False)
        archive = butler.retrieve_artifacts_zip(refs, folder)
        butler.pruneDatasets(refs, disassociate=False, unstore=True)
        butler.ingest_zip(archive, transfer=request.param, skip_existing=True)
        (found,) = {without_member(butler.getURI(ref)) for ref in refs}
    return Path(found.ospath)


@pytest.mark.slow
def test_an_archive_is_fetched_once_for_all_workers_and_datasets(
    contexts: MakeContext, own_central: Path, zipped: Path, tmp_path: Path
) -> None:
    shared, size = SharedCache(tmp_path / "shared", 10**6), zipped.stat().st_size
    fetched, inodes = [], set()
    for detector in (1, 2):
        context = contexts(central=own_central)
        assert context.rig.config.butler is not None
        context.preload = Preload(context.rig.config.butler, context.central, shared, PipelineLibrary({}))
        # The second visit finds the calibrations in place, the third one all inputs.
        for group in ("a", "b", "c"):
            context.timings = Timings(Clock())
            context.repo.renew()
            plan = context.find(context.order(detector=detector, groupId=group), sizes=True)
            assert len(plan.files) == sum(plan.counts.values())
            context.preload.fetch(plan, context.repo, context.timings)
            fetched.append(context.stats["fetched_bytes"])
            butler = context.repo.butler
            refs = butler.query_all_datasets("*", name=["bias", "flat", "toy_template"], find_first=False)
            assert len(refs) == 6
            with Butler.from_config(str(own_central)) as central:
                assert [butler.get(ref) for ref in refs] == [central.get(ref) for ref in refs]
            inodes |= {Path(butler.getURI(ref).ospath).stat().st_ino for ref in refs}
    assert size <= fetched[0] < size + 100, "the archive, and shards of ten bytes"
    assert max(fetched[1:]) < 100
    assert len(inodes) == 1


def test_an_archive_counts_once_in_a_plan(contexts: MakeContext, own_central: Path, zipped: Path) -> None:
    context = contexts(central=own_central)
    plan = context.find(context.order(), sizes=True)
    files = {each.uri: each.size_bytes for each in plan.sizes.values()}
    assert files.pop(zipped.as_uri()) == zipped.stat().st_size
    assert sum(files.values()) < 100, "shards"


def test_a_missing_archive_fails_the_preload_until_it_is_back(
    contexts: MakeContext, own_central: Path, zipped: Path
) -> None:
    context = contexts(central=own_central)
    order = context.order()
    away = zipped.rename(zipped.with_suffix(".away"))
    with pytest.raises(VisitFailed, match=r"\.zip cannot be copied: FileNotFoundError") as caught:
        context.preload.fetch(context.find(order), context.repo, context.timings)
    assert (caught.value.outcome, caught.value.retriable) == (Outcome.PRELOAD_FAILED, True)
    away.rename(zipped)
    context.repo.renew()
    context.preload.fetch(context.find(order), context.repo, context.timings)
    assert context.repo.butler.query_datasets("bias", "*", find_first=False)


@pytest.mark.parametrize(
    ("zipped", "kind"),
    [("copy", "direct"), pytest.param("direct", "separable", marks=pytest.mark.slow)],
    indirect=["zipped"],
)
def test_a_visit_is_processed_with_inputs_in_an_archive(
    rigs: MakeRig, own_central: Path, zipped: Path, kind: str
) -> None:
    rig, worker = rigs(central=own_central, engine={"kind": kind, "no_return": []})
    for snap in (1, 2):
        worker.prepare(rig.order(attempt=snap))
        worker.ingest(rig.raw(seq_num=snap))
        done = worker.process(Process(exposures=(DAY * 100000 + snap,)))
        assert (done.outcome, done.engine) == (Outcome.SUCCEEDED, kind)
        worker.reset()


# --- errors ------------------------------------------------------------------


def test_a_file_that_is_gone_fails_the_preload_until_it_is_back(
    contexts: MakeContext, own_central: Path
) -> None:
    context = contexts(central=own_central)
    order = context.order(main="Short", before="")
    plan = context.find(order)
    away = own_central.with_name("away")
    (own_central / NAME).rename(away)
    with pytest.raises(VisitFailed, match=r"bias.* cannot be copied: FileNotFoundError") as caught:
        context.fetch(order, plan)
    assert (caught.value.outcome, caught.value.retriable) == (Outcome.PRELOAD_FAILED, True)
    away.rename(own_central / NAME)
    assert len(context.fetch(order)) == 2


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (FileNotFoundError(errno.ENOENT, "No such file or directory"), Outcome.PRELOAD_FAILED),
        (OSError(errno.ENOSPC, "No space left on device"), Outcome.RAMDISK_FULL),
    ],
)
def test_datasets_of_several_files_are_copied_whole_or_fail_the_preload(
    contexts: MakeContext,
    own_central: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: OSError,
    outcome: Outcome,
) -> None:
    context = contexts(central=own_central)
    order = context.order(main="Short", before="")
    plan = replace(context.find(order), files={})  # as if each dataset had several files

    def fail(*args: Any, **options: Any) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(FileResourcePath, "transfer_from", fail)
        with pytest.raises(VisitFailed, match=f": {type(error).__name__}: ") as caught, ramdisk_full_errors():
            context.fetch(order, plan)
    assert (caught.value.outcome, caught.value.retriable) == (outcome, True)
    assert len(context.fetch(order, plan)) == 2


def test_a_worker_that_misses_a_file_lets_all_of_its_host_locate_files_again(
    contexts: MakeContext, own_central: Path
) -> None:
    asking, other = (contexts(central=own_central) for _ in range(2))
    other.preload = Preload(
        asking.config, other.central, SharedCache(asking.rig.context.cache, 10**9), PipelineLibrary({})
    )
    order = asking.order(main="Short", before="")
    plan = asking.find(order)
    assert plan.counts == {"bias": 1, "flat": 1}
    with Butler.from_config(str(own_central), writeable=True) as butler:
        (bias,) = butler.query_datasets("bias", f"{NAME}/calib/new", detector=1, instrument=NAME)
        butler.pruneDatasets([bias], disassociate=False, unstore=True)
    with pytest.raises(VisitFailed, match=r"bias.* cannot be copied: FileNotFoundError"):
        other.fetch(order, plan)
    assert asking.find(order).counts == {"bias": 0, "flat": 1}


def test_a_dataset_without_a_file_is_not_preloaded(
    contexts: MakeContext, own_central: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Butler.from_config(str(own_central), writeable=True) as butler:
        (bias,) = butler.query_datasets("bias", f"{NAME}/calib/new", detector=1, instrument=NAME)
        butler.pruneDatasets([bias], disassociate=False, unstore=True)
    context = contexts(central=own_central)
    plan = context.find(context.order(main="Short", before=""))
    assert plan.counts == {"bias": 0, "flat": 1}
    assert plan.reasons[0].startswith("Short lacks bias (")
    assert "has no file, it is not preloaded" in caplog.text
    shallow = context.find(context.order("Optional"))
    assert shallow.main == ()


def test_a_fault_of_the_workers_database_is_not_the_central_repos(context: PreloadSetup) -> None:
    plan = replace(context.find(context.order()), files={})  # the Butler must copy all datasets
    assert context.repo.butler
    (registry,) = context.rig.context.repo.rglob("*.sqlite3")
    registry.write_bytes(b"\0" * registry.stat().st_size)
    with pytest.raises(DatabaseError, match=r"malformed|not a database|disk image"):
        context.preload.fetch(plan, context.repo, context.timings)
    assert len(context.fetch(context.order())) == 8


@pytest.mark.slow
def test_a_visit_that_fails_by_its_database_leaves_nothing_to_the_next(rigs: MakeRig) -> None:
    rig, worker = rigs(engine={"kind": "separable"})
    worker.prepare(rig.order())
    worker.reset()
    (registry,) = (rig.context.repo / "repo").rglob("*.sqlite3")
    registry.write_bytes(b"\0" * registry.stat().st_size)
    with pytest.raises(DatabaseError):
        worker.prepare(rig.order())
    worker.reset()
    assert worker.prepare(rig.order()).pipeline == "Full"


def test_a_full_ram_disk_is_reported_as_such(context: PreloadSetup, monkeypatch: pytest.MonkeyPatch) -> None:
    def copy(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "_copy", copy)
    with pytest.raises(VisitFailed, match=r"no room for .* in the shared cache") as caught:
        context.fetch(context.order())
    assert (caught.value.outcome, caught.value.retriable) == (Outcome.RAMDISK_FULL, True)


def test_an_open_write_transaction_blocks_no_reader(contexts: MakeContext, own_central: Path) -> None:
    context = contexts(central=own_central)
    writer = sqlite3.connect(own_central / "gen3.sqlite3", isolation_level=None)
    try:
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("CREATE TABLE half_done (x INTEGER)")
        assert len(context.fetch(context.order())) == 8
        writer.execute("COMMIT")
    finally:
        writer.close()


def test_a_reader_leaves_no_trace_in_the_central_repo(contexts: MakeContext, own_central: Path) -> None:
    context = contexts(central=own_central)
    before = {path: path.stat().st_mtime_ns for path in own_central.rglob("*")}
    context.fetch(context.order())
    assert {path: path.stat().st_mtime_ns for path in own_central.rglob("*")} == before


# --- metrics -----------------------------------------------------------------


def test_the_metrics_of_a_preload_are_a_dataset(rigs: MakeRig) -> None:
    rig, worker = rigs()
    detail = worker.prepare(rig.order()).detail
    assert {"connect_ms", "query_ms", "cache_ms", "register_ms", "preprocess_ms"} <= set(detail)
    metrics = worker._repo.butler.get(
        "preload_metrics", instrument=NAME, group=rig.order().visit.group, detector=1, collections="*"
    )
    assert metrics["found"] == {"bias": 1, "flat": 1, "toy_refcat": 2, "toy_template": 4}
    assert set(metrics["queries_ms"]) == set(metrics["found"])
    assert metrics["missing"] == []
    assert {name: metrics[name] for name in detail} == detail
