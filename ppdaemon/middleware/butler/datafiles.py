# SPDX-License-Identifier: BSD-3-Clause
"""Files of datasets: location, formatter and size."""

import logging
import os
import shutil
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from lsst.daf.butler import Butler, DatasetId, DatasetRef, FileDataset
from lsst.daf.butler.datastore import DatasetRefURIs
from lsst.resources import ResourcePath

from ppdaemon.middleware.butler.failures import describe, is_link_refusal

try:
    from lsst.daf.butler._rubin.datastore_records import export_datastore_records_table
except ImportError:  # not public: a weekly release may move it
    export_datastore_records_table = None  # type: ignore[assignment]

__all__ = (
    "DataFile",
    "LocationCache",
    "LocatedFile",
    "copied",
    "extension_of",
    "file_dataset",
    "ingest_shared",
    "link_or_copy",
    "located",
    "without_member",
)

_LOG = logging.getLogger(__name__)
_LIMIT = 20_000
"""Cached locations; each takes about 1 kB."""


class _Stop(Exception):
    """Leaves an export before it is written."""


def describe_files(butler: Butler, refs: Iterable[DatasetRef]) -> list[FileDataset]:
    """Return paths (absolute, or relative to the datastore's root) and formatters of stored datasets.

    Each dataset must be in one file, which may hold several.
    """
    files: list[FileDataset] = []

    def collect(file: FileDataset) -> FileDataset:
        files.append(file)
        return file

    # `Butler.export` is the public way to the formatter that a dataset was
    # written with; the repo's configuration does not have it. It is left before
    # its end: composing the YAML text, which is not needed, queries the
    # collections of each dataset and takes ten times as long.
    with suppress(_Stop), butler.export(filename=os.devnull, format="yaml") as export:
        export.saveDatasets(refs, elements=(), rewrite=collect)
        raise _Stop
    return files


@dataclass(frozen=True, slots=True)
class LocatedFile:
    """A local file of the worker and the datasets in it."""

    path: Path
    formatter: str
    """Name of the class that reads it."""
    refs: tuple[DatasetRef, ...]
    plain: bool = False
    """Whether images in it are not compressed yet."""
    member: str = ""
    """If the file is an archive: the fragment of a URI that names the dataset in it."""

    @property
    def uri(self) -> ResourcePath:
        """The file, or the member of it (`lsst.resources.ResourcePath`)."""
        # As a URI: a name with "#" or "%" would be misread as a plain path.
        return ResourcePath(self.path.as_uri()).replace(fragment=self.member)


def located(butler: Butler, refs: Sequence[DatasetRef]) -> list[LocatedFile]:
    """Return the files of datasets of the worker's repo, where each dataset is one file."""
    uris = {ref.id: uri.primaryURI for ref, uri in butler.get_many_uris(refs).items()}
    files = []
    for file in describe_files(butler, refs):
        uri = uris[file.refs[0].id]
        assert uri is not None  # not a dataset of several files
        files.append(LocatedFile(Path(uri.ospath), str(file.formatter), tuple(file.refs)))
    return files


def copied(files: Iterable[LocatedFile], folder: Path) -> list[LocatedFile]:
    """Copy files into a folder, named after the first dataset's id."""
    copies = []
    for file in files:
        # As texts: the operations of `Path` take as long as to copy a small file.
        path = str(file.path)
        copy = f"{folder}/{file.refs[0].id}{extension_of(os.path.basename(path))}"
        shutil.copyfile(path, copy)
        copies.append(LocatedFile(Path(copy), file.formatter, file.refs))
    return copies


def extension_of(name: str) -> str:
    """Return the extension of a file's name as the Butler has it, such as ``.fits.gz``."""
    return _full_extension(name[name.find(".") :] if "." in name else "")


@lru_cache(1000)
def _full_extension(suffixes: str) -> str:
    return str(ResourcePath(Path(f"/file{suffixes}").as_uri()).getExtension())


def file_dataset(path: Path, refs: list[DatasetRef], formatter: Any, member: str = "") -> FileDataset:
    """Return a local file, or its `member`, in the form for `lsst.daf.butler.Butler.ingest`."""
    # As a URI: a name with "#" or "%" would be misread as a plain path.
    uri = ResourcePath(path.as_uri()).replace(fragment=member)
    return FileDataset(path=uri, refs=refs, formatter=formatter)


def link_or_copy(path: Path, target: Path) -> None:
    """Hard-link a file to a new name, or copy it where links cannot be made."""
    try:
        os.link(path, target)
    except OSError as error:
        if not is_link_refusal(error):
            raise
        shutil.copyfile(path, target)


