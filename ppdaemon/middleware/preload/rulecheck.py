# SPDX-License-Identifier: BSD-3-Clause
"""Finds rules whose first pipeline no visit can get, because the central repo lacks an input."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from lsst.daf.butler import Butler

from ppdaemon.config import ButlerConfig, NodeConfig
from ppdaemon.middleware.butler.central import existing_collections, known_dataset_type
from ppdaemon.middleware.pipelines.graph import OverallInput, PipelineLibrary, UnusablePipeline
from ppdaemon.middleware.preload.findings import FOOTPRINT_TYPE, output_types
from ppdaemon.middleware.preload.search import requires_exposure
from ppdaemon.pipelinenames import pipeline_name
from ppdaemon.selection import Rule

__all__ = ("DroppedPipeline", "RuleChecker")


@dataclass(frozen=True, slots=True)
class DroppedPipeline:
    """The first pipeline of a rule, if no visit can get it."""

    part: Literal["preprocessing", "main"]
    rule: int
    """Position in the list of rules, from 0 as in keys."""
    name: str
    why: str


class RuleChecker:
    """Compares the inputs of each rule's first pipeline with the central repo, for any visit.

    `config` is the Butler part of `node`.
    """

    def __init__(self, node: NodeConfig, config: ButlerConfig):
        self._node = node
        self._config = config
        self._library = PipelineLibrary(node.pipelines.overrides)

    def dropped(self, butler: Butler) -> Iterator[DroppedPipeline]:
        """Yield the rules whose first pipeline is dropped for every detector of the node. `butler` is
        the central repo.
        """
        rules = self._node.pipelines
        before, _ = self._library.load(path for rule in rules.preprocessing for path in rule.pipelines)
        produced = {FOOTPRINT_TYPE, *output_types(before)}
        for number, rule in enumerate(rules.preprocessing):
            yield from self._first(butler, "preprocessing", number, rule, {FOOTPRINT_TYPE})
        for number, rule in enumerate(rules.main):
            yield from self._first(butler, "main", number, rule, produced)

    def _first(
        self,
        butler: Butler,
        part: Literal["preprocessing", "main"],
        number: int,
        rule: Rule,
        produced: set[str],
    ) -> Iterator[DroppedPipeline]:
        instruments = [name for name in rule.instrument or self._node.node.instruments if self._served(name)]
        if not rule.pipelines or not instruments:
            return
        path = rule.pipelines[0]
        pipelines, reasons = self._library.load([path])
        try:
            needs = [need for each in pipelines for need in self._library.needs(each, butler)]
        except UnusablePipeline as error:
            reasons.append(str(error))
        if not reasons:
            sought = [
                need for need in needs if need.required and need.name not in produced and _known_before(need)
            ]
            reasons = [self._lacks(butler, instrument, sought) for instrument in instruments]
        if all(reasons):
            reason = "; ".join(dict.fromkeys(reasons))
            yield DroppedPipeline(part, number, pipeline_name(path), reason)

    def _served(self, instrument: str) -> frozenset[int]:
        return frozenset(self._node.node.instruments.get(instrument, ()))

    def _lacks(self, butler: Butler, instrument: str, needs: list[OverallInput]) -> str:
        """Return which inputs no served detector has; empty if there is a detector that has all."""
        found = {need.name: self._detectors_with(butler, instrument, need.name) for need in needs}
        missing = [name for name, detectors in found.items() if not detectors]
        if not missing and self._served(instrument).intersection(*found.values()):
            return ""
        names = missing or [
            name for name, detectors in found.items() if detectors != self._served(instrument)
        ]
        return f"{instrument} lacks {', '.join(sorted(names))}"

    def _detectors_with(self, butler: Butler, instrument: str, name: str) -> frozenset[int]:
        """Return the served detectors for which there is a dataset, at any time and position."""
        served, dataset_type = self._served(instrument), known_dataset_type(butler, name)
        if dataset_type is None:
            return frozenset()
        config = self._config
        names = config.calibs if dataset_type.isCalibration() else (*config.inputs, *config.calibs)
        collections = existing_collections(butler, [each.format(instrument=instrument) for each in names])
        if not collections:
            return frozenset()
        known = {"instrument": instrument, "skymap": config.skymap}
        dimensions = dataset_type.dimensions
        data_id = {key: value for key, value in known.items() if value and key in dimensions.names}
        with butler.query() as query:
            results = query.datasets(dataset_type, collections, find_first=False)
            if data_id:
                results = results.where(data_id)
            if "detector" not in dimensions.names:
                return served if any(results.limit(1)) else frozenset()
            return served.intersection(int(ref.dataId["detector"]) for ref in results)


def _known_before(need: OverallInput) -> bool:
    return not requires_exposure(need.dataset_type)
