# SPDX-License-Identifier: BSD-3-Clause
"""Which paths belong to which root, and what they are to this node."""

from pathlib import Path
from typing import Any

import pytest

from ppdaemon.config import ArrivalsConfig
from ppdaemon.errors import BadMessage
from ppdaemon.node.arrivals.roots import RawPath, RawRoots
from ppdaemon.raws.path import ExpectedRaws, RawFileKind

OBSID = "MC_O_20251121_000156"
RAW = f"LSSTCam/20251121/{OBSID}/{OBSID}_R22_S11.fits"
GENERIC = "LSSTCam/94/2025-11-22T03:25:16.951/0/2025112100156/r_03/x.fits"


def tree(*roots: Any, **keys: Any) -> RawRoots:
    return RawRoots(ArrivalsConfig.model_validate({"roots": roots} | keys), {"LSSTCam": [94, 95]})


@pytest.mark.parametrize("path", ["/etc/passwd", f"/abc/{RAW}", "/a", "relative", f"/a{RAW}", "/", ""])
def test_fault_17_paths_outside_all_roots_are_refused(path):
    with pytest.raises(BadMessage) as caught:
        tree("/a", "/b").locate(path)
    assert caught.value.kind == "outside"


@pytest.mark.parametrize("path", [f"/a/../../{RAW}", f"/a/LSSTCam/../{RAW}", f"/b/{RAW}/.."])
def test_fault_17_paths_that_lead_upwards_are_refused(path):
    with pytest.raises(BadMessage) as caught:
        tree("/a", "/b").locate(path)
    assert caught.value.kind == "escape"


def test_a_key_can_be_below_any_root():
    both = tree("/a", "/b")
    places = both.absolute_paths(RAW)
    assert places == (f"/a/{RAW}", f"/b/{RAW}")
    assert all(both.locate(place) is not None for place in places)
    assert both.absolute_paths("/x/y") == ("/x/y",)


def test_a_path_below_two_roots_belongs_to_the_inner_one():
    nested = tree("/raw", {"path": "/raw/sim", "layout": "generic"})
    name, place = nested.locate(f"/raw/sim/{GENERIC}") or (None, None)
    assert name is not None
    assert place == RawPath("/raw/sim", f"/raw/sim/{GENERIC}")
    assert name.group == "2025-11-22T03:25:16.951"
    assert nested.locate(f"/raw/sim/{RAW}") is None
    assert nested.locate(f"/raw/{RAW}") is not None


def test_each_root_has_its_settings_or_the_common_ones():
    first, second = tree("/a", {"path": "/b", "layout": "generic", "watch": "poll"}, watch="inotify").roots
    assert (first.path, first.watch, first.layout.depth) == ("/a", "inotify", 3)
    assert (second.path, second.watch, second.layout.depth) == ("/b", "poll", 6)


def test_only_what_this_node_serves_is_located():
    served = tree("/a")
    assert served.locate(f"/a/{RAW}") is not None
    assert served.locate(f"/a/{RAW.replace('S11', 'S00')}") is None
    assert served.locate(f"/a/{RAW.replace('_R22_S11.fits', '_R40_SG1_guider.fits')}") is None
    listed = served.locate(f"/a/LSSTCam/20251121/{OBSID}/{OBSID}_expectedSensors.json")
    assert listed is not None
    assert listed[0].kind is RawFileKind.EXPECTED


def test_the_marker_after_a_name_identifies_its_raw():
    marked = tree("/a", done=".done")
    located = marked.locate(f"/a/{RAW}")
    assert located is not None
    assert located[1] == RawPath("/a", f"/a/{RAW}", f"/a/{RAW}.done")
    assert marked.locate(f"/a/{RAW}.done") == located
    sidecar = marked.locate(f"/a/{RAW.replace('.fits', '.json')}")
    assert sidecar is not None
    assert sidecar[1].marker is None


def test_one_marker_may_stand_for_the_folder():
    located = tree("/a", done="{obsid}.complete").locate(f"/a/{RAW}")
    assert located is not None
    assert located[1].marker == f"/a/LSSTCam/20251121/{OBSID}/{OBSID}.complete"


def test_detectors_that_will_come_are_found_by_name():
    served = tree("/a", {"path": "/b", "layout": "generic"})
    names = ["R22_S11", "R22_S12", "R22_S00", "R99_S99", ""]
    for root in ("/a", "/b"):
        assert served.detectors_named("LSSTCam", RawPath(root, f"{root}/x"), names) == {94, 95}


def test_all_that_is_served_of_an_instrument_can_be_expected():
    assert tree("/a").all_of("LSSTCam", [20251121]) == ExpectedRaws(
        "LSSTCam", frozenset({94, 95}), days=frozenset({20251121})
    )


def test_a_root_is_taken_as_it_is_written_whatever_it_links_to(tmp_path: Path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    linked = tree(tmp_path / "link")
    assert linked.roots[0].path == str(tmp_path / "link")
    assert linked.locate(f"{tmp_path}/link/{RAW}") is not None
