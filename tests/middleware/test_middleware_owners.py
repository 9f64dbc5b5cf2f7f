# SPDX-License-Identifier: BSD-3-Clause
"""Outputs of a whole visit, which each of its detectors exports: the first stay, the others have a note."""

import logging
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from centrals import CHAIN, FIRST, ON_SQLITE, Central, outputs, run_visit
from lsst.daf.butler import Butler, DataCoordinate, DatasetType, DimensionUniverse
from lsst.pipe.base import Struct
from lsst.pipe.base.connectionTypes import Input, Output
from objecttasks import task
from once import made_once
from toycam import NAME, VISIT, Rig, load_toy_camera

from ppdaemon.clock import Clock
from ppdaemon.middleware.butlerwork import ButlerWork
from ppdaemon.middleware.export.exporter import CentralExporter
from ppdaemon.middleware.export.manifest import SpoolKey, read_manifest, replace_manifest
from ppdaemon.middleware.export.newcontent import NewDataset
from ppdaemon.middleware.export.owners import Owners

pytest_plugins = ("toyfixtures", "dbfixtures")

UNIVERSE = DimensionUniverse()
WHOLE = ("instrument", "visit")
NAMES = ("toy_summary", "summary_metadata", "summary_log")
"""Datasets of the task that has no detector."""


def _summarize(self: Any, images: list[Any]) -> Struct:
    return Struct(output={"detectors": len(images)})


SummaryTask = task(
    "Summary",
    {
        "images": Input(
            name="toy_image", doc="images", storageClass="StructuredDataDict", dimensions=VISIT, multiple=True
        ),
        "output": Output(
            name="toy_summary", doc="of a visit", storageClass="StructuredDataDict", dimensions=WHOLE
        ),
    },
    module=__name__,
    dimensions=WHOLE,
    run=_summarize,
)


# --- whose dataset stays -----------------------------------------------------


def new(
    name: str = "summary", *, visit: int = 1, detector: int | None = None, run: str = "run"
) -> NewDataset:
    """Return a new dataset of a visit, or of one of its detectors."""
    ids = {"instrument": NAME, "visit": visit} | ({} if detector is None else {"detector": detector})
    dataset_type = DatasetType(name, list(ids), "StructuredDataDict", universe=UNIVERSE)
    data_id = DataCoordinate.standardize(ids, universe=UNIVERSE, dimensions=dataset_type.dimensions)
    return NewDataset(uuid.uuid4(), dataset_type, data_id, data_id.required_values, run)


def key(detector: int, *, attempt: int = 1, group: str = "g") -> SpoolKey:
    return SpoolKey(instrument=NAME, group=group, detector=detector, attempt=attempt)


@pytest.mark.parametrize(
    ("first", "skipped", "note"),
    [
        (key(3), key(1), "detector 3 was first: summary"),
        (key(1), key(1, attempt=2), "attempt 1 was first: summary"),
        (key(1), key(1, group="h"), "detector 1 of g was first: summary"),
    ],
)
@pytest.mark.parametrize("together", [True, False])
def test_who_was_first_is_noted_also_later(
    first: SpoolKey, skipped: SpoolKey, note: str, together: bool
) -> None:
    owners = Owners()
    if together:
        assert owners.record([(new(), first)], [(new(), skipped)]) == {skipped: note}
    else:
        assert owners.record([(new(), first)], []) == {}
        assert owners.record([], [(new(), skipped)]) == {skipped: note}


def test_datasets_of_several_owners_are_noted_by_owner() -> None:
    owners = Owners()
    owners.record([(new("a"), key(1)), (new("b"), key(1)), (new("c"), key(2))], [])
    mine = [new("a"), new("c"), new("b"), new("a", run="other"), new("d", visit=2)]
    assert owners.record([], [(each, key(3)) for each in mine]) == {
        key(3): "detector 1 was first: a, b; detector 2 was first: c; exported before: a, d"
    }


def test_the_last_export_is_remembered_and_the_oldest_are_forgotten() -> None:
    owners = Owners(most=2)
    owners.record([(new(visit=k), key(k)) for k in (1, 2, 3)], [])
    # A dataset was removed from the central repo, and exported again.
    owners.record([(new(visit=3), key(9)), (new(visit=4, detector=4), key(4))], [])
    assert [owners.knows(new(visit=k)) for k in (1, 2, 3)] == [False, True, True]
    assert not owners.knows(new(visit=4, detector=4)), "no other detector has it"
    assert owners.record([], [(new(visit=3), key(8))]) == {key(8): "detector 9 was first: summary"}


# --- in a central repo -------------------------------------------------------


