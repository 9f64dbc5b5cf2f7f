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

from ppdaemon.middleware.direct.dataids import overlap
from ppdaemon.middleware.direct.inputs import Entry
from ppdaemon.middleware.raws.visits import insert_records

__all__ = ("LookUps", "LookupMiss")

_IDS = frozenset({"exposure", "visit"})
"""What is not known before the image, and cannot decide which dataset fits."""


class LookupMiss(Exception):
    """The registry has to be asked, with the exposure's records."""


class _TakeBack(Exception):
    """Ends a transaction."""


class LookUps:
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

    def __init__(self, butler: Butler, collections: Sequence[str], entries: Mapping[str, Sequence[Entry]]):
        self._butler = butler
        self._asked: Butler | None = None
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
        key = finder.task_node.label, finder.edge.connection_name, self._circumstances(finder, data_id)
        if key not in self._answers:
            if self._asked is None:
                raise LookupMiss
            self._answers[key] = self._ask(finder, data_id, self._asked)
        return self._answers[key]

    @contextmanager
    def asking(self, records: Iterable[DimensionRecord]) -> Iterator[None]:
        """Allow functions to be asked.

        Parameters
        ----------
        records : `~collections.abc.Iterable` [`lsst.daf.butler.DimensionRecord`]
            Of the exposures; in the registry for as long as this lasts.
        """
        # The clone has a connection of its own: what is asked must go through
        # that, as any other would wait for this transaction to end.
        asked = self._butler.clone(collections=self._collections)
        self._asked = asked
        try:
            with suppress(_TakeBack), asked.transaction():
                insert_records(asked, records)
                yield
                raise _TakeBack
        finally:
            self._asked = None

    def _ask(self, finder: PrerequisiteFinder, data_id: DataCoordinate, asked: Butler) -> list[DatasetRef]:
        function: Callable[..., Iterable[DatasetRef | None]] | None = finder.lookup_function
        assert function is not None  # else nobody would ask here
        node = finder.dataset_type_node
        dataset_type = finder.edge.adapt_dataset_type(node.dataset_type)
        found = function(dataset_type, asked.registry, data_id, self._collections)
        return [node.generalize_ref(_with_records(ref, asked)) for ref in found if ref is not None]

    def _circumstances(self, finder: PrerequisiteFinder, data_id: DataCoordinate) -> Hashable:
        """Return what an answer may depend on."""
        values = tuple(item for item in sorted(data_id.mapping.items()) if item[0] not in _IDS)
        fitting = frozenset(
            (entry.ref.id, entry.rank)
            for entry in self._entries.get(finder.dataset_type_node.name, ())
            if _fits(entry, data_id)
        )
        return values, fitting


def _with_records(ref: DatasetRef, asked: Butler) -> DatasetRef:
    """Return a reference that can tell of its data ID, as those in the reference's graph can."""
    return ref if ref.dataId.hasRecords() else ref.expanded(asked.registry.expandDataId(ref.dataId))


def _fits(entry: Entry, data_id: DataCoordinate) -> bool:
    """Tell whether a dataset is valid at the time, and touches the place, of an exposure."""
    time, place, own = data_id.timespan, data_id.region, entry.ref.dataId.region
    if entry.timespan is not None and time is not None and not entry.timespan.overlaps(time):
        return False
    return place is None or own is None or overlap(place, own, data_id.universe)
