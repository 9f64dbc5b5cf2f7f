# SPDX-License-Identifier: BSD-3-Clause
"""SQLite gives the key of what is removed to what is registered next: an exporter must not mistake it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from centrals import CHAIN, ON_SQLITE, Central
from lsst.daf.butler import Butler, DatasetRef, DatasetType

from ppdaemon.clock import Clock
from ppdaemon.middleware.export.exporter import CentralExporter

pytest_plugins = ("toyfixtures", "dbfixtures")

OTHER = "u/person"


@pytest.fixture
def exporter(central: Central, tmp_path: Path, spools: list[Path]) -> Iterator[CentralExporter]:
    """Yield an exporter that has the repo open, after an export into it."""
    exporter = CentralExporter(str(central.root), Clock(), "node1", tmp_path / "refused")
    exporter.export(spools[:1])
    yield exporter
    exporter.close()


@ON_SQLITE
def test_no_output_is_stored_in_a_run_that_has_the_key_of_a_removed_one(
    exporter: CentralExporter, central: Central, spools: list[Path]
) -> None:
    with Butler.from_config(str(central.root), writeable=True) as butler:
        # The last one has no init-outputs: before those are exported, their runs are looked up by name.
        run = butler.collections.get_info(CHAIN).children[-1]
        butler.collections.x_remove(CHAIN)
        butler.removeRuns([run])
        butler.collections.register(OTHER)
    exporter.export(spools[2:])
    found = {ref.run for ref in exported(central)}
    assert run in found
    assert OTHER not in found


@ON_SQLITE
def test_no_output_is_stored_as_a_type_that_has_the_key_of_a_removed_one(
    exporter: CentralExporter, central: Central, spools: list[Path]
) -> None:
    with Butler.from_config(str(central.root), writeable=True) as butler:
        for each in remove_types(butler, central):
            other = DatasetType(f"other_{each.name}", each.dimensions, each.storageClass_name)
            butler.registry.registerDatasetType(other)
    exporter.export(spools[2:])
    found = {ref.datasetType.name for ref in exported(central)}
    assert "toy_image" in found
    assert not any(name.startswith("other_") for name in found)


@ON_SQLITE
def test_after_an_error_no_output_is_stored_by_the_former_key_of_a_type_that_was_made_anew(
    exporter: CentralExporter, central: Central, spools: list[Path]
) -> None:
    with Butler.from_config(str(central.root), writeable=True) as butler:
        for each in reversed(remove_types(butler, central)):  # each gets the key of another one
            butler.registry.registerDatasetType(each)
    exporter._registrar.forget()
    exporter.export(spools[2:])
    with Butler.from_config(str(central.root)) as butler:
        found = exported(central)
        assert {ref.datasetType.name for ref in found} >= {"toy_image"}
        for ref in found:
            assert f"/{ref.datasetType.name}/" in butler.getURI(ref).path


def remove_types(butler: Butler, central: Central) -> list[DatasetType]:
    """Remove all outputs and their types; return these in the order of their names."""
    before = exported(central)
    butler.pruneDatasets(before, disassociate=True, unstore=True, purge=True)
    removed = sorted({ref.datasetType for ref in before})
    for each in removed:
        butler.registry.removeDatasetType(each.name)
    return removed


def exported(central: Central) -> list[DatasetRef]:
    with Butler.from_config(str(central.root)) as butler:
        runs = [run for run in butler.collections.query("*") if run == OTHER or "/prompt/" in run]
        return butler.query_all_datasets(runs, find_first=False)
