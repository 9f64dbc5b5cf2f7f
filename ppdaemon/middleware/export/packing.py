# SPDX-License-Identifier: BSD-3-Clause
"""Compresses the images of spools, beside the exporter.

A worker writes them uncompressed, which takes a fifth of the time. Processes of low priority
read them and write them as the worker would have done, with the formatter that the local repo has for
them and the provenance that is in the file: with the same seed the same pixels are stored. The
manifest has then the checksums of the packed files; those as they were spooled are compared before.
"""

import logging
import math
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from lsst.daf.butler import ButlerConfig, DatasetRef

from ppdaemon.errors import BadMessage
from ppdaemon.middleware.butler.failures import describe
from ppdaemon.middleware.butler.repo import template_dimensions, template_repo
from ppdaemon.middleware.direct.files import DatasetWriter, read_plain
from ppdaemon.middleware.direct.forked import DiedWithoutResult, ForkedCall
from ppdaemon.middleware.export.checksums import checksum_of
from ppdaemon.middleware.export.manifest import Manifest, SpooledFile, read_manifest, replace_manifest
from ppdaemon.middleware.export.spool import oldest_first
from ppdaemon.middleware.export.syncing import sync_all
from ppdaemon.processes import set_title
from ppdaemon.uncompressed import UncompressedRoom

__all__ = ("Packer", "pack")

_LOG = logging.getLogger(__name__)

NICENESS = 5
"""In addition to that of the exporter, which is that of workers: a packer has a third of the time of a task
that needs the same core. With the lowest priority it would hardly run where tasks use all cores."""
LIMIT_S = 300.0
"""For each spool of a process, which takes seconds. One that is stopped, or waits for a disk, keeps them."""
LONGEST_WAIT_S = 0.5
"""Other spools may come meanwhile."""
AT_ONCE = 8
"""Spools for one process: forking it takes as long as a small image."""
_PACKED = "packed-"
"""Prefix of the names of packed files."""
_PACKING = "packing-"
"""Prefix of the names of folders in which they are written."""


@dataclass(frozen=True, slots=True)
class _Share:
    """What one process packs."""

    spools: tuple[Path, ...]
    end_s: float
    """When the process is killed, monotonic seconds."""


class Packer:
    """Packs the spools in some folders, by up to `processes` at once; `template` is the repo that
    workers copy. `room` is given back for what is packed; `visit_s` is how long a worker may have an
    image at most before it is in a spool.
    """

    def __init__(
        self,
        template: Path,
        folders: Sequence[Path],
        processes: int,
        room: UncompressedRoom | None = None,
        visit_s: float = math.inf,
    ):
        self._template = template
        self._folders = folders
        self._processes = processes
        self._room = room
        self._visit_s = visit_s
        self._writer: DatasetWriter | None = None
        self._counted = False
        """Whether `room` has the images of earlier runs."""
        self._running: dict[ForkedCall, _Share] = {}
        self._packed: set[Path] = set()
        """Spools that need not be packed any more."""
        self._plain: set[Path] = set()
        """Spools that have images to be packed, as `reduced` has found."""

    @property
    def busy(self) -> set[Path]:
        """The spools that processes have."""
        return {spool for share in self._running.values() for spool in share.spools}

    def reduced(self, spool: Path, manifest: Manifest) -> Manifest:
        """Return a manifest without the images that are still to be packed."""
        self._plain.discard(spool)
        files = [file for file in manifest.files if not file.plain]
        if not self._processes or spool in self._packed or len(files) == len(manifest.files):
            return manifest
        self._plain.add(spool)
        return _in_order(manifest.with_files(files), manifest)

    def has_images_of(self, spool: Path) -> bool:
        """Return whether the manifest that `reduced` returned last is not complete, and would not be now."""
        return spool in self._plain and spool not in self._packed

    def collect(self, *, wait: bool = False) -> None:
        """Note which processes have ended, and kill those that do not; with `wait`, wait for one, but not
        long. One that is killed keeps its spools until it has ended: it could still change them.
        """
        wait = wait and bool(self._running)
        for call in ForkedCall.ended(list(self._running), wait=wait, limit_s=LONGEST_WAIT_S):
            # Also if it has failed: what it has not packed is registered as it is.
            self._packed.update(self._running.pop(call).spools)
            try:
                call.result()
            except DiedWithoutResult as error:
                _LOG.error("a process that packed images %s; they stay uncompressed", error)
        now = time.monotonic()
        for call, share in [each for each in self._running.items() if now > each[1].end_s]:
            call.send_kill()
            self._running[call] = replace(share, end_s=math.inf)
            _LOG.error(
                "a process that packed images is killed: it had %.0f s for %d spools. When it has ended, its"
                " images are registered uncompressed",
                LIMIT_S * len(share.spools),
                len(share.spools),
            )

    def start(self) -> None:
        """Start processes for what waits, the oldest first. No thread may be active."""
        free = self._processes - len(self._running)
        waiting = self._waiting(free * AT_ONCE) if free else []
        for number in range(min(free, len(waiting))):
            spools, writer = tuple(waiting[number::free]), self._open_writer()

            def pack_share(spools: Iterable[Path] = spools, writer: DatasetWriter = writer) -> None:
                set_title("ppdaemon packer")
                os.nice(NICENESS)
                _be_killed_first()
                for spool in spools:
                    pack(spool, writer, self._room)

            try:
                call = ForkedCall.start(pack_share, lambda result: result)
                self._running[call] = _Share(spools, time.monotonic() + LIMIT_S * len(spools))
            except OSError as error:
                _LOG.warning("no process can be forked to pack images, it is tried again: %s", error)
                return

    def close(self) -> None:
        """Kill the processes; what they have not finished stays as it was."""
        for call in self._running:
            call.kill()
        self._running.clear()

    def _waiting(self, most: int) -> list[Path]:
        """Return the oldest spools that no process has; no more manifests are read than that needs, but all
        by the first call, which counts their images.
        """
        busy, found = self.busy, oldest_first(self._folders)
        self._packed.intersection_update(found)
        self._plain.intersection_update(found)
        if self._room is not None:
            self._room.give_back_stale({spool.name for spool in found}, self._visit_s)
        waiting: list[Path] = []
        for spool in found:
            if self._counted and len(waiting) >= most:
                break
            if spool in busy or spool in self._packed:
                continue
            try:
                plain = [file for file in read_manifest(spool).files if file.plain]
                if plain:
                    waiting.append(spool)
                    if not self._counted:
                        self._note(spool, plain)
                else:
                    self._packed.add(spool)
            except BadMessage:  # the exporter quarantines it
                self._packed.add(spool)
        self._counted = True
        return waiting[:most]

    def _note(self, spool: Path, plain: Iterable[SpooledFile]) -> None:
        """Count the images of a spool that waits, perhaps from an earlier run: workers count only theirs."""
        if self._room is not None:
            for file in plain:
                with suppress(OSError):
                    self._room.note(spool.name, str(file.refs[0].id), file.size_bytes)

    def _open_writer(self) -> DatasetWriter:
        if self._writer is None:
            config = ButlerConfig(str(template_repo(self._template)))
            self._writer = DatasetWriter(config, template_dimensions(self._template))
            _rehearse()
        return self._writer


