# SPDX-License-Identifier: BSD-3-Clause
"""The worker's repo without its registry: what is known of it, what is written later, how it is renewed."""

import errno
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from enginecompare import assert_equal, process_visit, run_worker, start_worker
from lsst.daf.butler import (
    Butler,
    DatasetAssociation,
    DatasetType,
    DimensionConfig,
    DimensionUniverse,
    StorageClassFactory,
    Timespan,
)
from lsst.daf.butler.registry import ConflictingDefinitionError
from toycam import NAME, MakeRig

from ppdaemon.errors import VisitFailed
from ppdaemon.messages import Process
from ppdaemon.middleware import work
from ppdaemon.middleware.butler.repo import LocalRepo, make_template
from ppdaemon.middleware.direct.engine import DirectEngine
from ppdaemon.middleware.direct.exposures import DetectorGroup
from ppdaemon.middleware.pipetask import engine as pipetask
from ppdaemon.middleware.run.engine import Job, Unsupported
from ppdaemon.states import Outcome

pytest_plugins = ("toyfixtures",)

ALWAYS = Timespan(None, None)


@pytest.fixture
def repo(rigs: MakeRig) -> Iterator[LocalRepo]:
    rig, worker = rigs()
    worker.close()
    with closing(LocalRepo(rig.context.template, rig.context.repo)) as opened:
        yield opened


def refuse(butler: Butler, **options: Any) -> None:
    raise AssertionError("the registry is used")


def associations(butler: Butler, collections: list[str]) -> set[Any]:
    """Return dataset, collection and validity of all datasets, by a query."""
    found = set()
    for dataset_type in butler.registry.queryDatasetTypes():
        with butler.query() as query:
            name = dataset_type.name
            result = (
                query.join_dataset_search(dataset_type, collections)
                .general(
                    dataset_type.dimensions,
                    dataset_fields={name: {"dataset_id", "run", "collection", "timespan"}},
                    find_first=False,
                )
                .with_dimension_records()
            )
            for each in DatasetAssociation.from_query_result(result, dataset_type):
                found.add((name, each.ref, each.collection, each.timespan or ALWAYS))
    return found


def test_visits_of_the_direct_engine_have_no_registry(rigs: MakeRig) -> None:
    rig, worker = rigs()
    for _ in range(2):  # the first visit makes the init-outputs of its runs
        worker.prepare(rig.order())
        worker.ingest(raw := rig.raw())
        done = worker.process(Process(exposures=(raw.exposure,)))
        assert (done.outcome, done.engine) == ("succeeded", "direct")
        assert not list(rig.context.repo.rglob("*.sqlite3"))
        worker.reset()
        shutil.rmtree(done.spool or "")


def test_a_registry_is_there_for_another_program_though_nothing_waits_to_be_written(repo: LocalRepo) -> None:
    repo.write_registry()
    with Butler.from_config(str(repo.root), writeable=False) as butler:
        assert butler.query_dimension_records("instrument")


def test_a_full_ram_disk_when_the_registry_is_needed_ends_the_visit(
    rigs: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = shutil.copyfile

    def copy(source: str, target: str, **options: bool) -> str:
        if str(target).endswith(".sqlite3"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), target)
        return plain(source, target, **options)

    rig, worker = rigs(engine={"kind": "separable"})
    monkeypatch.setattr(shutil, "copyfile", copy)
    with pytest.raises(VisitFailed) as caught:
        worker.prepare(rig.order())
    assert (caught.value.outcome, caught.value.retriable) == (Outcome.RAMDISK_FULL, True)
    monkeypatch.undo()
    assert worker.prepare(rig.order()).pipeline == "Full"


@pytest.mark.parametrize("opened", [False, True])
def test_a_registry_that_a_task_has_made_is_gone_with_the_visit(repo: LocalRepo, opened: bool) -> None:
    if opened:
        assert repo.butler
    with closing(sqlite3.connect(repo.root / "gen3.sqlite3")) as database:
        database.execute("CREATE TABLE of_a_task (number INT)")
    repo.renew()
    assert repo.butler.collections.query("*")
    with closing(sqlite3.connect(repo.root / "gen3.sqlite3")) as database:
        assert not database.execute("SELECT name FROM sqlite_master WHERE name = 'of_a_task'").fetchall()


