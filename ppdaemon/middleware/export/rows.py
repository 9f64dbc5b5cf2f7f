# SPDX-License-Identifier: BSD-3-Clause
"""Ingests files by inserting the rows of all of them at once.

`RowIngest` does what `lsst.daf.butler.Butler.ingest` does, with the same rows and the same names of files.
That looks at each file and each row for itself, which takes most of the time of an export; here each
formatter, template and data ID is looked at once. Only this module uses what is internal to the Butler: a
repo with a part that it does not know is left to the public method, as are all repos where this module
cannot be imported.
"""

import datetime
import errno
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from operator import attrgetter
from pathlib import Path
from typing import Any

import astropy.time
import sqlalchemy
from lsst.daf.butler import (
    Butler,
    DatasetId,
    DatasetRef,
    DatasetType,
    DimensionGroup,
    Formatter,
    FormatterV2,
)
from lsst.daf.butler.datastore.file_templates import FileTemplate
from lsst.daf.butler.datastore.stored_file_info import StoredFileInfo
from lsst.daf.butler.datastores.fileDatastore import FileDatastore
from lsst.daf.butler.direct_butler import DirectButler
from lsst.daf.butler.registry import CollectionSummary, ConflictingDefinitionError
from lsst.daf.butler.registry.interfaces import FakeDatasetRef
from lsst.daf.butler.time_utils import TimeConverter
from lsst.resources import ResourcePath
from lsst.utils.introspection import get_class_of

from ppdaemon.durable import sync
from ppdaemon.middleware.butler.datafiles import NewFile
from ppdaemon.middleware.export.syncing import sync_all

__all__ = ("RowIngest", "problem")

_KNOWN = {
    "ByDimensionsDatasetRecordStorageManagerUUID": (1, 2),
    "ByNameOpaqueTableStorageManager": (0,),
    "MonolithicDatastoreRegistryBridgeManager": (0,),
}
"""Classes of a registry whose tables get the rows, and the major versions of these tables."""
_PARTS = ("datasets", "opaque", "datastores")
_USED = attrgetter(
    "_datastore._table.insert",
    "_datastore._transaction",
    "_datastore.bridge.insert",
    "_datastore.locationFactory.fromPath",
    "_datastore.templates.getTemplate",
    "_registry._db._transaction",
    "_registry._db.insert",
    "_registry._managers.collections.find",
    "_registry._managers.collections.getCollectionForeignKeyName",
    "_registry._managers.datasets._find_storage",
    "_registry._managers.datasets._get_dynamic_tables",
    "_registry._managers.datasets._get_tags_table",
    "_registry._managers.datasets._run_key_column",
    "_registry._managers.datasets._static.dataset",
    "_registry._managers.datasets._summaries.update",
    "_registry._managers.datasets._use_astropy_ingest_date",
    "_registry.expand_data_ids",
)
"""What is used of a Butler."""

_ANY_TYPE = "ppdaemon_any_type"
"""Stands for the name of the dataset type in the name of a file."""
_TYPE_FIELDS = frozenset({"{datasetType}", "{datasetType:?}", "{datasetType:/}"})
"""Fields of templates that are replaced by the name of the dataset type as it is."""
_PLAIN = re.compile(r"[\w.+-]+/[\w./+:=-]*", re.ASCII)
"""Names that are the same in a path and in a URI."""
_MAX_FOLDERS = 20_000
"""Folders whose names are known to be on the disk: a visit makes one for each dataset type."""


def problem(butler: Butler) -> str:
    """Return why `RowIngest` must not be used for a repo, or a blank."""
    if type(butler) is not DirectButler:
        return f"{type(butler).__name__} has no database of its own"
    inner: Any = butler
    try:
        store, managers = inner._datastore, inner._registry._managers
        if type(store) is not FileDatastore or not store.root.isLocal:
            return f"{store} is not a FileDatastore in a filesystem"
        if store.constraints._accept or store.constraints._reject:
            return "the datastore does not accept all dataset types"
        if store.useChecksum:
            return "the datastore records checksums"
        if managers.obscore is not None:
            return "the registry has an ObsCore table"
        for part in (getattr(managers, name) for name in _PARTS):
            name, version = type(part).__name__, part.newSchemaVersion()
            if version is None or version.major not in _KNOWN.get(name, ()):
                return f"{name} {version} is not known"
        _USED(butler)
    except AttributeError as error:
        return f"this version of lsst.daf.butler is not known: {error}"
    return ""


