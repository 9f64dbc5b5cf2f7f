# SPDX-License-Identifier: BSD-3-Clause
"""Two runs of one night, visit-detector by visit-detector: outcome, latency and outputs. Pure.

A run is known by the journals of its nodes, by its outputs in a central repo, or by both; what is not
known of one of the two is not compared.
"""

import itertools
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ppdaemon.journalfile import NightRow
from ppdaemon.night.report import Latency
from ppdaemon.reports import SCHEMA
from ppdaemon.states import Outcome, Stage
from ppdaemon.wire import Model

__all__ = (
    "CompareCell",
    "CompareOutcomes",
    "CompareOutputs",
    "CompareReport",
    "CompareRow",
    "CompareSide",
    "Run",
    "compare",
    "compare_rows",
)

type Key = tuple[str, str, int]
"""Instrument, group and detector."""


class CompareSide(Model):
    """One of the two runs."""

    sources: tuple[str, ...]
    """Journals and central repos that were read."""
    visit_detectors: int
    """Visit-detectors of the night in them."""
    datasets: int | None
    """Datasets of visit-detectors in the central repo; `None` if no repo was read."""
    latency: Latency | None
    """From shutter close to the end of the last task; of the visit-detectors of which both runs have it."""


class CompareCell(Model):
    """A visit-detector in one run."""

    outcome: Outcome | None = None
    """Of the last attempt; `None` if it has none, or if no journal was read."""
    reason: str = ""
    """Its reason."""
    pipeline: str = ""
    """The pipeline that ran."""
    latency_s: float | None = None
    """From shutter close to the end of the last task, seconds."""
    exported: int | None = None
    """Datasets for the central repo, by the journal."""
    outputs: dict[str, int] | None = None
    """Datasets in the central repo, by type; `None` if no repo was read."""


class CompareRow(Model):
    """A visit-detector in both runs."""

    instrument: str
    group: str
    detector: int
    differs: tuple[str, ...]
    """What differs: ``missing in A``, ``missing in B``, ``outcome``, ``pipeline``, ``outputs``; empty if
    nothing does. Latencies are no difference, nor is a visit-detector without outputs that a run of which
    only a repo was read does not have."""
    a: CompareCell | None
    """`None` if the first run does not have it."""
    b: CompareCell | None
    """The same of the second one."""


class CompareOutcomes(Model):
    """Visit-detectors with the same pair of outcomes."""

    a: str
    """In the first run; ``open`` without an outcome, ``missing`` if the run does not have it."""
    b: str
    """In the second run."""
    count: int
    """Number of visit-detectors."""


class CompareOutputs(Model):
    """One dataset type in both central repos."""

    dataset_type: str
    """Its name."""
    a: int
    """Datasets in the first repo, of visit-detectors that both runs have."""
    b: int
    """The same in the second one."""
    differ: int
    """Visit-detectors with different numbers of them."""


class CompareReport(Model):
    """What differs between two runs of a night."""

    schema_version: int = SCHEMA
    """Version of the output of ``ppctl --json``."""
    day_obs: int
    """The night, such as 20261122."""
    a: CompareSide
    """The first run."""
    b: CompareSide
    """The second run."""
    both: int
    """Visit-detectors that both runs have."""
    only_a: int
    """Those that only the first one has."""
    only_b: int
    """Those that only the second one has."""
    differ: int
    """Visit-detectors in which anything differs but the latency."""
    compared: tuple[str, ...]
    """What is known of both runs: ``outcome``, ``latency``, ``outputs``, ``exported``. Of outputs that no
    repo was read of, ``exported`` has the numbers in the journals."""
    outcomes: tuple[CompareOutcomes, ...]
    """Pairs of outcomes, the most frequent ones first; empty if a run has no journal."""
    outputs: tuple[CompareOutputs, ...]
    """Dataset types, by name; empty if a run has no repo."""
    slower: Latency | None
    """By how much the second run was slower, over the visit-detectors of which both have a latency;
    negative if it was faster."""
    rows: tuple[CompareRow, ...] = ()
    """Visit-detectors in which something differs, or all, in the order of their groups."""


class _Attempt(NamedTuple):
    """What is compared of a row: a night has 200,000, and the whole rows would need 1 kB each."""

    outcome: Outcome | None
    reason: str
    pipeline: str
    latency_s: float | None
    datasets: int


@dataclass(slots=True)
class Run:
    """What is known of one run of a night."""

    sources: list[str] = field(default_factory=list)
    has_journal: bool = False
    has_repo: bool = False
    attempts: dict[Key, _Attempt] = field(default_factory=dict)
    """The last ones in the journals."""
    outputs: dict[Key, dict[str, int]] = field(default_factory=dict)
    """Numbers of datasets by type in the central repo."""
    latencies_s: dict[Key, float] = field(default_factory=dict)
    """From a central repo."""

    @property
    def keys(self) -> set[Key]:
        """All visit-detectors."""
        return self.attempts.keys() | self.outputs.keys()

    def add(self, row: NightRow) -> None:
        """Add the last attempt at a visit-detector."""
        self.attempts[row.instrument, row.group, row.detector] = _Attempt(
            row.outcome, row.reason, sys.intern(row.pipeline), _latency_s(row), row.datasets
        )

    def cell(self, key: Key) -> CompareCell | None:
        """Return what is known of a visit-detector."""
        last, outputs = self.attempts.get(key), self.outputs.get(key)
        if last is None and outputs is None:
            return None
        known = {} if outputs is None and self.has_repo else outputs
        latency_s = self.latencies_s.get(key)
        # Without validation, which copies the numbers: most visit-detectors share the same ones.
        if last is None:
            return CompareCell.model_construct(outputs=known, latency_s=latency_s)
        return CompareCell.model_construct(
            outcome=last.outcome,
            reason=last.reason,
            pipeline=last.pipeline,
            latency_s=latency_s if last.latency_s is None else last.latency_s,
            exported=last.datasets,
            outputs=known,
        )


