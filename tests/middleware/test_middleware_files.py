# SPDX-License-Identifier: BSD-3-Clause
"""Files of datasets are written as a datastore writes them, by several threads and after failures, too."""

import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from lsst.daf.butler import (
    ButlerConfig,
    DataCoordinate,
    DatasetRef,
    DatasetType,
    DimensionUniverse,
    Formatter,
)
from lsst.daf.butler.datastore.cache_manager import AbstractDatastoreCacheManager
from lsst.daf.butler.formatters.json import JsonFormatter
from lsst.daf.butler.formatters.yaml import YamlFormatter
from lsst.resources import ResourcePath

from ppdaemon.middleware.butler.formatters import FileWriter, read_dataset
from ppdaemon.middleware.direct.files import DatasetWriter
from ppdaemon.testing.waiting import wait_until

UNIVERSE = DimensionUniverse()
STORAGE = "StructuredDataDict"
CONTENT = {"a": 1}
TOGETHER = threading.Barrier(2)
"""Threads that have written half of a file."""


class MeetingFormatter(YamlFormatter):
    """Writes half of a file, and waits until another thread is there."""

    def write_local_file(self, in_memory_dataset: Any, uri: ResourcePath) -> None:
        """Write a file in two halves."""
        content = self.to_bytes(in_memory_dataset)
        with Path(uri.ospath).open("wb") as stream:
            stream.write(content[:3])
            stream.flush()
            TOGETHER.wait(30)
            stream.write(content[3:])


class HalfFormatter(YamlFormatter):
    """Fails in the middle of a file."""

    def write_local_file(self, in_memory_dataset: Any, uri: ResourcePath) -> None:
        """Write half of a file."""
        Path(uri.ospath).write_bytes(b"half")
        raise ValueError("no more")


class OwnWayFormatter(YamlFormatter):
    """Writes the file in its own way."""

    def write_locally_then_move(
        self,
        in_memory_dataset: Any,
        uri: ResourcePath,
        cache_manager: AbstractDatastoreCacheManager | None = None,
    ) -> None:
        """Write another content."""
        uri.write(b"own: way\n")


class OwnWriteFormatter(YamlFormatter):
    """Replaces all of writing."""

    def write(self, in_memory_dataset: Any, /, **_: Any) -> None:
        """Write another content."""
        self.file_descriptor.location.uri.updatedExtension(self.get_write_extension()).write(b"own: way\n")


class OldFormatter(Formatter):
    """As those of earlier versions of the Butler, which know only their own location."""

    extension = ".old.gz"

    def read(self, component: str | None = None) -> Any:
        """Return the text."""
        return {"text": Path(self.fileDescriptor.location.path).read_text()}

    def write(self, inMemoryDataset: Any) -> None:  # noqa: N803
        """Write the text."""
        Path(self.fileDescriptor.location.path).write_text(inMemoryDataset["text"])


def make_writer(formatter: type | None = None, key: str = STORAGE) -> DatasetWriter:
    config = ButlerConfig()
    if formatter is not None:
        config["datastore", "formatters", key] = f"{formatter.__module__}.{formatter.__qualname__}"
    return DatasetWriter(config, UNIVERSE)


def make_ref(instrument: str = "", name: str = "one") -> DatasetRef:
    dimensions = UNIVERSE.conform(["instrument"] if instrument else [])
    values = {"instrument": instrument} if instrument else {}
    data_id = DataCoordinate.standardize(values, dimensions=dimensions)
    return DatasetRef(DatasetType(name, dimensions, STORAGE), data_id, run="run")


def names(folder: Path) -> Iterable[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("folder", ["plain", "per%7Ecent"])
def test_one_file_with_the_name_of_the_dataset_is_written(tmp_path: Path, folder: str) -> None:
    ref, parent = make_ref(), tmp_path / folder
    parent.mkdir()
    file = make_writer().write(CONTENT, ref, parent)
    assert names(parent) == [f"{ref.id}.yaml"] == [file.path.name]
    assert read_dataset(file, ref) == CONTENT


def test_two_threads_that_write_the_same_dataset_write_a_whole_file(tmp_path: Path) -> None:
    ref, writer = make_ref(), make_writer(MeetingFormatter)
    with ThreadPoolExecutor(2) as threads:
        files = list(threads.map(lambda _: writer.write(CONTENT, ref, tmp_path), range(2)))
    assert names(tmp_path) == [f"{ref.id}.yaml"]
    assert [read_dataset(file, ref) for file in files] == [CONTENT] * 2


def test_a_file_is_whole_while_it_is_written_again(tmp_path: Path) -> None:
    ref = make_ref()
    file = make_writer().write(CONTENT, ref, tmp_path)
    with ThreadPoolExecutor(1) as threads:
        again = threads.submit(make_writer(MeetingFormatter).write, CONTENT, ref, tmp_path)
        wait_until(lambda: TOGETHER.n_waiting == 1)
        assert read_dataset(file, ref) == CONTENT
        TOGETHER.wait(30)
        again.result(30)
    assert read_dataset(file, ref) == CONTENT


def test_nothing_is_left_of_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"dataset one.*HalfFormatter"):
        make_writer(HalfFormatter).write(CONTENT, make_ref(), tmp_path)
    assert names(tmp_path) == []


def test_a_file_that_exists_is_replaced(tmp_path: Path) -> None:
    ref, writer = make_ref(), make_writer()
    writer.write({"a": 0}, ref, tmp_path)
    assert read_dataset(writer.write(CONTENT, ref, tmp_path), ref) == CONTENT


@pytest.mark.parametrize("formatter", [OwnWayFormatter, OwnWriteFormatter])
def test_a_formatter_with_its_own_way_of_writing_is_used(tmp_path: Path, formatter: type) -> None:
    file = make_writer(formatter).write(CONTENT, make_ref(), tmp_path)
    assert file.path.read_text() == "own: way\n"


def test_a_formatter_of_an_earlier_kind_is_used(tmp_path: Path) -> None:
    ref = make_ref()
    file = make_writer(OldFormatter).write({"text": "abc"}, ref, tmp_path)
    assert names(tmp_path) == [f"{ref.id}.old.gz"]
    assert file.path.read_text() == "abc"


@pytest.mark.parametrize("make", [FileWriter, DatasetWriter])
def test_an_instrument_may_have_its_own_formatter(make: type[FileWriter]) -> None:
    config = ButlerConfig()
    json_formatter = f"{JsonFormatter.__module__}.{JsonFormatter.__qualname__}"
    config["datastore", "formatters", "instrument<Other>"] = {STORAGE: json_formatter}
    writer = make(config, UNIVERSE)
    for _ in range(2):
        assert writer.formatter_class(make_ref("DemoCam")) is YamlFormatter
        assert writer.formatter_class(make_ref("Other")) is JsonFormatter
        assert isinstance(writer.formatter(make_ref("Other"), Path("/"))[1], JsonFormatter)
