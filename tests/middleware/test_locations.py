# SPDX-License-Identifier: BSD-3-Clause
"""Locations and formatters of the files in the central repo."""

import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy
from lsst.daf.butler import Butler, Config, DataCoordinate, DatasetRef, DatasetType

from ppdaemon.middleware.butler.central import observed_databases
from ppdaemon.middleware.butler.datafiles import LocationCache

FORMATTERS = {name: f"lsst.daf.butler.formatters.{name}.{name.title()}Formatter" for name in ("json", "yaml")}


def put(butler: Butler, count: int) -> list[DatasetRef]:
    """Put as many datasets, each of its own type."""
    nowhere = DataCoordinate.make_empty(butler.dimensions)
    types = [DatasetType(f"notes{k}", butler.dimensions.empty, "StructuredDataDict") for k in range(count)]
    for each in types:
        butler.registry.registerDatasetType(each)
    return [butler.put({"number": k}, each, nowhere, run="run") for k, each in enumerate(types)]


def test_many_files_are_located_with_as_few_statements_as_one(tmp_path: Path) -> None:
    counts = []
    with Butler.from_config(Butler.makeRepo(str(tmp_path / "repo")), run="run") as butler:
        refs = put(butler, 30)
        for some in (refs[:1], refs):
            steps: list[None] = []
            with observed_databases(lambda steps=steps: steps.append(None)):  # type: ignore[misc]
                files, missing = LocationCache().locate(butler, some)
            assert {file.formatter for file in files.values()} == {FORMATTERS["yaml"]}
            assert (len(files), missing) == (len(some), frozenset())
            counts.append(len(steps))
    assert counts[0] == counts[1]


HIDE = """
import sys
sys.modules["lsst.daf.butler._rubin.datastore_records"] = None
from lsst.daf.butler import Butler
from ppdaemon.middleware.butler.datafiles import LocationCache
with Butler.from_config(sys.argv[1]) as butler:
    refs = butler.query_datasets("notes0", "run")
    print(*(file.formatter for file in LocationCache().locate(butler, refs)[0].values()))
"""


def test_files_are_located_without_what_is_not_public(tmp_path: Path) -> None:
    with Butler.from_config(Butler.makeRepo(str(tmp_path / "repo")), run="run") as butler:
        put(butler, 1)
    command = [sys.executable, "-c", HIDE, str(tmp_path / "repo")]
    located = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    assert located.stdout.split() == [FORMATTERS["yaml"]]


@pytest.mark.parametrize("first", ["json", "yaml"])
def test_of_several_datastores_the_formatter_is_that_of_the_file(tmp_path: Path, first: str) -> None:
    stores = "lsst.daf.butler.datastores"
    order = [first, *(name for name in FORMATTERS if name != first)]
    file_stores = [
        {
            "datastore": {
                "cls": f"{stores}.fileDatastore.FileDatastore",
                "root": f"<butlerRoot>/{name}",
                "records": {"table": f"records_{name}"},
                "formatters": {"StructuredDataDict": FORMATTERS[name]},
            }
        }
        for name in order
    ]
    in_memory = {"datastore": {"cls": f"{stores}.inMemoryDatastore.InMemoryDatastore"}}
    datastore = {
        "cls": f"{stores}.chainedDatastore.ChainedDatastore",
        "datastores": [*file_stores, in_memory],
    }
    config = Butler.makeRepo(str(tmp_path / "repo"), config=Config({"datastore": datastore}))
    with Butler.from_config(config, run="run") as butler:
        (ref,) = put(butler, 1)
        files, _ = LocationCache().locate(butler, [ref])
    assert files[ref.id].formatter == FORMATTERS[first]
    assert files[ref.id].uri.getExtension() == f".{first}"


def test_what_is_observed_ends_with_the_block(tmp_path: Path) -> None:
    steps: list[None] = []
    engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path}/file.sqlite3")
    with observed_databases(lambda: steps.append(None)), engine.connect() as connection:
        assert len(steps) == 1
        connection.execute(sqlalchemy.text("SELECT 1"))
    assert len(steps) >= 2
    known = len(steps)
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text("SELECT 1"))
    assert len(steps) == known
    engine.dispose()
