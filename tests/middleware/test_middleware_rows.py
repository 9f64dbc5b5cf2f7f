# SPDX-License-Identifier: BSD-3-Clause
"""Rows that are inserted at once are those of `Butler.ingest`, and what it is left to."""

import errno
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
import yaml
from astropy.time import Time
from centrals import CHAIN, ON_SQLITE, Central, outputs
from lsst.daf.butler import (
    Butler,
    CollectionType,
    DataCoordinate,
    DatasetRef,
    DimensionRecord,
    DimensionUniverse,
)

from ppdaemon.clock import Clock
from ppdaemon.config import ExportConfig
from ppdaemon.errors import BadMessage
from ppdaemon.folders import REFUSAL
from ppdaemon.middleware.butler.datafiles import file_dataset
from ppdaemon.middleware.export import rows
from ppdaemon.middleware.export.exporter import CentralExporter
from ppdaemon.middleware.export.manifest import MANIFEST, SimpleRefs, read_manifest, replace_manifest

pytest_plugins = ("toyfixtures", "dbfixtures")

TEMPLATES = {
    "by id": "{run:/}/{datasetType}/{id}_{datasetType}",
    "no plain path": "{run:/}/a b%20/{datasetType:?}/{exposure.obs_id|group:?}_{detector.full_name:?}",
    "another form of the type": "{run:/}/{datasetType:>30}/{visit:?}_{exposure:?}_{group:?}_{detector:?}",
    "the detector by id": "{run:/}/{datasetType}/{exposure|group:?}{detector.full_name:?}_{detector.id:?}",
    "another form of the detector": "{run:/}/{datasetType}/{exposure|group:?}_{detector.full_name:?>20}",
    "as usual": "{run:/}/{datasetType}/{exposure|group:?}_{detector.full_name:?}",
}


def configured(central: Central, **datastore: Any) -> Central:
    """Change the configuration of a repo's datastore."""
    path = central.root / "butler.yaml"
    config = yaml.safe_load(path.read_text())
    config.setdefault("datastore", {}).update(datastore)
    path.write_text(yaml.safe_dump(config))
    return central


def exported(central: Central, spools: list[Path], folder: Path) -> int:
    """Export copies of spools, with other ones for images; return the number of datasets."""
    copies = [Path(shutil.copytree(spool, folder / spool.name)) for spool in spools]
    config = ExportConfig(images=("toy_image",))
    with closing(
        CentralExporter(str(central.root), Clock(), "node1", folder / "refused", config=config)
    ) as exporter:
        found = exporter.export(copies)
        assert found.refused == ()
        return found.datasets


def content(central: Central) -> dict[str, Any]:
    """Return all rows of all tables, without the time of the export, and all files by their names."""
    with Butler.from_config(str(central.root)) as butler:
        inner: Any = butler
        engine, metadata = inner._registry._db._engine, sqlalchemy.MetaData()
        metadata.reflect(engine)
        with engine.connect() as connection:
            found: dict[str, Any] = {
                table.name: sorted(
                    repr({key: value for key, value in row._mapping.items() if key != "ingest_date"})
                    for row in connection.execute(sqlalchemy.select(table))
                )
                for table in metadata.sorted_tables
            }
    names = (path for path in central.root.rglob("*") if path.is_file() and "gen3.sqlite3" not in path.name)
    files = {str(path.relative_to(central.root)): path.read_bytes() for path in names}
    files.pop("butler.yaml")
    return found | {"files": files}


def assert_the_same(
    few: Central, spools: list[Path], folder: Path, patch: pytest.MonkeyPatch, **changes: Any
) -> None:
    """Export to two repos with changed configurations, one way to each; compare everything."""
    one, other = (configured(few.copy(folder / name), **changes) for name in ("rows", "ingest"))
    datasets = exported(one, spools, folder / "one")
    patch.setattr(rows, "problem", lambda butler: "chosen by the test")
    assert exported(other, spools, folder / "other") == datasets
    found, expected = content(one), content(other)
    assert len(expected["dataset_location"]) > datasets
    assert found.keys() == expected.keys()
    for table in expected:
        assert found[table] == expected[table], table


