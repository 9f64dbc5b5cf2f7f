# SPDX-License-Identifier: BSD-3-Clause
"""Rules: which pipelines for which visit-detector."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skymapfiles import write_map

from ppdaemon.camera import load_camera
from ppdaemon.pipelinenames import pipeline_name
from ppdaemon.selection import Rule, Selector, TargetPositions, image_type, never_reached, select
from ppdaemon.skymaps import SkyMap
from ppdaemon.thishost import HostContext
from ppdaemon.visit import NextVisit, read_next_visit

SCIENCE = {
    "groupId": "g",
    "instrument": "LSSTCam",
    "coordinateSystem": 2,
    "position": [10.0, -30.0],
    "rotationSystem": 2,
    "cameraAngle": 0.0,
    "filters": "r_57",
    "dome": 2,
    "nimages": 1,
    "survey": "BLOCK-365",
    "startTime": 1763781946.0,
}
CENTER = 94
EAST_CORNER = load_camera("LSSTCam").by_name("R03_S00").id


def visit(**changes: Any) -> NextVisit:
    return read_next_visit(SCIENCE | changes)


def rule(**conditions: Any) -> Rule:
    named = {name.replace("_", "-"): value for name, value in conditions.items()}
    return Rule.model_validate({"pipelines": ["/p/ApPipe.yaml"]} | named)


def matches(conditions: dict[str, Any], detector: int = CENTER, **changes: Any) -> bool:
    return rule(**conditions).matches(TargetPositions(visit(**changes)), detector)


@pytest.mark.parametrize(
    ("conditions", "met"),
    [
        ({}, True),
        ({"instrument": "LSSTCam"}, True),
        ({"instrument": "LATISS"}, False),
        ({"instrument": ["LATISS", "LSSTCam"]}, True),
        ({"survey": "BLOCK-365"}, True),
        ({"survey": "BLOCK-36"}, False),
        ({"survey": ""}, False),
        ({"survey": ["a", "BLOCK-365"]}, True),
        ({"filter": "r_57"}, True),
        ({"filter": ["g_6", "i_39"]}, False),
        ({"nimages": 1}, True),
        ({"nimages": [0, 2]}, False),
        ({"image_type": "sky"}, True),
        ({"image_type": "calibration"}, False),
        ({"image_type": ["calibration", "sky"]}, True),
        ({"survey": "BLOCK-365", "filter": "g_6"}, False),
        ({"survey": None, "filter": None, "ra": None, "binary_map": None}, True),
    ],
    ids=str,
)
def test_a_rule_matches_when_all_its_conditions_hold(conditions: dict[str, Any], met: bool) -> None:
    assert matches(conditions) is met


def test_a_blank_survey_is_a_survey() -> None:
    assert matches({"survey": ""}, survey="")
    assert not matches({"survey": "BLOCK-365"}, survey="")


@pytest.mark.parametrize(
    ("filters", "met"), [("", True), (" , ", True), ("g_6,r_57", True), ("g_6", False), ("r_5", False)]
)
def test_a_filter_is_met_where_the_visit_accepts_it(filters: str, met: bool) -> None:
    assert matches({"filter": "r_57"}, filters=filters) is met


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({}, "sky"),
        ({"dome": 3}, "sky"),
        ({"dome": 1}, "calibration"),
        ({"coordinateSystem": 1}, "calibration"),
        ({"coordinateSystem": 3, "position": [0.0, 60.0]}, "sky"),
        ({"coordinateSystem": 4, "position": [0.0, 0.0], "dome": 1}, "calibration"),
    ],
    ids=str,
)
def test_an_image_is_of_the_sky_with_a_position_and_a_dome_that_may_be_open(
    changes: dict[str, Any], kind: str
) -> None:
    assert image_type(visit(**changes)) == kind


@pytest.mark.parametrize(
    ("ra", "low", "high", "met"),
    [
        (10.0, 0, 20, True),
        (10.0, 10, 20, True),
        (20.0, 10, 20, True),
        (20.001, 10, 20, False),
        (10.0, 340, 20, True),
        (350.0, 340, 20, True),
        (30.0, 340, 20, False),
        (350.0, -20, 20, True),
        (10.0, 350, 370, True),
        (180.0, 350, 370, False),
        (0.0, 0, 360, True),
        (359.9, 0, 360, True),
        (0.0, 340, 360, True),
        (180.0, -180, 180, True),
        (3.0, -180, 180, True),
        (180.0, 10, 10, True),
        (355.0, -10, 360, True),
        (5.0, -10, 360, False),
        (0.5, 0, 721, True),
        (2.0, 0, 721, False),
        (359.5, -361, 0, True),
        (358.0, -361, 0, False),
    ],
)
def test_right_ascensions_wrap(ra: float, low: float, high: float, met: bool) -> None:
    conditions = {"ra": {"min": low, "max": high}, "coord_type": "boresight"}
    assert matches(conditions, position=[ra, -30.0]) is met


@given(st.floats(-360, 720), st.floats(-360, 720), st.floats(0, 360, exclude_max=True), st.integers(-3, 3))
def test_an_interval_and_its_complement_are_all_right_ascensions(
    low: float, high: float, ra: float, turns: int
) -> None:
    if low == high or abs(high - low) > 360.0:
        return
    inside, outside = (
        Rule.model_validate({"ra": {"min": a, "max": b}, "pipelines": []}).ra
        for a, b in ((low, high), (high, low))
    )
    assert inside is not None
    assert outside is not None
    assert ra in inside or ra in outside
    assert inside.min in inside
    assert inside.max in inside
    assert ((ra + 360.0 * turns) % 360.0 in inside) == ((ra + 360.0 * turns) in inside)


@pytest.mark.parametrize(
    ("dec", "low", "high", "met"),
    [
        (-30.0, -100, -20, True),
        (-19.9, -100, -20, False),
        (-90.0, -100, -90, True),
        (90.0, 90, 100, True),
        (89.9, 90, 100, False),
        (90.0, 95, 100, False),
        (-30.0, "-inf", -20, True),
        (90.0, 80, "inf", True),
        (79.0, 80, "inf", False),
    ],
)
def test_a_range_of_declinations_may_end_beyond_the_pole(
    dec: float, low: float, high: float, met: bool
) -> None:
    conditions = {"dec": {"min": low, "max": high}, "coord_type": "boresight"}
    assert matches(conditions, position=[10.0, dec]) is met
    sent = Rule.model_validate_json(rule(**conditions).model_dump_json())
    assert sent.matches(TargetPositions(visit(position=[10.0, dec])), CENTER) is met


@pytest.mark.parametrize("written", ["boresight", "Boresight", "BORESIGHT", "boreSight", "DETECTOR"])
def test_the_position_that_counts_is_named_in_any_case_of_letters(written: str) -> None:
    assert rule(coord_type=written).coord_type == written.lower()


def test_a_condition_is_about_the_middle_of_the_detector_by_default() -> None:
    ra, dec = load_camera("LSSTCam").center(EAST_CORNER, 10.0, -30.0, 0.0)
    there = {"ra": {"min": ra - 0.1, "max": ra + 0.1}, "dec": {"min": dec - 0.1, "max": dec + 0.1}}
    assert matches(there, EAST_CORNER)
    assert not matches(there, CENTER)
    assert not matches(there | {"coord_type": "boresight"}, EAST_CORNER)
    assert matches({"dec": {"min": -30.1, "max": -29.9}, "coord_type": "boresight"}, EAST_CORNER)


def test_the_detectors_place_turns_with_the_camera() -> None:
    ra, dec = load_camera("LSSTCam").center(EAST_CORNER, 10.0, -30.0, 90.0)
    there = {"ra": {"min": ra - 0.1, "max": ra + 0.1}, "dec": {"min": dec - 0.1, "max": dec + 0.1}}
    assert matches(there, EAST_CORNER, cameraAngle=90.0)
    assert not matches(there, EAST_CORNER, cameraAngle=0.0)


def test_detectors_near_right_ascension_0_and_the_poles_are_selected_as_by_plane_geometry() -> None:
    random, camera = np.random.default_rng(5), load_camera("LSSTCam")
    outcomes = []
    for number in range(400):
        dec = (0.0, -30.0, 60.0, 90.0, -90.0)[number % 5]
        if abs(dec) == 90.0:
            dec *= 1 - random.uniform(0, 2) ** 2 / 90
        width = min(180.0, 3.0 / max(np.cos(np.radians(dec)), 1e-9))
        ra = random.uniform(-width, width) + random.choice([0, 360])
        angle, detector = random.uniform(-360, 360), int(random.integers(189))
        place = camera.detectors[detector]
        r = np.hypot(place.x_mm, place.y_mm)
        c = camera.radial_coefficients
        scale = np.radians(camera.plate_scale_arcsec_per_mm / 3600) * (c.c1 + c.c3 * r**2 + c.c5 * r**4)
        # +Y is at the position angle, +X a quarter turn before it: west at 0.
        sine, cosine = np.sin(np.radians(angle)), np.cos(np.radians(angle))
        east = scale * (-place.x_mm * cosine + place.y_mm * sine)
        north = scale * (place.x_mm * sine + place.y_mm * cosine)
        x, y, z = np.array([1.0, east, north]) / np.sqrt(1 + east**2 + north**2)
        sin_dec, cos_dec = np.sin(np.radians(dec)), np.cos(np.radians(dec))
        x, z = x * cos_dec - z * sin_dec, x * sin_dec + z * cos_dec
        center_ra, center_dec = ra + np.degrees(np.arctan2(y, x)), np.degrees(np.arcsin(z))
        low, high = random.uniform(-20, 0), random.uniform(0, 20)
        low_dec, high_dec = dec - random.uniform(0, 3), dec + random.uniform(0.01, 3)
        # Turns of the range and of the announcement must not matter.
        turned = ((center_ra - low) % 360.0) <= high - low
        want = turned and low_dec <= center_dec <= high_dec
        turns = 360 * random.integers(-1, 2)
        rules = {
            "ra": {"min": float(low % 360), "max": float(high)} if number % 2 else
                  {"min": float(low + turns), "max": float(high + turns)},
            "dec": {"min": float(low_dec), "max": float(high_dec)},
        }  # fmt: skip
        got = matches(rules, detector, position=[float(ra), float(dec)], cameraAngle=float(angle))
        edges = (center_ra - low) % 360, (center_ra - high) % 360, center_dec - low_dec, center_dec - high_dec
        if min(abs(edge) for edge in edges) > 1e-7:
            assert got == want, (ra, dec, angle, detector)
            outcomes.append(want)
    assert 50 < sum(outcomes) < len(outcomes) - 50


ANYWHERE = {"dec": {"min": -90, "max": 90}}


@pytest.mark.parametrize(
    ("changes", "detector", "boresight"),
    [
        ({}, True, True),
        ({"coordinateSystem": 1}, False, False),
        ({"position": [10.0, 91.0]}, False, False),
        ({"rotationSystem": 1}, False, True),
        ({"rotationSystem": 4}, False, True),
        ({"rotationSystem": 3}, True, True),
        ({"coordinateSystem": 3, "position": [120.0, 60.0]}, True, True),
        ({"coordinateSystem": 4, "position": [120.0, 60.0], "rotationSystem": 3}, True, True),
        ({"instrument": "Unheard"}, False, True),
        ({"instrument": "DemoCam", "coordinateSystem": 3, "position": [120.0, 60.0]}, False, False),
    ],
    ids=str,
)
def test_a_place_that_is_not_known_matches_no_condition_on_it(
    changes: dict[str, Any], detector: bool, boresight: bool
) -> None:
    assert matches(ANYWHERE, 4, **changes) is detector
    assert matches(ANYWHERE | {"coord_type": "boresight"}, 4, **changes) is boresight


def test_a_detector_that_the_camera_does_not_have_is_nowhere() -> None:
    assert not matches(ANYWHERE, 205)
    assert matches({}, 205)


@pytest.fixture
def north_map(tmp_path: Path) -> str:
    """Give a map of four rings: yes, unknown, no, no from north to south."""
    cells = np.array([1] * 4 + [16] * 4 + [0] * 4, dtype=np.uint8)
    return write_map(tmp_path / "north.fits", cells)


@pytest.mark.parametrize(("dec", "met"), [(60.0, True), (0.0, False), (-60.0, False)])
def test_a_map_matches_where_it_is_one(north_map: str, dec: float, met: bool) -> None:
    assert matches({"binary_map": north_map}, position=[45.0, dec]) is met


def test_the_first_rule_that_matches_wins() -> None:
    rules = [
        rule(survey="other", pipelines=["/p/Other.yaml"]),
        rule(filter="r_57", pipelines=["/p/First.yaml", "/p/Second.yaml"]),
        rule(pipelines=["/p/Third.yaml"]),
    ]
    assert select(rules, TargetPositions(visit()), CENTER) == ("/p/First.yaml", "/p/Second.yaml")
    assert select(rules, TargetPositions(visit(filters="g_6")), CENTER) == ("/p/Third.yaml",)
    assert select(rules[:2], TargetPositions(visit(filters="g_6")), CENTER) is None


@pytest.mark.parametrize("nothing", [None, "None", []])
def test_none_or_empty_means_ignore(nothing: Any) -> None:
    assert select([rule(pipelines=nothing)], TargetPositions(visit()), CENTER) == ()


def test_unmet_conditions_are_listed_with_the_value(north_map: str) -> None:
    strict = rule(
        survey="other",
        filter="g_6",
        nimages=2,
        image_type="calibration",
        dec={"min": 0, "max": 1},
        binary_map=north_map,
    )
    unmet = list(strict.unmet(TargetPositions(visit()), CENTER))
    assert [text.partition(":")[0] for text in unmet] == [
        "survey", "filter", "nimages", "image-type", "dec", "binary-map",
    ]  # fmt: skip
    assert "survey: 'BLOCK-365'" in unmet
    assert "dec: -30.0000 is not within 0 to 1" in unmet
    nowhere = list(rule(**ANYWHERE).unmet(TargetPositions(visit(coordinateSystem=1)), CENTER))
    assert nowhere == ["coord-type: the detector's position on the sky is not known"]


@pytest.mark.parametrize(
    ("conditions", "key", "message"),
    [
        ({"reason": "x"}, "reason", "Extra inputs"),
        ({"survey": 365}, "survey", "valid string"),
        ({"survey": []}, "survey", "at least 1"),
        ({"nimages": -1}, "nimages", "greater than"),
        ({"image_type": "FLAT"}, "image-type", "'sky' or 'calibration'"),
        ({"coord_type": "corner"}, "coord-type", "'detector' or 'boresight'"),
        ({"coord_type": None}, "coord-type", "'detector' or 'boresight'"),
        ({"ra": {"min": 10}}, "ra", "Field required"),
        ({"ra": {"min": "nan", "max": 0}}, "ra", "finite"),
        ({"ra": {"min": "-inf", "max": 0}}, "ra", "finite"),
        ({"ra": [0, 10]}, "ra", "dictionary"),
        ({"dec": {"min": 10, "max": -10}}, "dec", "min is not less than max"),
        ({"dec": {"min": 10, "max": 10}}, "dec", "min is not less than max"),
        ({"dec": {"min": "nan", "max": 0}}, "dec", "not a number"),
        ({"dec": {"max": 0}}, "dec", "Field required"),
        ({"dec": {"min": 0, "max": 90, "mid": 3}}, "dec", "Extra inputs"),
        ({"binary_map": ""}, "binary-map", "path"),
        ({"binary_map": 3}, "binary-map", "path"),
        ({"pipelines": "/p/ApPipe.yaml"}, "pipelines", "valid tuple"),
        ({"pipelines": ["/p/ApPipe.yaml", "/p/ApPipe.yaml"]}, "pipelines", "ApPipe is listed twice"),
        ({"pipelines": ["/p/ApPipe.yaml", "/q/ApPipe.yml"]}, "pipelines", "ApPipe is listed twice"),
        ({"pipelines": ["/p/A.yaml#isr,b", "/q/A.yml#isr,b"]}, "pipelines", "A-isr-b is listed twice"),
        ({"pipelines": ["/p/A.yaml#isr", "/p/A-isr.yaml"]}, "pipelines", "A-isr is listed twice"),
        ({"pipelines": [""]}, "pipelines", "at least 1"),
    ],
    ids=str,
)
def test_a_wrong_rule_is_refused_naming_the_key(conditions: dict[str, Any], key: str, message: str) -> None:
    with pytest.raises(pydantic.ValidationError) as caught:
        rule(**conditions)
    (problem, *_) = caught.value.errors()
    assert problem["loc"][0] == key
    assert message in problem["msg"]


def test_a_rule_without_pipelines_is_refused() -> None:
    with pytest.raises(pydantic.ValidationError, match="pipelines"):
        Rule.model_validate({"survey": "x"})


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/p/ApPipe.yaml", "ApPipe"),
        ("/p.d/Ap.Pipe.yaml", "Ap.Pipe"),
        ("ApPipe.yaml#isr,b.c", "ApPipe-isr-b.c"),
        ("/p/ApPipe.yaml#", "ApPipe"),
        ("/p/ApPipe.yaml#isr, /../x:y", "ApPipe-isr-..-x-y"),
    ],
)
def test_a_pipeline_is_called_by_its_file_and_labels(path: str, name: str) -> None:
    assert pipeline_name(path) == name


def test_subsets_of_one_file_are_different_pipelines() -> None:
    paths = ("/p/A.yaml#a", "/p/A.yaml#b", "/p/A.yaml", "/p/A.yaml#a,b")
    assert rule(pipelines=list(paths)).pipelines == paths
    assert len({pipeline_name(path) for path in paths}) == 4


def on_host(environment: dict[str, str], **conditions: Any) -> Rule:
    named = {name.replace("_", "-"): value for name, value in conditions.items()}
    return Rule.model_validate({"pipelines": []} | named, context=HostContext(environment))


@pytest.mark.parametrize(
    "written", ["$AP_DIR/p/Ap.yaml", "${AP_DIR}/p/../p/Ap.yaml", "${AP_DIR}/p/Ap.yaml#isr"]
)
def test_variables_in_paths_are_replaced(tmp_path: Path, written: str) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "Ap.yaml").touch()
    (path,) = on_host({"AP_DIR": str(tmp_path)}, pipelines=[written]).pipelines
    assert path.partition("#")[0] == str(tmp_path / "p" / "Ap.yaml")


@pytest.mark.parametrize("written", ["$AP_DIR/Ap.yaml", "${AP_DIR}/Ap.yaml"])
def test_a_variable_that_is_not_set_is_refused(written: str, north_map: str) -> None:
    with pytest.raises(pydantic.ValidationError, match="environment variable 'AP_DIR' is not set"):
        on_host({"AP": "/x"}, pipelines=[written])
    with pytest.raises(pydantic.ValidationError, match="environment variable 'AP_DIR' is not set"):
        on_host({"AP": "/x"}, binary_map=written)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(pydantic.ValidationError, match=r"nowhere/Ap\.yaml: no such file"):
        on_host({}, pipelines=["/nowhere/Ap.yaml"])
    with pytest.raises(pydantic.ValidationError, match=r"nowhere/m\.fits: No such file"):
        on_host({}, binary_map="/nowhere/m.fits")


def test_a_map_is_read_at_once_and_once(north_map: str) -> None:
    host = HostContext({})
    values = {"binary-map": north_map, "pipelines": []}
    first, second = (Rule.model_validate(values, context=host) for _ in range(2))
    Path(north_map).unlink()
    assert first.binary_map is second.binary_map
    assert first.matches(TargetPositions(visit(position=[45.0, 60.0])), CENTER)


def test_rules_reach_other_processes_as_they_were_checked(north_map: str, tmp_path: Path) -> None:
    (tmp_path / "Ap.yaml").touch()
    before = on_host(
        {"DIR": str(tmp_path)},
        pipelines=["$DIR/Ap.yaml"],
        binary_map=north_map,
        image_type="sky",
        coord_type="boresight",
        ra={"min": 340, "max": 20},
        survey=["a", "b"],
    )
    (tmp_path / "Ap.yaml").unlink()
    after = Rule.model_validate_json(before.model_dump_json())
    assert after == before
    assert after.binary_map == SkyMap(north_map)


@pytest.mark.parametrize(
    ("conditions", "pairs"),
    [
        ([{}, {"survey": "a"}], [(1, 0)]),
        ([{"survey": "a"}, {}], []),
        ([{"survey": "a"}, {"survey": "a"}], [(1, 0)]),
        ([{"survey": ["a", "b"]}, {"survey": "b", "nimages": 2}, {"survey": "c"}], [(1, 0)]),
        ([{"survey": "a", "filter": "r"}, {"survey": "a"}, {"survey": "a", "filter": "g"}], [(2, 1)]),
        ([ANYWHERE, ANYWHERE], [(1, 0)]),
        ([ANYWHERE, ANYWHERE | {"coord_type": "boresight"}], []),
        ([{"binary_map": "/a"}, {"binary_map": "/b"}, {"binary_map": "/a", "survey": "x"}], [(2, 0)]),
        ([{"coord_type": "boresight"}, {"survey": "a"}], [(1, 0)]),
    ],
    ids=str,
)
def test_rules_that_no_visit_can_come_to_are_found(
    conditions: list[dict[str, Any]], pairs: list[tuple[int, int]]
) -> None:
    assert never_reached([rule(**each) for each in conditions]) == pairs


conditions = st.fixed_dictionaries(
    {},
    optional={
        "survey": st.sampled_from(["a", "b", ["a", "b"]]),
        "filter": st.sampled_from(["r", "g", ["r", "g"]]),
        "nimages": st.sampled_from([0, 1, [1, 2]]),
        "image_type": st.sampled_from(["sky", "calibration"]),
        "ra": st.sampled_from([{"min": 340, "max": 20}, {"min": 5, "max": 15}]),
        "dec": st.sampled_from([{"min": -40, "max": -29}]),
        "coord_type": st.sampled_from(["boresight", "detector"]),
    },
)
events = st.builds(
    visit,
    survey=st.sampled_from(["a", "b", "c"]),
    filters=st.sampled_from(["", "r", "r,g", "i"]),
    nimages=st.integers(0, 2),
    coordinateSystem=st.sampled_from([1, 2]),
    rotationSystem=st.sampled_from([1, 2]),
    dome=st.integers(1, 3),
    position=st.tuples(st.floats(-360, 720), st.floats(-91, 91)),
)


@given(st.lists(conditions, max_size=5), events, st.integers(0, 204))
def test_the_first_match_is_taken_and_no_unreachable_rule_is_ever_it(
    written: list[dict[str, Any]], event: NextVisit, detector: int
) -> None:
    rules = [rule(pipelines=[f"/p/{number}.yaml"], **each) for number, each in enumerate(written)]
    matching = [each.pipelines for each in rules if not list(each.unmet(TargetPositions(event), detector))]
    taken = select(rules, TargetPositions(event), detector)
    assert taken == (matching[0] if matching else None)
    assert taken not in [rules[late].pipelines for late, _ in never_reached(rules)]


def test_both_lists_are_held_against_each_detector() -> None:
    ra, _ = load_camera("LSSTCam").center(EAST_CORNER, 10.0, -30.0, 0.0)
    east = {"ra": {"min": ra - 0.1, "max": ra + 0.1}}
    selector = Selector(
        preprocessing=[rule(pipelines=["/p/Pre.yaml"], **east)],
        main=[rule(pipelines=["/p/East.yaml"], **east), rule(survey="BLOCK-365", pipelines=["/p/Ap.yaml"])],
    )
    chosen = selector.choose(visit(), [CENTER, EAST_CORNER])
    assert chosen[CENTER].pipelines.main == ("/p/Ap.yaml",)
    assert chosen[CENTER].pipelines.preprocessing == ()
    assert chosen[EAST_CORNER].pipelines.main == ("/p/East.yaml",)
    assert chosen[EAST_CORNER].pipelines.preprocessing == ("/p/Pre.yaml",)
    assert {each.reason for each in chosen.values()} == {""}


@pytest.mark.parametrize(
    ("conditions", "changes", "message"),
    [
        (
            {"survey": "x"},
            {},
            "no rule matches (survey 'BLOCK-365', filters 'r_57', ICRS position 10, -30)",
        ),
        (
            {"dec": {"min": 0, "max": 1}},
            {},
            "no rule matches (survey 'BLOCK-365', filters 'r_57', ra 10.0000, dec -30.0000)",
        ),
        (
            {"dec": {"min": 0, "max": 1}},
            {"coordinateSystem": 1, "survey": ""},
            "no rule matches (survey '', filters 'r_57', no position)",
        ),
        (
            {"pipelines": None},
            {"filters": ""},
            "its rule ignores the visit (survey 'BLOCK-365', filters '', ICRS position 10, -30)",
        ),
    ],
)
def test_a_visit_without_a_pipeline_has_the_reason(
    conditions: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    chosen = Selector([], [rule(**conditions)]).choose(visit(**changes), [CENTER])[CENTER]
    assert (chosen.reason, chosen.pipelines.main) == (message, ())


def test_only_rules_about_the_sky_make_a_conversion_necessary() -> None:
    horizontal = visit(coordinateSystem=3, position=[120.0, 60.0])
    assert not Selector([], [rule(survey="x")]).takes_long(horizontal)
    assert Selector([rule(**ANYWHERE)], [rule()]).takes_long(horizontal)
    assert not Selector([rule(**ANYWHERE)], [rule()]).takes_long(visit())


def test_a_visit_is_located_once_for_all_its_detectors(caplog: pytest.LogCaptureFixture) -> None:
    selector = Selector([rule(**ANYWHERE)], [rule(**ANYWHERE), rule()])
    with caplog.at_level(logging.INFO):
        selector.choose(visit(coordinateSystem=1), range(205))
    assert len(caplog.messages) == 1
