# SPDX-License-Identifier: BSD-3-Clause
"""Formats of paths: what they read and write, and which are refused and why."""

import datetime
import itertools
import re
import string
import time
from pathlib import Path
from urllib.parse import quote, unquote

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ppdaemon.raws.format import PathFormat

GROUP = "2025-11-22T03:25:16.951#1"
NEEDED = "{exposure}/{detector}"
FIELDS = (
    *("instrument", "day_obs", "obsid", "raft", "slot", "detector_name", "group", "filter", "label"),
    *("exposure", "detector", "snap", "detector:03d", "snap:02d"),
)

texts = st.text(st.characters(exclude_categories=("C",), exclude_characters="/"), min_size=1).filter(
    lambda text: text not in (".", "..")
)
days = st.dates(datetime.date(1970, 1, 1)).map(lambda day: int(f"{day:%Y%m%d}"))
obsids = st.from_regex(r"[A-Z]{2}_[A-Z]_[0-9]{8}_0[0-9]{5}", fullmatch=True)
rafts = st.from_regex(r"R[0-9X]{2}", fullmatch=True)
slots = st.from_regex(r"S[0-9GW][0-9]", fullmatch=True)
numbers = st.integers(0, 10**18 - 1)
values_of = st.fixed_dictionaries(
    {
        "instrument": st.sampled_from(["LSSTCam", "LSST-TS8", "LSSTCam-imSim", "a_1"]) | texts,
        "day_obs": days,
        "obsid": obsids,
        "exposure": numbers,
        "detector": numbers,
        "snap": numbers,
        "raft": rafts,
        "slot": slots,
        "group": texts | st.from_regex(r"2025-11-2\dT0\d:25:16\.951(#\d)?", fullmatch=True),
        "filter": st.sampled_from(["r_03", "i_sim_1.4", "SDSSr_65mm~empty"]) | texts,
        "label": texts,
    }
)
pieces = st.sampled_from([f"{{{field}}}" for field in FIELDS])
separators = st.sampled_from(["_", "_", "-", ".", "x", "", "0", "R", "_S1"])
parts = st.lists(st.tuples(pieces, separators), min_size=1, max_size=5).map(
    lambda found: "".join(itertools.chain.from_iterable(found))
)
ends = st.sampled_from([f"/{NEEDED}", "/{obsid}_{raft}_{slot}"])


@st.composite
def formats(draw: st.DrawFn, most: int = 3) -> str:
    """Make the text of a format, part by part."""
    end = draw(ends)
    chosen = draw(st.lists(parts.filter(lambda part: is_format(part + end)), min_size=1, max_size=most))
    text = "/".join(chosen) + end
    assume(is_format(text))  # an exposure in one part changes the obsid of the others
    return text


def is_format(text: str) -> bool:
    try:
        PathFormat(text)
    except ValueError:
        return False
    return True


def test_each_folder_is_read_by_itself():
    layout = PathFormat("{instrument}/{obsid}/{obsid}_{raft}_{slot}")
    assert layout.levels == ({"instrument"}, {"obsid"}, {"obsid", "raft", "slot"})
    obsid = "MC_O_20251121_000156"
    assert layout.read(["ComCam"]) == {"instrument": "LSSTComCam"}
    found = layout.read(["LSSTCam", obsid, f"{obsid}_R22_S11"])
    assert found == {"instrument": "LSSTCam", "obsid": obsid, "raft": "R22", "slot": "S11"}
    assert layout.read(["LSSTCam", obsid, f"{obsid}_R22_S11", "deeper"]) is None
    assert layout.read(["."]) is None


def test_a_field_that_differs_further_down_does_not_fit():
    layout = PathFormat("{exposure}/{exposure}_{detector}")
    assert layout.read(["5", "5_1"]) == {"exposure": 5, "detector": 1}
    assert layout.read(["5", "6_1"]) is None
    assert PathFormat("{exposure}_{exposure}_{detector}").read(["5_6_1"]) is None


def test_free_text_may_differ():
    assert PathFormat("{label}/{label}_{exposure}_{detector}").read(["a", "b_5_1"]) is not None


def test_a_day_that_is_none_does_not_fit():
    assert PathFormat("{day_obs}/{exposure}-{detector}").read(["20251340"]) is None


def test_digits_are_those_of_ascii():
    assert PathFormat("{exposure}_{detector}").read(["\u0665_1"]) is None


