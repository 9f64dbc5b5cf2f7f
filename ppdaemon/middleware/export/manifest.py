# SPDX-License-Identifier: BSD-3-Clause
"""The manifest of a spool: its files, their datasets, and what has to be registered with them."""

import urllib.parse
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import islice, starmap
from pathlib import Path
from typing import Literal, NamedTuple, NotRequired, TypedDict

import pydantic
import pydantic_core
from lsst.daf.butler import (
    DataCoordinate,
    DataIdValue,
    DatasetRef,
    DatasetType,
    SerializedDatasetRef,
    SerializedDatasetType,
)
from lsst.daf.butler.dimensions import SerializedDataCoordinate, SerializedDimensionRecord

from ppdaemon.durable import sync
from ppdaemon.errors import BadMessage
from ppdaemon.middleware.butler.failures import describe
from ppdaemon.middleware.export.checksums import checksum_of_text
from ppdaemon.wire import Model, explain

__all__ = (
    "MANIFEST",
    "Manifest",
    "SimpleRefs",
    "SpoolKey",
    "SpooledFile",
    "SpooledRef",
    "chains_in_use",
    "manifest_text",
    "read_manifest",
    "replace_manifest",
)

MANIFEST = "manifest.json"
VERSION = 5
"""Of manifests."""


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


# Tuples, and not models: to make those of all datasets would take as long as all else that is read of them.
class SpooledRef(NamedTuple):
    """A dataset, as `lsst.daf.butler.SerializedDatasetRef` has it."""

    id: uuid.UUID
    datasetType: SerializedDatasetType  # noqa: N815
    dataId: SerializedDataCoordinate  # noqa: N815
    run: str

    def simple(self) -> SerializedDatasetRef:
        """Return it as the Butler has it."""
        return SerializedDatasetRef(
            id=self.id, datasetType=self.datasetType, dataId=self.dataId, run=self.run
        )


class SpooledFile(NamedTuple):
    """One file and the datasets in it."""

    name: str
    """Name in the spool folder."""
    size_bytes: int
    checksum: str
    """As `ppdaemon.middleware.export.checksums` computes it; blank in one that a person has edited."""
    formatter: str
    """Name of the class that reads it."""
    refs: tuple[SpooledRef, ...]
    """At least one."""
    changed_ns: int = 0
    """Time of its last change (``st_ctime``), before the spool was synced; no copy has it that was made later
    than within a tick of the kernel's clock."""
    plain: bool = False
    """Whether images in it are to be compressed before it is registered; the checksum is of the file as it
    is."""


class Manifest(Model):
    """Content of a spool folder."""

    key: SpoolKey
    chains: dict[str, tuple[str, ...]]
    """Output runs by the chain that contains them, in order of search."""
    records: pydantic.SkipValidation[tuple[SerializedDimensionRecord, ...]]
    """Dimension records that the central repo may lack."""
    files: pydantic.SkipValidation[tuple[SpooledFile, ...]]
    given_up: tuple[str, ...] = ()
    """Types of images that were deleted because too much waited for export."""
    failed: str = ""
    """Why the outputs are partial; the supervisor reads it if the worker died
    before it sent the reason."""

    def with_files(self, files: Collection[SpooledFile], **update: object) -> "Manifest":
        """Return it with other files. Runs without any are in no chain: the central repo may lack them."""
        chains = chains_in_use(self.chains, files)
        return self.model_copy(update={"files": tuple(files), "chains": chains, **update})

    def init_outputs(self) -> Iterator[tuple[str, uuid.UUID]]:
        """Yield run and id of each dataset without dimensions."""
        for file in self.files:
            for ref in file.refs:
                if not ref.dataId.dataId:
                    yield ref.run, ref.id


def chains_in_use(
    chains: Mapping[str, tuple[str, ...]], files: Iterable[SpooledFile]
) -> dict[str, tuple[str, ...]]:
    """Return chains without the runs of which there is no file."""
    used = {ref.run for file in files for ref in file.refs}
    in_use = {chain: tuple(run for run in runs if run in used) for chain, runs in chains.items()}
    return {chain: runs for chain, runs in in_use.items() if runs}


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


def replace_manifest(spool: Path, manifest: Manifest) -> None:
    """Write another manifest; a crash leaves the old or the new one."""
    new = spool / f"{MANIFEST}.{uuid.uuid4()}"
    try:
        new.write_bytes(manifest_text(manifest))
        sync(new)
        new.rename(spool / MANIFEST)
    except BaseException:
        new.unlink(missing_ok=True)  # the disk may be full, and the next try makes another one
        raise
    sync(spool)


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


type _Number = pydantic.NonNegativeInt
"""Of an item of another list."""


class _Files(TypedDict):
    """What a manifest has of files: a list for each kind of value, which is read in a third of the time of
    objects for the files.
    """

    name: list[str]
    size_bytes: list[int]
    checksum: list[str]
    formatter: list[_Number]
    datasets: list[pydantic.PositiveInt]
    """How many."""
    changed_ns: list[int]
    plain: list[bool]


class _Datasets(TypedDict):
    """What a manifest has of the datasets of all files."""

    id: list[uuid.UUID]
    type: list[_Number]
    data_id: list[_Number]
    run: list[_Number]