def pack(spool: Path, writer: DatasetWriter, room: UncompressedRoom | None = None) -> None:
    """Compress the images of a spool that are not, and give back their room if none is left.

    One that cannot be read or written stays as it is, and is registered so. A spool that is
    damaged, or was deleted meanwhile, is left to the exporter.
    """
    try:
        manifest = read_manifest(spool)
        _remove_unnamed(spool)  # a packer may have been killed here
        with _without_percent(spool) as folder:
            files = tuple(_packed(folder, file, writer) if file.plain else file for file in manifest.files)
        sync_all(spool / file.name for file in files)
        replace_manifest(spool, manifest.with_files(files))
        names = [file.name for file in manifest.files if file.plain]
        packed = set(names).difference(file.name for file in files)
        for name in packed:
            (spool / name).unlink(missing_ok=True)
        if room is not None and len(packed) == len(names):
            room.give_back(spool.name)
    except (BadMessage, OSError) as error:
        _LOG.error("the images of %s are not packed: %s", spool.name, describe(error))
        _remove_unnamed(spool)


def _in_order(reduced: Manifest, manifest: Manifest) -> Manifest:
    """Return a reduced manifest whose chains begin behind the runs that have lost their files: these are put
    in front of what a chain has when they come, and would else be before runs that are searched before them.
    """
    chains = {}
    for name, runs in reduced.chains.items():
        lost = [number for number, run in enumerate(manifest.chains[name]) if run not in runs]
        chains[name] = manifest.chains[name][max(lost, default=-1) + 1 :]
    return reduced.model_copy(update={"chains": chains})


def _rehearse() -> None:
    """Write and read an image of four pixels: each packer would import again what this process has not, which
    takes four times as long as to pack an image of the demo.
    """
    from lsst.images import Image, MaskedImage, MaskPlane, MaskSchema
    from lsst.images.serialization import write_archive

    image = Image(np.zeros((2, 2), np.float32))
    masked = MaskedImage(image, variance=image, mask_schema=MaskSchema([MaskPlane("BAD", "")]))
    with tempfile.TemporaryDirectory() as folder, suppress(Exception):  # it only costs time
        write_archive(masked, Path(folder, "image.fits"))
        read_plain(Path(folder, "image.fits"))


def _be_killed_first() -> None:
    """Let a host without memory kill this process instead of one that has a visit."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _remove_unnamed(spool: Path) -> None:
    """Delete what packers have written and the manifest does not name: the disk may be full."""
    with suppress(BadMessage, OSError):
        named = {file.name for file in read_manifest(spool).files}
        for path in spool.glob(f"{_PACKED}*"):
            if path.name not in named:
                path.unlink()
        for folder in spool.glob(f"{_PACKING}*"):
            shutil.rmtree(folder)


@contextmanager
def _without_percent(folder: Path) -> Iterator[Path]:
    """Yield another path of a folder: ``lsst.images`` takes percent signs in one for quoted characters."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def _packed(spool: Path, file: SpooledFile, writer: DatasetWriter) -> SpooledFile:
    """Return the packed file; the one that was spooled if it was changed, or cannot be packed."""
    path, as_spooled = spool / file.name, file._replace(plain=False)
    if file.checksum and checksum_of(path) != file.checksum:
        return as_spooled  # the exporter compares it again, and quarantines the spool
    folder = spool / f"{_PACKING}{uuid.uuid4()}"
    folder.mkdir()
    try:
        content, provenance = read_plain(path)
        ref = DatasetRef.from_simple(file.refs[0].simple(), universe=writer.universe)
        written = writer.write(content, ref, folder, provenance).path
        target = written.rename(spool / f"{_PACKED}{written.name}")
    except Exception as error:  # formatters are foreign code
        name = os.path.basename(os.path.realpath(spool))
        _LOG.error("%s of %s is registered without compression: %s", file.name, name, describe(error))
        return as_spooled
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    found = target.stat()
    return as_spooled._replace(
        name=target.name,
        size_bytes=found.st_size,
        changed_ns=found.st_ctime_ns,
        checksum=checksum_of(target),
    )