def test_numbers_have_at_least_the_digits_that_are_written():
    layout = PathFormat("{exposure}/d{detector:03d}")
    assert layout.write({"exposure": 5, "detector": 7}) == "5/d007"
    assert layout.write({"exposure": 5, "detector": 1234}) == "5/d1234"
    assert layout.read(["5", "d07"]) is None


def test_the_name_of_a_detector_is_raft_and_slot():
    layout = PathFormat("{exposure}-{detector_name}")
    assert layout.read(["5-R22_S11"]) == {"exposure": 5, "raft": "R22", "slot": "S11"}
    assert layout.fields == {"exposure", "raft", "slot"}


def test_an_obsid_of_another_camera_is_read_beside_the_exposure():
    layout = PathFormat("{obsid}_{exposure}_{detector}")
    assert layout.read(["c4d_231010_012345_ori_5_1"]) == {
        "obsid": "c4d_231010_012345_ori",
        "exposure": 5,
        "detector": 1,
    }


def test_a_format_writes_complete_paths_and_their_beginnings():
    layout = PathFormat("{instrument}/{day_obs}/{exposure}-{detector:03d}")
    values = {"instrument": "LATISS", "day_obs": 20251121, "exposure": 5, "detector": 7}
    assert layout.write(values) == "LATISS/20251121/5-007"
    assert layout.write(values, 2) == "LATISS/20251121"
    with pytest.raises(KeyError):
        layout.write({"instrument": "LATISS"})


@given(formats(), values_of, st.booleans())
def test_what_is_written_is_read_back(text, values, quoted):
    layout = PathFormat(text)
    group = quote(values["group"], safe="") if quoted else values["group"]
    assume(unquote(group) == values["group"])
    written = layout.write(values | {"group": group})
    assert layout.read(written.split("/")) == {field: values[field] for field in layout.fields}


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("{exposure}_{filter}_{detector}_{raft}_{slot}", "5_i_sim_1.4_94_R22_S11"),
        ("{obsid}{raft}{slot}", "MC_O_20251121_000156R22S11"),
        ("{day_obs}{detector:03d}_{exposure}", "20251121094_5"),
        ("{exposure}{day_obs}_{detector}", "520251121_94"),
        ("{instrument}_{exposure}_{detector}", "a_1_5_94"),
        ("{exposure}{raft}_{slot}", "5R22_S11"),
        ("{exposure}_{detector}_{group}", "5_94_2025-11-22T03:25:16.951#1"),
        ("{label}{obsid}_{detector_name}", "x7MC_O_20251121_000156_R22_S11"),
        ("{exposure}_{detector}.raw", "5_94.raw"),
        ("{{{exposure}}}_{detector}", "{5}_94"),
    ],
)
def test_where_shapes_or_separators_decide_fields_may_touch(text, name):
    layout = PathFormat(text)
    values = layout.read([name])
    assert values is not None
    assert layout.write(values) == name


@pytest.mark.parametrize(
    ("part", "first", "second"),
    [
        ("{exposure}{detector}", "exposure", "detector"),
        ("{exposure}{detector:03d}", "exposure", "detector"),
        ("{exposure}{label}", "exposure", "label"),
        ("{label}{exposure}", "label", "exposure"),
        ("{filter}_{group}", "filter", "group"),
        ("{filter}_{exposure}_{group}", "filter", "group"),
        ("{filter}_{exposure}{day_obs}", "exposure", "day_obs"),
        ("{filter}_{exposure}0_{detector}", "exposure", "what follows"),
        ("{filter}{slot}{exposure}", "filter", "exposure"),
        ("{obsid}_{label}_{exposure}", "obsid", "label"),
        ("{label}_{exposure}_{label}", "label", "label"),
    ],
)
def test_a_name_that_could_be_read_in_several_ways_is_refused(part, first, second):
    with pytest.raises(ValueError, match=f"nothing shows where {first} ends and {second} begins"):
        PathFormat(f"{NEEDED}/{part}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no empty part"),
        ("/" + NEEDED, "no empty part"),
        (NEEDED + "/", "no empty part"),
        ("../" + NEEDED, "no empty part"),
        (NEEDED + "_{visit}", "unknown name 'visit'; known are day_obs, detector,"),
        (NEEDED + "_{}", "unknown name ''"),
        (NEEDED + "_{detector.real}", "unknown name 'detector.real'"),
        (NEEDED + "_{snap:x}", r"write \{name\}, or for a number \{name:03d\}"),
        (NEEDED + "_{snap:3d}", r"write \{name\}"),
        (NEEDED + "_{snap:019d}", r"write \{name\}"),
        (NEEDED + "_{group:03d}", r"write \{name\}"),
        (NEEDED + "_{day_obs:09d}", r"write \{name\}"),
        (NEEDED + "_{snap!r}", r"write \{name\}"),
        (NEEDED + "_{snap:{filter}}", r"write \{name\}"),
        (NEEDED + "_{snap", "is not a format"),
        (NEEDED + "_}", "is not a format"),
        ("{detector}", "nothing names the exposure"),
        ("{exposure}", "nothing names the detector"),
        ("{exposure}_{raft}", "nothing names the detector"),
        (NEEDED + ".fits", "omit the ending"),
        (NEEDED + ".fits.fz", "omit the ending"),
        (NEEDED + ".json", "omit the ending"),
    ],
)
def test_what_is_no_format_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        PathFormat(text)


