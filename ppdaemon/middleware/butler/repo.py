# SPDX-License-Identifier: BSD-3-Clause
"""A worker's own repo: a copy of the template, thrown away after each visit.

What the next visit will most likely need again, such as the calibrations of
the same detector, can be kept in layers: then a copy of the repo with them
takes the template's place.
"""

import logging
import os
import shutil
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lsst.daf.butler import Butler, Config, DatasetType, DimensionUniverse
from lsst.pipe.base import Instrument

from ppdaemon.middleware.butler.datafiles import link_or_copy
from ppdaemon.middleware.butler.failures import DATABASE_ERRORS, describe, is_out_of_space

__all__ = ("LocalRepo", "make_template")

_LOG = logging.getLogger(__name__)
_REPO = "repo"
_VERSIONS = "versions"


def make_template(
    folder: Path,
    universe: DimensionUniverse,
    instruments: Sequence[Instrument],
    dataset_types: Iterable[DatasetType],
    versions: str,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Make the repo that all workers copy.

    Parameters
    ----------
    folder : `pathlib.Path`
        The template; appears complete, and replaces an older one.
    universe : `lsst.daf.butler.DimensionUniverse`
        The central repo's dimensions, which may be of an older version.
    instruments : `~collections.abc.Sequence` [`lsst.pipe.base.Instrument`]
        Instruments to register.
    dataset_types : `~collections.abc.Iterable` [`lsst.daf.butler.DatasetType`]
        What pipelines will need, as far as it is known; registering a type
        takes ~10 ms that no visit has to wait for then.
    versions : `str`
        Digest of package versions, kept beside the repo.
    settings : `~collections.abc.Mapping`, optional
        Butler configuration of the repo beside the usual.
    """
    # Without a dot: Butler.makeRepo takes a folder with one for a file.
    partial = folder.with_name(f"{folder.name}-partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    root = str(partial / _REPO)
    config = Butler.makeRepo(
        root, config=Config(dict(settings or {})), dimensionConfig=universe.dimensionConfig
    )
    with Butler.from_config(config, writeable=True) as butler:
        for instrument in instruments:
            instrument.register(butler.registry)
            butler.collections.register(instrument.makeDefaultRawIngestRunName())
        for dataset_type in dataset_types:
            butler.registry.registerDatasetType(dataset_type)
    (partial / _VERSIONS).write_text(versions)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


class LocalRepo:
    """A copy of the template and the Butler that is open on it.

    Parameters
    ----------
    template : `pathlib.Path`
        The folder that `make_template` made.
    folder : `pathlib.Path`
        The worker's own folder, on the same filesystem.
    """

    def __init__(self, template: Path, folder: Path):
        self._template = template
        self.root = folder / _REPO
        """Where the repo is (`pathlib.Path`)."""
        self.incoming = folder / "incoming"
        """Where raws are put before they are ingested (`pathlib.Path`)."""
        self._layers = folder / "kept"
        self._butler: Butler | None = None
        self.versions = (template / _VERSIONS).read_text()
        """Digest of package versions (`str`)."""
        self.kept: tuple[Hashable, ...] = ()
        """Stand for what was kept beside the template's content, layer upon
        layer (`tuple` [`Hashable`])."""
        self.renew()

    @property
    def butler(self) -> Butler:
        """The Butler of this visit (`lsst.daf.butler.Butler`)."""
        if self._butler is None:
            raise RuntimeError("the local repo is closed")
        return self._butler

    def renew(self) -> None:
        """Throw the repo away, open a copy of what was kept, or else of the template."""
        if self.kept:
            try:
                self._begin_with(self._layer(len(self.kept)))
                return
            except DATABASE_ERRORS as error:
                if is_out_of_space(error):
                    raise
                _LOG.warning("what was kept is of no use: %s", describe(error))
                self.drop_kept()
        self._begin_with(self._template / _REPO)

    def _layer(self, number: int) -> Path:
        return self._layers / str(number)

    def _begin_with(self, source: Path) -> None:
        self.close()
        for folder in (self.root, self.incoming):
            if folder.exists():
                shutil.rmtree(folder)
        _copy_repo(source, self.root)
        self.incoming.mkdir()
        self._butler = Butler.from_config(str(self.root), writeable=True)

    def keep(self, what: Hashable) -> None:
        """Let later copies begin with all that is in the repo now.

        Parameters
        ----------
        what : `~collections.abc.Hashable`
            Stands for what came since the layer before; the last of `kept`.
        """
        layer = self._layer(len(self.kept) + 1)
        try:
            _copy_repo(self.root, layer)
        except BaseException:
            shutil.rmtree(layer, ignore_errors=True)
            raise
        self.kept = (*self.kept, what)

    def drop_kept(self, beyond: int = 0) -> None:
        """Let later copies begin with less.

        Parameters
        ----------
        beyond : `int`, optional
            How many layers stay; with none, copies begin with the template.
        """
        for number in range(len(self.kept), beyond, -1):
            shutil.rmtree(self._layer(number))
        self.kept = self.kept[:beyond]

    def close(self) -> None:
        """Close the Butler and its database."""
        if self._butler is not None:
            self._butler.close()
            self._butler = None


def _copy_repo(source: Path, target: Path) -> None:
    """Copy a repo on which nobody writes at the moment."""
    shutil.copytree(source, target, copy_function=_copy_or_link)


def _copy_or_link(source: str, target: str) -> None:
    """Copy a file, or link it if it is read-only: those come from the shared cache."""
    if os.stat(source).st_mode & 0o222:
        shutil.copyfile(source, target)
    else:
        link_or_copy(Path(source), Path(target))
