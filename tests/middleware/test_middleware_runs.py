# SPDX-License-Identifier: BSD-3-Clause
"""Init-outputs and names of runs, points of no return, the template, the alert database."""

import dataclasses
import gc
import os
import re
import shutil
import sqlite3
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import astropy.units as u
import pytest
import sqlalchemy
from astropy.time import Time
from lsst.daf.butler import Butler, DimensionUniverse, Timespan
from lsst.dax.apdb import Apdb
from lsst.dax.apdb.sql import ApdbSql, ApdbSqlConnectionConfig
from lsst.dax.apdb.tests.data_factory import makeForcedSourceCatalog, makeObjectCatalog
from lsst.sphgeom import ConvexPolygon
from pandas import DataFrame
from toycam import DAY, DEC, NAME, RA, MakeRig, Rig, box
from toyscripted import write_scripted

from ppdaemon.clock import Clock
from ppdaemon.config import EngineConfig, NodeConfig
from ppdaemon.demo import central
from ppdaemon.errors import ConfigError
from ppdaemon.messages import Done, MayCross, Process
from ppdaemon.middleware import work
from ppdaemon.middleware.butler.repo import LocalRepo
from ppdaemon.middleware.butlerwork import ButlerWork
from ppdaemon.middleware.export.exporter import CentralExporter
from ppdaemon.middleware.export.manifest import read_manifest
from ppdaemon.middleware.pipelines.graph import load_pipeline
from ppdaemon.middleware.pipelines.provenance import deployment_hash, output_run
from ppdaemon.middleware.raws.records import make_record
from ppdaemon.middleware.run import initoutputs
from ppdaemon.middleware.run.engine import Job
from ppdaemon.middleware.run.initoutputs import InitOutputs
from ppdaemon.middleware.run.runner import nothing_permanent
from ppdaemon.states import Outcome

pytest_plugins = ("toyfixtures",)

EXPOSURE = DAY * 100000 + 1
VERSIONS = "versions"


def run_visit(
    rig: Rig, worker: ButlerWork, detector: int = 1, main: str = "Full", before: str = "Known"
) -> Done:
    worker.prepare(rig.order(detector, main=main, before=before))
    worker.ingest(rig.raw(detector))
    done = worker.process(Process(exposures=(EXPOSURE,)))
    worker.reset()
    return done


def spooled(done: Done) -> dict[str, str]:
    """Return dataset ids by dataset type, of the main run."""
    manifest = read_manifest(Path(done.spool or ""))
    return {
        ref.datasetType.name: str(ref.id)
        for file in manifest.files
        for ref in file.refs
        if "NoPipeline" not in ref.run
    }


@pytest.fixture
def everything(rigs: MakeRig) -> tuple[Rig, ButlerWork]:
    return rigs(export={"types": [".*"]})


# --- once per run ------------------------------------------------------------


def test_init_outputs_are_the_same_datasets_for_all_visits_of_a_host(
    everything: tuple[Rig, ButlerWork],
) -> None:
    rig, worker = everything
    first, second = (spooled(run_visit(rig, worker, detector)) for detector in (1, 2))
    once = {"isr_config", "calibrate_config", "toy_schema", "packages", "prompt_deployment"}
    assert {name: first[name] for name in once} == {name: second[name] for name in once}
    assert first["toy_image"] != second["toy_image"]


@pytest.mark.slow
def test_init_outputs_in_the_central_repo_are_not_spooled_again(
    everything: tuple[Rig, ButlerWork], tmp_path: Path, toy_central: Path
) -> None:
    rig, worker = everything
    shutil.copytree(toy_central, tmp_path / "central")
    done = run_visit(rig, worker)
    exporter = CentralExporter(
        str(tmp_path / "central"), Clock(), "node1", tmp_path / "refused", rig.context.runs
    )
    exporter.export([Path(done.spool or "")])
    exporter.close()
    assert not {"isr_config", "toy_schema", "packages"} & spooled(run_visit(rig, worker, 2)).keys()
    with Butler.from_config(str(tmp_path / "central")) as butler:
        (run,) = [name for name in butler.collections.query("*/Full/*")]
        reported = butler.get("prompt_deployment", collections=run)
        assert reported["digest"] == run.rpartition("/")[2]
        assert "toycam.SubtractTask" in reported["pipeline"]
        assert "numpy" in butler.get("packages", collections=run)


