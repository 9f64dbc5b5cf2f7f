# SPDX-License-Identifier: BSD-3-Clause
"""Spans of a visit, their bars in the terminal and their picture."""

import io
import struct
from pathlib import Path

import pytest
from controlserver import ACCEPTED_TAI, visit
from rich.console import Console

from ppdaemon.ctl.plots import timeline_png
from ppdaemon.ctl.tables import timeline_view
from ppdaemon.ctl.timeline import SPAN_NAMES, build_timelines
from ppdaemon.pictures import CannotDraw
from ppdaemon.reports import VisitRow
from ppdaemon.terminal import duration


def row(detector: int = 0, **changes: object) -> VisitRow:
    return VisitRow.model_validate(visit(detector, **changes))


def stages(**after: float) -> dict[str, float]:
    return {stage: ACCEPTED_TAI + seconds for stage, seconds in after.items()}


def spans(one: VisitRow) -> list[tuple[str, float, float, bool]]:
    (timeline,) = build_timelines([one])
    return [(s.name, round(s.begin_s, 3), round(s.end_s, 3), s.finished) for s in timeline.bars[0].spans]


def test_a_visit_that_succeeded_has_every_span_and_counts_from_shutter_close() -> None:
    found = spans(row())
    assert [name for name, *_ in found] == list(SPAN_NAMES)
    assert found[2] == ("wait", -31.0, 3.0, True)
    assert found[5] == ("tasks", 3.1, 5.1, True)


def test_a_visit_without_an_image_counts_from_acceptance_and_ends_waiting() -> None:
    late = row(
        outcome="no_image",
        shutter_close_tai=None,
        stages=stages(accepted=0, assigned=0.1, prepared=4),
        ended_tai=ACCEPTED_TAI + 180,
    )
    (timeline,) = build_timelines([late])
    assert timeline.zero == "acceptance"
    assert spans(late)[-1] == ("wait", 4.0, 180.0, False)


def test_a_raw_that_came_before_the_worker_was_prepared_did_not_wait() -> None:
    early = row(
        shutter_close_tai=None, stages=stages(accepted=0, assigned=1, arrived=2, prepared=5, ingested=6)
    )
    assert [name for name, *_ in spans(early)] == ["queue", "prepare", "ingest"]
    assert spans(early)[-1] == ("ingest", 5.0, 6.0, True)


def test_a_visit_under_way_shows_what_is_behind_it() -> None:
    running = row(outcome=None, ended_tai=None, shutter_close_tai=None, stages=stages(accepted=0, assigned=1))
    assert spans(running) == [("queue", 0.0, 1.0, True)]


def test_detectors_of_a_visit_share_the_last_shutter_close() -> None:
    (timeline,) = build_timelines(
        [row(1), row(0, shutter_close_tai=None), row(2, shutter_close_tai=ACCEPTED_TAI + 70)]
    )
    assert timeline.zero_tai == ACCEPTED_TAI + 70
    assert [bar.row.detector for bar in timeline.bars] == [0, 1, 2]


def test_each_group_has_a_separate_axis() -> None:
    assert [each.group for each in build_timelines([row(0, group="b"), row(0, group="a")])] == ["a", "b"]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_terminal_bar_shows_even_the_shortest_span(width: int) -> None:
    (timeline,) = build_timelines(
        [row(), row(1, outcome="crashed", stages=stages(accepted=0, assigned=1, prepared=4))]
    )
    console = Console(file=io.StringIO(), width=width, markup=False)
    console.print(timeline_view(timeline, width))
    first, second = console.file.getvalue().splitlines()[1:3]
    assert {"p", ".", "t", "e"} <= set(first)
    assert "x" in second


def test_the_picture_is_a_png_with_a_panel_per_visit(tmp_path: Path) -> None:
    heights = []
    for groups in (["a"], ["a", "b"]):
        path = tmp_path / f"{len(groups)}.png"
        timeline_png([row(k, group=group) for group in groups for k in range(9)], path)
        data = path.read_bytes()
        assert data.startswith(b"\x89PNG\r\n")
        heights.append(struct.unpack(">II", data[16:24])[1])
    assert heights[1] > 1.5 * heights[0]


def test_a_picture_that_cannot_be_written_names_its_path(tmp_path: Path) -> None:
    with pytest.raises(CannotDraw, match="nowhere"):
        timeline_png([row()], tmp_path / "nowhere" / "x.png")
    with pytest.raises(CannotDraw, match="no visit"):
        timeline_png([], tmp_path / "x.png")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, ""),
        (0.0421, "42 ms"),
        (0.9996, "1.0 s"),
        (3.21, "3.2 s"),
        (-4.0, "-4.0 s"),
        (600, "10 min"),
        (7980, "2 h 13 min"),
        (200_000, "2 d 7 h"),
    ],
)
def test_durations_are_short(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text
