# SPDX-License-Identifier: BSD-3-Clause
"""Outputs on their way from a worker to the central repo: a folder with a manifest.

Covers writing and reading such a folder. Registering is
`ppdaemon.middleware.export.exporter`'s.
"""

import logging
import shutil
import urllib.parse
from collections.abc import Callable, Iterable
from pathlib import Path

import pydantic
from lsst.daf.butler import DimensionRecord, SerializedDatasetRef
from lsst.daf.butler.dimensions import SerializedDimensionRecord

from ppdaemon.durable import sync
from ppdaemon.errors import BadMessage
from ppdaemon.wire import Model, explain

__all__ = ("MANIFEST", "Manifest", "SpoolKey", "SpooledFile", "check_files", "read_manifest", "write_spool")

_LOG = logging.getLogger(__name__)

MANIFEST = "manifest.json"
_PIECE = 1 << 20


class SpoolKey(Model):
    """Whose outputs they are."""

    instrument: str
    group: str
    detector: int
    attempt: int

    @property
    def folder(self) -> str:
        """Name of the spool folder (`str`); tells the four parts apart."""
        group = urllib.parse.quote(self.group, safe="").replace("~", "%7E")
        return f"{self.instrument}~{group}~{self.detector}~{self.attempt}"


class SpooledFile(Model):
    """One file and the datasets that it holds."""

    name: str
    """Name in the spool folder."""
    size_bytes: int
    formatter: str
    """Class that reads it."""
    refs: tuple[SerializedDatasetRef, ...]


class Manifest(Model):
    """What is in a spool folder."""

    version: int = 1
    key: SpoolKey
    chains: dict[str, tuple[str, ...]]
    """Output runs by the chain that finds them, the first searched first."""
    records: tuple[SerializedDimensionRecord, ...]
    """Dimension records that the central repo may lack."""
    files: tuple[SpooledFile, ...]
    failed: str = ""
    """Why these are partial outputs; the supervisor reads it where the worker
    could not tell any more."""


def write_spool(
    spool: Path,
    key: SpoolKey,
    fill: Callable[[Path], Iterable[SpooledFile]],
    records: Iterable[DimensionRecord],
    chains: dict[str, tuple[str, ...]],
    failed: str = "",
) -> Path:
    """Write datasets and their description to the disk, for good.

    Parameters
    ----------
    spool : `pathlib.Path`
        Folder of spools.
    key : `SpoolKey`
        Whose outputs.
    fill : `~collections.abc.Callable`
        Writes files into the folder that it is given, and returns what they
        are.
    records : `~collections.abc.Iterable` [`lsst.daf.butler.DimensionRecord`]
        Dimension records that go with it.
    chains : `dict` [`str`, `tuple` [`str`, ...]]
        Output runs by chain.
    failed : `str`, optional
        Why the outputs are partial.

    Returns
    -------
    folder : `pathlib.Path`
        The spool folder: appears at once, with everything on the disk.

    Raises
    ------
    OSError
        Raised if it cannot be written; then nothing of it stays.
    """
    folder = spool / key.folder
    partial = spool / f"{key.folder}.part"  # a name that nobody takes for a spool's
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        files = tuple(fill(partial))
        manifest = Manifest(
            key=key,
            chains=chains,
            records=tuple(record.to_simple() for record in records),
            files=files,
            failed=failed,
        )
        (partial / MANIFEST).write_text(manifest.model_dump_json(exclude_none=True))
        for path in (*partial.iterdir(), partial):
            sync(path)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)  # most likely the disk is full
        raise
    sync(spool)
    return folder


def read_manifest(folder: Path) -> Manifest:
    """Read what is in a spool folder.

    Parameters
    ----------
    folder : `pathlib.Path`
        The spool folder.

    Returns
    -------
    manifest : `Manifest`
        Its description.

    Raises
    ------
    ppdaemon.errors.BadMessage
        Raised if there is no manifest, or none that can be understood.
    """
    try:
        return Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except OSError as error:
        raise BadMessage(f"{folder}: no manifest: {error.strerror}") from error
    except pydantic.ValidationError as error:
        raise BadMessage(f"{folder}: damaged manifest: {explain(error)}") from error


def check_files(folder: Path, manifest: Manifest, *, through: bool = False) -> None:
    """Find out whether all files of a spool are there and whole.

    Parameters
    ----------
    folder : `pathlib.Path`
        The spool folder.
    manifest : `Manifest`
        Its description.
    through : `bool`, optional
        Whether each is also read to its end, if all are there.

    Raises
    ------
    ppdaemon.errors.BadMessage
        Raised if a file is missing, of another size, or cannot be read.
    """
    for file in manifest.files:
        path = folder / file.name
        try:
            size = path.stat().st_size if path.is_file() else None
        except OSError as error:
            raise BadMessage(f"{path} cannot be looked at: {error.strerror}") from error
        if size is None:
            raise BadMessage(f"{folder}: the manifest names {file.name}, which is not there")
        if size != file.size_bytes:
            raise BadMessage(f"{path} has {size} bytes, not {file.size_bytes}")
    for path in (folder / file.name for file in manifest.files if through):
        try:
            with path.open("rb") as stream:
                while stream.read(_PIECE):
                    pass
        except OSError as error:
            raise BadMessage(f"{path} cannot be read: {error.strerror}") from error
