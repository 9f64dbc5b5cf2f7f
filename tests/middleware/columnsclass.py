# SPDX-License-Identifier: BSD-3-Clause
"""A storage class of dictionaries that pickle returns unchanged, for tests of objects in memory."""

from pathlib import Path

import pytest
from lsst.daf.butler import StorageClass, StorageClassFactory

_NAME = "Columns"
_CONFIGURATION = f"""
datastore:
  formatters:
    {_NAME}: lsst.daf.butler.formatters.pickle.PickleFormatter
"""


@pytest.fixture
def columns_class(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Add the storage class and its formatter to the configuration of all repos."""
    StorageClassFactory().registerStorageClass(StorageClass(_NAME, pytype=dict))
    folder = tmp_path_factory.mktemp("columns")
    file = Path(folder, "datastores", "fileDatastore.yaml")
    file.parent.mkdir()
    file.write_text(_CONFIGURATION)
    monkeypatch.setenv("DAF_BUTLER_CONFIG_PATH", str(folder))