def job_of(rig: Rig, repo: LocalRepo, name: str, run: str = "run") -> Job:
    pipeline = load_pipeline(rig.paths[name], {})
    digest = deployment_hash(rig.config, NAME, VERSIONS, [pipeline])
    return Job(pipeline, (f"{NAME}/raw/all",), run, digest, repo)


def names_in(butler: Butler, run: str) -> set[str]:
    names = butler.collections.get_info(run, include_summary=True).dataset_types or ()
    return {name for name in names if butler.query_datasets(name, run, explain=False)}


@pytest.fixture
def local(rigs: MakeRig) -> Iterator[tuple[Rig, LocalRepo]]:
    rig, worker = rigs()
    write_scripted(rig)
    worker.close()
    with closing(LocalRepo(rig.context.template, rig.context.repo)) as repo:
        yield rig, repo


def test_a_run_has_the_init_outputs_of_one_pipeline_only(local: tuple[Rig, LocalRepo]) -> None:
    rig, repo = local
    outputs = InitOutputs(rig.context.runs)
    outputs.provide(job_of(rig, repo, "Scripted"))
    assert {"scripted_config", "toy_scripted_schema", "packages"} <= repo.types_in(["run"])
    outputs.provide(job_of(rig, repo, "Short"))
    named = {each.ref.datasetType.name for each in repo.datasets.in_run("run")}
    assert named == names_in(repo.butler, "run") == {"isr_config", "packages", "prompt_deployment"}


@pytest.mark.slow
def test_files_of_runs_are_linked_not_copied(everything: tuple[Rig, ButlerWork]) -> None:
    rig, worker = everything
    for links in (1, 2):  # the first worker creates them, the second one links them
        worker.prepare(rig.order(main="Short", before=""))
        worker._repo.write_registry()
        (config_file,) = rig.context.runs.glob("*/*/*.py")
        assert config_file.stat().st_nlink == links
        worker.reset()


def test_runs_of_former_days_are_deleted(local: tuple[Rig, LocalRepo]) -> None:
    rig, repo = local
    outputs = InitOutputs(rig.context.runs)
    outputs.provide(job_of(rig, repo, "Short", "old"))
    os.utime(rig.context.runs / "old", (0, 0))
    outputs.provide(job_of(rig, repo, "Short", "new"))
    assert [path.name for path in rig.context.runs.iterdir()] == ["new"]


def test_workers_that_wait_for_the_first_one_continue_together(tmp_path: Path) -> None:
    firsts: list[bool] = []
    lock = tmp_path / "lock"
    together = threading.Barrier(2, timeout=20)

    def take_lock() -> None:
        with initoutputs._first_worker_alone(lock) as first:
            together.wait()
            firsts.append(first)

    with initoutputs._first_worker_alone(lock) as first:
        others = [threading.Thread(target=take_lock) for _ in range(2)]
        for other in others:
            other.start()
        waiting = re.compile(rf"-> FLOCK .*:{lock.stat().st_ino} ")
        deadline = time.monotonic() + 20
        while len(waiting.findall(Path("/proc/locks").read_text())) < 2:
            assert time.monotonic() < deadline
        assert (first, firsts) == (True, [])
    for other in others:
        other.join(20)
    assert firsts == [False, False]


# --- names of runs -----------------------------------------------------------


def changed(config: NodeConfig, part: str, **values: object) -> NodeConfig:
    inner = getattr(config, part).model_copy(update=values)
    return config.model_copy(update={part: inner})


