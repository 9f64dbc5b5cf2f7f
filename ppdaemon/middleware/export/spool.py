# SPDX-License-Identifier: BSD-3-Clause
"""Spool folders: a worker's outputs with a manifest, until they are in the central repo.

Covers writing and reading them. Exporting is done by
`ppdaemon.middleware.export.exporter`.
"""

import errno
import logging
import os
import re
import shutil
import stat
import time
import urllib.parse
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Annotated

import pydantic
import pydantic_core
from lsst.daf.butler import (
    DataCoordinate,
    DatasetRef,
    DatasetType,
    DimensionRecord,
    SerializedDatasetRef,
    SerializedDatasetType,
)
from lsst.daf.butler.dimensions import SerializedDataCoordinate, SerializedDimensionRecord

from ppdaemon.config import ExportConfig
from ppdaemon.durable import sync
from ppdaemon.errors import BadMessage
from ppdaemon.folders import NodeFolders, folder_size
from ppdaemon.messages import ImagesGivenUp
from ppdaemon.middleware.butler.failures import describe, is_out_of_space
from ppdaemon.middleware.export.checksums import checksum_of_text
from ppdaemon.middleware.export.syncing import AT_ONCE, OpenFiles, sync_all
from ppdaemon.spooling import SpoolDisk, goes_to_ramdisk
from ppdaemon.wire import Model, explain

__all__ = (
    "MANIFEST",
    "Manifest",
    "SimpleRefs",
    "SpoolKey",
    "SpooledFile",
    "SpooledRef",
    "check_files",
    "choose_folder",
    "give_up_oldest_images",
    "image_types",
    "oldest_first",
    "read_manifest",
    "replace_manifest",
    "write_spool",
)

_LOG = logging.getLogger(__name__)

MANIFEST = "manifest.json"
_MOST = 200
"""Spools whose images are given up at once: the report, which names each, must fit into one packet."""


class SpoolKey(Model):
    """Identifies the attempt that produced the outputs."""

    instrument: str
    group: str
    detector: int
    attempt: int

    @property
    def folder(self) -> str:
        """Name of the spool folder (`str`)."""
        # "~" separates the four parts, so that no two keys have the same name.
        group = urllib.parse.quote(self.group, safe="").replace("~", "%7E")
        return f"{self.instrument}~{group}~{self.detector}~{self.attempt}"


@dataclass(slots=True)
class SpooledRef:
    """A dataset, as `lsst.daf.butler.SerializedDatasetRef` has it. To make one of that class, or of a frozen
    one, takes as long as all else that is read of a dataset.
    """

    id: uuid.UUID
    datasetType: SerializedDatasetType  # noqa: N815
    dataId: SerializedDataCoordinate  # noqa: N815
    run: str

    def simple(self) -> SerializedDatasetRef:
        """Return it as the Butler has it."""
        return SerializedDatasetRef(
            id=self.id, datasetType=self.datasetType, dataId=self.dataId, run=self.run
        )


class SpooledFile(Model):
    """One file and the datasets in it."""

    name: str
    """Name in the spool folder."""
    size_bytes: int
    checksum: str = ""
    """As `ppdaemon.middleware.export.checksums` computes it; blank in spools of earlier versions."""
    formatter: str
    """Name of the class that reads it."""
    refs: Annotated[tuple[SpooledRef, ...], pydantic.Field(min_length=1)]
    changed_ns: int = 0
    """Time of its last change (``st_ctime``), before the spool was synced; no copy has it that was made later
    than within a tick of the kernel's clock. 0 in spools of earlier versions."""
    plain: bool = False
    """Whether images in it are to be compressed before it is registered; the checksum is of the file as it
    is."""


class Manifest(Model):
    """Content of a spool folder."""

    version: int = 1
    """Of this model, which earlier versions wrote as it is; see `_text`."""
    key: SpoolKey
    chains: dict[str, tuple[str, ...]]
    """Output runs by the chain that contains them, in order of search."""
    records: tuple[SerializedDimensionRecord, ...]
    """Dimension records that the central repo may lack."""
    files: tuple[SpooledFile, ...]
    given_up: tuple[str, ...] = ()
    """Types of images that were deleted because too much waited for export."""
    failed: str = ""
    """Why the outputs are partial; the supervisor reads it if the worker died
    before it sent the reason."""

    def init_outputs(self) -> Iterator[tuple[str, uuid.UUID]]:
        """Yield run and id of each dataset without dimensions."""
        for file in self.files:
            for ref in file.refs:
                if not ref.dataId.dataId:
                    yield ref.run, ref.id


