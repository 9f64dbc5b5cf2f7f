# SPDX-License-Identifier: BSD-3-Clause
"""A worker's own repo: a copy of the template, thrown away after each visit."""

import logging
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lsst.daf.butler import Butler, Config, DatasetType, DimensionUniverse
from lsst.pipe.base import Instrument

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
        self._root = folder / _REPO
        self._incoming = folder / "incoming"
        self._butler: Butler | None = None
        self.versions = (template / _VERSIONS).read_text()
        """Digest of package versions (`str`)."""
        self.renew()

    @property
    def butler(self) -> Butler:
        """The Butler of this visit (`lsst.daf.butler.Butler`)."""
        if self._butler is None:
            raise RuntimeError("the local repo is closed")
        return self._butler

    @property
    def incoming(self) -> Path:
        """Where raws are put before they are ingested (`pathlib.Path`)."""
        return self._incoming

    def renew(self) -> None:
        """Throw the repo away, copy the template again and open it."""
        self.close()
        for folder in (self._root, self._incoming):
            if folder.exists():
                shutil.rmtree(folder)
        shutil.copytree(self._template / _REPO, self._root)
        self._incoming.mkdir()
        self._butler = Butler.from_config(str(self._root), writeable=True)

    def close(self) -> None:
        """Close the Butler and its database."""
        if self._butler is not None:
            self._butler.close()
            self._butler = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
