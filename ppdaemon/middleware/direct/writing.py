# SPDX-License-Identifier: BSD-3-Clause
"""Writes the exported outputs of a visit: in the background of its tasks, and after them.

A thread writes in the background once that can delay no alert; after the tasks
as many processes write as may run tasks.
"""

import logging
import shutil
import threading
import uuid
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from ppdaemon.middleware.butler.datafiles import LocatedFile
from ppdaemon.middleware.butler.failures import describe, is_out_of_space
from ppdaemon.middleware.direct.files import DatasetWriter, MemoryDataset
from ppdaemon.middleware.direct.forked import DiedWithoutResult, ForkedCall
from ppdaemon.middleware.run.engine import TakeRoom

__all__ = ("BackgroundWriter", "write_failure", "write_outputs")

_LOG = logging.getLogger(__name__)

_FILE_OVERHEAD_BYTES = 100_000
"""Writing a file takes as long as writing that many bytes more."""
_MIN_FORK_BYTES = 4_000_000
"""Less is written faster than a process is forked."""

type _Written = dict[uuid.UUID, tuple[str, str, bool] | str]
"""By dataset: file name, formatter and whether it is uncompressed, or why it cannot be written."""


class BackgroundWriter:
    """Writes datasets into files in a folder on the RAM disk, but no images that `take_room` lets be spooled
    uncompressed: that takes little time, and up to seven times the space.
    """

    def __init__(self, writer: DatasetWriter, folder: Path, take_room: TakeRoom | None = None):
        self.writer = writer
        self.take_room = take_room
        self._folder = folder
        self._queue: deque[MemoryDataset] = deque()
        self._condition = threading.Condition()
        """Guards the fields below, which both threads change."""
        self._allowed = False
        self._finished = False
        self._thread: threading.Thread | None = None

    def offer(self, dataset: MemoryDataset) -> None:
        """Queue a dataset to be written; its content must not change from now on."""
        with self._condition:
            self._queue.append(dataset)
            self._start()
            self._condition.notify()

    def write(self, dataset: MemoryDataset) -> None:
        """Write a dataset now, unless it is written."""
        self._folder.mkdir(parents=True, exist_ok=True)
        if dataset.file is None:
            dataset.file = self.writer.write(dataset.content, dataset.ref, self._folder, dataset.provenance)

    def allow(self) -> None:
        """Let the thread begin: no urgent task is left."""
        with self._condition:
            self._allowed = True
            self._start()

    def finish(self) -> None:
        """Finish the file that is being written and end; queued datasets stay unwritten."""
        with self._condition:
            self._finished = True  # before the join: the thread must not start another file
            self._condition.notify()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _start(self) -> None:
        if self._allowed and self._queue and self._thread is None and not self._finished:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._thread = threading.Thread(target=self._write_queued, name="background-writer", daemon=True)
            self._thread.start()

    def _write_queued(self) -> None:
        while (dataset := self._next()) is not None:
            # Taken before the check: a reader may write the file and release the content at any time.
            content = dataset.content
            if dataset.file is not None:  # a reader has written it: its content may be released
                continue
            try:
                if not _stays_uncompressed(dataset, self.writer, self.take_room):
                    dataset.file = self.writer.write(content, dataset.ref, self._folder, dataset.provenance)
            except Exception as error:  # formatters are foreign code; write_outputs tries again
                _LOG.info("cannot write %s in the background: %s", dataset.ref, describe(error))
            del content  # otherwise it stays in memory while this thread waits

    def _next(self) -> MemoryDataset | None:
        with self._condition:
            while not self._queue and not self._finished:
                self._condition.wait()
            return None if self._finished else self._queue.popleft()


