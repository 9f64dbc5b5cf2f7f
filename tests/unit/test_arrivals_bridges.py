# SPDX-License-Identifier: BSD-3-Clause
"""Which notices a new run of a node needs again, and what it keeps of a bridge on disk."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppdaemon.node.arrivals.bridges import Position, Positions

TIMES = st.floats(0, 1e6)


@pytest.mark.parametrize(
    ("position", "open_since", "age_s"),
    [
        (Position(), None, 900.0),  # a new node
        (Position(), 950.0, 950.0),
        (Position("e", 7, 990.0), None, 910.0),
        (Position("e", 7, 100.0), None, 1800.0),  # it was down for long
        (Position("e", 7, 990.0), 700.0, 1200.0),
        (Position("e", 7, 1050.0), 1060.0, 900.0),  # the clock was set back
    ],
)
def test_what_may_have_been_in_memory_only_is_taken_again(position, open_since, age_s):
    assert position.age_s(1000.0, open_since, 900.0) == age_s


@given(TIMES, TIMES, st.none() | TIMES)
def test_a_notice_within_the_time_before_each_open_visit_is_needed(now, taken, open_since):
    age_s = Position("e", 1, taken).age_s(now, open_since, 900.0)
    for since in (now, taken, open_since):
        assert since is None or age_s >= now - since + 900.0 - 1e-6


def test_positions_are_kept_and_written_only_if_they_change(tmp_path):
    path = tmp_path / "bridges.json"
    positions = Positions(path)
    assert positions.of == {}
    positions.save()
    assert not path.exists()
    positions.of["tcp://b:1"] = Position("e", 7, 10.5)
    positions.save()
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    path.unlink()
    positions.save()
    assert not path.exists()
    positions.of["tcp://b:2"] = Position("f", 1, 11.0)
    positions.save()
    assert Positions(path).of == positions.of


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"a": 1}',
        '{"a": {"number": 1, "more": 2}}',
        '{"a": {"epoch": "e", "number": 1, "taken_tai": null}}',
        '{"a": {"epoch": "e", "number": "many", "taken_tai": 1.0}}',
        '{"a": {"epoch": "e", "number": 1, "taken_tai": NaN}}',
        "\xff",
    ],
)
def test_a_file_that_is_none_is_a_new_node(tmp_path, content, caplog):
    path = tmp_path / "bridges.json"
    path.write_text(content, encoding="latin-1")
    positions = Positions(path)
    assert positions.of == {}
    assert "cannot be read" in caplog.text
    positions.of["tcp://b:1"] = Position("e", 7, 10.5)
    positions.save()
    assert json.loads(path.read_bytes())["tcp://b:1"]["number"] == 7
