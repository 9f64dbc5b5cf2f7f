# SPDX-License-Identifier: BSD-3-Clause
"""Prerequisites that a task's lookup function finds: called before the image, with a data ID as announced.

Such a function gets the registry, and may query the records of the exposure
there. They are inserted while it is called, and then rolled back.

A result is used for another exposure if both have the same filter, day and
group, and if the same datasets of the type are valid at their times and
overlap their regions. Otherwise the function is called again.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from lsst.daf.butler import Butler, DataCoordinate, DatasetRef, DimensionRecord
from lsst.pipe.base.prerequisite_helpers import PrerequisiteFinder

from ppdaemon.middleware.butler.repo import LocalRepo
from ppdaemon.middleware.direct.inputs import InputDataset
from ppdaemon.middleware.raws.regions import regions_overlap
from ppdaemon.middleware.raws.visits import insert_records

__all__ = ("PrerequisiteLookups", "LookupMiss")

_EXPOSURE_IDS = frozenset({"exposure", "visit"})
"""Dimensions whose values are not known before the image, and do not decide
which dataset is found."""


class LookupMiss(Exception):
    """A lookup function has to be called, which needs the records of the exposure in the registry."""


class _RollBack(Exception):
    """Ends a transaction without a commit."""


class PrerequisiteLookups:
    """Cached results of lookup functions."""

    def __init__(
        self, repo: LocalRepo, collections: Sequence[str], entries: Mapping[str, Sequence[InputDataset]]
    ):
        self._repo = repo
        self._registry_butler: Butler | None = None
        """Has the records of the exposure while functions may be called."""
        self._collections = tuple(collections)
        self._entries = entries
        self._results: dict[Hashable, list[DatasetRef]] = {}

    def __call__(self, finder: PrerequisiteFinder, data_id: DataCoordinate) -> list[DatasetRef]:
        """Return the prerequisites of a quantum; raise `LookupMiss` if the function cannot be called now."""
        key = finder.task_node.label, finder.edge.connection_name, self._conditions(finder, data_id)
        if key not in self._results:
            if self._registry_butler is None:
                raise LookupMiss
            self._results[key] = self._call_function(finder, data_id, self._registry_butler)
        return self._results[key]

    @contextmanager
    def registry_access(self, records: Iterable[DimensionRecord]) -> Iterator[None]:
        """Allow functions to be called, with these records in the registry."""
        # The clone has a separate connection. Functions must query through it:
        # any other connection would wait until this transaction ends.
        butler = self._repo.butler.clone(collections=self._collections)
        self._registry_butler = butler
        try:
            with suppress(_RollBack), butler.transaction():
                insert_records(butler, records)
                yield
                raise _RollBack
        finally:
            self._registry_butler = None

    def _call_function(
        self, finder: PrerequisiteFinder, data_id: DataCoordinate, butler: Butler
    ) -> list[DatasetRef]:
        function: Callable[..., Iterable[DatasetRef | None]] | None = finder.lookup_function
        assert function is not None  # other prerequisites are found by InputIndex
        node = finder.dataset_type_node
        dataset_type = finder.edge.adapt_dataset_type(node.dataset_type)
        found = function(dataset_type, butler.registry, data_id, self._collections)
        return [node.generalize_ref(_with_records(ref, butler)) for ref in found if ref is not None]

    def _conditions(self, finder: PrerequisiteFinder, data_id: DataCoordinate) -> Hashable:
        """Return the values and datasets that a result may depend on."""
        values = tuple(item for item in sorted(data_id.mapping.items()) if item[0] not in _EXPOSURE_IDS)
        applicable = frozenset(
            (entry.ref.id, entry.rank)
            for entry in self._entries.get(finder.dataset_type_node.name, ())
            if _applies(entry, data_id)
        )
        return values, applicable


def _with_records(ref: DatasetRef, butler: Butler) -> DatasetRef:
    """Return a reference with dimension records, as the quantum graph of ``separable`` has them."""
    return ref if ref.dataId.hasRecords() else ref.expanded(butler.registry.expandDataId(ref.dataId))


def _applies(entry: InputDataset, data_id: DataCoordinate) -> bool:
    """Return whether a dataset is valid at the time of an exposure and overlaps its region."""
    time, region, dataset_region = data_id.timespan, data_id.region, entry.ref.dataId.region
    if entry.timespan is not None and time is not None and not entry.timespan.overlaps(time):
        return False
    return (
        region is None or dataset_region is None or regions_overlap(region, dataset_region, data_id.universe)
    )
