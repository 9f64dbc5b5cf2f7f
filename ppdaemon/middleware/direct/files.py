# SPDX-License-Identifier: BSD-3-Clause
"""Datasets that tasks have put, in memory or in files.

Files are read and written as a datastore does it, but without its database.
"""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from astropy.table import Table
from lsst.daf.butler import (
    ButlerConfig,
    DatasetProvenance,
    DatasetRef,
    DimensionUniverse,
    FileDescriptor,
    Formatter,
    FormatterFactory,
    FormatterV1inV2,
    FormatterV2,
    Location,
)
from lsst.daf.butler.datastore.cache_manager import DatastoreDisabledCacheManager
from lsst.daf.butler.datastore.stored_file_info import StoredFileInfo
from lsst.daf.butler.datastores.file_datastore.get import (
    generate_datastore_get_information,
    get_dataset_as_python_object_from_get_info,
)

from ppdaemon.middleware.butler.datafiles import LocatedFile
from ppdaemon.middleware.run.engine import Unsupported

__all__ = ("DatasetWriter", "MemoryDataset", "TransferredDataset", "read_dataset")

_FILE_DATASTORE = "lsst.daf.butler.datastores.fileDatastore.FileDatastore"


@dataclass(slots=True)
class MemoryDataset:
    """A dataset that a task has put."""

    ref: DatasetRef
    """As the repo defines it."""
    content: Any = None
    file: LocatedFile | None = None
    """Where it is written."""
    in_memory: bool = True
    shared: bool = False
    """Whether anybody else may have the object, or a part of it."""
    provenance: DatasetProvenance | None = None
    size_bytes: int = 0
    to_export: bool = False
    """Whether it is to be written for export."""

    @property
    def unwritten(self) -> bool:
        """Whether it is still to be written (`bool`)."""
        return self.to_export and self.file is None

    def drop(self) -> None:
        """Forget the object."""
        self.content, self.in_memory = None, False


@dataclass(frozen=True, slots=True)
class TransferredDataset:
    """A dataset on its way from one process to another."""

    id: uuid.UUID
    content: Any = None
    file: tuple[Path, str] | None = None
    """Where it is instead, and the class that reads it."""
    provenance: DatasetProvenance | None = None
    size_bytes: int = 0


def read_dataset(file: LocatedFile, ref: DatasetRef, parameters: Mapping[str, Any] | None = None) -> Any:
    """Read a dataset, or a component of it.

    Parameters
    ----------
    file : `~ppdaemon.middleware.butler.datafiles.LocatedFile`
        The file, of one dataset as the repo defines it, without component.
    ref : `lsst.daf.butler.DatasetRef`
        What is asked for: a component, or another storage class.
    parameters : `~collections.abc.Mapping`, optional
        What the storage class offers to read less.

    Returns
    -------
    content : `object`
        Of the type of the reference's storage class.

    Raises
    ------
    OSError
        Raised if the file cannot be read.
    ValueError
        Raised if the formatter cannot read it.
    """
    (stored_ref,) = file.refs
    info = StoredFileInfo(
        formatter=file.formatter,
        path=str(file.path),
        storageClass=stored_ref.datasetType.storageClass,
        component=None,
        checksum=None,
        file_size=-1,
    )
    information = generate_datastore_get_information(
        [(Location(None, file.path.as_uri()), info)],
        registry_ref=stored_ref,
        read_ref=ref,
        parameters=parameters,
    )
    return get_dataset_as_python_object_from_get_info(
        information, ref=ref, parameters=parameters, cache_manager=DatastoreDisabledCacheManager()
    )


class DatasetWriter:
    """Writes datasets into single files, with the formatters of a repo.

    Parameters
    ----------
    config : `lsst.daf.butler.ButlerConfig`
        The repo's configuration.
    universe : `lsst.daf.butler.DimensionUniverse`
        Dimensions of the repo.

    Raises
    ------
    Unsupported
        Raised if the repo does not keep each dataset in one file.
    """

    def __init__(self, config: ButlerConfig, universe: DimensionUniverse):
        datastore = config["datastore"]
        if datastore["cls"] != _FILE_DATASTORE:
            raise Unsupported(f"a local repo with a {datastore['cls']}")
        self._formatters = FormatterFactory()
        self._formatters.registerFormatters(datastore["formatters"], universe=universe)

    def write(
        self, content: object, ref: DatasetRef, folder: Path, provenance: DatasetProvenance | None = None
    ) -> LocatedFile:
        """Write a dataset.

        Parameters
        ----------
        content : `object`
            The dataset; converted to the storage class of `ref` where the
            formatter does not take it as it is.
        ref : `lsst.daf.butler.DatasetRef`
            As the repo defines it, with dimension records.
        folder : `pathlib.Path`
            Where the file goes; it is named after the dataset's id.
        provenance : `lsst.daf.butler.DatasetProvenance`, optional
            What the file is to tell of its making.

        Returns
        -------
        file : `~ppdaemon.middleware.butler.datafiles.LocatedFile`
            The file.

        Raises
        ------
        TypeError
            Raised if it is of a type that cannot be converted.
        Exception
            Raised by formatters.
        """
        location, formatter = self._formatter(ref, folder)
        if not formatter.can_accept(content):
            content = ref.datasetType.storageClass.coerce_type(content)
        if isinstance(content, Table):
            content = content.copy(copy_data=False)  # the formatter puts provenance into its meta
        _as_formatter_v2(formatter, ref).write(
            content, cache_manager=DatastoreDisabledCacheManager(), provenance=provenance
        )
        return LocatedFile(Path(location.uri.ospath), formatter.name(), (ref,))

    def accepts(self, content: object, ref: DatasetRef) -> bool:
        """Tell whether a formatter takes a dataset as it is.

        Parameters
        ----------
        content : `object`
            The dataset.
        ref : `lsst.daf.butler.DatasetRef`
            As for `write`.

        Returns
        -------
        accepts : `bool`
            Whether it need not be converted.
        """
        return bool(self._formatter(ref, Path("/"))[1].can_accept(content))

    def _formatter(self, ref: DatasetRef, folder: Path) -> tuple[Location, Formatter | FormatterV2]:
        location = Location(folder.as_uri(), str(ref.id), trusted_path=True)
        descriptor = FileDescriptor(location, storageClass=ref.datasetType.storageClass)
        formatter = self._formatters.getFormatter(ref, descriptor, dataId=ref.dataId, ref=ref)
        return formatter.make_updated_location(location), formatter


def _as_formatter_v2(formatter: Formatter | FormatterV2, ref: DatasetRef) -> FormatterV2:
    """Return a formatter as one of the present kind."""
    if isinstance(formatter, FormatterV2):
        return formatter
    return FormatterV1inV2(
        formatter.file_descriptor,
        ref=ref,
        formatter=formatter,
        write_parameters=formatter.write_parameters,
        write_recipes=formatter.write_recipes,
    )
