# SPDX-License-Identifier: BSD-3-Clause
"""Storage classes of dictionaries for tests: one that pickle returns unchanged, one that may fail."""

import errno
import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
from lsst.daf.butler import FormatterV2, StorageClassFactory
from lsst.daf.butler.formatters.logs import ButlerLogRecordsFormatter
from lsst.daf.butler.logging import ButlerLogRecords
from lsst.resources import ResourcePath


class FragileFormatter(FormatterV2):
    """Fails in the middle of a file of a dictionary that orders it to."""

    default_extension: ClassVar[str] = ".json"
    can_read_from_local_file: ClassVar[bool] = True

    def read_from_local_file(self, path: str, component: str | None = None, expected_size: int = -1) -> Any:
        return json.loads(Path(path).read_text())

    def write_local_file(self, in_memory_dataset: Any, uri: ResourcePath) -> None:
        Path(uri.ospath).write_bytes(b"the first half")
        match in_memory_dataset.get("how"):
            case "broken":
                raise ValueError("no such compression")
            case "full":
                raise OSError(errno.ENOSPC, "No space left on device")
            case "too large" if "ram" in Path(uri.ospath).resolve().parts:
                raise OSError(errno.ENOSPC, "No space left on the RAM disk")
        Path(uri.ospath).write_text(json.dumps(in_memory_dataset))


class FragileLogFormatter(ButlerLogRecordsFormatter):
    """Fails for a log that orders it to."""

    def to_bytes(self, in_memory_dataset: ButlerLogRecords) -> bytes:
        if any(record.message == "no log" for record in in_memory_dataset):
            raise ValueError("not this one")
        return super().to_bytes(in_memory_dataset)


def _register(
    name: str, formatter: str, folder: Path, monkeypatch: pytest.MonkeyPatch, others: str = ""
) -> None:
    """Add a storage class and its formatter to the configuration of all repos, also in other processes."""
    definition = folder / "storageClasses.yaml"
    definition.write_text(f"storageClasses:\n  {name}:\n    pytype: dict\n")
    StorageClassFactory().addFromConfig(str(definition))
    (folder / "datastores").mkdir()
    formatters = f"datastore:\n  formatters:\n    {name}: {formatter}\n{others}"
    (folder / "datastores" / "fileDatastore.yaml").write_text(formatters)
    monkeypatch.setenv("DAF_BUTLER_CONFIG_PATH", str(folder))


@pytest.fixture
def columns_class(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Add the storage class ``Columns``."""
    formatter = "lsst.daf.butler.formatters.pickle.PickleFormatter"
    _register("Columns", formatter, tmp_path_factory.mktemp("columns"), monkeypatch)


@pytest.fixture
def fragile_class(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Add the storage class ``Fragile``, and let logs fail, too."""
    formatter, logs = f"{__name__}.FragileFormatter", f"{__name__}.FragileLogFormatter"
    others = f"    ButlerLogRecords: {logs}\n"
    _register("Fragile", formatter, tmp_path_factory.mktemp("fragile"), monkeypatch, others)