def write_outputs(
    outputs: Sequence[MemoryDataset],
    folder: Path,
    link: Path,
    writer: DatasetWriter,
    processes: int,
    take_room: TakeRoom | None = None,
) -> tuple[list[LocatedFile], dict[uuid.UUID, str]]:
    """Write datasets into a folder, each into a file named after its id.

    Return the files in the same order, and why the other datasets cannot be
    written. Some may be written already. `link` is the location of a temporary
    symbolic link. Images that `take_room` allows are not compressed. All but one of the
    processes are forked: with more than one no other thread may be active. Raises
    the error of a formatter only if there is no space, and any of copying files.
    """
    own_share, *others = _shares(outputs, processes)
    written: _Written = {}
    children: dict[ForkedCall, list[MemoryDataset]] = {}
    with _link_without_percent(folder, link) as link_path:
        write = partial(_write, folder=link_path, writer=writer, take_room=take_room)
        try:
            for share in others:
                try:
                    children[ForkedCall.start(partial(write, share), dict)] = share
                except OSError as error:
                    _LOG.warning(
                        "cannot fork a process to write outputs, fewer processes write them: %s", error
                    )
                    own_share += share
            written |= write(own_share)
            for child in list(children):
                share = children.pop(child)
                try:
                    written |= child.result()
                except DiedWithoutResult as error:  # what was raised there is raised here again
                    _LOG.warning("a process that wrote outputs %s, the worker writes them", error)
                    _remove_unfinished(share, folder)
                    written |= write(share)
        finally:
            for child in children:
                child.kill()
    files, failures = [], {}
    for dataset in outputs:
        match written[dataset.ref.id]:
            case str() as failure:
                failures[dataset.ref.id] = failure
            case (name, formatter, is_plain):
                files.append(LocatedFile(folder / name, formatter, (dataset.ref,), is_plain))
    return files, failures


def _shares(outputs: Sequence[MemoryDataset], processes: int) -> list[list[MemoryDataset]]:
    """Divide the work; the first share is this process's own, and has all small datasets.

    For a single large one nothing is forked: it takes as long as the small
    ones.
    """
    large = {
        dataset.ref.id for dataset in outputs if dataset.unwritten and dataset.size_bytes >= _MIN_FORK_BYTES
    }
    own_share = [dataset for dataset in outputs if dataset.ref.id not in large]
    shares = [own_share, *([] for _ in range(min(processes, len(large)) - 1))]
    loads = [_FILE_OVERHEAD_BYTES * len(share) for share in shares]
    for dataset in sorted(outputs, key=lambda dataset: -dataset.size_bytes):
        if dataset.ref.id in large:
            least = loads.index(min(loads))
            shares[least].append(dataset)
            loads[least] += dataset.size_bytes
    return shares


def _write(
    outputs: Iterable[MemoryDataset], folder: Path, writer: DatasetWriter, take_room: TakeRoom | None
) -> _Written:
    return {dataset.ref.id: _write_one(dataset, folder, writer, take_room) for dataset in outputs}


def _write_one(
    dataset: MemoryDataset, folder: Path, writer: DatasetWriter, take_room: TakeRoom | None
) -> tuple[str, str, bool] | str:
    """Return the file of a dataset, or why it cannot be written."""
    if dataset.file is not None:
        shutil.copyfile(dataset.file.path, folder / dataset.file.path.name)
        return dataset.file.path.name, dataset.file.formatter, dataset.file.plain
    try:
        write = writer.write_plain if _stays_uncompressed(dataset, writer, take_room) else writer.write
        file = write(dataset.content, dataset.ref, folder, dataset.provenance)
    except Exception as error:  # formatters are foreign code
        failure = write_failure(error)
        _LOG.error("%s cannot be written, it is not exported", dataset.ref, exc_info=error)
        _remove_unfinished([dataset], folder)
        return failure
    return file.path.name, file.formatter, file.plain


def _stays_uncompressed(dataset: MemoryDataset, writer: DatasetWriter, take_room: TakeRoom | None) -> bool:
    """Return whether an output is to be spooled uncompressed, which is decided once for each."""
    if take_room is None:
        return False
    if dataset.uncompressed is None:
        is_image = writer.writes_plain(dataset.ref)
        dataset.uncompressed = is_image and take_room(dataset.ref, dataset.size_bytes)
    return dataset.uncompressed


def write_failure(error: Exception) -> str:
    """Return why a dataset cannot be written, from the error of `DatasetWriter.write`.

    An error of a full disk is raised again: others would fail, too.
    """
    if is_out_of_space(error):
        raise error
    return describe(error.__cause__ if isinstance(error.__cause__, Exception) else error)


def _remove_unfinished(outputs: Iterable[MemoryDataset], folder: Path) -> None:
    """Remove the files of datasets that were not written to the end: they would be in the spool, too."""
    for dataset in outputs:
        for path in folder.glob(f"*{dataset.ref.id}*"):
            path.unlink()


@contextmanager
def _link_without_percent(folder: Path, link: Path) -> Iterator[Path]:
    """Create a link without percent signs in its path: some formatters log a warning about these."""
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(folder)
    try:
        yield link
    finally:
        link.unlink()