def test_the_deployment_hash_depends_only_on_what_decides_outputs(rigs: MakeRig, tmp_path: Path) -> None:
    rig, _ = rigs()
    pipeline = load_pipeline(rig.paths["Short"], {})

    def digest(config: NodeConfig = rig.config, path: str = rig.paths["Short"], **overrides: object) -> str:
        return deployment_hash(config, NAME, VERSIONS, [load_pipeline(path, overrides)])

    usual = deployment_hash(rig.config, NAME, VERSIONS, [pipeline])
    elsewhere = tmp_path / "elsewhere.yaml"
    elsewhere.write_text(f"description: imports\nimports:\n  - {rig.paths['Short']}\n")
    assert usual == digest() == digest(path=str(elsewhere))
    for equal_config in (
        changed(rig.config, "engine", kind="pipetask"),
        changed(rig.config, "node", name="other"),
        changed(rig.config, "butler", central="/elsewhere"),
        changed(rig.config, "workers", max=99),
    ):
        assert digest(equal_config) == usual
    assert digest(**{"isr:note": "x"}) != usual
    elsewhere.write_text(
        f"description: imports\nimports:\n  - {rig.paths['Short']}\n"
        "tasks:\n  isr:\n    class: toycam.IsrTask\n    config:\n      note: y\n"
    )
    assert digest(path=str(elsewhere)) != usual
    assert deployment_hash(rig.config, NAME, "others", [pipeline]) != usual
    for other in (
        changed(rig.config, "butler", calibs=("other",)),
        changed(rig.config, "preload", padding_arcsec=31.0),
    ):
        assert digest(other) != usual
    fixed = changed(rig.config, "butler", deployment="w42")
    run = output_run(fixed, NAME, VERSIONS, [pipeline], 20261122, "Full")
    assert run == f"{NAME}/prompt/output-2026-11-22/Full/w42"
    run = output_run(rig.config, NAME, VERSIONS, [pipeline], 20261122, "Full")
    assert run == f"{NAME}/prompt/output-2026-11-22/Full/{usual}"


def test_runs_have_the_day_of_the_exposure(everything: tuple[Rig, ButlerWork]) -> None:
    rig, worker = everything
    worker.prepare(rig.order(main="Short", before=""))
    exposure = (DAY - 1) * 100000 + 1
    worker.ingest(rig.raw(DAYOBS=str(DAY - 1)).model_copy(update={"exposure": exposure}))
    done = worker.process(Process(exposures=(exposure,)))
    (runs,) = read_manifest(Path(done.spool or "")).chains.values()
    assert runs[0].startswith(f"{NAME}/prompt/output-2026-11-21/Short/")
    assert "isr_config" in spooled(done), "created again for the run that was not expected"


# --- points of no return -----------------------------------------------------


@pytest.mark.parametrize("name", ["associate", "toycam.AssociateTask", "lsst.pipe.base.PipelineTask"])
def test_tasks_that_cannot_be_repeated_are_named_by_label_or_class(rigs: MakeRig, name: str) -> None:
    rig, worker = rigs(engine={"no_return": [name]})
    run_visit(rig, worker)
    reported = {fact.what for fact in rig.reports if isinstance(fact, MayCross)}
    everyone = {"known", "isr", "calibrate", "subtract", "associate"}
    assert reported == (everyone if name.startswith("lsst") else {"associate"})


# --- the template --------------------------------------------------------------


def test_a_configuration_without_a_butler_section_is_refused(rigs: MakeRig) -> None:
    rig, _ = rigs()
    context = dataclasses.replace(rig.context, config=rig.config.model_copy(update={"butler": None}))
    for open_part in (work.build_template, work.open_work, work.open_exporter):
        with pytest.raises(ConfigError, match="butler: missing key"):
            open_part(context)


def test_a_template_is_made_in_spite_of_unusable_pipelines(
    rigs: MakeRig, caplog: pytest.LogCaptureFixture
) -> None:
    """A visit that selects one of them reports the error."""
    rig, _ = rigs()
    Path(rig.paths["Short"]).write_text("description: no tasks\ntasks:\n  isr: toycam.NoSuchTask\n")
    Path(rig.paths["Frame"]).write_text(
        "description: of other dimensions than the repo's\ntasks:\n  isr:\n    class: toycam.IsrTask\n"
        "    config:\n      connections.output: toy_template\n"
    )
    shutil.rmtree(rig.context.template)
    work.build_template(rig.context)
    assert f"{rig.paths['Short']} cannot be constructed" in caplog.text
    assert f"{rig.paths['Frame']} does not fit the repo" in caplog.text
    assert (rig.context.template / "content").exists()


