# SPDX-License-Identifier: BSD-3-Clause
"""Pipelines that were parsed, and what they read; kept for a worker's life."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lsst.daf.butler import Butler

from ppdaemon.middleware.butler.central import known_dataset_type
from ppdaemon.middleware.pipelines.graph import (
    LoadedPipeline,
    Need,
    UnusablePipeline,
    load_pipeline,
    needs_of,
)

__all__ = ("Library",)

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Kept:
    needs: tuple[Need, ...]
    unknown: tuple[str, ...]
    """Types that no repo has defined so far: the pipeline's own word counts."""


class Library:
    """Pipelines that were parsed, and what they read; kept for a worker's life.

    Parameters
    ----------
    overrides : `~collections.abc.Mapping` [`str`, `object`]
        Task configuration by ``label:field``.
    """

    def __init__(self, overrides: Mapping[str, Any]):
        self._overrides = overrides
        self._loaded: dict[str, LoadedPipeline] = {}
        self._needs: dict[str, _Kept] = {}

    def load(self, paths: Iterable[str]) -> tuple[list[LoadedPipeline], list[str]]:
        """Return the pipelines of some files.

        Parameters
        ----------
        paths : `~collections.abc.Iterable` [`str`]
            Pipeline files.

        Returns
        -------
        pipelines : `list` [`~ppdaemon.middleware.pipelines.graph.LoadedPipeline`]
            Those that can be constructed.
        reasons : `list` [`str`]
            Why the others cannot.
        """
        pipelines, reasons = [], []
        for path in paths:
            try:
                if path not in self._loaded:
                    self._loaded[path] = load_pipeline(path, self._overrides)
                pipelines.append(self._loaded[path])
            except UnusablePipeline as error:
                _LOG.error("%s", error)
                reasons.append(str(error))
        return pipelines, reasons

    def needs(self, pipeline: LoadedPipeline, butler: Butler) -> tuple[Need, ...]:
        """Return what a pipeline reads; see `ppdaemon.middleware.pipelines.graph.needs_of`.

        Asked again only if the repo has got a type that it did not know.
        """
        kept = self._needs.get(pipeline.path)
        if kept is None or any(known_dataset_type(butler, name) is not None for name in kept.unknown):
            needs = needs_of(pipeline, butler)
            unknown = tuple(need.name for need in needs if known_dataset_type(butler, need.name) is None)
            kept = self._needs[pipeline.path] = _Kept(needs, unknown)
        return kept.needs