def _latency_s(row: NightRow) -> float | None:
    processed = row.stages.get(Stage.PROCESSED)
    if row.outcome != Outcome.SUCCEEDED or processed is None or row.shutter_close_tai is None:
        return None
    return processed - row.shutter_close_tai


def _differences(a: CompareCell | None, b: CompareCell | None, compared: Sequence[str]) -> Iterable[str]:
    if a is None or b is None:
        yield "missing in A" if a is None else "missing in B"
        return
    if "outcome" in compared:
        if a.outcome != b.outcome:
            yield "outcome"
        elif a.pipeline != b.pipeline:
            yield "pipeline"
    if "outputs" in compared and a.outputs != b.outputs:
        yield "outputs"
    if "exported" in compared and a.exported != b.exported:
        yield "outputs"


def _is_silent(run: Run, cell: CompareCell | None, other: CompareCell | None) -> bool:
    """Return whether a run does not have a visit-detector because only its repo is known, and there are no
    outputs of the other run either, such as of a visit that was canceled.
    """
    if run.has_journal or cell is not None or other is None:
        return False
    return not (other.exported if other.outputs is None else other.outputs)


def _word(cell: CompareCell | None) -> str:
    return "missing" if cell is None else cell.outcome or "open"


def _compared(a: Run, b: Run) -> list[str]:
    compared = ["outcome"] if a.has_journal and b.has_journal else []
    if a.has_repo and b.has_repo:
        compared.append("outputs")
    elif compared:
        compared.append("exported")
    return compared


def compare_rows(a: Run, b: Run, *, all_rows: bool = False) -> Iterator[CompareRow]:
    """Yield the visit-detectors in which something differs; with `all_rows`, also the others.

    One by one: in a night of LSSTCam all 200,000 may differ, and each needs 3 kB.
    """
    compared = _compared(a, b)
    # By group first: the rows of a visit stand together.
    for key in sorted(a.keys | b.keys, key=lambda key: (key[1], key[0], key[2])):
        first, second = a.cell(key), b.cell(key)
        if _is_silent(a, first, second) or _is_silent(b, second, first):
            differs: tuple[str, ...] = ()
        else:
            differs = tuple(dict.fromkeys(_differences(first, second, compared)))
        if differs or all_rows:
            instrument, group, detector = key
            yield CompareRow.model_construct(
                instrument=instrument, group=group, detector=detector, differs=differs, a=first, b=second
            )


def compare(day_obs: int, a: Run, b: Run) -> CompareReport:
    """Return what differs between two runs of a night, without the rows of `compare_rows`."""
    compared, pairs = _compared(a, b), Counter[tuple[str, str]]()
    types: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    latencies: list[tuple[float, float]] = []
    differ = 0
    for row in compare_rows(a, b, all_rows=True):
        differ += bool(row.differs)
        pairs[_word(row.a), _word(row.b)] += 1
        if row.a is None or row.b is None:
            continue
        if row.a.latency_s is not None and row.b.latency_s is not None:
            latencies.append((row.a.latency_s, row.b.latency_s))
        _add_outputs(types, row.a.outputs or {}, row.b.outputs or {})
    if latencies:
        compared.append("latency")
    only_a, only_b = len(a.keys - b.keys), len(b.keys - a.keys)
    return CompareReport(
        day_obs=day_obs,
        a=_side(a, [first for first, _ in latencies]),
        b=_side(b, [second for _, second in latencies]),
        both=len(a.keys & b.keys),
        only_a=only_a,
        only_b=only_b,
        differ=differ,
        compared=tuple(compared),
        outcomes=tuple(
            CompareOutcomes(a=first, b=second, count=count) for (first, second), count in pairs.most_common()
        )
        if "outcome" in compared
        else (),
        outputs=tuple(
            CompareOutputs(dataset_type=name, a=counts[0], b=counts[1], differ=counts[2])
            for name, counts in sorted(types.items())
        )
        if "outputs" in compared
        else (),
        slower=Latency.of([second - first for first, second in latencies]),
    )


def _add_outputs(types: dict[str, list[int]], a: Mapping[str, int], b: Mapping[str, int]) -> None:
    for name in a.keys() | b.keys():
        first, second = a.get(name, 0), b.get(name, 0)
        counts = types[name]
        counts[0] += first
        counts[1] += second
        counts[2] += first != second


def _side(run: Run, latencies_s: Sequence[float]) -> CompareSide:
    datasets = sum(itertools.chain.from_iterable(each.values() for each in run.outputs.values()))
    return CompareSide(
        sources=tuple(run.sources),
        visit_detectors=len(run.keys),
        datasets=datasets if run.has_repo else None,
        latency=Latency.of(latencies_s),
    )
