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
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from lsst.daf.butler import DimensionRecord

from ppdaemon.config import ExportConfig
from ppdaemon.durable import sync
from ppdaemon.errors import BadMessage
from ppdaemon.folders import NodeFolders, folder_size
from ppdaemon.messages import ImagesGivenUp
from ppdaemon.middleware.butler.failures import is_out_of_space
from ppdaemon.middleware.export.manifest import (
    MANIFEST,
    Manifest,
    SpooledFile,
    SpoolKey,
    chains_in_use,
    manifest_text,
    read_manifest,
    replace_manifest,
)
from ppdaemon.middleware.export.syncing import AT_ONCE, OpenFiles, sync_all
from ppdaemon.spooling import SpoolDisk, goes_to_ramdisk

__all__ = (
    "check_files",
    "choose_folder",
    "give_up_oldest_images",
    "image_types",
    "oldest_first",
    "write_spool",
)

_LOG = logging.getLogger(__name__)

_MOST = 200
"""Spools whose images are given up at once: the report, which names each, must fit into one packet."""


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
            chains=chains_in_use(chains, files),
            records=tuple(record.to_simple() for record in records),
            files=files,
            failed=failed(),
        )
        (partial / MANIFEST).write_bytes(manifest_text(manifest))
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


def check_files(folder: Path, manifest: Manifest) -> None:
    """Raise `~ppdaemon.errors.BadMessage` if a file of a spool is missing, or if the folder has the name of
    another attempt. Sizes are compared with the contents.
    """
    if folder.name != manifest.key.folder:
        raise BadMessage(f"{folder} was renamed: its manifest is that of {manifest.key.folder}")
    try:
        present = set(os.listdir(folder))
    except OSError as error:
        raise BadMessage(f"{folder} cannot be checked: {error.strerror}") from error
    if missing := {file.name for file in manifest.files} - present:
        raise BadMessage(f"{folder}: file {min(missing)} of the manifest is missing")


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


def _overwrite_manifest(spool: Path, manifest: Manifest) -> None:
    """Write a shorter manifest into the blocks of the present one: a full disk has no others. Only a power
    failure meanwhile can damage it, which its checksum shows. Raises `OSError` if it is longer, as one that a
    person has edited might become.
    """
    path, text = spool / MANIFEST, manifest_text(manifest)
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
    changed = manifest.with_files(kept, given_up=(*manifest.given_up, *names))
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
