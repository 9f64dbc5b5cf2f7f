# SPDX-License-Identifier: BSD-3-Clause
"""What preload selects from a central repo on SQLite and on PostgreSQL; older dimensions, unusable repos."""

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import astropy.units as u
import pytest
from astropy.time import Time
from centrals import (
    CHAIN,
    FIRST,
    OLD_UNIVERSES,
    ON_POSTGRES,
    ON_SQLITE,
    Central,
    make_few,
    outputs,
    run_visit,
    shards_in,
    write_everything,
)
from lsst.daf.butler import Butler
from postgres import PostgresServer
from toycam import BEGIN_TAI, DEC, DETECTOR_SIDE_DEG, EPOCH, NAME, RA, MakeRig, Rig, box, load_toy_camera

from ppdaemon.clock import Clock
from ppdaemon.errors import ConfigError, Unavailable
from ppdaemon.messages import Process
from ppdaemon.middleware import work
from ppdaemon.middleware.butler.central import CentralReader
from ppdaemon.middleware.butler.timings import Timings
from ppdaemon.middleware.butlerwork import ButlerWork
from ppdaemon.middleware.export.exporter import CentralExporter
from ppdaemon.middleware.export.manifest import read_manifest
from ppdaemon.middleware.pipelines.graph import PipelineLibrary
from ppdaemon.middleware.preload.cache import SharedCache
from ppdaemon.middleware.preload.findings import PreloadPlan
from ppdaemon.middleware.preload.preload import Preload
from ppdaemon.middleware.raws.regions import footprint_of
from ppdaemon.states import Outcome

pytest_plugins = ("toyfixtures", "dbfixtures")

PADDING_DEG = 30 / 3600
MODELS_TOO = {"inputs": ["{instrument}/templates", "refcats", "pretrained_models"]}


def find_all(central: Central, folder: Path, *, padding_arcsec: float = 30.0, **order: object) -> PreloadPlan:
    """Return the preload plan of detector 1 for a pipeline that reads every dataset type."""
    rig = Rig(folder, folder / "ram", central.root, butler=MODELS_TOO)
    rig.paths["Everything"] = write_everything(folder)
    assert rig.config.butler is not None
    prepare = rig.order(1, main="Everything", **order)
    footprint = footprint_of(
        prepare.visit,
        prepare.detector,
        load_toy_camera(NAME),
        padding_arcsec=padding_arcsec,
        image_deadline_s=100.0,
        now_tai=0.0,
    )
    with closing(CentralReader(str(central.root))) as reader:
        preload = Preload(
            rig.config.butler, reader, SharedCache(rig.context.cache, 10**9), PipelineLibrary({})
        )
        return preload.find(prepare, footprint, Timings(Clock()))


def selected(plan: PreloadPlan) -> dict[str, set[tuple[object, ...]]]:
    """Return the data IDs by dataset type, each as its values in the order of the dimensions' names."""
    return {
        found.dataset_type.name: {
            tuple(ref.dataId[name] for name in sorted(ref.dataId.dimensions.required)) for ref in found.refs
        }
        for found in plan.found
    }


def epochs(plan: PreloadPlan) -> dict[str, set[str]]:
    """Return the epochs of the calibrations by type: the last part of their run's name."""
    return {
        found.dataset_type.name: {ref.run.rpartition("/")[2] for ref in found.refs}
        for found in plan.found
        if found.dataset_type.isCalibration()
    }


def test_exactly_the_datasets_that_the_visit_needs_are_selected(few: Central, tmp_path: Path) -> None:
    plan = find_all(few, tmp_path)
    side, pad = DETECTOR_SIDE_DEG, PADDING_DEG
    footprint = box(RA - side - pad, DEC - side - pad, RA + pad, DEC + pad)
    shards = shards_in(footprint)
    with Butler.from_config(str(few.root)) as butler:
        everywhere = {ref.dataId["htm7"] for ref in butler.query_datasets("toy_refcat", "refcats")}
    assert shards < everywhere
    assert selected(plan) == {
        "bias": {(1, NAME)},
        "flat": {(1, NAME, "r_03")},
        "toy_template": {("r", patch, "toy", 0) for patch in (0, 1, 2)},
        "toy_refcat": {(shard,) for shard in shards},
        "toy_model": {()},
        "toy_optional": set(),
    }
    assert not plan.reasons, "what is missing is optional"