@pytest.mark.parametrize(
    ("document", "count"), [("doc/operators/arrivals.rst", 2), ("etc/ppdaemon.yaml", 2), ("CHANGES.rst", 2)]
)
def test_the_paths_that_documents_show_are_formats(document, count):
    shown = re.findall(r'(?:path: |``)"(\{[^"]+)"', (Path(__file__).parents[2] / document).read_text())
    assert len(shown) == count
    # One of two is of files that hold all detectors.
    assert all(PathFormat(text, all_detectors=text.endswith("{exposure}")).fields for text in shown)


@pytest.mark.parametrize(
    ("pattern", "text", "path"),
    [
        (
            r"(?P<instrument>[^/]+)/(?P<group>[^/]+)/raw_(?P<exposure>\d+)_(?P<detector>\d{3})",
            "{instrument}/{group}/raw_{exposure}_{detector:03d}",
            f"LSSTCam/{GROUP}/raw_2025112100156_094",
        ),
        (
            r"(?P<instrument>[^/]+)/(?P<exposure>\d+)/[a-z]+_(?P<detector>\d+)",
            "{instrument}/{exposure}/{label}_{detector}",
            "LSSTCam/2025112100156/img_094",
        ),
        (
            r"(?P<instrument>LSSTCam|LATISS)/(?P<exposure>\d+)_s(?P<snap>\d)_(?P<detector>\d+)",
            "{instrument}/{exposure}_s{snap}_{detector}",
            "LATISS/5_s2_1",
        ),
    ],
)
def test_a_path_reads_what_an_expression_with_the_same_names_reads(pattern, text, path):
    expected = re.fullmatch(pattern, path)
    values = PathFormat(text).read(path.split("/"))
    assert expected is not None
    assert values is not None
    numbers = {field: int(value) for field, value in expected.groupdict().items() if value.isdigit()}
    values.pop("label", None)
    assert values == expected.groupdict() | numbers


@given(st.text("{}:_/." + string.ascii_lowercase, max_size=30), st.text(max_size=30))
def test_any_text_is_a_format_or_refused(text, name):
    if is_format(text):
        assert PathFormat(text).read([name]) != {}
    if is_format(f"{NEEDED}/{text}"):
        assert PathFormat(f"{NEEDED}/{text}").read(["5", "0", name]) != {}


@given(
    formats(most=1),
    st.text("_0aRS1-", min_size=1, max_size=12),
    st.sampled_from(["", "_", "x", "0", "_R22_S11", "_1_R22_S1"]),
)
def test_reading_takes_linear_time(text, repeated, end):
    size = 50_000  # to try all ways to divide it among two fields would take minutes
    name = (repeated * size)[:size] + end
    began = time.process_time()
    PathFormat(text).read([name])
    assert time.process_time() - began < 2.0


@pytest.mark.parametrize("folders", [[], ["a"], ["r_03"]])
def test_values_that_a_caller_changes_are_not_those_of_the_next_one(folders):
    form = PathFormat("{filter}/x/{exposure}_{detector}" if folders == ["r_03"] else f"a/{NEEDED}")
    found = form.read(folders)
    found["snap"] = 1
    assert "snap" not in form.read(folders)