@pytest.mark.parametrize(
    "definition", [None, ("raw", ("instrument", "exposure", "detector"), "StructuredDataDict")]
)
def test_raws_are_defined_by_the_central_repo_or_else_by_the_instrument(
    tmp_path: Path, definition: Any
) -> None:
    with Butler.from_config(Butler.makeRepo(str(tmp_path / "central"))) as central:
        instrument: Any = SimpleNamespace(getName=lambda: NAME, raw_definition=definition)
        if definition is None:
            with pytest.raises(ConfigError, match=f"no dataset type 'raw', and {NAME} does not define it"):
                work.raw_type(instrument, central)
        else:
            assert work.raw_type(instrument, central).dimensions == central.dimensions.conform(definition[1])


def test_preprocessing_may_have_a_point_of_no_return(rigs: MakeRig) -> None:
    rig, worker = rigs(engine={"no_return": ["known"]})
    worker.prepare(rig.order())
    assert rig.reports == [MayCross(what="known")]


# --- the alert database ------------------------------------------------------


SKY, ELSEWHERE = box(RA - 0.2, DEC, RA, DEC + 0.2), box(RA + 1.0, DEC, RA + 1.2, DEC + 0.2)
BEGIN = Time("2026-11-22T06:00:00", scale="tai")


def make_apdb(folder: Path, index: str = "baseline", columns: Sequence[str] = ()) -> Path:
    """Make an alert database that finds objects by an index, and returns some columns or all."""
    path = central.make_apdb(folder)
    if columns or index != "baseline":
        url = f"sqlite:///{folder / 'other.sqlite3'}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # it leaves a connection open
            config = ApdbSql.init_database(db_url=url, ss_schema_file="", dia_object_index=index)
            gc.collect()
        config.connection_config = ApdbSqlConnectionConfig(connection_pool=False)
        config.dia_object_columns = list(columns)
        config.save(path)
    return path


@pytest.fixture
def apdb(tmp_path: Path) -> Path:
    return make_apdb(tmp_path)


def values_of(apdb: Path, table: str) -> dict[str, float]:
    """Return a value for each column of a table."""
    engine = sqlalchemy.create_engine(Apdb.from_uri(str(apdb)).getConfig().db_url)  # type: ignore[attr-defined]
    inspector = sqlalchemy.inspect(engine)
    columns = inspector.get_columns(table) if inspector.has_table(table) else ()
    engine.dispose()
    return {each["name"]: 0 for each in columns if each["default"] is None}


def write_source(apdb: Path, visit: int, detector: int) -> None:
    """Insert a row into the database, as an association task does."""
    with sqlite3.connect(apdb.with_suffix(".sqlite3")) as connection:
        values = values_of(apdb, "DiaSource") | {"diaSourceId": visit, "visit": visit, "detector": detector}
        names = ", ".join(f'"{name}"' for name in values)
        marks = ", ".join("?" for _ in values)
        connection.execute(f'INSERT INTO "DiaSource" ({names}) VALUES ({marks})', tuple(values.values()))
    connection.close()


def store(apdb: Path, when: Time, objects: DataFrame, forced: DataFrame | None = None) -> None:
    """Store a visit without sources."""
    values = values_of(apdb, "DiaObject") | values_of(apdb, "DiaObjectLast")
    objects = objects.assign(**(values | dict(objects.items())))
    if forced is not None:
        forced = forced.assign(**(values_of(apdb, "DiaForcedSource") | dict(forced.items())))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The inplace keyword")  # dax_apdb with pandas 3.1
        Apdb.from_uri(str(apdb)).store(when, objects, None, forced)


def check_database(
    apdb: Path,
    rig: Rig,
    visit: int = EXPOSURE,
    passed: tuple[str, ...] = ("associate",),
    region: ConvexPolygon | None = SKY,
) -> bool:
    config = EngineConfig(
        no_return=("associate", "alerts"), apdb={NAME: str(apdb)}, apdb_tasks=("associate",)
    )
    universe = DimensionUniverse()
    span = Timespan(BEGIN, BEGIN + 30 * u.s)
    keys = {"instrument": NAME, "visit": visit, "detector": 1}
    records = [make_record(universe, "visit", instrument=NAME, id=visit, timespan=span)]
    if region is not None:
        records.append(make_record(universe, "visit_detector_region", region=region, **keys))
    return nothing_permanent(config, NAME, 1, records, load_pipeline(rig.paths["Full"], {}), passed)