class _Stored(TypedDict):
    """A manifest as it is stored: with each dataset type, data ID, record, run and formatter once. With its
    records, a data ID is longer than all else, and the files of a visit-detector share few.
    """

    version: Literal[5]  # `VERSION`
    key: SpoolKey
    chains: dict[str, tuple[str, ...]]
    records: list[_Number]
    files: _Files
    datasets: _Datasets
    given_up: tuple[str, ...]
    failed: str
    data_ids: list[tuple[dict[str, DataIdValue], dict[str, _Number] | None]]
    """Values, and records by the name of their element."""
    types: list[str]
    all_records: list[str]
    formatters: list[str]
    runs: list[str]
    checksum: NotRequired[str]
    """Of the text before it; a person who edits a manifest removes it, or makes it blank."""


_STORED = pydantic.TypeAdapter(_Stored)


def manifest_text(manifest: Manifest) -> bytes:
    """Return the text of a manifest. At its end is its checksum: half of the bytes could be others, and it
    would still be a manifest.
    """
    types, records = _Numbered(), _Numbered()
    formatters, runs = dict[str, int](), dict[str, int]()
    data_ids: dict[int, tuple[int, SerializedDataCoordinate]] = {}
    files = manifest.files
    refs = [ref for file in files for ref in file.refs]
    # Not by `_STORED`, which takes longer.
    stored = {
        "version": VERSION,
        "key": manifest.key,
        "chains": manifest.chains,
        "records": [records.of(record) for record in manifest.records],
        "files": {
            "name": [file.name for file in files],
            "size_bytes": [file.size_bytes for file in files],
            "checksum": [file.checksum for file in files],
            "formatter": [formatters.setdefault(file.formatter, len(formatters)) for file in files],
            "datasets": [len(file.refs) for file in files],
            "changed_ns": [file.changed_ns for file in files],
            "plain": [file.plain for file in files],
        },
        "datasets": {
            "id": [ref.id for ref in refs],
            "type": [types.of(ref.datasetType) for ref in refs],
            "data_id": [data_ids.setdefault(id(ref.dataId), (len(data_ids), ref.dataId))[0] for ref in refs],
            "run": [runs.setdefault(ref.run, len(runs)) for ref in refs],
        },
        "given_up": manifest.given_up,
        "failed": manifest.failed,
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
        "formatters": list(formatters),
        "runs": list(runs),
    }
    text = pydantic_core.to_json(stored)
    return text.removesuffix(b"}") + _end(checksum_of_text(text))


def _end(checksum: str) -> bytes:
    """Return the end of the text of a manifest."""
    return f',"checksum":"{checksum}"}}'.encode()


def _parsed(text: bytes) -> Manifest:
    text = text.rstrip(b" ")  # those of a full disk have some at their end
    try:
        stored = _STORED.validate_json(text)
    except pydantic.ValidationError:
        if (version := pydantic_core.from_json(text)["version"]) != VERSION:
            raise ValueError(f"version {version} is not known") from None
        raise
    if checksum := stored.get("checksum"):
        found = checksum_of_text(text.removesuffix(_end(checksum)) + b"}")
        if found != checksum:
            raise ValueError(f"its checksum is {found}, not {checksum}")
    records = [_record(each) for each in stored["all_records"]]
    return Manifest(
        key=stored["key"],
        chains=stored["chains"],
        records=tuple(records[number] for number in stored["records"]),
        files=_files(stored, records),
        given_up=stored["given_up"],
        failed=stored["failed"],
    )


def _files(stored: _Stored, records: Sequence[SerializedDimensionRecord]) -> tuple[SpooledFile, ...]:
    """Return the files of a stored manifest."""
    data_ids = [
        SerializedDataCoordinate(
            dataId=values, records=numbers and {name: records[number] for name, number in numbers.items()}
        )
        for values, numbers in stored["data_ids"]
    ]
    files, datasets = stored["files"], stored["datasets"]
    columns = (
        datasets["id"],
        _items([_dataset_type(each) for each in stored["types"]], datasets["type"]),
        _items(data_ids, datasets["data_id"]),
        _items(stored["runs"], datasets["run"]),
    )
    refs = list(starmap(SpooledRef, zip(*columns, strict=True)))
    if sum(files["datasets"]) != len(refs):
        raise ValueError(f"its files have {sum(files['datasets'])} datasets, and it has {len(refs)}")
    of_files = iter(refs)
    columns_of_files = (
        files["name"],
        files["size_bytes"],
        files["checksum"],
        _items(stored["formatters"], files["formatter"]),
        [tuple(islice(of_files, number)) for number in files["datasets"]],
        files["changed_ns"],
        files["plain"],
    )
    return tuple(starmap(SpooledFile, zip(*columns_of_files, strict=True)))


def _items[T](items: Sequence[T], numbers: Iterable[int]) -> Iterator[T]:
    return map(items.__getitem__, numbers)


@lru_cache(1000)
def _dataset_type(text: str) -> SerializedDatasetType:
    """Return a dataset type; all spools of a pipeline have the same ones."""
    return SerializedDatasetType.model_validate_json(text)


@lru_cache(1000)
def _record(text: str) -> SerializedDimensionRecord:
    """Return a dimension record; all spools of an exposure have most of them."""
    return SerializedDimensionRecord.model_validate_json(text)
