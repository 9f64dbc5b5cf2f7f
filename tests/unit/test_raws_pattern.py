# SPDX-License-Identifier: BSD-3-Clause
"""Patterns and formats of paths: what is read, and what is refused and why."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppdaemon.raws.pattern import MAX_NAME, PathFormat, PathPattern

NEEDED = r"(?P<exposure>\d+)/(?P<detector>\d+)"


def test_each_folder_is_matched_by_itself():
    pattern = PathPattern(
        r"(?P<instrument>[^/]+)/(?P<obsid>\w+)/(?P<obsid>.+)_(?P<raft>R\d\d)_(?P<slot>S\d\d)"
    )
    assert pattern.levels == ({"instrument"}, {"obsid"}, {"obsid", "raft", "slot"})
    assert pattern.match(["LSSTCam"]) == {"instrument": "LSSTCam"}
    found = pattern.match(["LSSTCam", "a_1", "a_1_R22_S11"])
    assert found == {"instrument": "LSSTCam", "obsid": "a_1", "raft": "R22", "slot": "S11"}


def test_a_group_that_says_something_else_further_down_does_not_match():
    pattern = PathPattern(r"(?P<exposure>\d+)/(?P<exposure>\d+)_(?P<detector>\d+)")
    assert pattern.match(["5", "5_1"]) == {"exposure": "5", "detector": "1"}
    assert pattern.match(["5", "6_1"]) is None


def test_alternatives_and_what_may_be_missing_are_allowed_in_groups():
    pattern = PathPattern(
        r"(?P<instrument>LSSTCam|LATISS)/(?P<exposure>\d+)(?:_s(?P<snap>\d))?_(?P<detector>\d+)"
    )
    assert pattern.match(["LATISS", "5_1"]) == {"instrument": "LATISS", "exposure": "5", "detector": "1"}
    assert pattern.match(["LATISS", "5_s2_1"]) is not None
    assert pattern.match(["LATISS", "5_s2_1", "deeper"]) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no empty part"),
        ("/" + NEEDED, "no empty part"),
        (NEEDED + "/", "no empty part"),
        ("[a/" + NEEDED, r"at character 1 cannot be used"),
        ("(" + NEEDED + ")", "must not span a slash"),
        (")" + NEEDED, "must not span a slash"),
        ("*" + NEEDED, "not a regular expression"),
        ("a**" + NEEDED, "not a regular expression"),
        ("[[:alpha:]]" + NEEDED, "cannot be used|not a regular expression"),
        ("[z-a]" + NEEDED, "not a regular expression"),
        ("^" + NEEDED, r"at character 1 cannot be used"),
        ("(?=a)" + NEEDED, "cannot be used"),
        ("(?i)" + NEEDED, "cannot be used"),
        (r"(?P<exposure>\d+)_(?P=exposure)_(?P<detector>\d)", "cannot be used"),
        (r"(?P<exposure>\d+)_\1_(?P<detector>\d)", "cannot be used"),
        ("a|b/" + NEEDED, "put alternatives in"),
        ("(?P<visit>.)/" + NEEDED, "unknown group visit; known are day_obs, detector,"),
        (r"(?P<detector>\d+)", "no group tells the exposure"),
        (r"(?P<exposure>\d+)", "no group tells the detector"),
        (r"(?P<exposure>\d+)_(?P<raft>R\d\d)", "no group tells the detector"),
        (NEEDED + r"\.fits", "leave the ending away"),
        (NEEDED + r"\.fits(\.fz)?", "leave the ending away"),
        ("/".join(["a"] * 20) + "/" + NEEDED, "more than 16 folders"),
    ],
)
def test_what_is_no_pattern_is_refused(text, said):
    with pytest.raises(ValueError, match=said):
        PathPattern(text)


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (r"(?:a+)+b", "must not be repeated"),
        (r"(?:a|aa)*b", "must not be repeated"),
        (r"(?:[a-z]{1,9}){9}", "must not be repeated"),
        (r".*.*.*=", "too long"),
        (r"\w+[a-z]+\w+\d+!", "too long"),
        (r"a?b?" * 10 + "a*b*" * 3, "too long"),
        (r"(?:a|a)" * 20, "too long"),
        (r"a*(?:b)?a*(?:b)?a*c", "too long"),
        ("ü+ü+ü+ü+x", "too long"),
    ],
)
def test_a_catastrophic_pattern_is_refused(part, said):
    with pytest.raises(ValueError, match=said):
        PathPattern(f"{NEEDED}_{part}")


@given(st.integers(0, 9), st.sampled_from("_0a"), st.sampled_from(["", "_", "x", "0"]))
def test_the_slowest_pattern_that_is_accepted_is_quick_enough(period, letter, end):
    pattern = PathPattern(r"(?P<label>.+)_.+_(?P<exposure>\d+)_(?P<detector>\d+)x")
    name = ((letter * period + "_1_") * MAX_NAME)[: MAX_NAME - 1] + end
    began = time.process_time()
    pattern.match([name])
    assert time.process_time() - began < 0.5


def test_names_longer_than_a_filesystem_has_are_not_matched():
    pattern = PathPattern(r"(?P<exposure>\d+)_(?P<detector>\d+)")
    assert pattern.match(["1" * 253 + "_1"]) is not None
    assert pattern.match(["1" * 254 + "_1"]) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{visit}", "unknown name visit"),
        ("{detector:x03}", "is not a format"),
        ("{group:03d}", "is not a format"),
        ("{detector", "is not a format"),
        ("{detector!r}", r"write \{name\}"),
        ("{detector:{snap}}", r"write \{name\}"),
        ("{}", r"write \{name\}"),
        ("{detector.real}", r"write \{name\}"),
        ("/{detector}", "no empty part"),
        ("{detector}.fits", "leave the ending away"),
    ],
)
def test_what_is_no_format_is_refused(text, said):
    with pytest.raises(ValueError, match=said):
        PathFormat(text)


def test_a_format_writes_whole_paths_and_their_beginnings():
    written = PathFormat("{instrument}/{day_obs}/d{detector:03d}")
    values = {"instrument": "LATISS", "day_obs": 20251121, "detector": 7}
    assert written.write(values) == "LATISS/20251121/d007"
    assert written.write(values, 2) == "LATISS/20251121"