@pytest.fixture(scope="session")
def whole_visits(tmp_path_factory: pytest.TempPathFactory, toy_central: Path, toy_template: Path) -> Path:
    """Return a folder of spools of detectors 1 and 2, with the outputs of a task for the whole visit."""

    def make(root: Path) -> None:
        for detector in (1, 2):
            where = root / str(detector)
            rig = Rig(where, where / "ram", toy_central, export={"types": ["toy_.*", "summary_.*"]})
            shutil.copytree(toy_template, rig.context.template)
            tasks = {"isr": "toycam.IsrTask", "calibrate": "toycam.CalibrateTask"}
            rig.add_pipeline("Frame", tasks | {"summary": f"{__name__}.SummaryTask"})
            assert rig.config.butler is not None
            worker = ButlerWork(rig.context, rig.config.butler, load_toy_camera)
            assert run_visit(rig, worker, detector).engine == "direct"
            worker.close()
            shutil.copytree(rig.context.spool, root / "spool", dirs_exist_ok=True)

    return made_once(tmp_path_factory, "whole-visits", make) / "spool"


@pytest.fixture
def two(tmp_path: Path, whole_visits: Path) -> list[Path]:
    """Return copies of the spools of detectors 1 and 2."""
    shutil.copytree(whole_visits, tmp_path / "spool")
    return sorted((tmp_path / "spool").iterdir())


@pytest.fixture
def exporter(central: Central, tmp_path: Path) -> Iterator[CentralExporter]:
    exporter = CentralExporter(str(central.root), Clock(), "node1", tmp_path / "refused")
    yield exporter
    exporter.close()


def assert_complete(central: Central) -> None:
    """Check that the datasets of the whole visit are there once, and all others."""
    with Butler.from_config(str(central.root)) as butler:
        summary = butler.get("toy_summary", {"instrument": NAME, "visit": FIRST}, collections=CHAIN)
    assert summary == {"detectors": 1}, "of one detector"
    assert [detector for detector, _ in outputs(central, "toy_image")] == [1, 2]
    for name in NAMES:
        assert len(outputs(central, name)) == 1, name


def test_the_second_detector_has_a_note_with_its_datasets(
    exporter: CentralExporter, central: Central, two: list[Path]
) -> None:
    exported = exporter.export(two)
    assert exported.skipped == {str(two[1]): f"detector 1 was first: {', '.join(NAMES)}"}
    assert exported.spools == tuple(map(str, two))
    assert_complete(central)


def test_another_attempt_in_the_same_export_has_a_note_with_all_its_datasets(
    exporter: CentralExporter, central: Central, two: list[Path]
) -> None:
    manifest = read_manifest(two[0])
    files = [
        file._replace(refs=tuple(each._replace(id=uuid.uuid4()) for each in file.refs))
        for file in manifest.files
    ]
    key = manifest.key.model_copy(update={"attempt": 2})
    again = shutil.copytree(two[0], two[0].with_name(key.folder))
    replace_manifest(again, manifest.model_copy(update={"key": key, "files": tuple(files)}))
    (note,) = exporter.export([*two, again][::2]).skipped.values()
    assert note.startswith("attempt 1 was first: ")
    assert "exported before" not in note
    assert {"toy_image", *NAMES} <= set(note.partition(": ")[2].split(", "))


@pytest.mark.slow
def test_it_has_the_note_too_if_it_is_exported_later(
    exporter: CentralExporter, central: Central, two: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    assert exporter.export(two[1:]).skipped == {}
    with caplog.at_level(logging.WARNING):
        exported = exporter.export(two[:1])
    assert exported.skipped == {str(two[0]): f"detector 2 was first: {', '.join(NAMES)}"}
    assert "files are skipped" not in caplog.text, "no transaction was repeated"
    assert_complete(central)


def test_after_a_restart_or_from_another_host_only_the_fact_is_known(
    exporter: CentralExporter, central: Central, two: list[Path], tmp_path: Path
) -> None:
    exporter.export(two[:1])
    other = CentralExporter(str(central.root), Clock(), "node2", tmp_path / "refused2")
    shutil.copytree(two[1], tmp_path / "again" / two[1].name)
    assert other.export(two[1:]).skipped == {str(two[1]): f"exported before: {', '.join(NAMES)}"}
    again = tmp_path / "again" / two[1].name
    assert other.export([again]).skipped == {str(again): f"exported before: {', '.join(NAMES)}"}
    other.close()
    assert_complete(central)


@ON_SQLITE
def test_datasets_that_were_removed_from_the_central_repo_are_exported(
    exporter: CentralExporter, central: Central, two: list[Path]
) -> None:
    exporter.export(two[:1])
    with Butler.from_config(str(central.root), writeable=True) as butler:
        removed = [each for name in NAMES for each in butler.query_datasets(name, collections=CHAIN)]
        butler.pruneDatasets(removed, unstore=True, purge=True)
    assert exporter.export(two[1:]).skipped == {}
    assert_complete(central)
