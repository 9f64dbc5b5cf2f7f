# SPDX-License-Identifier: BSD-3-Clause
"""Options that select visits."""

import pytest

from ppdaemon.clock import TAI_MINUS_UTC_S, day_obs
from ppdaemon.ctl.selection import find_relay_visit, find_visit, parse_data_id, parse_time, select
from ppdaemon.errors import NotFound
from ppdaemon.states import BAD_OUTCOMES, Outcome

NOW = 1_795_324_800.0


@pytest.mark.parametrize(
    ("text", "tai"),
    [
        ("2026-11-22", 1_795_305_600.0),
        ("2026-11-22T03:25", 1_795_317_900.0),
        ("2026-11-22T03:25:16.951", 1_795_317_916.951),
        ("2026-11-22T03:25:00Z", 1_795_317_900.0 + TAI_MINUS_UTC_S),
        ("2026-11-21T23:25:00-04:00", 1_795_317_900.0 + TAI_MINUS_UTC_S),
        ("90 s", NOW - 90),
        ("30min", NOW - 1800),
        ("1.5h", NOW - 5400),
        ("2d", NOW - 172_800),
    ],
)
def test_a_time_is_tai_or_how_long_ago(text, tai):
    assert parse_time(text, NOW) == pytest.approx(tai, abs=1e-3)


@pytest.mark.parametrize("text", ["yesterday", "2026-13-01", "2 weeks", "", "-3h", "25:00"])
def test_other_times_are_refused(text):
    with pytest.raises(ValueError, match="is no time"):
        parse_time(text, NOW)


def test_a_night_is_its_day_obs():
    chosen = select({"night": "20261121"}, NOW)
    assert (day_obs(chosen["since_tai"]), day_obs(chosen["until_tai"] - 1)) == (20261121, 20261121)
    assert chosen["until_tai"] - chosen["since_tai"] == 86400.0
    assert select({"where": "day_obs=20261121"}, NOW) == chosen
    assert select({"night": "2026-11-21"}, NOW) == chosen


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("instrument=LSSTCam detector=3", {"instrument": "LSSTCam", "detectors": "3"}),
        ("instrument='LSSTCam' AND detector = 0-3,7", {"instrument": "LSSTCam", "detectors": "0-3,7"}),
        ('detector=3, survey="BLOCK 365"', {"detectors": "3", "survey": "BLOCK 365"}),
        ("group=2026-11-22T03:25:16.951", {"group": "2026-11-22T03:25:16.951"}),
        ("", {}),
    ],
)
def test_a_data_id_is_read_as_in_the_butler(text, fields):
    assert parse_data_id(text) == fields


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"where": "detecter=3"}, "did you mean 'detector'"),
        ({"where": "detector 3"}, "is no data ID"),
        ({"where": "detector=3 detector=4"}, "there twice"),
        ({"where": "detector=3", "detectors": "4"}, "both select by detectors"),
        ({"night": "20261122", "since": "1h"}, "use either --night"),
        ({"night": "last"}, "is no night"),
        ({"night": "2026112"}, "is no night"),
        ({"night": "2026-1-1"}, "is no night"),
        ({"outcomes": "crahsed"}, "did you mean 'crashed'"),
        ({"detectors": "3-1"}, "3-1"),
    ],
)
def test_what_selects_nothing_is_refused_with_a_hint(options, text):
    with pytest.raises(ValueError, match=text):
        select(options, NOW)


def test_bad_stands_for_all_bad_outcomes():
    chosen = select({"outcomes": "bad,no_image"}, NOW)["outcomes"]
    assert set(chosen) == BAD_OUTCOMES | {Outcome.NO_IMAGE}


class Visits:
    """Stands for a daemon with some groups, the newest last."""

    def __init__(self, *groups):
        self.groups = groups

    def visit(self, group):
        if group not in self.groups:
            raise NotFound(f"no visit {group!r}")
        return (group,)

    def summaries(self, limit, group_prefix=""):
        found = [group for group in reversed(self.groups) if group.startswith(group_prefix)]
        return [type("Row", (), {"group": group}) for group in found[:limit]]


class RelayVisits(Visits):
    """Stands for a relay."""

    def visits(self, limit):
        return self.summaries(limit)


@pytest.mark.parametrize(
    ("text", "group"), [("latest", "g1"), ("g", "g"), ("2026-11-22T03:25", "2026-11-22T03:25:16.951")]
)
def test_a_visit_of_a_relay_is_found_in_the_same_ways(text, group):
    visits = RelayVisits("2026-11-22T03:25:16.951", "2026-11-22T03:26:01.110", "g", "g1")
    assert find_relay_visit(visits, text) == (group,)
    with pytest.raises(NotFound, match="is not unique"):
        find_relay_visit(visits, "2026")


def test_a_span_that_ends_before_it_begins_is_refused():
    with pytest.raises(ValueError, match="--since is after --until"):
        select({"since": "2h", "until": "3h"}, NOW)
    assert select({"since": "3h", "until": "3h"}, NOW)["until_tai"] == NOW - 3 * 3600


def test_a_visit_is_found_by_its_group_its_beginning_or_as_the_latest():
    visits = Visits("2026-11-22T03:25:16.951", "2026-11-22T03:26:01.110", "g", "g1")
    assert find_visit(visits, "latest") == ("g1",)
    assert find_visit(visits, "g") == ("g",)
    assert find_visit(visits, "2026-11-22T03:25") == ("2026-11-22T03:25:16.951",)


@pytest.mark.parametrize(
    ("groups", "text", "error"),
    [
        ((), "latest", "no visit yet"),
        (("a1", "a2"), "a", "'a' is not unique: a1, a2$"),
        (tuple(f"a{n}" for n in range(9)), "a", r"is not unique: a3, a4, .*, \.\.\."),
        (("a1",), "b", "no visit 'b'"),
        (("a1",), "", "no visit ''"),
    ],
)
def test_a_beginning_of_no_or_several_groups_is_refused(groups, text, error):
    with pytest.raises(NotFound, match=error):
        find_visit(Visits(*groups), text)