def ingest_shared(butler: Butler, files: Iterable[LocatedFile]) -> None:
    """Ingest read-only files by hard link, or by copy where links cannot be made."""
    datasets = [file_dataset(file.path, list(file.refs), file.formatter) for file in files]
    try:
        butler.ingest(*datasets, transfer="hardlink")
    except OSError as error:
        if not is_link_refusal(error):
            raise
        _LOG.warning(
            "files cannot be hard-linked into the repo, they are copied and take more space: %s",
            describe(error),
        )
        butler.ingest(*datasets, transfer="copy")


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file in the central datastore."""

    uri: ResourcePath
    formatter: Any
    """Class that reads it, or the class's name."""
    size_bytes: int | None
    """`None` if only a network request could get it."""
    member: str = ""
    """If the file is an archive: the fragment of a URI that names the dataset in it."""


class LocationCache:
    """Caches the locations of datasets, so that each is queried once.

    A dataset never changes, but it can be deleted: a caller that does not find
    a file must make a new cache.
    """

    def __init__(self) -> None:
        self._files: OrderedDict[DatasetId, DataFile | None] = OrderedDict()

    def locate(
        self, central: Butler, refs: Iterable[DatasetRef]
    ) -> tuple[dict[DatasetId, DataFile], frozenset[DatasetId]]:
        """Return the files of datasets by id, and the ids that the datastore does not have.

        Datasets of several files are in neither.
        """
        refs = list(refs)
        unknown = [ref for ref in refs if ref.id not in self._files]
        if unknown:
            self._files |= _query(central, unknown)
        files = {}
        for ref in refs:
            if ref.id in self._files:
                self._files.move_to_end(ref.id)
                if (file := self._files[ref.id]) is not None:
                    files[ref.id] = file
        not_stored = frozenset(ref.id for ref in refs if ref.id not in self._files)
        while len(self._files) > max(_LIMIT, len(refs)):
            self._files.popitem(last=False)
        return files, not_stored


def _query(central: Butler, refs: list[DatasetRef]) -> Mapping[DatasetId, DataFile | None]:
    found_uris = _uris(central, refs)
    uris = {ref.id: found.primaryURI for ref, found in found_uris.items() if found.primaryURI is not None}
    files: dict[DatasetId, DataFile | None] = {ref.id: None for ref in found_uris}
    formatters = _formatters(central, [ref for ref in found_uris if ref.id in uris])
    for dataset, uri in uris.items():
        file = without_member(uri)
        files[dataset] = DataFile(file, formatters[dataset], _size_if_cheap(file), str(uri.fragment))
    return files


def _formatters(central: Butler, refs: Sequence[DatasetRef]) -> dict[DatasetId, Any]:
    """Return the names of the formatters that datasets of one file were written with."""
    known: dict[DatasetId, set[str]] = defaultdict(set)
    if export_datastore_records_table is not None:
        # One query for all, where an export has one for each: most of the time of locating files.
        records = export_datastore_records_table(central, [ref.id for ref in refs]).to_arrow()
        columns = (records[name].to_pylist() for name in ("dataset_id", "formatter"))
        for dataset, formatter in zip(*columns, strict=True):
            known[dataset].add(formatter)
    found: dict[DatasetId, Any] = {
        dataset: formatter for dataset, (formatter, *others) in known.items() if not others
    }
    # Of several datastores, each may have another one; some have no records.
    rest = describe_files(central, [ref for ref in refs if ref.id not in found])
    return found | {ref.id: described.formatter for described in rest for ref in described.refs}


def without_member(uri: ResourcePath) -> ResourcePath:
    """Return the URI of the file; that of a dataset in an archive has a fragment."""
    return uri.replace(fragment="")


def _uris(central: Butler, refs: list[DatasetRef]) -> dict[DatasetRef, DatasetRefURIs]:
    """Return the URIs of datasets, in one query if the datastore has all of them."""
    try:
        return central.get_many_uris(refs)
    except FileNotFoundError as error:
        if len(refs) == 1:
            _LOG.warning("a dataset of the central repo has no file, it is not preloaded: %s", error)
            return {}
    # The error does not name all that are missing: halves find them.
    half = len(refs) // 2
    return _uris(central, refs[:half]) | _uris(central, refs[half:])


def _size_if_cheap(uri: ResourcePath) -> int | None:
    """Return the size of a local file, `None` for others and for a missing one."""
    if uri.isLocal:
        with suppress(OSError):  # copying it will report the error
            return uri.size()
    return None