@ON_SQLITE
def test_without_padding_the_patch_at_the_edge_is_not_selected(few: Central, tmp_path: Path) -> None:
    plan = find_all(few, tmp_path, padding_arcsec=0.0)
    assert selected(plan)["toy_template"] == {("r", 0, "toy", 0), ("r", 1, "toy", 0)}


@ON_SQLITE
def test_any_filter_selects_the_templates_of_all_bands(few: Central, tmp_path: Path) -> None:
    found = selected(find_all(few, tmp_path, filters=""))
    assert {ids[0] for ids in found["toy_template"]} == {"g", "r"}
    assert found["flat"] == {(1, NAME, "g_01"), (1, NAME, "r_03")}


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        (EPOCH - 1 * u.day, {"old"}),
        (EPOCH + 1 * u.day, {"new"}),
        (EPOCH, {"old", "new"}),
    ],
    ids=["before", "after", "at the change"],
)
def test_calibrations_are_selected_by_their_validity(
    few: Central, tmp_path: Path, start: Time, expected: set[str]
) -> None:
    """An exposure announced for the time of the change may begin slightly earlier."""
    found = epochs(find_all(few, tmp_path, startTime=start.unix_tai))
    assert found == {"bias": expected, "flat": expected}


@pytest.fixture
def make_rig(few: Central, few_template: Path, tmp_path: Path) -> Iterator[MakeRig]:
    """Yield a function that opens a worker on the central repo."""
    opened: list[ButlerWork] = []

    def make(**changes: Any) -> tuple[Rig, ButlerWork]:
        new = Rig(tmp_path / "rig", tmp_path / "rig" / "ram", few.root, butler=MODELS_TOO, **changes)
        shutil.copytree(few_template, new.context.template)
        new.paths["Everything"] = write_everything(tmp_path)
        assert new.config.butler is not None
        opened.append(ButlerWork(new.context, new.config.butler, load_toy_camera))
        return new, opened[0]

    yield make
    for each in opened:
        each.close()


@ON_SQLITE
@pytest.mark.parametrize(
    ("begin", "expected"),
    [(EPOCH - 31 * u.s, "old"), (EPOCH, "new")],
    ids=["ends just before the change", "begins at the change"],
)
def test_an_exposure_at_the_change_is_processed_with_the_calibrations_of_its_time(
    make_rig: MakeRig, begin: Time, expected: str
) -> None:
    rig, worker = make_rig()
    worker.prepare(rig.order(main="Short", before="", startTime=EPOCH.unix_tai))
    day = (begin - 12 * u.hour).strftime("%Y%m%d")
    header = {"DATE_BEG": begin.isot, "DATE_END": (begin + 30 * u.s).isot, "DAYOBS": day}
    exposure = int(day) * 100000 + 1
    worker.ingest(rig.raw(**header).model_copy(update={"exposure": exposure}))
    done = worker.process(Process(exposures=(exposure,)))
    assert done.outcome == Outcome.SUCCEEDED, done.reason
    assert done.spool is not None
    manifest = read_manifest(Path(done.spool))
    (name,) = (file.name for file in manifest.files if file.refs[0].datasetType.name == "toy_isr")
    assert f"epoch: {expected}" in Path(done.spool, name).read_text()