class RowIngest:
    """Ingests files into a repo that has no `problem`."""

    def __init__(self, butler: Butler):
        inner: Any = butler
        self._registry = inner._registry
        self._managers = inner._registry._managers
        self._db = inner._registry._db
        self._store = inner._datastore
        self._root = str(self._store.root.ospath).rstrip("/")
        self._templates: dict[tuple[DatasetType, Any], tuple[FileTemplate, DatasetType | None]] = {}
        self._records: dict[tuple[str, str, str], dict[str, Any]] = {}
        self._synced: set[str] = set()
        """Folders of the datastore whose names are on the disk."""

    def ingest(self, files: Sequence[NewFile]) -> None:
        """Insert the rows of files, and rename these to where the datastore has them; in a transaction.

        Raises `~lsst.daf.butler.registry.ConflictingDefinitionError` if the run has another dataset of
        the same type and data ID. If the transaction fails, the files are moved back.
        """
        groups: dict[tuple[str, DimensionGroup], dict[DatasetId, DatasetRef]] = {}
        for file in files:
            for id_, ref in file.refs.items():
                groups.setdefault((ref.run, ref.datasetType.dimensions), {})[id_] = ref
        try:
            # Sorted: two transactions that insert the same datasets in different orders would deadlock.
            for key in sorted(groups, key=lambda key: (key[0], tuple(key[1].required))):
                self._insert_datasets(*key, groups[key])
            places = self._places(files)
            self._insert_files(files, [name for name, _ in places])
        except sqlalchemy.exc.IntegrityError as error:
            raise ConflictingDefinitionError(
                f"the repo has one of the datasets, or lacks records of their dimensions: {error}"
            ) from error
        self._move({file.path: target for file, (_, target) in zip(files, places, strict=True)})

    def _insert_datasets(
        self, run: str, dimensions: DimensionGroup, refs: Mapping[DatasetId, DatasetRef]
    ) -> None:
        """Insert the registry's rows of datasets of a run that have the same dimensions."""
        datasets, collection = self._managers.datasets, self._managers.collections.find(run)
        types = {ref.datasetType.name: ref for ref in refs.values()}
        type_ids = {name: datasets._find_storage(name).dataset_type_id for name in types}
        typed = [(id_, type_ids[ref.datasetType.name]) for id_, ref in refs.items()]
        # One value for all: to convert an `astropy.time.Time` takes longer than the rest of a row.
        if datasets._use_astropy_ingest_date:
            now = TimeConverter().astropy_to_nsec(astropy.time.Time.now())
            ingest_date = sqlalchemy.literal(now, sqlalchemy.BigInteger)
        else:
            ingest_date = sqlalchemy.literal(datetime.datetime.now(datetime.UTC))
        with self._db._transaction() as (_, connection):
            connection.execute(
                datasets._static.dataset.insert().values(ingest_date=ingest_date),
                [
                    {"id": id_, "dataset_type_id": type_id, datasets._run_key_column: collection.key}
                    for id_, type_id in typed
                ],
            )
        values = [ref.dataId.required_values for ref in refs.values()]
        summary = CollectionSummary()
        summary.add_datasets(types.values())
        for number, name in enumerate(dimensions.required):
            if name in dimensions.governors:
                summary.governors[name] = {str(each[number]) for each in values}
        datasets._summaries.update(collection, type_ids.values(), summary)
        run_column = self._managers.collections.getCollectionForeignKeyName()
        columns = ("dataset_id", "dataset_type_id", run_column, *dimensions.required)
        self._db.insert(
            datasets._get_tags_table(datasets._get_dynamic_tables(dimensions)),
            *(
                dict(zip(columns, (*each, collection.key, *ids), strict=True))
                for each, ids in zip(typed, values, strict=True)
            ),
        )

    def _insert_files(self, files: Sequence[NewFile], names: Sequence[str]) -> None:
        """Insert the datastore's rows of files with these names."""
        rows = []
        for file, name in zip(files, names, strict=True):
            for id_, ref in file.refs.items():
                record = self._record(file, ref.datasetType)
                rows.append(record | {"dataset_id": id_, "path": name, "file_size": file.size_bytes})
        self._store.bridge.insert([FakeDatasetRef(row["dataset_id"]) for row in rows])
        self._store._table.insert(*rows)

    def _record(self, file: NewFile, dataset_type: DatasetType) -> dict[str, Any]:
        """Return what the rows of files with the same formatter, extension and storage class have in common.

        Raises `ValueError` if the formatter does not read files with the extension.
        """
        kind, extension = dataset_type.storageClass_name, _extension(os.path.basename(file.path))
        key = file.formatter, extension, kind
        if key not in self._records:
            formatter = get_class_of(file.formatter)
            if not issubclass(formatter, Formatter | FormatterV2):
                raise TypeError(f"{file.formatter} is no formatter")
            formatter.validate_extension(self._store.locationFactory.fromPath(f"file{extension}"))
            self._records[key] = StoredFileInfo(
                formatter, "", None, None, None, -1, storage_class_name=kind
            ).to_record()
        return self._records[key]

    def _places(self, files: Sequence[NewFile]) -> list[tuple[str, str]]:
        """Return the names of files in the datastore, and their paths."""
        firsts = [next(iter(file.refs.values())) for file in files]
        # By identity: hashes of data IDs and dataset types are slow, and few are different objects.
        ids = {id(ref.dataId): ref.dataId for ref in firsts}
        instruments = {key: data_id.get("instrument") for key, data_id in ids.items()}
        # Names have values of dimension records, such as those of the exposure.
        ids = dict(zip(ids, self._registry.expand_data_ids(list(ids.values())), strict=True))
        templates: dict[tuple[int, Any], tuple[FileTemplate, DatasetType | None]] = {}
        stems: dict[tuple[str, str, int], str] = {}
        places = []
        for file, ref in zip(files, firsts, strict=True):
            number, kind = id(ref.dataId), ref.datasetType
            data_id = ids[number]
            template_key = id(kind), instruments[number]
            if template_key not in templates:
                templates[template_key] = self._template(ref)
            template, any_type = templates[template_key]
            key = template.template, ref.run, number
            if any_type is None:
                stem = template.format(ref.expanded(data_id))
            else:
                if key not in stems:
                    any_ref = DatasetRef(any_type, data_id, ref.run, id=ref.id, conform=False)
                    stems[key] = template.format(any_ref)
                stem = stems[key].replace(_ANY_TYPE, kind.name)
            extension = _extension(os.path.basename(file.path))
            if _PLAIN.fullmatch(stem):
                name = f"{stem}{extension}"
                places.append((name, f"{self._root}/{name}"))
            else:
                location = self._store.locationFactory.fromPath(stem, trusted_path=True)
                location.updateExtension(extension)
                places.append((location.pathInStore.path, location.uri.ospath))
        return places

    def _template(self, ref: DatasetRef) -> tuple[FileTemplate, DatasetType | None]:
        """Return the template of a file's name and, if the name differs from those of other dataset types
        by the name of the type only, a type that stands for all.
        """
        kind = ref.datasetType
        key = kind, ref.dataId.get("instrument")
        if key not in self._templates:
            template = self._store.templates.getTemplate(ref)
            fields = re.findall(r"\{(?:datasetType|id)\b[^}]*\}", template.template)
            any_type = DatasetType(_ANY_TYPE, kind.dimensions, kind.storageClass)
            self._templates[key] = template, any_type if _TYPE_FIELDS.issuperset(fields) else None
        return self._templates[key]

    def _move(self, targets: Mapping[str, str]) -> None:
        """Rename files, and sync the folders with new names."""
        leaves = {os.path.dirname(target) for target in targets.values()}
        new = {folder for leaf in leaves for folder in self._unsynced(leaf)}
        for leaf in leaves:
            os.makedirs(leaf, exist_ok=True)
        for path, target in targets.items():
            _rename(path, target)
            self._store._transaction.registerUndo("move", _rename, target, path)
        sync_all(map(Path, leaves.union(map(os.path.dirname, new))))
        if len(self._synced) > _MAX_FOLDERS:
            self._synced.clear()
        self._synced |= new

    def _unsynced(self, folder: str) -> Iterator[str]:
        """Yield the folders, from this one upwards, whose names may not be on the disk."""
        while len(folder) > len(self._root) and not (folder in self._synced and os.path.isdir(folder)):
            yield folder
            folder = os.path.dirname(folder)


def _rename(path: str, target: str) -> None:
    try:
        os.rename(path, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        # A folder of the datastore may be a link to another filesystem.
        shutil.move(path, target)
        sync(Path(target))


def _extension(name: str) -> str:
    """Return the extension of a file's name as the Butler has it, such as ``.fits.gz``."""
    return _full_extension(name[name.find(".") :] if "." in name else "")


@lru_cache(1000)
def _full_extension(suffixes: str) -> str:
    return str(ResourcePath(Path(f"/file{suffixes}").as_uri()).getExtension())
