# SPDX-License-Identifier: BSD-3-Clause
"""What of a visit is exported: datasets of the worker's repo, and those that were handed on in memory.

What is in the repo before the image, init-outputs and what was made of the
announcement, is looked up then.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from lsst.daf.butler import Butler, DatasetRef

from ppdaemon.middleware.direct.engine import DirectRun
from ppdaemon.middleware.export.spool import (
    LocatedFile,
    SpooledFile,
    copy_files,
    locate_files,
    select_outputs,
    spooled,
)
from ppdaemon.middleware.run.engine import PipelineRun

__all__ = ("Chosen", "Outputs")


@dataclass(frozen=True, slots=True)
class Chosen:
    """What is exported of a visit."""

    located: tuple[LocatedFile, ...]
    """In the worker's repo."""
    run: DirectRun | None
    """In memory."""

    @property
    def refs(self) -> list[DatasetRef]:
        """The datasets (`list` [`lsst.daf.butler.DatasetRef`])."""
        made = [] if self.run is None else self.run.outputs
        return [*(ref for file in self.located for ref in file.refs), *made]

    def fill(self, folder: Path) -> list[SpooledFile]:
        """Write them; see `ppdaemon.middleware.export.spool.write_spool`."""
        files = copy_files(self.located, folder)
        if self.run is not None:
            files += [
                spooled(LocatedFile(file.path, file.formatter, (file.ref,)))
                for file in self.run.write(folder)
            ]
        return files


class Outputs:
    """Chooses what is exported.

    Parameters
    ----------
    types : `~collections.abc.Collection` [`str`]
        Regular expressions on names of dataset types.
    is_exported : `~collections.abc.Callable`
        Tells whether the central repo has a dataset already.
    """

    def __init__(self, types: Collection[str], is_exported: Callable[[DatasetRef], bool]):
        self._types = tuple(types)
        self._is_exported = is_exported
        self._located: dict[tuple[str, ...], list[LocatedFile]] = {}

    def forget(self) -> None:
        """Go on with a repo that has nothing yet."""
        self._located.clear()

    def locate(self, butler: Butler, runs: Sequence[str]) -> None:
        """Look up what is in the worker's repo, if nothing more will get there.

        Parameters
        ----------
        butler : `lsst.daf.butler.Butler`
            The worker's repo.
        runs : `~collections.abc.Sequence` [`str`]
            Output runs.
        """
        self._located[tuple(runs)] = locate_files(butler, select_outputs(butler, runs, self._types))

    def of(self, butler: Butler, runs: Sequence[str], run: PipelineRun) -> Chosen:
        """Choose what is exported of a visit.

        Parameters
        ----------
        butler : `lsst.daf.butler.Butler`
            The worker's repo.
        runs : `~collections.abc.Sequence` [`str`]
            Output runs.
        run : `~ppdaemon.middleware.run.engine.PipelineRun`
            What was run; it may have outputs in memory.

        Returns
        -------
        chosen : `Chosen`
            Without what the central repo has.
        """
        direct = run if isinstance(run, DirectRun) else None
        located = self._located.get(tuple(runs)) if direct is not None else None
        if located is None:
            refs = select_outputs(butler, runs, self._types)
            located = locate_files(butler, [ref for ref in refs if not self._is_exported(ref)])
        new = (file for file in located if not all(self._is_exported(ref) for ref in file.refs))
        return Chosen(tuple(new), direct)
