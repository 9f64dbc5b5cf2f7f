# SPDX-License-Identifier: BSD-3-Clause
"""Writing what a visit exports when its tasks are done: by as many processes as may run its tasks."""

import logging
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from ppdaemon.middleware.direct.apart import Apart, EndedSilently
from ppdaemon.middleware.direct.files import DatasetFile, DatasetWriter
from ppdaemon.middleware.direct.memory import Held

__all__ = ("write_outputs",)

_LOG = logging.getLogger(__name__)

_EACH_BYTES = 100_000
"""A file takes as long as so many bytes more."""
_WORTH_BYTES = 4_000_000
"""Less is written sooner than a process is forked."""

type _Names = Mapping[uuid.UUID, tuple[str, str]]
"""Name of the file and class that reads it, by dataset."""


def write_outputs(
    outputs: Sequence[Held], folder: Path, link: Path, writer: DatasetWriter, processes: int
) -> list[DatasetFile]:
    """Write datasets.

    Parameters
    ----------
    outputs : `~collections.abc.Sequence` [`~ppdaemon.middleware.direct.memory.Held`]
        The datasets; some may be written already.
    folder : `pathlib.Path`
        Where the files go, each named after its dataset's id.
    link : `pathlib.Path`
        Place for a symbolic link.
    writer : `~ppdaemon.middleware.direct.files.DatasetWriter`
        Knows how.
    processes : `int`
        How many may write at once; the others are forked, so with more than
        one no other thread may be at work.

    Returns
    -------
    files : `list` [`~ppdaemon.middleware.direct.files.DatasetFile`]
        The files, in the order of the datasets.

    Raises
    ------
    Exception
        Raised by formatters.
    """
    own, *others = _shares(outputs, processes)
    names: dict[uuid.UUID, tuple[str, str]] = {}
    children: dict[Apart, list[Held]] = {}
    with _plainly_named(folder, link) as plain:
        try:
            for share in others:
                try:
                    children[Apart.begin(partial(_write, share, plain, writer), dict)] = share
                except OSError as error:
                    _LOG.warning("outputs are written by fewer processes: %s", error)
                    own += share
            names |= _write(own, plain, writer)
            for child in list(children):
                share = children.pop(child)
                try:
                    names |= child.take()
                except EndedSilently as error:  # if it was a formatter, it will tell here
                    _LOG.warning("a process that wrote outputs has ended with %s", error)
                    _remove_unfinished(share, folder)
                    names |= _write(share, plain, writer)
        finally:
            for child in children:
                child.end()
    return [DatasetFile(folder / names[held.ref.id][0], names[held.ref.id][1], held.ref) for held in outputs]


def _shares(outputs: Sequence[Held], processes: int) -> list[list[Held]]:
    """Divide the work; the first share is this process's own, and has all that is small.

    For a single large one nothing is forked: that takes as long as the small ones.
    """
    big = {held.ref.id for held in outputs if held.unwritten and held.size_bytes >= _WORTH_BYTES}
    own = [held for held in outputs if held.ref.id not in big]
    shares = [own, *([] for _ in range(min(processes, len(big)) - 1))]
    loads = [_EACH_BYTES * len(share) for share in shares]
    for held in sorted(outputs, key=lambda held: -held.size_bytes):
        if held.ref.id in big:
            least = loads.index(min(loads))
            shares[least].append(held)
            loads[least] += held.size_bytes
    return shares


def _write(outputs: Iterable[Held], folder: Path, writer: DatasetWriter) -> _Names:
    files = ((held, _written(held, folder, writer)) for held in outputs)
    return {held.ref.id: (file.path.name, file.formatter) for held, file in files}


def _written(held: Held, folder: Path, writer: DatasetWriter) -> DatasetFile:
    if held.file is None:
        return writer.write(held.content, held.ref, folder, held.provenance)
    target = folder / held.file.path.name
    shutil.copyfile(held.file.path, target)
    return DatasetFile(target, held.file.formatter, held.ref)


def _remove_unfinished(outputs: Iterable[Held], folder: Path) -> None:
    """Remove what a killed process has left: its temporary files would be spooled, too."""
    for held in outputs:
        for path in folder.glob(f"*{held.ref.id}*"):
            path.unlink()


@contextmanager
def _plainly_named(folder: Path, link: Path) -> Iterator[Path]:
    """Give a name without percent signs: some formatters take these for a mistake, and say so."""
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(folder)
    try:
        yield link
    finally:
        link.unlink()
