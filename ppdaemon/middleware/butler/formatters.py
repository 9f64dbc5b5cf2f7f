# SPDX-License-Identifier: BSD-3-Clause
"""Reads and writes the files of datasets as a datastore does it, but without its database."""

import functools
import json
import os
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from astropy.table import Table
from lsst.daf.butler import (
    Config,
    DatasetProvenance,
    DatasetRef,
    DatasetType,
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
from lsst.resources import ResourcePath
from lsst.utils.introspection import get_full_type_name

from ppdaemon.middleware.butler.datafiles import LocatedFile

__all__ = ("FileWriter", "UnknownDatastore", "read_dataset")

_FILE_DATASTORE = "lsst.daf.butler.datastores.fileDatastore.FileDatastore"
_OTHER_WAYS = ("write", "write_direct", "write_locally_then_move")
"""Methods of a formatter that replace the way in which a file is written."""


class UnknownDatastore(Exception):
    """A repo's datastore is not one that has each dataset in one file."""


def read_dataset(file: LocatedFile, ref: DatasetRef, parameters: Mapping[str, Any] | None = None) -> Any:
    """Read a dataset, or the component or storage class that `ref` names, from a file.

    `OSError` is raised if the file cannot be read, `ValueError` if its
    formatter cannot.
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
        [(Location(None, file.uri), info)],
        registry_ref=stored_ref,
        read_ref=ref,
        parameters=parameters,
    )
    return get_dataset_as_python_object_from_get_info(
        information, ref=ref, parameters=parameters, cache_manager=DatastoreDisabledCacheManager()
    )


class FileWriter:
    """Writes each dataset into one file, with the formatters of a repo.

    `UnknownDatastore` is raised for a repo with another kind of datastore.
    """

    def __init__(self, config: Config, universe: DimensionUniverse):
        datastore = config["datastore"]
        if datastore["cls"] != _FILE_DATASTORE:
            raise UnknownDatastore(f"a local repo with a {datastore['cls']}")
        self.universe = universe
        self._formatters = _formatters(json.dumps(datastore["formatters"].toDict(), sort_keys=True), universe)
        self._found: dict[
            tuple[DatasetType, Any], tuple[type[Formatter | FormatterV2], Mapping[str, Any]]
        ] = {}
        """Classes of formatters and their parameters, by dataset type and instrument."""

    def write(
        self, content: object, ref: DatasetRef, folder: Path, provenance: DatasetProvenance | None = None
    ) -> LocatedFile:
        """Write a dataset into a file in a folder that is named after the dataset's id.

        An object that the formatter does not accept is converted to the
        storage class of `ref`, which must have dimension records; `TypeError`
        is raised if that is impossible, `RuntimeError` if the formatter fails.
        """
        location, formatter = self.formatter(ref, folder)
        if not formatter.can_accept(content):
            content = ref.datasetType.storageClass.coerce_type(content)
        if isinstance(content, Table):
            content = content.copy(copy_data=False)  # the formatter puts provenance into its meta
        try:
            _write_file(_as_formatter_v2(formatter, ref), content, location.uri, provenance)
        except Exception as error:  # formatters may raise anything; the error and text of FileDatastore
            raise RuntimeError(
                f"Failed to serialize dataset {ref} of type {get_full_type_name(content)} "
                f"using formatter {formatter.name()}."
            ) from error
        return LocatedFile(Path(location.uri.ospath), formatter.name(), (ref,))

    def formatter(self, ref: DatasetRef, folder: Path) -> tuple[Location, Formatter | FormatterV2]:
        """Return the formatter of a dataset, and where it writes in a folder."""
        location = Location(_root_of(folder), str(ref.id), trusted_path=True)
        descriptor = FileDescriptor(location, storageClass=ref.datasetType.storageClass)
        kind, parameters = self._find(ref)
        formatter = kind(descriptor, **{**parameters, "dataId": ref.dataId, "ref": ref})
        return formatter.make_updated_location(location), formatter

    def formatter_class(self, ref: DatasetRef) -> type[Formatter | FormatterV2]:
        """Return the class of a dataset's formatter."""
        return self._find(ref)[0]

    def _find(self, ref: DatasetRef) -> tuple[type[Formatter | FormatterV2], Mapping[str, Any]]:
        key = ref.datasetType, ref.dataId.get("instrument")
        if key not in self._found:
            _, kind, parameters = self._formatters.getFormatterClassWithMatch(ref)
            self._found[key] = kind, parameters
        return self._found[key]


@functools.lru_cache(8)  # workers have that of the zygote, whose configuration is the same, as a rule
def _formatters(config: str, universe: DimensionUniverse) -> FormatterFactory:
    """Return what finds the formatters of a configuration in JSON."""
    factory = FormatterFactory()
    factory.registerFormatters(Config.fromString(config, format="json"), universe=universe)
    return factory


@functools.lru_cache(8)
def _root_of(folder: Path) -> ResourcePath:
    return ResourcePath(folder.as_uri(), forceDirectory=True)


def _write_file(
    formatter: FormatterV2, content: object, uri: ResourcePath, provenance: DatasetProvenance | None
) -> None:
    """Write a file as `lsst.daf.butler.FormatterV2.write` does, unless a formatter has another way.

    Its checks for a move, which may be that of a remote file, take several times as long as a small file.
    """
    if any(getattr(type(formatter), name) is not getattr(FormatterV2, name) for name in _OTHER_WAYS):
        formatter.write(content, cache_manager=DatastoreDisabledCacheManager(), provenance=provenance)
        return
    content = formatter.add_provenance(content, provenance=provenance)
    # With a name of its own: two threads may write the same dataset at the same moment.
    unfinished = uri.updatedFile(f"{uuid.uuid4()}-{uri.basename()}")
    try:
        formatter.write_local_file(content, unfinished)
        os.replace(unfinished.ospath, uri.ospath)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(unfinished.ospath)
        raise


def _as_formatter_v2(formatter: Formatter | FormatterV2, ref: DatasetRef) -> FormatterV2:
    if isinstance(formatter, FormatterV2):
        return formatter
    return FormatterV1inV2(
        formatter.file_descriptor,
        ref=ref,
        formatter=formatter,
        write_parameters=formatter.write_parameters,
        write_recipes=formatter.write_recipes,
    )
