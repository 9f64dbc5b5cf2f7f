# SPDX-License-Identifier: BSD-3-Clause
"""Outputs on their way from a worker to the central repo: a folder with a manifest.

Covers writing and reading such a folder. Registering is
`ppdaemon.middleware.export`'s.
"""

import logging
import os
import re
import shutil
import urllib.parse
from collections.abc import Iterable, Sequence
from pathlib import Path

import pydantic
from lsst.daf.butler import Butler, DatasetRef, DimensionRecord, SerializedDatasetRef
from lsst.daf.butler.dimensions import SerializedDimensionRecord

from ppdaemon.errors import BadMessage
from ppdaemon.middleware.transfer import describe_files
from ppdaemon.wire import Model, explain

__all__ = (
    "MANIFEST",
    "Manifest",
    "SpoolKey",
    "SpooledFile",
    "read_manifest",
    "select_outputs",
    "sync",
    "write_spool",
)

_LOG = logging.getLogger(__name__)

MANIFEST = "manifest.json"


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

    @property
    def datasets(self) -> int:
        """How many datasets there are (`int`)."""
        return sum(len(file.refs) for file in self.files)


def select_outputs(butler: Butler, runs: Sequence[str], patterns: Sequence[str]) -> list[DatasetRef]:
    """Return the datasets that are to be exported.

    Parameters
    ----------
    butler : `lsst.daf.butler.Butler`
        The worker's repo.
    runs : `~collections.abc.Sequence` [`str`]
        Output runs.
    patterns : `~collections.abc.Sequence` [`str`]
        Regular expressions, of which a type's whole name must match one.

    Returns
    -------
    refs : `list` [`lsst.daf.butler.DatasetRef`]
        In the order of runs and names.
    """
    wanted = re.compile("|".join(f"(?:{pattern})" for pattern in patterns) or r"(?!)")
    refs = []
    for run in runs:
        names = butler.collections.get_info(run, include_summary=True).dataset_types or ()
        for name in sorted(names):
            if wanted.fullmatch(name):
                refs += butler.query_datasets(
                    name, collections=run, find_first=False, explain=False, limit=None
                )
    return refs


def write_spool(
    spool: Path,
    key: SpoolKey,
    butler: Butler,
    refs: Sequence[DatasetRef],
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
    butler : `lsst.daf.butler.Butler`
        The worker's repo.
    refs : `~collections.abc.Sequence` [`lsst.daf.butler.DatasetRef`]
        What to write.
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
        files = _copy_files(butler, refs, partial)
        manifest = Manifest(
            key=key,
            chains=chains,
            records=tuple(record.to_simple() for record in records),
            files=tuple(files),
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


def _copy_files(butler: Butler, refs: Sequence[DatasetRef], target: Path) -> list[SpooledFile]:
    uris = {ref.id: uri.primaryURI for ref, uri in butler.get_many_uris(refs).items()}
    files = []
    for file in describe_files(butler, refs):
        uri = uris[file.refs[0].id]
        assert uri is not None  # the worker's repo keeps each dataset in one file
        name = f"{file.refs[0].id}{uri.getExtension()}"
        shutil.copyfile(uri.ospath, target / name)
        simple = tuple(ref.to_simple() for ref in file.refs)
        files.append(SpooledFile(name=name, formatter=str(file.formatter), refs=simple))
    return files


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk.

    Parameters
    ----------
    path : `pathlib.Path`
        File or folder.

    Raises
    ------
    OSError
        Raised if it cannot be opened or written.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