def test_the_alert_database_is_queried_for_the_visit(rigs: MakeRig, apdb: Path) -> None:
    rig, _ = rigs()
    write_source(apdb, visit=7, detector=1)
    assert check_database(apdb, rig, visit=8)
    assert not check_database(apdb, rig, visit=7)
    assert not check_database(apdb, rig, visit=8, passed=("associate", "alerts")), (
        "alerts cannot be taken back"
    )


@pytest.mark.parametrize("index", ["baseline", pytest.param("last_object_table", marks=pytest.mark.slow)])
def test_objects_of_a_visit_without_sources_are_found_by_place_and_time(
    rigs: MakeRig, tmp_path: Path, index: str
) -> None:
    """The database stores them without their visit, and knows no visit without sources."""
    rig, _ = rigs()
    apdb = make_apdb(tmp_path, index)
    earlier, later = BEGIN - 60 * u.s, BEGIN + 15 * u.s
    store(apdb, earlier, makeObjectCatalog(SKY, 2, start_id=1))
    store(apdb, later, makeObjectCatalog(ELSEWHERE, 2, start_id=11))
    assert check_database(apdb, rig), "of an earlier visit, and of another place"
    assert not check_database(apdb, rig, region=None), "the place is not known"
    store(apdb, later, makeObjectCatalog(SKY, 1, start_id=21))
    assert not Apdb.from_uri(str(apdb)).containsVisitDetector(visit=EXPOSURE, detector=1)
    assert not check_database(apdb, rig)


def test_objects_without_a_time_may_be_of_the_visit(rigs: MakeRig, tmp_path: Path) -> None:
    """The database is configured to return some columns only."""
    rig, _ = rigs()
    apdb = make_apdb(tmp_path, columns=["diaObjectId", "ra", "dec"])
    assert check_database(apdb, rig)
    store(apdb, BEGIN - 86400 * u.s, makeObjectCatalog(SKY, 1, start_id=1))
    assert not check_database(apdb, rig)


def test_an_object_that_a_visit_without_sources_has_changed_is_found(rigs: MakeRig, apdb: Path) -> None:
    rig, _ = rigs()
    objects = makeObjectCatalog(SKY, 1, start_id=31)
    store(apdb, BEGIN - 86400 * u.s, objects)
    assert check_database(apdb, rig)
    store(apdb, BEGIN + 200 * u.s, objects)  # the time of its processing
    assert not check_database(apdb, rig)


def test_a_visit_with_forced_sources_alone_is_found(rigs: MakeRig, apdb: Path) -> None:
    rig, _ = rigs()
    objects = makeObjectCatalog(ELSEWHERE, 1, start_id=41)
    forced = makeForcedSourceCatalog(objects, BEGIN, visit=9, detector=1).drop(columns="flags")
    store(apdb, BEGIN, objects.iloc[:0], forced)
    assert check_database(apdb, rig, visit=8)
    assert not check_database(apdb, rig, visit=9)


def test_a_visit_is_not_repeated_if_the_database_does_not_answer(
    rigs: MakeRig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rig, _ = rigs()
    assert not check_database(tmp_path / "none.yaml", rig)
    assert "the visit is not repeated" in caplog.text


@pytest.mark.slow
def test_a_failure_that_wrote_nothing_may_be_repeated(rigs: MakeRig, apdb: Path) -> None:
    engine = {"no_return": ["associate"], "apdb": {NAME: str(apdb)}, "apdb_tasks": ["associate"]}
    rig, worker = rigs(engine=engine, pipelines={"overrides": {"associate:fail": "no connection"}})
    done = run_visit(rig, worker)
    assert (done.outcome, done.retriable, done.nothing_permanent) == (Outcome.FAILED, True, True)
    write_source(apdb, EXPOSURE, 1)
    shutil.rmtree(rig.context.spool)
    done = run_visit(rig, worker)
    assert (done.outcome, done.retriable, done.nothing_permanent) == (Outcome.FAILED, False, False)