def write_spool(
    spool: Path,
    key: SpoolKey,
    fill: Callable[[Path], Iterable[SpooledFile]],
    records: Iterable[DimensionRecord],
    chains: Mapping[str, tuple[str, ...]],
    failed: Callable[[], str] = str,
    may_commit: Callable[[], None] = lambda: None,
) -> Path:
    """Write datasets and their manifest to the disk; return the spool folder, which appears complete.

    `fill` writes the files into the folder that it gets, and returns them with their checksums; then
    `failed` returns why others are missing. `may_commit` is called before the
    rename that completes it. `records` are the dimension records of the datasets.
    Of `chains`, runs without a file are left out. Raises `OSError` if the folder
    cannot be written; then nothing of it is left.
    """
    folder = spool / key.folder
    partial = spool / f"{key.folder}.part"  # not a valid name of a spool
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        files = tuple(fill(partial))
        manifest = Manifest(
            key=key,
            chains=_in_use(chains, files),
            records=tuple(record.to_simple() for record in records),
            files=files,
            failed=failed(),
        )
        (partial / MANIFEST).write_bytes(_text(manifest))
        _commit(partial, folder, [f"{partial}/{file.name}" for file in files], may_commit)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)  # the disk is probably full: free the space
        raise
    return folder


def _commit(partial: Path, folder: Path, files: Sequence[str], may_commit: Callable[[], None]) -> None:
    """Give a spool its name, and wait until all of it is on the disk."""
    paths: list[Path | str] = [*files, f"{partial}/{MANIFEST}", partial, folder.parent]
    sync_all(paths[:-AT_ONCE])
    # Opened before: packers replace images of a spool that has its name.
    with OpenFiles(paths[-AT_ONCE:]) as last:
        # The disk has the content before the name. After a power failure in between, the filesystem has
        # either all changes of names and sizes up to the rename or not the rename: it keeps their order, and
        # its journal is committed once for them. Without a journal the checksums show what is missing.
        last.wait_until_written()
        may_commit()
        partial.rename(folder)
        try:
            last.sync()
        except OSError:
            folder.rename(partial)  # so that it is deleted: nobody knows what the disk has of it
            raise


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest; raise `~ppdaemon.errors.BadMessage` if it is missing or invalid."""
    try:
        with open(f"{folder}/{MANIFEST}", "rb", buffering=0) as stream:
            return _parsed(stream.read())
    except OSError as error:
        raise BadMessage(f"{folder}: no manifest: {error.strerror}") from error
    except pydantic.ValidationError as error:
        raise BadMessage(f"{folder}: damaged manifest: {explain(error)}") from error
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise BadMessage(f"{folder}: damaged manifest: {describe(error)}") from error


class SimpleRefs:
    """Makes references that can be written, with one object for each dataset type and data ID."""

    def __init__(self) -> None:
        self._ids: dict[tuple[DataCoordinate, bool], SerializedDataCoordinate] = {}

    def of(self, ref: DatasetRef) -> SpooledRef:
        """Return a reference."""
        key = ref.dataId, ref.dataId.hasRecords()
        data_id = self._ids.get(key)
        if data_id is None:
            data_id = self._ids[key] = ref.dataId.to_simple()
        return SpooledRef(ref.id, _simple_type(ref.datasetType), data_id, ref.run)


@lru_cache(1000)
def _simple_type(kind: DatasetType) -> SerializedDatasetType:
    return kind.to_simple()


class _Numbered:
    """Numbers different objects, and has the text of each in JSON.

    As texts: those of records and types are the same in many manifests, and are parsed once.
    """

    def __init__(self) -> None:
        self.texts: dict[str, int] = {}
        self._numbers: dict[int, int] = {}

    def of(self, item: pydantic.BaseModel) -> int:
        number = self._numbers.get(id(item))
        if number is None:
            text = pydantic_core.to_json(item, exclude_none=True).decode()
            number = self._numbers[id(item)] = self.texts.setdefault(text, len(self.texts))
        return number


def _text(manifest: Manifest) -> bytes:
    """Return the text of a manifest, in which each dataset type, data ID and record is once: with its
    records, a data ID is longer than all else, and the files of a visit-detector share few. At its end is its
    checksum: half of the bytes could be others, and it would still be a manifest.
    """
    types, records = _Numbered(), _Numbered()
    data_ids: dict[int, tuple[int, SerializedDataCoordinate]] = {}

    def numbered(refs: Iterable[SpooledRef]) -> Iterator[tuple[object, ...]]:
        for ref in refs:
            number, _ = data_ids.setdefault(id(ref.dataId), (len(data_ids), ref.dataId))
            yield ref.id, types.of(ref.datasetType), number, ref.run

    # Not by `model_dump`, which takes as long as all else here.
    plain = dict(manifest) | {
        "version": 4,
        "files": [dict(file) | {"refs": list(numbered(file.refs))} for file in manifest.files],
        "records": [records.of(record) for record in manifest.records],
        "data_ids": [
            (
                each.dataId,
                None
                if each.records is None
                else {name: records.of(record) for name, record in each.records.items()},
            )
            for _, each in data_ids.values()
        ],
        "types": list(types.texts),
        "all_records": list(records.texts),
    }
    text = pydantic_core.to_json(plain)
    return text.removesuffix(b"}") + _end(checksum_of_text(text))


def _end(checksum: str) -> bytes:
    """Return the end of the text of a manifest."""
    return f',"checksum":"{checksum}"}}'.encode()


def _parsed(text: bytes) -> Manifest:
    text = text.rstrip(b" ")  # see `_give_up_images`
    plain = pydantic_core.from_json(text)
    version = plain["version"]
    if version == 1:
        return Manifest.model_validate(plain)
    if version not in (2, 3, 4):
        raise ValueError(f"version {version} is not known")
    # A person who has edited a manifest removes the checksum, or makes it blank.
    if checksum := plain.pop("checksum", ""):
        found = checksum_of_text(text.removesuffix(_end(checksum)) + b"}")
        if found != checksum:
            raise ValueError(f"its checksum is {found}, not {checksum}")
    types, data_ids = plain.pop("types"), plain.pop("data_ids")
    if version < 4:
        types = [pydantic_core.to_json(each) for each in types]
        data_ids = [SerializedDataCoordinate.model_validate(each) for each in data_ids]
    else:
        records = [_record(each) for each in plain.pop("all_records")]
        plain["records"] = tuple(records[number] for number in plain["records"])
        data_ids = [
            SerializedDataCoordinate(
                dataId=values, records=numbers and {name: records[number] for name, number in numbers.items()}
            )
            for values, numbers in data_ids
        ]
    types = [_dataset_type(each) for each in types]
    files = plain["files"]
    numbered = _REFS.validate_python([ref for file in files for ref in file["refs"]])
    refs = iter([SpooledRef(id_, types[kind], data_ids[number], run) for id_, kind, number, run in numbered])
    for file in files:
        file["refs"] = tuple(islice(refs, len(file["refs"])))
    plain["version"] = 1
    return Manifest.model_validate(plain)


_REFS = pydantic.TypeAdapter(list[tuple[uuid.UUID, pydantic.NonNegativeInt, pydantic.NonNegativeInt, str]])
"""Id, numbers of the dataset type and the data ID, run."""


@lru_cache(1000)
def _dataset_type(text: str | bytes) -> SerializedDatasetType:
    """Return a dataset type; all spools of a pipeline have the same ones."""
    return SerializedDatasetType.model_validate_json(text)


@lru_cache(1000)
def _record(text: str) -> SerializedDimensionRecord:
    """Return a dimension record; all spools of an exposure have most of them."""
    return SerializedDimensionRecord.model_validate_json(text)


def check_files(folder: Path, manifest: Manifest) -> None:
    """Raise `~ppdaemon.errors.BadMessage` if a file of a spool is missing or of another size, or if
    the folder has the name of another attempt.
    """
    if folder.name != manifest.key.folder:
        raise BadMessage(f"{folder} was renamed: its manifest is that of {manifest.key.folder}")
    for file in manifest.files:
        path = f"{folder}/{file.name}"  # a `Path` for each would take longer than all else here
        try:
            found = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            found = None
        except OSError as error:
            raise BadMessage(f"{path} cannot be checked: {error.strerror}") from error
        if found is None or not stat.S_ISREG(found.st_mode):
            raise BadMessage(f"{folder}: file {file.name} of the manifest is missing")
        if found.st_size != file.size_bytes:
            raise BadMessage(f"{path} has {found.st_size} bytes, not {file.size_bytes}")


def _in_use(
    chains: Mapping[str, tuple[str, ...]], files: Iterable[SpooledFile]
) -> dict[str, tuple[str, ...]]:
    """Return chains without the runs of which there is no file: the central repo may not have these."""
    used = {ref.run for file in files for ref in file.refs}
    in_use = {chain: tuple(run for run in runs if run in used) for chain, runs in chains.items()}
    return {chain: runs for chain, runs in in_use.items() if runs}


def choose_folder(spill: Path, ramdisk: Path, config: ExportConfig) -> Path:
    """Return the folder for the next spool, as `ppdaemon.spooling` decides."""
    if not config.ramdisk_max or not ramdisk.is_dir():
        return spill
    first, second = _measured(ramdisk, config.ramdisk_max), _measured(spill, config.spill_max)
    return ramdisk if goes_to_ramdisk(first, second) else spill


def _measured(folder: Path, max_bytes: int | None) -> SpoolDisk:
    """Return what waits in a folder; without a limit it need not be measured."""
    if max_bytes is None:
        return SpoolDisk(0, None)
    used, oldest, now = 0, 0.0, time.time()
    for spool in folder.iterdir() if folder.is_dir() else ():
        used += folder_size(spool)
        with suppress(FileNotFoundError):  # exported meanwhile
            oldest = max(oldest, now - spool.stat().st_mtime)
    return SpoolDisk(used, max_bytes, oldest)


def image_types(patterns: Iterable[str]) -> re.Pattern[str]:
    """Return what matches the names or storage classes of images."""
    return re.compile("|".join(f"(?:{pattern})" for pattern in patterns) or r"(?!)")


def give_up_oldest_images(
    folders: Iterable[Path], images: re.Pattern[str], excess_bytes: int, busy: Collection[Path] = ()
) -> ImagesGivenUp:
    """Delete images of about this size, those of the oldest spools in these folders first, but not of
    spools that another process changes.
    """
    spools: dict[str, str] = {}
    size_bytes = 0
    for spool in oldest_first(folders):
        if size_bytes >= excess_bytes or len(spools) == _MOST:
            break
        if spool in busy:
            continue
        try:
            names, given_up = _give_up_images(spool, images)
        except (BadMessage, OSError) as error:  # it is quarantined in a moment, or was deleted just now
            _LOG.warning("the images of %s cannot be given up: %s", spool.name, error)
            continue
        if names:
            spools[str(spool)] = ", ".join(names)
            size_bytes += given_up
            _LOG.error(
                "the images of %s are given up, %.0f MB: more than export.spill_max waits for export",
                spool.name,
                given_up / 1e6,
            )
    return ImagesGivenUp(spools=spools, size_bytes=size_bytes)


def oldest_first(folders: Iterable[Path]) -> list[Path]:
    """Return the complete spools in some folders. One whose images were given up becomes the last."""
    spools = [spool for folder in folders if folder.is_dir() for spool in folder.iterdir()]
    return sorted((spool for spool in spools if NodeFolders.parse_spool_name(spool.name)), key=_written_ns)


def replace_manifest(spool: Path, manifest: Manifest) -> None:
    """Write another manifest; a crash leaves the old or the new one."""
    new = spool / f"{MANIFEST}.{uuid.uuid4()}"
    try:
        new.write_bytes(_text(manifest))
        sync(new)
        new.rename(spool / MANIFEST)
    except BaseException:
        new.unlink(missing_ok=True)  # the disk may be full, and the next try makes another one
        raise
    sync(spool)


def _overwrite_manifest(spool: Path, manifest: Manifest) -> None:
    """Write a shorter manifest into the blocks of the present one: a full disk has no others. Only a power
    failure meanwhile can damage it, which its checksum shows. Raises `OSError` if it is longer, as that of an
    earlier version might become.
    """
    path, text = spool / MANIFEST, _text(manifest)
    size_bytes = path.stat().st_size
    if len(text) > size_bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    with path.open("r+b", buffering=0) as stream:
        # As long as before, by one call: a killed process leaves the old or the new one.
        stream.write(text.ljust(size_bytes))
    sync(path)


def _written_ns(spool: Path) -> int:
    try:
        return spool.stat().st_mtime_ns
    except OSError:  # deleted meanwhile
        return 0


def _give_up_images(spool: Path, images: re.Pattern[str]) -> tuple[tuple[str, ...], int]:
    """Delete the files of a spool with datasets whose type or storage class matches; return all types
    that it has lost, and the size of the files.
    """
    manifest, kept, doomed, names = read_manifest(spool), [], [], list[str]()
    for file in manifest.files:
        each = file.refs[0].datasetType
        if images.fullmatch(each.name) or images.fullmatch(each.storageClass or ""):
            doomed.append(file)
            names.append(each.name)
        else:
            kept.append(file)
    if not doomed:
        return (), 0
    chains = _in_use(manifest.chains, kept)
    update = {"files": tuple(kept), "chains": chains, "given_up": (*manifest.given_up, *names)}
    changed = manifest.model_copy(update=update)
    # The manifest first: it must not name a file that is gone.
    try:
        replace_manifest(spool, changed)
    except OSError as error:
        if not is_out_of_space(error):
            raise
        _overwrite_manifest(spool, changed)
    for file in doomed:
        (spool / file.name).unlink(missing_ok=True)
    return changed.given_up, sum(file.size_bytes for file in doomed)