def test_both_ways_give_the_same_rows_and_files(
    few: Central, spools: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of detector 1, one file has two datasets."""
    manifest = read_manifest(spools[0])
    one, other = manifest.files[-2:]
    assert (one.formatter, one.refs[0].run) == (other.formatter, other.refs[0].run)
    both = one._replace(refs=(*one.refs, *other.refs))
    files = (*manifest.files[:-2], both)
    replace_manifest(spools[0], manifest.model_copy(update={"files": files}))
    assert_the_same(few, [spools[0], spools[2]], tmp_path, monkeypatch)


def ingested(central: Central, spools: list[Path]) -> None:
    """Register spools by the Butler's own methods, each dataset for itself."""
    with Butler.from_config(str(central.root), writeable=True) as butler:
        manifests = {spool: read_manifest(spool) for spool in spools}
        universe = butler.dimensions
        records = [
            DimensionRecord.from_simple(simple, universe=universe)
            for manifest in manifests.values()
            for simple in manifest.records
        ]
        for element in universe.sorted({record.definition.name for record in records}):
            for record in records:
                if record.definition.name == element.name:
                    butler.registry.insertDimensionData(element.name, record, skip_existing=True)
        files = [
            (
                spool / file.name,
                [DatasetRef.from_simple(each.simple(), universe=universe) for each in file.refs],
            )
            for spool, manifest in manifests.items()
            for file in manifest.files
        ]
        for dataset_type in sorted({ref.datasetType for _, refs in files for ref in refs}):
            butler.registry.registerDatasetType(dataset_type)
        for run in sorted({ref.run for _, refs in files for ref in refs}):
            butler.collections.register(run)
        formatters = {file.name: file.formatter for each in manifests.values() for file in each.files}
        for path, refs in files:
            first = refs[0]  # init-outputs are in each spool
            if butler.find_dataset(first.datasetType, first.dataId, collections=first.run) is None:
                dataset = file_dataset(path, refs, formatters[path.name])
                butler.ingest(dataset, transfer="copy", record_validation_info=True)
        for manifest in manifests.values():
            for chain, runs in manifest.chains.items():
                butler.collections.register(chain, CollectionType.CHAINED)
                present = butler.collections.get_info(chain).children
                if new := [run for run in runs if run not in present]:
                    butler.collections.prepend_chain(chain, new)


def test_the_rows_are_those_of_a_butler_alone(few: Central, spools: list[Path], tmp_path: Path) -> None:
    one, other = few.copy(tmp_path / "rows"), few.copy(tmp_path / "butler")
    chosen = [spools[0], spools[2]]
    assert exported(one, chosen, tmp_path / "one") > 0
    ingested(other, chosen)
    found, expected = content(one), content(other)
    assert found.keys() == expected.keys()
    for table in expected:
        assert found[table] == expected[table], table


@ON_SQLITE
@pytest.mark.parametrize("template", TEMPLATES)
def test_both_ways_give_the_same_names_of_any_template(
    few: Central, spools: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, template: str
) -> None:
    templates = {"default": TEMPLATES[template]}
    assert_the_same(few, [spools[0], spools[2]], tmp_path, monkeypatch, templates=templates)


@ON_SQLITE
def test_detectors_may_have_names_with_characters_that_no_file_has(
    few: Central, spools: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for spool, name in ((spools[0], "S01"), (spools[2], "S02")):
        path = spool / MANIFEST
        text, count = re.subn(rf"{name}(?=\\+\",)", f"R.1/{name}#", path.read_text())
        assert count > 0
        path.write_text(re.sub(r',"checksum":"[^"]*"}$', "}", text))
    assert_the_same(few, [spools[0], spools[2]], tmp_path, monkeypatch)


@ON_SQLITE
def test_the_time_of_the_export_is_recorded(central: Central, spools: list[Path], tmp_path: Path) -> None:
    times = [Time.now()]
    exported(central, spools, tmp_path / "one")
    times.append(Time.now())
    with Butler.from_config(str(central.root)) as butler:
        found = butler.query_datasets(
            "toy_image",
            CHAIN,
            where="toy_image.ingest_date >= begin AND toy_image.ingest_date <= end",
            bind=dict(zip(("begin", "end"), times, strict=True)),
        )
    assert len(found) == 2


@ON_SQLITE
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"checksum": True}, "the datastore records checksums"),
        ({"constraints": {"reject": ["nothing"]}}, "the datastore does not accept all dataset types"),
        (
            {
                "cls": "lsst.daf.butler.datastores.chainedDatastore.ChainedDatastore",
                "datastore_constraints": [{}],
                "datastores": [
                    {"cls": "lsst.daf.butler.datastores.fileDatastore.FileDatastore", "root": "<butlerRoot>"}
                ],
            },
            "is not a FileDatastore in a filesystem",
        ),
    ],
)
def test_a_datastore_that_does_more_is_left_to_the_butler(
    central: Central,
    spools: list[Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    change: dict[str, Any],
    reason: str,
) -> None:
    exported(configured(central, **change), spools, tmp_path / "one")
    assert "files are ingested one by one" in caplog.text
    assert reason in caplog.text
    assert [detector for detector, _ in outputs(central, "toy_image")] == [1, 2]


@ON_SQLITE
def test_a_spool_with_a_type_that_the_datastore_rejects_is_quarantined_until_it_does_not(
    central: Central, spools: list[Path], tmp_path: Path
) -> None:
    bad, refused = spools[0], tmp_path / "refused"

    def export() -> tuple[tuple[str, ...], tuple[str, ...]]:
        with closing(CentralExporter(str(central.root), Clock(), "node1", refused)) as exporter:
            found = exporter.export([bad])
        return found.spools, found.refused

    configured(central, constraints={"reject": ["toy_image"]})
    assert export() == ((), (str(bad),))
    note = (refused / bad.name / REFUSAL).read_text()
    assert "the datastore's constraints, in butler.yaml, reject a type of export.types: " in note
    assert "toy_image" in note
    configured(central, constraints={"reject": ["nothing"]})
    (refused / bad.name).rename(bad)
    assert export() == ((str(bad),), ())
    assert [detector for detector, _ in outputs(central, "toy_image")] == [1]


@ON_SQLITE
def test_tables_of_another_version_are_left_to_the_butler(
    central: Central, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Butler.from_config(str(central.root), writeable=True) as butler:
        assert rows.problem(butler) == ""
        monkeypatch.setitem(rows._KNOWN, "ByNameOpaqueTableStorageManager", (1,))
        assert rows.problem(butler) == "ByNameOpaqueTableStorageManager 0.2.0 is not known"
        monkeypatch.undo()
        for others in ({"postgresql": "pyformat"}, {"sqlite": "numeric"}):
            monkeypatch.setattr(rows, "DIALECTS", others)
            assert rows.problem(butler) == "the database driver sqlite+pysqlite is not known"
        monkeypatch.undo()
        inner: Any = butler
        monkeypatch.delattr(type(inner._registry), "expand_data_ids")
        assert "this version of lsst.daf.butler is not known" in rows.problem(butler)


@ON_SQLITE
@pytest.mark.parametrize(
    "moved", ["lsst.daf.butler.datastore.stored_file_info", "lsst.daf.butler.datastore.file_templates"]
)
def test_a_butler_without_what_is_imported_is_left_to_itself(
    central: Central,
    spools: list[Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    moved: str,
) -> None:
    monkeypatch.delitem(sys.modules, rows.__name__)
    monkeypatch.setitem(sys.modules, moved, None)
    exported(central, spools, tmp_path / "one")
    lines = [record.getMessage() for record in caplog.records if "ingested" in record.getMessage()]
    assert len(lines) == 1
    assert "files are ingested one by one, which is slower" in lines[0]
    assert moved in lines[0]
    assert [detector for detector, _ in outputs(central, "toy_image")] == [1, 2]


@ON_SQLITE
def test_a_butler_with_other_parameters_is_left_to_itself(
    central: Central,
    spools: list[Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def changed(*args: Any) -> None:
        raise TypeError("insert() got an unexpected argument")

    monkeypatch.setattr(rows.RowIngest, "_insert_datasets", changed)
    exported(central, spools, tmp_path / "one")
    lines = [record.getMessage() for record in caplog.records if "one by one" in record.getMessage()]
    assert len(lines) == 1
    assert "unexpected argument" in lines[0]
    assert [detector for detector, _ in outputs(central, "toy_image")] == [1, 2]


@ON_SQLITE
def test_datasets_without_their_dimension_records_are_refused_and_nothing_stays(
    central: Central, spools: list[Path], tmp_path: Path
) -> None:
    spool, refused = spools[0], tmp_path / "refused"
    manifest = read_manifest(spool).model_copy(update={"records": ()})
    replace_manifest(spool, manifest)
    with closing(CentralExporter(str(central.root), Clock(), "node1", refused)) as exporter:
        assert exporter.export([spool]).refused == (str(spool),)
    note = (refused / spool.name / REFUSAL).read_text()
    assert "or lacks records of their dimensions" in note
    with Butler.from_config(str(central.root)) as butler:
        ids = [ref.id for file in manifest.files for ref in file.refs]
        assert butler.get_many_datasets(ids) == []
    assert not list(central.root.glob("incoming-*"))


@ON_SQLITE
def test_a_run_may_be_on_another_filesystem(
    central: Central, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder in the datastore is a link."""

    def rename(path: str, target: str) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), path, None, target)

    synced: list[Path] = []
    with Butler.from_config(str(central.root), writeable=True) as butler:
        ingest = rows.RowIngest(butler)
        source, target = tmp_path / "source", central.root / "run" / "file"
        source.write_text("content")
        monkeypatch.setattr(os, "rename", rename)
        monkeypatch.setattr(rows, "sync", synced.append)
        with pytest.raises(InterruptedError), butler.transaction():  # noqa: PT012
            ingest._move({str(source): str(target)})
            assert target.read_text() == "content"
            assert target in synced
            assert not source.exists()
            raise InterruptedError
        assert source.read_text() == "content"
        assert not target.exists()


@ON_SQLITE
def test_folders_are_synced_that_have_new_names(
    central: Central, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr(rows, "sync_all", synced.extend)
    with Butler.from_config(str(central.root), writeable=True) as butler:
        ingest = rows.RowIngest(butler)

        def move(*names: str) -> set[str]:
            synced.clear()
            source = tmp_path / "source"
            with butler.transaction():
                for name in names:
                    source.write_text("content")
                    ingest._move({str(source): str(central.root / name)})
            return {str(Path(path).relative_to(central.root)) for path in synced}

        assert move("run/type/one/a") == {".", "run", "run/type", "run/type/one"}
        assert move("run/type/one/b") == {"run/type/one"}
        assert move("run/type/two/a") == {"run/type", "run/type/two"}
        shutil.rmtree(central.root / "run" / "type")
        assert move("run/type/one/a") == {"run", "run/type", "run/type/one"}, "it was made again"


def test_a_manifest_has_each_dataset_type_and_data_id_once(spools: list[Path]) -> None:
    manifest, text = read_manifest(spools[0]), (spools[0] / MANIFEST).read_text()
    refs = [ref for file in manifest.files for ref in file.refs]
    for table in map(json.loads(text).get, ("types", "data_ids", "all_records", "formatters", "runs")):
        assert len({json.dumps(each) for each in table}) == len(table)
    assert max(len(json.loads(text)[name]) for name in ("types", "data_ids")) <= len(refs)
    universe = DimensionUniverse()
    simple = [ref.simple() for ref in refs]
    assert simple == [DatasetRef.from_simple(ref, universe=universe).to_simple() for ref in simple]
    replace_manifest(spools[0], manifest)
    assert (spools[0] / MANIFEST).read_text() == text


def test_a_data_id_with_records_is_not_mistaken_for_one_without(spools: list[Path]) -> None:
    simple, universe = SimpleRefs(), DimensionUniverse()
    written = (ref for file in read_manifest(spools[0]).files for ref in file.refs)
    ref = next(ref for ref in written if ref.dataId is not None and ref.dataId.records)
    complete = DatasetRef.from_simple(ref.simple(), universe=universe)
    required = DataCoordinate.standardize(complete.dataId.required, universe=universe)
    bare = DatasetRef(complete.datasetType, required, complete.run, id=complete.id)
    assert [simple.of(each).simple() for each in (bare, complete, bare)] == [
        bare.to_simple(),
        complete.to_simple(),
        bare.to_simple(),
    ]


def damaged(columns: dict[str, list[Any]]) -> Iterator[dict[str, list[Any]]]:
    """Yield columns of which one has an invalid value, or a value more or less than the others."""
    for name, column in columns.items():
        others: list[Any] = [None, {}]
        if name in ("formatter", "datasets", "type", "data_id", "run"):
            others += [-1, 1000]
        for other in others:
            yield columns | {name: [*column[:-1], other]}
        yield columns | {name: column[:-1]}
        yield columns | {name: [*column, column[-1]]}
        yield {key: value for key, value in columns.items() if key != name}


def test_an_edited_manifest_is_read_and_damaged_ones_and_those_of_other_versions_are_not(
    spools: list[Path],
) -> None:
    manifest, path = read_manifest(spools[0]), spools[0] / MANIFEST
    written = json.loads(path.read_text())
    del written["checksum"]  # as an operator does who edits it
    path.write_text(json.dumps(written))
    assert read_manifest(spools[0]) == manifest
    damages: list[dict[str, Any]] = [
        {"types": []},
        {"data_ids": [[1, None]]},
        {"data_ids": [[{}, {"visit": 1000}]] * 10},
        {"records": [1000]},
        {"all_records": ["{}"] * 100},
        {"files": 1},
        *({"files": each} for each in damaged(written["files"])),
        *({"datasets": each} for each in damaged(written["datasets"])),
    ]
    for damage in damages:
        path.write_text(json.dumps(written | damage))
        with pytest.raises(BadMessage, match="damaged manifest"):
            read_manifest(spools[0])
    for version in (4, 6):
        path.write_text(json.dumps({"version": version, "key": "of another kind"}))
        with pytest.raises(BadMessage, match=f"damaged manifest: ValueError: version {version} is not known"):
            read_manifest(spools[0])
    path.write_text("[]")
    with pytest.raises(BadMessage, match="damaged manifest"):
        read_manifest(spools[0])


def test_no_changed_byte_of_a_manifest_is_exported(spools: list[Path]) -> None:
    manifest, path = read_manifest(spools[0]), spools[0] / MANIFEST
    text = path.read_bytes()
    for place in range(0, len(text), 37):
        for byte in b'0a-"':
            path.write_bytes(text[:place] + bytes((byte,)) + text[place + 1 :])
            with suppress(BadMessage):
                assert read_manifest(spools[0]) == manifest, "the byte was the same"
