# SPDX-License-Identifier: BSD-3-Clause
"""The announcement of a visit: what is accepted, coerced, refused."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppdaemon.errors import BadMessage
from ppdaemon.visit import CoordinateSystem, RotationSystem, VisitCanceled, parent_group, read_next_visit

FULL = {
    "salIndex": 1,
    "scriptSalIndex": 200123,
    "groupId": "2025-11-22T03:25:16.951",
    "coordinateSystem": 2,
    "position": [10.5, -30.0],
    "startTime": 1763781946.0,
    "rotationSystem": 2,
    "cameraAngle": 180.0,
    "filters": "r_03",
    "dome": 2,
    "duration": 30.0,
    "nimages": 1,
    "instrument": "LSSTCam",
    "survey": "BLOCK-365",
    "totalCheckpoints": 1,
    "private_sndStamp": 1763781916.9,
    "private_efdStamp": 1763781879.9,
    "private_origin": 4711,
}


def visit(**changes):
    return read_next_visit({**FULL, **changes})


def test_a_real_event_is_read_and_written_back_unchanged():
    assert visit().to_sal() == FULL
    assert visit().boresight == (10.5, -30.0)
    assert visit().sky_angle == 180.0
    assert visit().filter_names == ("r_03",)


def test_only_group_and_instrument_are_needed():
    least = read_next_visit({"groupId": "g", "instrument": "LATISS"})
    assert (least.nimages, least.duration_s, least.filter_names) == (0, 0.0, ())
    assert least.boresight is None
    assert least.sky_angle is None
    assert least.to_sal() == {"groupId": "g", "instrument": "LATISS"}


def test_a_sender_that_knows_strings_only_is_understood():
    texts = {name: str(value) for name, value in FULL.items() if not name.startswith("private_o")}
    assert read_next_visit(texts).model_dump() == visit().model_dump(exclude={"private_origin"})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("detector", -1),
        ("detector", "R22_S11"),
        ("detector", True),
        ("groupId", ""),
        ("groupId", "a\nb"),
        ("groupId", "x" * 201),
        ("groupId", None),
        ("groupId", ["g"]),
        ("instrument", "LSSTCam\x00"),
        ("instrument", None),
    ],
    ids=str,
)
def test_a_wrong_value_is_refused_and_its_field_named(field, value):
    with pytest.raises(BadMessage, match=field) as caught:
        visit(**{field: value})
    assert caught.value.kind == "field"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("nimages", -1),
        ("nimages", None),
        ("nimages", ""),
        ("nimages", 1.5),
        ("nimages", "two"),
        ("nimages", True),
        ("nimages", 10**30),
        ("totalCheckpoints", 1e30),
        ("dome", "OPEN"),
        ("duration", -1.0),
        ("duration", "-1.0"),
        ("duration", float("nan")),
        ("duration", "inf"),
        ("duration", "35 s"),
        ("duration", False),
        ("startTime", None),
        ("salIndex", "None"),
        ("dome", None),
        ("filters", None),
        ("filters", {"r_57": 1}),
        ("filters", "None"),
        ("filters", "null"),
        ("filters", "['r_57']"),
        ("filters", '["r_57", null]'),
        ("survey", "x" * 201),
        ("survey", "\ud800"),
        ("survey", None),
        ("coordinateSystem", 0),
        ("coordinateSystem", "0"),
        ("coordinateSystem", 5),
        ("coordinateSystem", 2.5),
        ("coordinateSystem", "FK5"),
        ("rotationSystem", 0),
        ("rotationSystem", None),
        ("position", None),
        ("position", []),
        ("position", "[]"),
        ("position", [150.1, None]),
        ("position", [float("nan"), float("nan")]),
        ("position", "[NaN, 0]"),
        ("position", '["NaN", "NaN"]'),
        ("position", [1.0]),
        ("position", [1.0, 2.0, 3.0]),
        ("position", "10.5 -30"),
        ("position", [True, 0.0]),
        ("position", {"ra": 1, "dec": 2}),
        ("cameraAngle", None),
        ("cameraAngle", "180d"),
        ("cameraAngle", "nan"),
        ("cameraAngle", float("-inf")),
    ],
    ids=str,
)
def test_a_value_without_meaning_costs_its_field_only(field, value):
    found = visit(**{field: value})
    assert found.without_meaning == (field,)
    assert field not in found.to_sal()
    assert found.group == FULL["groupId"]
    assert (found.boresight is None) == (field in ("position", "coordinateSystem"))
    assert (found.sky_angle is None) == (field in ("cameraAngle", "rotationSystem"))
    assert read_next_visit(found.to_sal()).without_meaning == ()


@pytest.mark.parametrize(
    "changes",
    [
        {"coordinateSystem": 1, "position": [float("nan"), float("nan")]},
        {"coordinateSystem": "1", "position": "[NaN, NaN]"},
        {"rotationSystem": 1, "cameraAngle": None},
        {"private_sndStamp": 0.0},
        {"private_efdStamp": None},
        {"private_sndStamp": "2025-11-22T02:51:56"},
        {"detector": None},
        {"detector": ""},
        {"startTime": 0.0, "duration": 0.0, "nimages": 0, "dome": 0},
    ],
    ids=str,
)
def test_what_need_not_have_a_value_is_not_reported(changes):
    assert visit(**changes).without_meaning == ()


@pytest.mark.parametrize(
    ("snd", "efd", "published"),
    [
        (1763781916.9, 1763781800.0, 1763781916.9),
        (0.0, 1763781879.9, 1763781916.9),
        (None, 1763781879.9, 1763781916.9),
        ("", "1763781879.9", 1763781916.9),
        (float("nan"), 1763781879.9, 1763781916.9),
        (-37.0, 1763781879.9, 1763781916.9),
        (0.0, 0.0, None),
        (None, None, None),
        ("0.0", "0", None),
    ],
    ids=str,
)
def test_the_efd_stamp_in_utc_stands_for_a_missing_stamp(snd, efd, published):
    found = visit(private_sndStamp=snd, private_efdStamp=efd)
    assert found.published_tai == (None if published is None else pytest.approx(published))


def test_systems_may_have_their_names():
    found = visit(coordinateSystem="icrs", rotationSystem="SKY")
    assert found == visit(coordinateSystem=2, rotationSystem=2)


@pytest.mark.parametrize("filters", [["r_03", "i_06"], '["r_03", "i_06"]', ' ["r_03","i_06"]'])
def test_filters_may_come_as_a_list(filters):
    assert visit(filters=filters) == visit(filters="r_03,i_06")


@pytest.mark.parametrize("filters", ["[]", []])
def test_an_empty_list_of_filters_is_any(filters):
    assert visit(filters=filters).filter_names == ()


def test_none_is_the_name_of_a_filter():
    assert visit(filters="none").filter_names == ("none",)


def test_a_detector_is_read_from_text_and_not_sent_on():
    assert visit(detector="42").detector == 42
    assert "detector" not in visit(detector=42).to_sal()
    assert visit().detector is None


@pytest.mark.parametrize(
    "fields", [{}, [], None, "visit", {"groupId": "g"}, {"instrument": "LSSTCam"}], ids=str
)
def test_what_lacks_group_or_instrument_is_refused(fields):
    with pytest.raises(BadMessage):
        read_next_visit(fields)


def test_a_group_of_digits_may_come_as_a_number():
    assert visit(groupId=2024061200001).group == "2024061200001"


def test_right_ascension_and_angle_are_brought_into_range():
    assert visit(position=[720.0, -30.0]).boresight == (0.0, -30.0)
    assert visit(position=[-10.0, -30.0]).boresight == (350.0, -30.0)
    assert visit(cameraAngle=-90.0).sky_angle == 270.0


@pytest.mark.parametrize("system", [CoordinateSystem.NONE, CoordinateSystem.OBSERVED, CoordinateSystem.MOUNT])
def test_a_position_that_is_not_on_the_sky_is_no_boresight(system):
    assert visit(coordinateSystem=int(system)).boresight is None


def test_a_declination_beyond_the_pole_is_no_boresight():
    assert visit(position=[10.0, 91.0]).boresight is None
    assert visit(position=[10.0, -90.0]).boresight == (10.0, -90.0)


def test_a_rotation_that_is_not_on_the_sky_is_no_sky_angle():
    assert visit(rotationSystem=int(RotationSystem.HORIZON)).sky_angle is None


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", ()),
        (" ", ()),
        ("g_6", ("g_6",)),
        ("g_6,r_57", ("g_6", "r_57")),
        (" g_6 , ,r_57,", ("g_6", "r_57")),
    ],
)
def test_filters_are_a_list_with_commas(text, names):
    assert visit(filters=text).filter_names == names


def test_age_counts_from_publication_and_is_zero_without_a_stamp():
    assert visit(private_sndStamp=100.0).age_s(160.0) == 60.0
    assert visit(private_sndStamp=100.0).age_s(63.0) == -37.0
    assert read_next_visit({"groupId": "g", "instrument": "I"}).age_s(1e9) == 0.0


@given(
    st.dictionaries(
        st.sampled_from([*FULL, "novelty"]),
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text()
        | st.lists(st.floats(), max_size=3),
    )
)
def test_no_fields_raise_anything_but_bad_message(changes):
    try:
        found = visit(**changes)
    except BadMessage:
        return
    assert found.nimages >= 0
    assert found.boresight is None or all(math.isfinite(number) for number in found.boresight)


def test_a_cancellation_has_a_group_and_maybe_a_script():
    cancel = VisitCanceled.model_validate({"groupId": "g", "scriptSalIndex": "7", "private_x": 1})
    assert (cancel.group, cancel.script_sal_index) == ("g", 7)
    for unset in (None, "", "nan", "script 7", 1.5, [7]):
        assert VisitCanceled.model_validate({"groupId": "g", "scriptSalIndex": unset}).script_sal_index == 0


@pytest.mark.parametrize(
    ("group", "parent"),
    [("g", "g"), ("g#1", "g"), ("g#12", "g"), ("g#", "g#"), ("#1", "#1"), ("g#x", "g#x"), ("a#1#2", "a#1")],
)
def test_a_supplement_belongs_to_the_visit_before_its_number(group, parent):
    assert parent_group(group) == parent