def test_what_is_known_without_the_registry_is_what_it_has(rigs: MakeRig) -> None:
    rig, worker = rigs()
    worker.prepare(rig.order())
    repo, visit = worker._repo, worker._visit
    assert visit is not None
    (run,) = {job.run for job in worker._jobs(visit, visit.raws.announced.footprint.day_obs)}
    collections = [run, *visit.group_runs, *visit.inputs]
    known = {
        (name, each.ref, collection, validity or ALWAYS)
        for name, datasets in repo.datasets.by_type().items()
        for each in datasets
        for collection, validity in each.within(collections)
    }
    assert {"bias", "flat", "toy_template", "toy_refcat", "toy_known", "known_log", "known_config"} <= {
        name for name, *_ in known
    }
    records = {
        element: set(repo.records_of([element]))
        for element in ("detector", "physical_filter", "patch", "group")
    }
    butler = repo.butler
    assert known == associations(butler, collections)
    for element, found in records.items():
        assert found == set(butler.query_dimension_records(element, limit=None))
    for _, ref, *_ in known:
        dataset = repo.datasets.get(ref.id)
        assert dataset is not None
        assert dataset.file is not None
        assert dataset.ref.dataId.hasRecords()
        assert dataset.file.path.read_bytes() == Path(butler.getURI(ref).ospath).read_bytes()


def test_what_was_written_later_is_gone_with_the_visit(repo: LocalRepo) -> None:
    collections = set(repo.butler.collections.query("*"))
    repo.write_later(lambda butler: butler.collections.register("one"))
    repo.butler.registry.insertDimensionData("group", {"instrument": NAME, "name": "a"})
    assert "one" in repo.butler.collections.query("*")
    repo.write_later(refuse)
    repo.renew()
    assert set(repo.butler.collections.query("*")) == collections
    assert not repo.butler.query_dimension_records("group", explain=False)


def test_a_registry_in_use_is_renewed_under_its_butler_and_others_are_replaced(repo: LocalRepo) -> None:
    opened = repo.butler
    repo.renew()
    assert repo.butler is opened
    repo.define(
        [DatasetType("of_another_shape", ("skymap", "htm7"), "StructuredDataDict", universe=repo.dimensions)]
    )
    assert repo.butler.get_dataset_type("of_another_shape")
    repo.renew()  # its table is gone, which an open Butler would not see
    assert repo.butler is not opened
    repo.define(
        [DatasetType("of_another_shape", ("skymap", "htm7"), "StructuredDataDict", universe=repo.dimensions)]
    )
    assert not list(repo.butler.registry.queryDatasets("of_another_shape", collections=...))


@pytest.mark.parametrize("statement", ["BEGIN EXCLUSIVE", "BEGIN IMMEDIATE"])
def test_a_locked_registry_is_replaced(repo: LocalRepo, statement: str) -> None:
    assert repo.butler
    (path,) = repo.root.glob("*.sqlite3")
    with closing(sqlite3.connect(path, isolation_level=None)) as lock:
        lock.execute(statement)
        repo.renew()
        assert repo.butler.collections.register("one")


def test_a_datastore_that_keeps_datasets_in_memory_is_replaced(tmp_path: Path) -> None:
    stores = ("fileDatastore.FileDatastore", "inMemoryDatastore.InMemoryDatastore")
    names = ("chainedDatastore.ChainedDatastore", *stores)
    chained, *others = ({"cls": f"lsst.daf.butler.datastores.{name}"} for name in names)
    datastore = chained | {"datastores": [{"datastore": each} for each in others]}
    template, universe = tmp_path / "template", DimensionUniverse()
    notes = DatasetType("notes", universe.empty, "StructuredDataDict")
    make_template(template, universe, (), [notes], "versions", {"datastore": datastore})
    with closing(LocalRepo(template, tmp_path / "worker")) as repo:
        repo.butler.collections.register("run")
        ref = repo.butler.put({"one": 1}, notes, run="run")
        assert repo.butler.stored(ref)
        repo.renew()
        assert not repo.butler.stored(ref)


def test_storage_classes_of_the_site_are_known_before_the_registry_is_opened(tmp_path: Path) -> None:
    template, universe = tmp_path / "template", DimensionUniverse()
    site = {
        "storageClasses": {"OfTheSite": {"pytype": "dict"}},
        "datastore": {"formatters": {"OfTheSite": "lsst.daf.butler.formatters.json.JsonFormatter"}},
    }
    known = StorageClassFactory()._storageClasses
    make_template(template, universe, (), (), "versions", site)
    del known["OfTheSite"]  # as in a worker, which has not made the template
    with closing(LocalRepo(template, tmp_path / "worker")) as repo:
        notes = DatasetType("notes", universe.empty, "OfTheSite")
        repo.define([notes])
        repo.put({"one": 1}, "notes", {}, run="run")
        (dataset,) = repo.datasets.in_run("run")
        assert repo.get(dataset.ref) == {"one": 1}
        assert not list(repo.root.glob("*.sqlite3"))
    del known["OfTheSite"]


