# SPDX-License-Identifier: BSD-3-Clause
"""Datasets that tasks have put, in memory or in files."""

import functools
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import Column, Table
from astropy.units import CompositeUnit, IrreducibleUnit, PrefixUnit, Unit
from lsst.daf.butler import DatasetProvenance, DatasetRef, Formatter, FormatterV2
from lsst.daf.butler.formatters.astropyTable import AstropyTableFormatter
from lsst.daf.butler.formatters.json import JsonFormatter
from lsst.daf.butler.formatters.parquet import ASTROPY_PANDAS_INDEX_KEY, ParquetFormatter
from lsst.daf.butler.formatters.yaml import YamlFormatter

from ppdaemon.middleware.butler.datafiles import LocatedFile
from ppdaemon.middleware.butler.formatters import FileWriter
from ppdaemon.middleware.run.engine import Unwritten

__all__ = ("DatasetWriter", "MemoryDataset", "TransferredDataset", "as_read", "read_plain")

_CONVERTING = (ParquetFormatter, AstropyTableFormatter, YamlFormatter, JsonFormatter)
"""Formatters of tables and text. What they read differs in many details from
what was written: table metadata, masks, indexes, tuples, integers."""


_UNCOMPRESSED = dict.fromkeys(("image", "variance", "mask"))
"""Compression of the large arrays of ``lsst.images``: none."""
_PLAIN_COLUMNS = frozenset(np.dtype(code).str for code in "?bhilqBHILQfd")
_PLAIN_UNITS = (IrreducibleUnit, PrefixUnit, CompositeUnit, Unit)
_PLAIN_VALUES = (bool, int, float, str, type(None))
"""Types of metadata that can be written; others are left to the formatter."""


@dataclass(slots=True)
class MemoryDataset:
    """A dataset that a task has put."""

    ref: DatasetRef
    """With the storage class of the repo's definition."""
    content: Any = None
    file: LocatedFile | None = None
    """The file, once it is written."""
    in_memory: bool = True
    is_table: bool = False
    """Whether the object is a table, of which each reader gets `as_read`."""
    shared: bool = False
    """Whether the task that put the object may still have it, or a part of it."""
    provenance: DatasetProvenance | None = None
    size_bytes: int = 0
    to_export: bool = False
    """Whether it is to be written for export."""
    uncompressed: bool | None = None
    """Whether it is to be written uncompressed; `None`: that is not decided yet."""

    @property
    def unwritten(self) -> bool:
        """Whether it is still to be written for export (`bool`)."""
        return self.to_export and self.file is None

    def drop(self) -> None:
        """Release the object."""
        self.content, self.in_memory = None, False


@dataclass(frozen=True, slots=True)
class TransferredDataset:
    """A dataset that one process passes to another."""

    id: uuid.UUID
    content: Any = None
    file: tuple[Path, str] | None = None
    """Path and formatter of a file that has it instead of `content`."""
    provenance: DatasetProvenance | None = None
    size_bytes: int = 0
    is_table: bool = False
    """As in `MemoryDataset`."""
    unwritten: Unwritten | None = None
    """Why there is neither `content` nor `file`, if it had to be written and cannot."""


