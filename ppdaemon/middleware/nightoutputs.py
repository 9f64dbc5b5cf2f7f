# SPDX-License-Identifier: BSD-3-Clause
"""Prints what a night has left in a central repo: the datasets of each visit-detector.

A program of its own, because ``ppctl compare`` imports no LSST code. Prints a JSON array in each line:
instrument, group, detector, the latency in seconds, or null, and the text of a JSON object with the numbers
of datasets by type. Reads outputs of Rubin's service for prompt processing, too, which has the same
collections.
"""

import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

from astropy.time import Time
from lsst.daf.butler import Butler, DatasetRef, DimensionRecord

from ppdaemon.middleware.butler.failures import describe
from ppdaemon.states import ExitCode

__all__ = ("NightOutputs",)

type Key = tuple[str, str, int]
"""Instrument, group and detector."""


type _Counts = tuple[_Counts | None, str, int]
"""The numbers of datasets of the types before, a type, and its number. Visit-detectors with the same numbers
share them: a night has 200,000 with some 50 types."""


def _expanded(chain: _Counts | None) -> dict[str, int]:
    counts: dict[str, int] = {}
    while chain is not None:
        chain, name, count = chain
        counts[name] = count
    return counts


class NightOutputs:
    """The datasets of a night's visit-detectors in collections. `timing` is the type of the last task's
    metadata, whose end counts as that of the processing; blank: no latency is read.
    """

    def __init__(self, butler: Butler, collections: Sequence[str], timing: str = ""):
        self._butler = butler
        self._timing = timing
        self._collections = tuple(butler.collections.query(collections))
        self._exposures: dict[tuple[str, int], tuple[str, float]] = {}
        """Group, and TAI seconds of the end, of each exposure."""
        self._visits: dict[tuple[str, int], int] = {}
        """The last exposure of each visit."""

    def rows(self) -> Iterator[tuple[Key, dict[str, int], float | None]]:
        """Yield each visit-detector with its number of datasets by type, and its latency in seconds."""
        if not self._collections:
            return
        found: dict[Key, _Counts] = {}
        known: dict[tuple[int, str, int], _Counts] = {}
        latencies_s: dict[Key, float] = {}
        infos = self._butler.collections.query_info(
            self._collections, flatten_chains=True, include_summary=True
        )
        names = set().union(*(info.dataset_types or () for info in infos))
        for name in sorted(names):
            counts = Counter[Key]()
            for ref in self._refs(name):
                if (key := self._key(ref)) is None:
                    continue
                counts[key] += 1
                if name == self._timing and (latency_s := self._latency_s(ref)) is not None:
                    latencies_s[key] = max(latency_s, latencies_s.get(key, latency_s))
            for key, count in counts.items():
                before = found.get(key)
                # By identity: the hash of a chain takes a step for each of its types.
                found[key] = known.setdefault((id(before), name, count), (before, name, count))
        for key, chain in found.items():
            yield key, _expanded(chain), latencies_s.get(key)

    def _refs(self, name: str) -> Iterator[DatasetRef]:
        dimensions = self._butler.get_dataset_type(name).dimensions
        if "detector" not in dimensions or {"group", "exposure", "visit"}.isdisjoint(dimensions.names):
            return  # of a run or a day, not of a visit-detector
        with self._butler.query() as query:
            # The first one in the chain, as its readers find it: an earlier attempt may have left another.
            yield from query.datasets(name, collections=self._collections, find_first=True)

    def _key(self, ref: DatasetRef) -> Key | None:
        ids = dict(ref.dataId.required)
        instrument, detector = str(ids["instrument"]), int(ids["detector"])
        if (group := ids.get("group")) is not None:
            return instrument, str(group), detector
        exposure = self._exposure_of(instrument, ids)
        found = None if exposure is None else self._exposure(instrument, exposure)
        return None if found is None else (instrument, found[0], detector)

    def _exposure_of(self, instrument: str, ids: dict[str, Any]) -> int | None:
        if "exposure" in ids:
            return int(ids["exposure"])
        visit = int(ids["visit"])
        if (instrument, visit) not in self._visits:
            for record in self._of_day("visit_definition", "visit", instrument, visit):
                key, last = (instrument, int(record.visit)), int(record.exposure)
                self._visits[key] = max(last, self._visits.get(key, last))
        return self._visits.get((instrument, visit))

    def _exposure(self, instrument: str, exposure: int) -> tuple[str, float] | None:
        if (instrument, exposure) not in self._exposures:
            for record in self._of_day("exposure", "exposure", instrument, exposure):
                end_tai = float(Time(record.timespan.end, scale="tai").unix_tai)
                self._exposures[instrument, int(record.id)] = str(record.group), end_tai
        return self._exposures.get((instrument, exposure))

    def _of_day(self, element: str, kind: str, instrument: str, number: int) -> list[DimensionRecord]:
        """Return all records of the day of an exposure or a visit: one query for each would take minutes."""
        query = partial(self._butler.query_dimension_records, instrument=instrument, explain=False)
        one = query(kind, data_id={kind: number})
        return query(element, day_obs=one[0].day_obs, limit=None) if one else []

    def _latency_s(self, ref: DatasetRef) -> float | None:
        """Return the time from the end of the last exposure to that of a task, by its metadata."""
        ids = dict(ref.dataId.required)
        instrument = str(ids["instrument"])
        if "group" in ids:  # before the image
            return None
        exposure = self._exposure_of(instrument, ids)
        known = None if exposure is None else self._exposure(instrument, exposure)
        metadata = self._butler.get(ref)
        quantum = metadata.get("quantum", {})
        if known is None or "endUtc" not in quantum:
            return None
        return _tai_of(str(quantum["endUtc"])) - known[1]


def _tai_of(utc: str) -> float:
    """Return the TAI seconds since 1970 of a time in metadata: UTC, also without a zone."""
    found = datetime.fromisoformat(utc)
    if found.tzinfo is not None:
        found = found.astimezone(UTC).replace(tzinfo=None)
    return float(Time(found, scale="utc").unix_tai)


def main(arguments: Sequence[str]) -> None:
    """Print the rows of a repo, of collections that match a pattern."""
    uri, pattern, timing = arguments
    try:
        with Butler.from_config(uri, writeable=False) as butler:
            found = butler.collections.query(pattern)
            if not found:
                print(f"{uri} has no collection {pattern}", file=sys.stderr)
                sys.exit(ExitCode.DATA)
            for key, counts, latency_s in NightOutputs(butler, found, timing).rows():
                json.dump([*key, latency_s, json.dumps(counts)], sys.stdout)
                sys.stdout.write("\n")
    except Exception as error:  # down, of another version, without its driver, no such repo
        print(f"{uri} cannot be read: {describe(error)}", file=sys.stderr)
        sys.exit(ExitCode.UNAVAILABLE)


if __name__ == "__main__":
    main(sys.argv[1:])
