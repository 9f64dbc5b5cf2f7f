# SPDX-License-Identifier: BSD-3-Clause
"""Files of datasets: where they are, how they are read, how long they are."""

import logging
import os
import shutil
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lsst.daf.butler import Butler, DatasetId, DatasetRef, FileDataset
from lsst.daf.butler.datastore import DatasetRefURIs
from lsst.resources import ResourcePath

from ppdaemon.middleware.butler.failures import describe, is_link_refusal

__all__ = (
    "DataFile",
    "KnownFiles",
    "LocatedFile",
    "copied",
    "file_dataset",
    "ingest_shared",
    "link_or_copy",
    "located",
)

_LOG = logging.getLogger(__name__)
_LIMIT = 20_000
"""Files remembered; each takes about 1 kB."""


class _Enough(Exception):
    """All was seen that was wanted."""


def describe_files(butler: Butler, refs: Iterable[DatasetRef]) -> list[FileDataset]:
    """Return path and formatter of stored datasets.

    Parameters
    ----------
    butler : `lsst.daf.butler.Butler`
        The repo that has them.
    refs : `~collections.abc.Iterable` [`lsst.daf.butler.DatasetRef`]
        Datasets that are one file each, or share one.

    Returns
    -------
    files : `list` [`lsst.daf.butler.FileDataset`]
        Paths are relative to the datastore's root, or absolute.

    Notes
    -----
    `Butler.export` is the public way to the formatter that a dataset was
    written with, which the repo's configuration does not tell. It is left
    before its end: composing its text, which nobody reads, asks for each
    collection that each dataset is in and takes ten times as long.
    """
    files: list[FileDataset] = []

    def keep(file: FileDataset) -> FileDataset:
        files.append(file)
        return file

    with suppress(_Enough), butler.export(filename=os.devnull, format="yaml") as export:
        export.saveDatasets(refs, elements=(), rewrite=keep)
        raise _Enough
    return files


@dataclass(frozen=True, slots=True)
class LocatedFile:
    """A file of the worker, and the datasets that it holds."""

    path: Path
    formatter: str
    """Class that reads it."""
    refs: tuple[DatasetRef, ...]


def located(butler: Butler, refs: Sequence[DatasetRef]) -> list[LocatedFile]:
    """Return the files of datasets of the worker's repo, which keeps each in one file."""
    uris = {ref.id: uri.primaryURI for ref, uri in butler.get_many_uris(refs).items()}
    files = []
    for file in describe_files(butler, refs):
        uri = uris[file.refs[0].id]
        assert uri is not None  # it is one file
        files.append(LocatedFile(Path(uri.ospath), str(file.formatter), tuple(file.refs)))
    return files


def copied(files: Iterable[LocatedFile], folder: Path) -> list[LocatedFile]:
    """Copy files into a folder, named after the first dataset's id."""
    copies = []
    for file in files:
        copy = folder / f"{file.refs[0].id}{ResourcePath(file.path).getExtension()}"
        shutil.copyfile(file.path, copy)
        copies.append(LocatedFile(copy, file.formatter, file.refs))
    return copies


def file_dataset(path: Path, refs: list[DatasetRef], formatter: Any) -> FileDataset:
    """Return a local file as `lsst.daf.butler.Butler.ingest` takes it, whatever characters its name has."""
    return FileDataset(path=ResourcePath(path.as_uri()), refs=refs, formatter=formatter)


def link_or_copy(path: Path, target: Path) -> None:
    """Hard-link a file to a new name, or copy it where links cannot be made."""
    try:
        os.link(path, target)
    except OSError as error:
        if not is_link_refusal(error):
            raise
        shutil.copyfile(path, target)


def ingest_shared(butler: Butler, files: Sequence[FileDataset]) -> None:
    """Ingest files that nobody changes by hard link, or by copy where links cannot be made."""
    try:
        butler.ingest(*files, transfer="hardlink")
    except OSError as error:
        if not is_link_refusal(error):
            raise
        _LOG.warning("files are copied, not shared: %s", describe(error))
        butler.ingest(*files, transfer="copy")


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file in the central datastore."""

    uri: ResourcePath
    formatter: Any
    """Class, or its name, that reads it."""
    size_bytes: int | None
    """Where it is told without a request over a network."""


class KnownFiles:
    """Remembers where datasets are: what was asked once is not asked again.

    A dataset never changes. What can change is that it is deleted; who finds
    that a file is not there should `forget` it.
    """

    def __init__(self) -> None:
        self._files: OrderedDict[DatasetId, DataFile | None] = OrderedDict()

    def locate(
        self, central: Butler, refs: Iterable[DatasetRef]
    ) -> tuple[dict[DatasetId, DataFile], frozenset[DatasetId]]:
        """Return the files of datasets.

        Parameters
        ----------
        central : `lsst.daf.butler.Butler`
            The central repo.
        refs : `~collections.abc.Iterable` [`lsst.daf.butler.DatasetRef`]
            Datasets there.

        Returns
        -------
        files : `dict`
            By dataset id. Datasets that are not one file are not among them:
            those in several, or within an archive.
        lost : `frozenset`
            Ids of datasets that the datastore knows nothing of.
        """
        refs = list(refs)
        unknown = [ref for ref in refs if ref.id not in self._files]
        if unknown:
            self._files |= _ask(central, unknown)
        located = {}
        for ref in refs:
            if ref.id in self._files:
                self._files.move_to_end(ref.id)
                if (file := self._files[ref.id]) is not None:
                    located[ref.id] = file
        lost = frozenset(ref.id for ref in refs if ref.id not in self._files)
        while len(self._files) > max(_LIMIT, len(refs)):
            self._files.popitem(last=False)
        return located, lost

    def forget(self, refs: Iterable[DatasetRef]) -> None:
        """Ask again next time.

        Parameters
        ----------
        refs : `~collections.abc.Iterable` [`lsst.daf.butler.DatasetRef`]
            Datasets whose files were not where they were said to be.
        """
        for ref in refs:
            self._files.pop(ref.id, None)


def _ask(central: Butler, refs: list[DatasetRef]) -> Mapping[DatasetId, DataFile | None]:
    located = _uris(central, refs)
    uris = {
        ref.id: found.primaryURI
        for ref, found in located.items()
        if found.primaryURI is not None and not found.primaryURI.fragment
    }
    files: dict[DatasetId, DataFile | None] = {ref.id: None for ref in located}
    for described in describe_files(central, [ref for ref in refs if ref.id in uris]):
        for ref in described.refs:
            uri = uris[ref.id]
            files[ref.id] = DataFile(uri, described.formatter, _size_if_cheap(uri))
    return files


def _uris(central: Butler, refs: list[DatasetRef]) -> dict[DatasetRef, DatasetRefURIs]:
    """Return where datasets are, at once if all are somewhere."""
    try:
        return central.get_many_uris(refs)
    except FileNotFoundError as error:
        if len(refs) == 1:
            _LOG.warning("passed over: %s", error)
            return {}
    half = len(refs) // 2
    return _uris(central, refs[:half]) | _uris(central, refs[half:])


def _size_if_cheap(uri: ResourcePath) -> int | None:
    """Return the length of a local file, `None` of others and of one that is missing."""
    if uri.isLocal:
        with suppress(OSError):  # whoever copies it will tell
            return uri.size()
    return None