class DatasetWriter(FileWriter):
    """Writes what tasks have put, and decides what of it can stay in memory."""

    def writes_plain(self, ref: DatasetRef) -> bool:
        """Return whether `write_plain` can write a dataset: an image of ``lsst.images`` in FITS."""
        if not _writes_archives(self.formatter_class(ref)):
            return False
        location, _ = self.formatter(ref, Path("/"))
        return bool(location.uri.getExtension() == ".fits")

    def write_plain(
        self, content: object, ref: DatasetRef, folder: Path, provenance: DatasetProvenance | None = None
    ) -> LocatedFile:
        """Write an image as `write` does, but uncompressed; the formatter can read it."""
        location, formatter = self.formatter(ref, folder)
        # Imported here: most processes have no images of this kind, and it takes memory.
        from lsst.images.serialization import ButlerInfo, write_archive

        if not formatter.can_accept(content):
            content = ref.datasetType.storageClass.coerce_type(content)
        info = ButlerInfo(dataset=ref.to_simple(), provenance=provenance or DatasetProvenance())
        path = Path(location.uri.ospath)
        try:
            write_archive(content, path, compression_options=_UNCOMPRESSED, butler_info=info)
        except Exception as error:
            raise RuntimeError(f"Failed to write dataset {ref} without compression.") from error
        return LocatedFile(path, formatter.name(), (ref,), plain=True)

    def converts(self, ref: DatasetRef) -> bool:
        """Return whether a dataset that is read from its file may differ from the object that was put."""
        return issubclass(self.formatter_class(ref), _CONVERTING)

    def is_plain_table(self, content: object, ref: DatasetRef) -> bool:
        """Return whether `as_read` of a dataset gives what a read of its file would give."""
        return (
            issubclass(self.formatter_class(ref), ParquetFormatter)
            and ref.datasetType.storageClass.pytype is Table
            and type(content) is Table
            and _is_plain(content)
        )

    def accepts(self, content: object, ref: DatasetRef) -> bool:
        """Return whether the formatter takes an object without conversion."""
        return bool(self.formatter(ref, Path("/"))[1].can_accept(content))


def read_plain(path: Path) -> tuple[Any, DatasetProvenance | None]:
    """Read an image that `DatasetWriter.write_plain` has written, and its provenance."""
    from lsst.images.serialization import open_archive

    with open_archive(path) as reader:
        info = reader.butler_info
        return reader.read(), None if info is None else info.provenance


def _writes_archives(kind: type[Formatter | FormatterV2]) -> bool:
    """Return whether a formatter writes as that of ``lsst.images``, which a class of its own may not."""
    module = sys.modules.get("lsst.images.formatters")
    write = getattr(kind, "write_local_file", None)
    return module is not None and write is module.GenericFormatter.write_local_file


def as_read(table: Table) -> Table:
    """Return the copy of a plain table that a read of its Parquet file would give.

    Metadata and formats of columns are lost, as there, and so is a unit or a description without
    text. Without the formatter's conversions, which take some 10 ms for 100 columns, twice.
    """
    columns = table.columns.values()
    return Table(
        [column.data for column in columns],
        names=table.colnames,
        units=[column.unit if str(column.unit or "") else None for column in columns],
        descriptions=[column.description or None for column in columns],
        meta={key: value for key, value in table.meta.items() if key == ASTROPY_PANDAS_INDEX_KEY},
    )


def _is_plain(table: Table) -> bool:
    """Return whether Parquet stores all columns of a table as they are, without an error."""
    return (
        bool(table.columns)
        and all(type(value) in _PLAIN_VALUES for value in table.meta.values())
        and all(
            type(column) is Column
            and (column.dtype.str in _PLAIN_COLUMNS or _is_plain_text(column))
            and column.ndim == 1
            and (column.unit is None or _is_plain_unit(column.unit))
            and _is_encodable(column.name)
            and _is_encodable(column.description or "")
            and all(type(value) in _PLAIN_VALUES for value in column.meta.values())
            for column in table.columns.values()
        )
    )


def _is_plain_unit(unit: Any) -> bool:
    """Return whether a unit is recognized by its text: other ones have to be enabled."""
    return type(unit) in _PLAIN_UNITS and _unit_of(str(unit)) == unit


@functools.lru_cache(1000)
def _unit_of(text: str) -> Any:
    return Unit(text, parse_strict="silent")  # takes some 60 us for a quotient


def _is_plain_text(column: Column) -> bool:
    """Return whether Arrow reads a text to its end: it stops at the code 0, and refuses surrogates."""
    if column.dtype.kind != "U" or not column.dtype.isnative:
        return False
    length = column.dtype.itemsize // 4
    if length == 0 or column.ndim != 1:
        return True
    codes = np.ascontiguousarray(column.data).view(np.uint32).reshape(len(column), length)
    ended = (codes[:, :-1] == 0) & (codes[:, 1:] != 0)
    return not (ended.any() or ((codes >= 0xD800) & (codes < 0xE000)).any())


def _is_encodable(text: object) -> bool:
    try:
        return isinstance(text, str) and bool(text.encode() or True)
    except UnicodeEncodeError:
        return False