def test_all_selected_datasets_are_read_and_optional_ones_may_be_missing(
    make_rig: MakeRig,
) -> None:
    rig, worker = make_rig()
    worker.prepare(rig.order(main="Everything"))
    worker.ingest(rig.raw())
    done = worker.process(Process(exposures=(FIRST,)))
    assert done.outcome == Outcome.SUCCEEDED, done.reason
    assert done.spool is not None
    text = {
        file.refs[0].datasetType.name: Path(done.spool, file.name).read_text()
        for file in read_manifest(Path(done.spool)).files
    }
    assert text["toy_difference"].endswith("patches:\n- 0\n- 1\n"), "the third only touches the padding"
    assert "model: the only one" in text["toy_classes"]
    assert "optional: []" in text["toy_classes"]


@pytest.mark.slow
@ON_SQLITE
def test_outputs_of_a_failed_pipeline_are_exported_and_those_without_an_image_are_not(
    make_rig: MakeRig, central: Central, tmp_path: Path
) -> None:
    rig, worker = make_rig(pipelines={"overrides": {"associate:fail": "no database"}})
    worker.prepare(rig.order(2, main="Everything", groupId="lost"))
    worker.reset()  # as without an image
    assert not rig.context.spool.exists()
    worker.prepare(rig.order(1, main="Everything"))
    worker.ingest(rig.raw(1))
    done = worker.process(Process(exposures=(FIRST,)))
    assert (done.outcome, bool(done.spool)) == (Outcome.FAILED, True)
    with closing(CentralExporter(str(central.root), Clock(), "node1", tmp_path / "refused")) as exporter:
        assert exporter.export([Path(done.spool or "")]).datasets == done.datasets
    assert [detector for detector, _ in outputs(central, "toy_difference")] == [1]
    assert [detector for detector, _ in outputs(central, "toy_known")] == [1]
    with Butler.from_config(str(central.root)) as butler:
        assert not [each for each in butler.registry.queryDatasetTypes("toy_association")]
        (group,) = butler.query_dimension_records("group", instrument=NAME)
        assert group.name == rig.order().visit.group


# --- older dimensions --------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("server", "universe"),
    [
        pytest.param(*each, marks=pytest.mark.slow if each[0] == "SQLite" else ())
        for each in OLD_UNIVERSES.items()
    ],
    indirect=["server"],
)
def test_a_central_repo_of_older_dimensions_is_read_and_written(
    server: PostgresServer | None, tmp_path: Path, universe: int
) -> None:
    central = make_few(tmp_path / "central", server, universe)
    rig = Rig(tmp_path / "rig", tmp_path / "rig" / "ram", central.root)
    work.build_template(rig.context)
    assert rig.config.butler is not None
    with closing(ButlerWork(rig.context, rig.config.butler, load_toy_camera)) as worker:
        done = run_visit(rig, worker, 1)
    assert done.outcome == Outcome.SUCCEEDED, done.reason
    assert done.spool is not None
    with closing(work.open_exporter(rig.context)) as exporter:
        exported = exporter.export([Path(done.spool)])
    assert (exported.spools, exported.refused) == ((done.spool,), ())
    assert len(outputs(central, "toy_image")) == 1
    with Butler.from_config(str(central.root)) as butler:
        assert butler.dimensions.version == universe
        (exposure,) = butler.query_dimension_records("exposure", instrument=NAME)
        assert exposure.group == rig.order().visit.group
        assert exposure.timespan.begin.unix_tai == pytest.approx((BEGIN_TAI + 35 * u.s).unix_tai)
        assert hasattr(exposure, "can_see_sky") == (universe >= 7)
        assert butler.get("toy_image", visit=FIRST, detector=1, instrument=NAME, collections=CHAIN)


def test_a_replica_is_read_and_the_central_repo_is_written(central: Central, tmp_path: Path) -> None:
    replica = central.copy(tmp_path / "replica")
    away = central.root.rename(tmp_path / "away")
    rig = Rig(
        tmp_path / "rig",
        tmp_path / "rig" / "ram",
        central.root,
        butler={"read": str(replica.root)},
    )
    work.build_template(rig.context)
    assert rig.config.butler is not None
    with closing(ButlerWork(rig.context, rig.config.butler, load_toy_camera)) as worker:
        done = run_visit(rig, worker, 1)
    away.rename(central.root)
    with closing(work.open_exporter(rig.context)) as exporter:
        assert exporter.export([Path(done.spool or "")]).spools == (done.spool,)
    assert len(outputs(central, "toy_image")) == 1
    with Butler.from_config(str(replica.root)) as butler:
        assert CHAIN not in butler.collections.query("*")