def test_storage_classes_of_the_central_repo_are_known_before_it_is_opened(
    rigs: MakeRig, toy_central: Path, tmp_path: Path
) -> None:
    """Another worker may have found the datasets there."""
    central, known = tmp_path / "central", StorageClassFactory()._storageClasses
    shutil.copytree(toy_central, central)
    with (central / "butler.yaml").open("a") as file:
        file.write("storageClasses:\n  OfTheCentralRepo:\n    pytype: dict\n")
    local = {"storageClasses": {"OfTheWorkers": {"pytype": "dict"}}}
    rig, _ = rigs(central, butler={"local": local})
    shutil.rmtree(rig.context.template)
    work.build_template(rig.context)
    names = {"OfTheCentralRepo", "OfTheWorkers"}
    for name in names:
        del known[name]  # as in a worker, which has not made the template
    with closing(LocalRepo(rig.context.template, rig.context.repo)):
        assert names <= known.keys()
    for name in names:
        del known[name]


def test_older_dimensions_are_known_without_the_registry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = tmp_path / "template"
    older = "resource://lsst.daf.butler/configs/old_dimensions/daf_butler_universe4.yaml"
    universe = DimensionUniverse(DimensionConfig(older))
    bias = DatasetType("bias", ("instrument", "detector"), "StructuredDataDict", universe=universe)
    make_template(template, universe, (), [bias], "versions")
    # As in a worker, which has not made the template.
    del DimensionUniverse._instances._cache[universe.version, universe.namespace]
    monkeypatch.setattr(Butler, "from_config", refuse)
    with closing(LocalRepo(template, tmp_path / "worker")) as repo:
        assert repo.dimensions.version == 4
        assert repo.get_dataset_type("bias").dimensions.universe is repo.dimensions


def test_an_error_of_writing_later_is_raised_at_each_use(repo: LocalRepo) -> None:
    repo.write_later(refuse)
    for _ in range(2):
        with pytest.raises(AssertionError, match="the registry is used"):
            _ = repo.butler
    repo.renew()
    assert repo.butler


def test_a_dataset_type_of_another_definition_is_refused(repo: LocalRepo) -> None:
    known = repo.get_dataset_type("bias")
    other = DatasetType("bias", ("instrument",), "StructuredDataDict", universe=repo.dimensions)
    repo.define([known])
    with pytest.raises(ConflictingDefinitionError):
        repo.define([other])


def decline(*arguments: Any, **options: Any) -> None:
    raise Unsupported("for this test")


@pytest.mark.parametrize("steps", [["build"], pytest.param(["prepare", "build"], marks=pytest.mark.slow)])
def test_an_engine_that_takes_over_finds_all_in_the_registry(
    rigs: MakeRig, monkeypatch: pytest.MonkeyPatch, steps: list[str]
) -> None:
    """The direct engine has run the preprocessing, and cannot run the visit."""
    usual = process_visit(rigs, "direct", main="Full", before="Known")
    for step in steps:
        plain = getattr(DirectEngine, step)

        def preprocess_only(self: Any, job: Job, *data: Any, plain: Callable[..., Any] = plain) -> Any:
            return plain(self, job, *data) if job.pipeline.name == "Known" else decline()

        monkeypatch.setattr(DirectEngine, step, preprocess_only)
    rig, worker = start_worker(rigs, "direct")
    assert_equal(usual, run_worker(rig, worker, "separable", main="Full", before="Known"))


def test_a_command_finds_the_visit_in_the_registry(rigs: MakeRig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig, worker = rigs(engine={"kind": "pipetask"})
    found = []

    def start(*arguments: Any) -> None:
        with Butler.from_config(str(rig.context.repo / "repo"), writeable=False) as butler:
            refs = butler.query_all_datasets("*", find_first=False)
            found.append({ref.datasetType.name for ref in refs})
        raise RuntimeError("this is enough")

    monkeypatch.setattr(pipetask, "_Command", start)
    for _ in range(2):  # the first visit makes the init-outputs with the Butler
        with pytest.raises(RuntimeError, match="this is enough"):
            worker.prepare(rig.order())
        worker.reset()
    assert {"bias", "toy_template", "regionTimeInfo", "known_config"} <= found[1]


def test_what_another_engine_has_preprocessed_is_found_without_the_registry(
    rigs: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = process_visit(rigs, "direct", main="Full", before="Known")
    monkeypatch.setattr(DetectorGroup, "of", decline)
    assert_equal(usual, process_visit(rigs, "direct", main="Full", before="Known"))
