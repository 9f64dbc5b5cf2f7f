# SPDX-License-Identifier: BSD-3-Clause
"""The command ``ppctl size``: how many workers, cores, how much memory and RAM disk a node needs. Pure."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from rich.console import Group, RenderableType
from rich.text import Text

from ppdaemon.reports import SCHEMA, VisitRow
from ppdaemon.sizing import FEWEST, cadence_of, percentile, visits_under_way
from ppdaemon.states import Outcome, Stage
from ppdaemon.terminal import new_table, plain
from ppdaemon.wire import Model

__all__ = ("Figures", "SizeFigure", "SizeNeed", "SizeReport", "measured", "size_of", "size_view")

HOST_MEMORY = 0.1
"""Fraction of the memory that the system, the supervisor and the page cache get."""

type Unit = Literal["", "s", "GB"]


@dataclass(frozen=True, slots=True)
class Figures:
    """Numbers with their sources; those that are not known are missing."""

    values: Mapping[str, float] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)

    def __or__(self, other: "Figures") -> "Figures":
        """Return these figures, replaced by those of `other` where it has them."""
        return Figures({**self.values, **other.values}, {**self.sources, **other.sources})

    @classmethod
    def of(cls, source: str, **values: float | None) -> "Figures":
        """Return figures with one source; `None` is a missing figure."""
        known = {name: float(value) for name, value in values.items() if value is not None}
        return cls(known, dict.fromkeys(known, source))


class SizeFigure(Model):
    """A number that the result depends on."""

    name: str
    """What the number is."""
    value: float
    """The number."""
    unit: Unit
    """Its unit; blank for a count."""
    source: str
    """Where the number is from."""


class SizeNeed(Model):
    """What is needed of one resource, and what there is."""

    resource: Literal["workers", "cores", "memory", "RAM disk"]
    """The resource."""
    needed: float
    """What the camera needs of it."""
    present: float | None
    """`None` if it is not known, or has no limit."""
    unit: Unit
    """Unit of both numbers; blank for a count."""
    formula: str
    """The formula, with its numbers."""

    @property
    def load(self) -> float:
        """Return the needed part of what there is."""
        return self.needed / self.present if self.present else 0.0


class SizeReport(Model):
    """The result of ``ppctl size``."""

    schema_version: int = SCHEMA
    """Version of the output of ``ppctl --json``."""
    figures: tuple[SizeFigure, ...]
    """The numbers that were used."""
    needs: tuple[SizeNeed, ...]
    """What is needed, by resource."""
    nodes: int
    """Nodes such as this one that the camera needs."""
    limit: str
    """The resource of this host that decides this."""

    @property
    def enough(self) -> bool:
        """Whether this host has what the camera needs, and ``workers.max`` allows it to be used."""
        return all(need.load <= 1 for need in self.needs)


_FIGURES: dict[str, tuple[str, Unit]] = {
    "detectors": ("detectors of a visit on this node", ""),
    "cadence_s": ("time between two visits", "s"),
    "visit_s": ("time that a visit-detector has a worker", "s"),
    "run_s": ("of it without the wait for the raw", "s"),
    "memory_gb": ("memory of a worker, with its RAM disk", "GB"),
    "ramdisk_gb": ("RAM disk of a worker", "GB"),
    "cores": ("cores of the host", ""),
    "host_gb": ("memory of the host", "GB"),
    "tmpfs_gb": ("RAM disk of the host", "GB"),
    "workers": ("workers.max", ""),
}
"""By name of a figure: what it is, and its unit."""

NEEDED = ("detectors", "cadence_s", "visit_s", "run_s", "memory_gb", "ramdisk_gb")
"""Figures without which nothing can be calculated."""


def measured(rows: Iterable[VisitRow]) -> Figures:
    """Return the times in a journal: those that 95 % of the visit-detectors that succeeded do not exceed,
    from the order to prepare to the spooled outputs, with and without the wait for the first raw; and the
    median time between visits. Nothing of fewer than 20 visit-detectors.
    """
    needed = {Stage.ASSIGNED, Stage.PREPARED, Stage.ARRIVED, Stage.SPOOLED}
    done = [row for row in rows if row.outcome == Outcome.SUCCEEDED and needed <= row.stages.keys()]
    if len(done) < FEWEST:
        return Figures()
    occupied = [row.stages[Stage.SPOOLED] - row.stages[Stage.ASSIGNED] for row in done]
    waiting = [max(0.0, row.stages[Stage.ARRIVED] - row.stages[Stage.PREPARED]) for row in done]
    begun: dict[str, float] = {}
    for row in done:
        accepted = row.stages.get(Stage.ACCEPTED)
        if accepted is not None:
            begun[row.group] = min(begun.get(row.group, math.inf), accepted)
    starts = sorted(begun.values())
    return Figures.of(
        f"journal, {len(occupied)} visit-detectors",
        visit_s=percentile(occupied),
        run_s=percentile([both - wait for both, wait in zip(occupied, waiting, strict=True)]),
        cadence_s=cadence_of(starts),
    )


def size_of(figures: Figures) -> SizeReport:
    """Return what a node needs; raises `KeyError` with the name of a figure of `NEEDED` that is missing."""
    detectors, cadence_s, visit_s, run_s, memory_gb, ramdisk_gb = (figures.values[name] for name in NEEDED)
    given = figures.values.get
    overlapping = visits_under_way(visit_s, cadence_s)
    workers = detectors * overlapping
    needs = (
        SizeNeed(
            resource="workers",
            needed=workers,
            present=given("workers"),
            unit="",
            formula=f"{detectors:g} detectors x {overlapping} visits under way at once,"
            f" ceil({visit_s:.3g} s / {cadence_s:.3g} s)",
        ),
        SizeNeed(
            resource="cores",
            needed=detectors * run_s / cadence_s,
            present=given("cores"),
            unit="",
            formula=f"{detectors:g} detectors x {run_s:.3g} s / {cadence_s:.3g} s: to keep up;"
            f" {detectors:g} for the shortest latency",
        ),
        SizeNeed(
            resource="memory",
            needed=workers * memory_gb / (1 - HOST_MEMORY),
            present=given("host_gb"),
            unit="GB",
            formula=f"{workers:g} workers x {memory_gb:.3g} GB / {1 - HOST_MEMORY:g},"
            " the rest is for the system",
        ),
        SizeNeed(
            resource="RAM disk",
            needed=workers * ramdisk_gb,
            present=given("tmpfs_gb"),
            unit="GB",
            formula=f"{workers:g} workers x {ramdisk_gb:.3g} GB",
        ),
    )
    hardware = [need for need in needs if need.resource != "workers"]
    tightest = max(hardware, key=lambda need: need.load)
    known = [
        SizeFigure(name=text, value=value, unit=unit, source=figures.sources[name])
        for name, (text, unit) in _FIGURES.items()
        if (value := figures.values.get(name)) is not None
    ]
    nodes = max(1, math.ceil(tightest.load))
    return SizeReport(figures=tuple(known), needs=needs, nodes=nodes, limit=tightest.resource)


def size_view(report: SizeReport) -> RenderableType:
    """Show figures with their sources, needs with their formulas, and which resource decides."""
    figures = new_table("figure", "value>", "source~")
    for figure in report.figures:
        figures.add_row(figure.name, f"{figure.value:.3g} {figure.unit}".strip(), plain(figure.source))
    needs = new_table("resource", "needed>", "present>", "formula~")
    for need in report.needs:
        present = "" if need.present is None else f"{need.present:.3g} {need.unit}".strip()
        style = "" if need.present is None else "red" if need.load > 1 else "green"
        needed = Text(f"{need.needed:.3g} {need.unit}".strip(), style=style)
        needs.add_row(need.resource, needed, present, need.formula)
    workers = report.needs[0]
    end = "This host is enough" if report.nodes == 1 else f"{report.nodes} such nodes are needed"
    end += f"; the tightest resource: {report.limit}."
    if report.nodes == 1 and not report.enough:
        end += f" But workers.max is too low: set it to {workers.needed:g} or more, otherwise visits wait."
    return Group(figures, Text(), needs, Text(), Text(end, style="bold"))