# --- unusable central repos ---------------------------------------


def test_dimensions_without_groups_are_refused_at_start(tmp_path: Path) -> None:
    Butler.makeRepo(
        str(tmp_path / "central"),
        dimensionConfig="resource://lsst.daf.butler/configs/old_dimensions/daf_butler_universe5.yaml",
    )
    rig = Rig(tmp_path / "rig", tmp_path / "rig" / "ram", tmp_path / "central")
    with pytest.raises(ConfigError, match=r"butler\.central: .*dimensions of version 5, 6 is needed"):
        work.build_template(rig.context)


def make_newer(central: Central) -> None:
    """Change the repo as if a later Butler had created its tables."""
    managers = "name LIKE 'version:%DimensionRecordStorageManager'"
    statement = f"UPDATE butler_attributes SET value = '99.0.0' WHERE {managers}"
    if central.server is not None:
        central.server.run(central.database, statement)
        return
    with closing(sqlite3.connect(central.root / "gen3.sqlite3")) as connection:
        assert connection.execute(statement).rowcount == 1
        connection.commit()


@pytest.mark.slow
def test_a_newer_central_repo_is_named_as_such(central: Central, spools: list[Path], tmp_path: Path) -> None:
    make_newer(central)
    exporter = CentralExporter(str(central.root), Clock(), "node1", tmp_path / "refused")
    with pytest.raises(Unavailable, match=r"cannot be opened for writing: .*99\.0\.0"):
        exporter.export(spools)
    assert all(spool.exists() for spool in spools)
    rig = Rig(tmp_path / "rig", tmp_path / "rig" / "ram", central.root)
    with pytest.raises(ConfigError, match=r"butler\.central: .*99\.0\.0"):
        work.build_template(rig.context)


def test_a_missing_database_driver_is_named(tmp_path: Path) -> None:
    central = make_few(tmp_path / "central", None)
    settings = central.root / "butler.yaml"
    settings.write_text(
        settings.read_text().replace("sqlite:///<butlerRoot>/gen3.sqlite3", "postgresql+pg8000://x@/y")
    )
    rig = Rig(tmp_path / "rig", tmp_path / "rig" / "ram", central.root)
    with pytest.raises(ConfigError, match=r"butler\.central: .*No module named 'pg8000'"):
        work.build_template(rig.context)


@ON_POSTGRES
def test_a_central_repo_that_became_read_only_keeps_the_spools(
    central: Central, spools: list[Path], tmp_path: Path
) -> None:
    """A standby server, or a database under maintenance."""
    assert central.server is not None
    alter = f'ALTER DATABASE "{central.database}" SET default_transaction_read_only ='
    central.server.run("postgres", f"{alter} on")
    exporter = CentralExporter(str(central.root), Clock(), "node1", tmp_path / "refused")
    with pytest.raises(Unavailable, match="read-only transaction"):
        exporter.export(spools)
    assert all(spool.exists() for spool in spools)
    central.server.run("postgres", f"{alter} off")
    assert len(exporter.export(spools).spools) == 3
    exporter.close()


@ON_POSTGRES
def test_an_exporter_that_is_idle_has_no_connection(
    central: Central, spools: list[Path], tmp_path: Path
) -> None:
    """A firewall may drop it without a word; then the next query would wait for minutes."""
    assert central.server is not None
    with closing(CentralExporter(str(central.root), Clock(), "node1", tmp_path / "refused")) as exporter:
        exporter.export(spools[:1])
        assert central.server.cut_off(central.database) == 0
        assert exporter.export(spools[1:]).spools == tuple(str(spool) for spool in spools[1:])
