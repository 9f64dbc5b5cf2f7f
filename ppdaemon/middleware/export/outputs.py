# SPDX-License-Identifier: BSD-3-Clause
"""What of a visit is exported: datasets of the worker's repo, and those that a run holds itself.

What is in the repo before the image, init-outputs and what was made of the
announcement, can be looked up then.
"""

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from lsst.daf.butler import Butler, DatasetRef

from ppdaemon.middleware.butler.datafiles import LocatedFile, copied, located
from ppdaemon.middleware.export.spool import SpooledFile
from ppdaemon.middleware.run.engine import PipelineRun

__all__ = ("Chosen", "Outputs")


@dataclass(frozen=True, slots=True)
class Chosen:
    """What is exported of a visit."""

    located: tuple[LocatedFile, ...]
    """In the worker's repo."""
    run: PipelineRun
    """Holds the rest."""

    @property
    def refs(self) -> list[DatasetRef]:
        """The datasets (`list` [`lsst.daf.butler.DatasetRef`])."""
        return [*(ref for file in self.located for ref in file.refs), *self.run.outputs]

    def fill(self, folder: Path) -> list[SpooledFile]:
        """Write them; see `ppdaemon.middleware.export.spool.write_spool`."""
        return [_spooled(file) for file in (*copied(self.located, folder), *self.run.write(folder))]


class Outputs:
    """Chooses what is exported.

    Parameters
    ----------
    types : `~collections.abc.Collection` [`str`]
        Regular expressions, of which a dataset type's whole name must match
        one.
    is_exported : `~collections.abc.Callable`
        Tells whether the central repo has a dataset already.
    """

    def __init__(self, types: Collection[str], is_exported: Callable[[DatasetRef], bool]):
        self._types = re.compile("|".join(f"(?:{pattern})" for pattern in types) or r"(?!)")
        self._is_exported = is_exported
        self._located: dict[tuple[str, ...], list[LocatedFile]] = {}

    def forget(self) -> None:
        """Go on with a repo that has nothing yet."""
        self._located.clear()

    def locate(self, butler: Butler, runs: Sequence[str]) -> None:
        """Look up what is in the worker's repo, for a run that holds its outputs itself."""
        self._located[tuple(runs)] = located(butler, self._select(butler, runs))

    def of(self, butler: Butler, runs: Sequence[str], run: PipelineRun) -> Chosen:
        """Choose what is exported of a visit.

        Parameters
        ----------
        butler : `lsst.daf.butler.Butler`
            The worker's repo.
        runs : `~collections.abc.Sequence` [`str`]
            Output runs.
        run : `~ppdaemon.middleware.run.engine.PipelineRun`
            What was run.

        Returns
        -------
        chosen : `Chosen`
            Without what the central repo has.
        """
        files = self._located.get(tuple(runs)) if run.outputs else None
        if files is None:
            refs = self._select(butler, runs)
            files = located(butler, [ref for ref in refs if not self._is_exported(ref)])
        new = (file for file in files if not all(self._is_exported(ref) for ref in file.refs))
        return Chosen(tuple(new), run)

    def _select(self, butler: Butler, runs: Sequence[str]) -> list[DatasetRef]:
        """Return the datasets of the repo, in the order of runs and names."""
        refs = []
        for run in runs:
            names = butler.collections.get_info(run, include_summary=True).dataset_types or ()
            for name in sorted(names):
                if self._types.fullmatch(name):
                    refs += butler.query_datasets(
                        name, collections=run, find_first=False, explain=False, limit=None
                    )
        return refs


def _spooled(file: LocatedFile) -> SpooledFile:
    return SpooledFile(
        name=file.path.name,
        size_bytes=file.path.stat().st_size,
        formatter=file.formatter,
        refs=tuple(ref.to_simple() for ref in file.refs),
    )
