# SPDX-License-Identifier: BSD-3-Clause
"""Charts of the journal's visits as PNG files. Needs matplotlib; the daemons do not."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ppdaemon.ctl.timeline import SPAN_NAMES, Timeline, build_timelines
from ppdaemon.pictures import CannotDraw, new_figure, save_png
from ppdaemon.reports import VisitRow
from ppdaemon.states import Outcome

__all__ = ("timeline_png",)

_COLORS = dict(
    zip(
        SPAN_NAMES,
        ("#d9d9d9", "#8fb8de", "#eef3f8", "#f2a541", "#e4572e", "#4c9f70", "#9b7ede", "#5b4b8a"),
        strict=True,
    )
)
"""Pale before the raw has arrived, strong after it."""


def _label(timeline: Timeline, index: int) -> str:
    row = timeline.bars[index].row
    attempt = f" try {row.attempt}" if row.attempt > 1 else ""
    outcome = "" if row.outcome == Outcome.SUCCEEDED else f" {row.outcome or 'under way'}"
    return f"{row.detector}{attempt}{outcome}"


def _draw(axes: Any, timeline: Timeline) -> None:
    """Draw one visit: a bar per detector, a line where the shutter closed."""
    for k, bar in enumerate(timeline.bars):
        for span in bar.spans:
            axes.barh(
                k,
                span.end_s - span.begin_s,
                left=span.begin_s,
                height=0.8,
                color=_COLORS[span.name],
                hatch="" if span.finished else "xxx",
                edgecolor="white" if span.finished else "#b00020",
                linewidth=0.3,
            )
    axes.axvline(0.0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(timeline.bars)), [_label(timeline, k) for k in range(len(timeline.bars))])
    axes.tick_params(labelsize=7)
    axes.invert_yaxis()
    axes.set_ylabel("detector", fontsize=8)
    instrument = timeline.bars[0].row.instrument
    axes.set_title(f"{instrument}  {timeline.group}   (0 = {timeline.zero})", fontsize=9, loc="left")
    axes.spines[["top", "right"]].set_visible(False)


def timeline_png(rows: Sequence[VisitRow], path: Path) -> None:
    """Draw the processing stages of each detector over time, one panel per group.

    Overwrites the file. Raises `~ppdaemon.pictures.CannotDraw` if there are no rows,
    matplotlib is missing, or the file cannot be written.
    """
    timelines = build_timelines(rows)
    if not timelines:
        raise CannotDraw("no visit to draw")
    heights = [0.8 + 0.16 * len(timeline.bars) for timeline in timelines]
    figure = new_figure(9.0, sum(heights) + 0.8)
    from matplotlib.patches import Patch  # `new_figure` has raised if it is missing

    panels = figure.subplots(len(timelines), 1, squeeze=False, sharex=True, height_ratios=heights)[:, 0]
    for axes, timeline in zip(panels, timelines, strict=True):
        _draw(axes, timeline)
    panels[-1].set_xlabel("seconds", fontsize=8)
    figure.legend(
        handles=[Patch(facecolor=color, edgecolor="#999999", linewidth=0.4, label=name)
                 for name, color in _COLORS.items()],
        loc="outside lower center", ncols=len(_COLORS), fontsize=7, frameon=False,
    )  # fmt: skip
    save_png(figure, path)
