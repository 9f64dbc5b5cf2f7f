# SPDX-License-Identifier: BSD-3-Clause
"""Prerequisites that a task's own function finds: asked before the image, with a data ID as announced.

Such a function is given the registry, and may look for the exposure's records
there. They are inserted for as long as it is asked, and taken back.

An answer counts for another exposure if both have the same filter, day and
group, and if the same datasets of the type are valid at their times and
overlap their places. Else the function is asked again.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from lsst.daf.butler import Butler, DataCoordinate, DatasetRef, DimensionRecord
from lsst.pipe.base.prerequisite_helpers import PrerequisiteFinder

from ppdaemon.middleware.direct.dataids import regions_overlap
from ppdaemon.middleware.direct.inputs import InputDataset
from ppdaemon.middleware.raws.visits import insert_records

__all__ = ("PrerequisiteLookups", "LookupMiss")

_EXPOSURE_IDS = frozenset({"exposure", "visit"})
"""What is not known before the image, and cannot decide which dataset fits."""


class LookupMiss(Exception):
    """The registry has to be asked, with the exposure's records."""


class _RollBack(Exception):
    """Ends a transaction."""


class PrerequisiteLookups:
    """Answers of tasks' lookup functions.

    Parameters
    ----------
    butler : `lsst.daf.butler.Butler`
        The worker's repo.
    collections : `~collections.abc.Sequence` [`str`]
        Collections in the order of search.
    entries : `~collections.abc.Mapping`
        All datasets that may be found, by type.
    """

    def __init__(
        self, butler: Butler, collections: Sequence[str], entries: Mapping[str, Sequence[InputDataset]]
    ):
        self._butler = butler
        self._registry_butler: Butler | None = None
        """Has the exposure's records, for as long as functions may be asked."""
        self._collections = tuple(collections)
        self._entries = entries
        self._answers: dict[Hashable, list[DatasetRef]] = {}

    def __call__(self, finder: PrerequisiteFinder, data_id: DataCoordinate) -> list[DatasetRef]:
        """Find a prerequisite.

        Parameters
        ----------
        finder : `lsst.pipe.base.prerequisite_helpers.PrerequisiteFinder`
            The connection.
        data_id : `lsst.daf.butler.DataCoordinate`
            The quantum's.

        Returns
        -------
        refs : `list` [`lsst.daf.butler.DatasetRef`]
            What the function has found.

        Raises
        ------
        LookupMiss
            Raised if it has to be asked, and cannot now.
        """
        key = finder.task_node.label, finder.edge.connection_name, self._conditions(finder, data_id)
        if key not in self._answers:
            if self._registry_butler is None:
                raise LookupMiss
            self._answers[key] = self._call_function(finder, data_id, self._registry_butler)
        return self._answers[key]

    @contextmanager
    def registry_access(self, records: Iterable[DimensionRecord]) -> Iterator[None]:
        """Allow functions to be asked.

        Parameters
        ----------
        records : `~collections.abc.Iterable` [`lsst.daf.butler.DimensionRecord`]
            Of the exposures; in the registry for as long as this lasts.
        """
        # The clone has a connection of its own: what is asked must go through
        # that, as any other would wait for this transaction to end.
        butler = self._butler.clone(collections=self._collections)
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
        assert function is not None  # else nobody would ask here
        node = finder.dataset_type_node
        dataset_type = finder.edge.adapt_dataset_type(node.dataset_type)
        found = function(dataset_type, butler.registry, data_id, self._collections)
        return [node.generalize_ref(_with_records(ref, butler)) for ref in found if ref is not None]

    def _conditions(self, finder: PrerequisiteFinder, data_id: DataCoordinate) -> Hashable:
        """Return what an answer may depend on."""
        values = tuple(item for item in sorted(data_id.mapping.items()) if item[0] not in _EXPOSURE_IDS)
        applicable = frozenset(
            (entry.ref.id, entry.rank)
            for entry in self._entries.get(finder.dataset_type_node.name, ())
            if _applies(entry, data_id)
        )
        return values, applicable


def _with_records(ref: DatasetRef, butler: Butler) -> DatasetRef:
    """Return a reference that can tell of its data ID, as those in the reference's graph can."""
    return ref if ref.dataId.hasRecords() else ref.expanded(butler.registry.expandDataId(ref.dataId))


def _applies(entry: InputDataset, data_id: DataCoordinate) -> bool:
    """Tell whether a dataset is valid at the time, and touches the place, of an exposure."""
    time, region, dataset_region = data_id.timespan, data_id.region, entry.ref.dataId.region
    if entry.timespan is not None and time is not None and not entry.timespan.overlaps(time):
        return False
    return (
        region is None or dataset_region is None or regions_overlap(region, dataset_region, data_id.universe)
    )
