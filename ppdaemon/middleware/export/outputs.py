# SPDX-License-Identifier: BSD-3-Clause
"""Selects a visit's datasets for export: those in the worker's repo, and those in a run's memory."""

import os
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lsst.daf.butler import Butler, DatasetRef

from ppdaemon.middleware.butler.datafiles import LocatedFile, extension_of, located
from ppdaemon.middleware.butler.repo import LocalRepo
from ppdaemon.middleware.export.checksums import checksum_of, copy_with_checksum
from ppdaemon.middleware.export.manifest import SimpleRefs, SpooledFile
from ppdaemon.middleware.run.engine import PipelineRun

__all__ = ("Outputs", "SelectedOutputs")


@dataclass(slots=True)
class SelectedOutputs:
    """The datasets of a visit that are exported."""

    located: tuple[LocatedFile, ...]
    """Files in the worker's repo."""
    run: PipelineRun
    """Has the other datasets in memory."""
    has_plain: bool = field(init=False, default=False)
    """Whether images among the written files wait uncompressed: room was also taken for one that was written
    before, compressed, for a task that reads a part of it."""

    @property
    def refs(self) -> list[DatasetRef]:
        """All datasets (`list` [`lsst.daf.butler.DatasetRef`])."""
        return [*(ref for file in self.located for ref in file.refs), *self.run.outputs]

    def fill(self, folder: Path) -> list[SpooledFile]:
        """Write the datasets' files to a folder, for `ppdaemon.middleware.export.spool.write_spool`."""
        # The disk begins to write each file at its checksum, and goes on during all that follows.
        written = [_copied(file, folder) for file in self.located]
        written += ((file, str(file.path), checksum_of(file.path)) for file in self.run.write(folder))
        self.has_plain = any(file.plain for file, _, _ in written)
        refs = SimpleRefs()
        return [_spooled(*each, refs) for each in written]


class Outputs:
    """Selects the datasets whose types match one of `types` (regular expressions, whole
    name) and that the central repo does not have. `with_records`: their references have
    the dimension records that names of files depend on.
    """

    def __init__(
        self, types: Collection[str], is_exported: Callable[[DatasetRef], bool], *, with_records: bool = False
    ):
        self._types = re.compile("|".join(f"(?:{pattern})" for pattern in types) or r"(?!)")
        self._is_exported = is_exported
        self._with_records = with_records

    def includes(self, name: str) -> bool:
        """Return whether datasets of a type are exported."""
        return self._types.fullmatch(name) is not None

    def of(self, repo: LocalRepo, runs: Sequence[str], run: PipelineRun) -> SelectedOutputs:
        """Return the datasets to export; `runs` are the output runs."""
        if run.in_repo:
            butler = repo.butler
            refs = self._select(butler, runs)
            files = located(butler, [ref for ref in refs if not self._is_exported(ref)])
        else:
            files = [
                each.file
                for name in runs
                for each in repo.datasets.in_run(name)
                if each.file is not None
                and self.includes(each.ref.datasetType.name)
                and not self._is_exported(each.ref)
            ]
        return SelectedOutputs(tuple(files), run)

    def _select(self, butler: Butler, runs: Sequence[str]) -> list[DatasetRef]:
        """Return the datasets of the matching types, in the order of runs and type names."""
        refs = []
        for run in runs:
            names = butler.collections.get_info(run, include_summary=True).dataset_types or ()
            for name in sorted(names):
                if self.includes(name):
                    refs += butler.query_datasets(
                        name,
                        collections=run,
                        find_first=False,
                        with_dimension_records=self._with_records,
                        explain=False,
                        limit=None,
                    )
        return refs


def _copied(file: LocatedFile, folder: Path) -> tuple[LocatedFile, str, str]:
    """Copy a file into a folder, named after the first dataset's id; return it, the path and the checksum of
    the copy.
    """
    # As texts: the operations of `Path` take as long as to copy a small file.
    path = str(file.path)
    copy = f"{folder}/{file.refs[0].id}{extension_of(os.path.basename(path))}"
    return file, copy, copy_with_checksum(path, copy)


def _spooled(file: LocatedFile, path: str, checksum: str, refs: SimpleRefs) -> SpooledFile:
    facts = os.stat(path)
    return SpooledFile(
        name=os.path.basename(path),
        size_bytes=facts.st_size,
        checksum=checksum,
        changed_ns=facts.st_ctime_ns,
        formatter=file.formatter,
        plain=file.plain,
        refs=tuple(map(refs.of, file.refs)),
    )
