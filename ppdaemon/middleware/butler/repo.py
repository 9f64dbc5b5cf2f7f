# SPDX-License-Identifier: BSD-3-Clause
"""The worker's local repo: a copy of the template, deleted after each visit.

Datasets that the next visit will probably need again, such as the
calibrations of the same detector, can be saved in layers. Each layer is a copy
of the repo; the next repo is then a copy of the last layer, not of the
template.
"""

import logging
import os
import shutil
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lsst.daf.butler import Butler, Config, DatasetType, DimensionRecord, DimensionUniverse
from lsst.pipe.base import Instrument

from ppdaemon.middleware.butler.datafiles import link_or_copy
from ppdaemon.middleware.butler.failures import DATABASE_ERRORS, describe, is_out_of_space

__all__ = ("LocalRepo", "make_template", "template_dimensions", "template_repo")

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
    records: Iterable[DimensionRecord] = (),
) -> None:
    """Make the repo that all workers copy, replacing an older one; it appears complete.

    The universe is the central repo's, which may be an older version. `records`
    are the central repo's detectors and filters, which the installed package of
    an instrument may not have.
    Registering a dataset type takes about 10 ms: the types that pipelines will
    need are registered here, so that no visit waits for it.
    """
    # No dot in the name: Butler.makeRepo takes a path with a dot for a file.
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
        for record in records:
            butler.registry.insertDimensionData(record.definition.name, record, skip_existing=True)
        for dataset_type in dataset_types:
            butler.registry.registerDatasetType(dataset_type)
    (partial / _VERSIONS).write_text(versions)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def template_dimensions(template: Path) -> DimensionUniverse:
    """Return the dimensions of a template, which are those of the central repo."""
    with Butler.from_config(str(template_repo(template)), writeable=False) as butler:
        return butler.dimensions


def template_repo(template: Path) -> Path:
    """Return the root of the repo in a template."""
    return template / _REPO


class LocalRepo:
    """A copy of the template, and the Butler open on it.

    `folder` is the worker's, on the filesystem of the template.
    """

    def __init__(self, template: Path, folder: Path):
        self._template = template
        self.root = folder / _REPO
        """Root of the repo (`pathlib.Path`)."""
        self.incoming = folder / "incoming"
        """Folder of files that are about to be ingested (`pathlib.Path`)."""
        self.archives = self.root / "archives"
        """Folder of archives with datasets, saved with the repo (`pathlib.Path`)."""
        self._layer_folder = folder / "kept"
        self._butler: Butler | None = None
        self.versions = (template / _VERSIONS).read_text()
        """Digest of package versions (`str`)."""
        self.layers: tuple[Hashable, ...] = ()
        """Keys of the saved layers, the last on top (`tuple` [`Hashable`])."""
        self.renew()

    @property
    def butler(self) -> Butler:
        """The open Butler (`lsst.daf.butler.Butler`)."""
        if self._butler is None:
            raise RuntimeError("the local repo is closed")
        return self._butler

    def renew(self) -> None:
        """Delete the repo; open a copy of the top layer, or of the template if there is none."""
        if self.layers:
            try:
                self._open_copy(self._layer(len(self.layers)))
                return
            except DATABASE_ERRORS as error:
                if is_out_of_space(error):
                    raise
                _LOG.warning(
                    "discarding cached inputs, they will be fetched again: the copy of the repo with them"
                    " cannot be opened: %s",
                    describe(error),
                )
                self.drop_layers()
        self._open_copy(self._template / _REPO)

    def _layer(self, number: int) -> Path:
        return self._layer_folder / str(number)

    def _open_copy(self, source: Path) -> None:
        self.close()
        for folder in (self.root, self.incoming):
            if folder.exists():
                shutil.rmtree(folder)
        _copy_repo(source, self.root)
        self.incoming.mkdir()
        self._butler = Butler.from_config(str(self.root), writeable=True)

    def add_layer(self, key: Hashable) -> None:
        """Save the repo as it is now; `key` identifies what was added since the layer below."""
        layer = self._layer(len(self.layers) + 1)
        try:
            _copy_repo(self.root, layer)
        except BaseException:
            # Half a layer would be opened by the next visit.
            shutil.rmtree(layer, ignore_errors=True)
            raise
        self.layers = (*self.layers, key)

    def drop_layers(self, beyond: int = 0) -> None:
        """Delete all layers but the lowest `beyond`."""
        for number in range(len(self.layers), beyond, -1):
            shutil.rmtree(self._layer(number))
        self.layers = self.layers[:beyond]

    def close(self) -> None:
        """Close the Butler and its database."""
        if self._butler is not None:
            self._butler.close()
            self._butler = None


def _copy_repo(source: Path, target: Path) -> None:
    """Copy a repo; nothing may write to it meanwhile."""
    shutil.copytree(source, target, copy_function=_copy_or_link)


def _copy_or_link(source: str, target: str) -> None:
    """Copy a file, or link it if it is read-only."""
    # Read-only files are those of the shared cache; a copy would take its space again.
    if os.stat(source).st_mode & 0o222:
        shutil.copyfile(source, target)
    else:
        link_or_copy(Path(source), Path(target))
