# SPDX-License-Identifier: BSD-3-Clause
"""Memories of what landed."""

import gc
import tracemalloc

from clocks import FakeClock
from hypothesis import given
from hypothesis import strategies as st

from ppdaemon.messages import Raw
from ppdaemon.node.arrivals.index import ArrivalIndex, ExpectedSensors, Recent


def raw(exposure: int = 1, detector: int = 4, group: str = "g", instrument: str = "LSSTCam") -> Raw:
    return Raw(
        path=f"/raw/{exposure}_{detector}.fits",
        instrument=instrument,
        group=group,
        detector=detector,
        exposure=exposure,
        seen_tai=0.0,
    )


def test_raws_are_found_by_visit_and_detector_in_order(clock):
    index = ArrivalIndex(900.0, clock.mono)
    first, second = raw(1), raw(2)
    assert index.add(first)
    assert index.add(second)
    assert index.add(raw(3, detector=5))
    assert index.add(raw(4, group="h"))
    assert index.of("LSSTCam", "g", 4) == [first, second]
    assert index.of("LATISS", "g", 4) == []


def test_the_same_exposure_is_remembered_once(clock):
    index = ArrivalIndex(900.0, clock.mono)
    assert index.add(raw())
    assert not index.add(raw())
    assert len(index.of("LSSTCam", "g", 4)) == 1


def test_another_file_of_an_exposure_replaces_the_former(clock):
    index = ArrivalIndex(900.0, clock.mono)
    index.add(raw())
    for other in (
        raw().model_copy(update={"path": "/raw/a/x.fits.fz"}),
        raw().model_copy(update={"file_id": (1, 2, 3, 4)}),
        raw().model_copy(update={"file_id": "etag/5760"}),
    ):
        assert index.add(other)
        assert not index.add(other)
        assert index.of("LSSTCam", "g", 4) == [other]
        assert len(index) == 1


def test_a_supplement_belongs_to_the_visit_of_its_group(clock):
    index = ArrivalIndex(900.0, clock.mono)
    index.add(raw(group="2025-11-22T03:25:16.951#1"))
    assert index.of("LSSTCam", "2025-11-22T03:25:16.951", 4)


def test_raws_are_forgotten_after_their_time(clock):
    index = ArrivalIndex(900.0, clock.mono)
    index.add(raw(1))
    clock.advance(600.0)
    index.add(raw(2))
    clock.advance(301.0)
    assert [found.exposure for found in index.of("LSSTCam", "g", 4)] == [2]
    clock.advance(600.0)
    assert index.of("LSSTCam", "g", 4) == []
    assert len(index) == 0
    assert index.add(raw(1))


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 3), st.floats(0, 100)), max_size=200),
    st.integers(1, 20),
)
def test_the_index_is_bounded_and_consistent(story, most):
    clock = FakeClock()
    index = ArrivalIndex(300.0, clock.mono, most)
    for exposure, detector, pause in story:
        clock.advance(pause)
        index.add(raw(exposure, detector, group=str(exposure // 2)))
        assert 1 <= len(index) <= most
    found = [r for group in range(26) for d in range(4) for r in index.of("LSSTCam", str(group), d)]
    assert len(found) == len(index)


def test_a_raw_comes_back_as_it_was(clock):
    index = ArrivalIndex(900.0, clock.mono)
    folder = "/raw/LSSTCam/20251121/MC_O_20251121_000156"
    whole = Raw(
        path=f"{folder}/a.fits",
        sidecar=f"{folder}/a.json",
        instrument="LSSTCam",
        group="g#1",
        detector=4,
        exposure=1,
        snap=1,
        snaps=2,
        seen_tai=7.5,
    )
    elsewhere = whole.model_copy(update={"detector": 5, "path": "/b.fits", "sidecar": "/other/b.json"})
    remote = whole.model_copy(update={"detector": 6, "path": "s3://bucket/x/c.fits", "sidecar": None})
    for each in (whole, elsewhere, remote):
        assert index.add(each)
    assert [index.of("LSSTCam", "g", detector) for detector in (4, 5, 6)] == [[whole], [elsewhere], [remote]]


def test_a_raw_takes_little_memory_and_what_is_forgotten_none(clock):
    def land(exposures):
        for exposure in exposures:
            folder = f"/data/lsst/raw/LSSTCam/20251121/MC_O_20251121_{exposure:06d}"
            for detector in range(205):
                file = f"MC_O_20251121_{exposure:06d}_R22_S{detector:03d}"
                found = raw(exposure, detector, group=f"2025-11-22T03:25:{exposure}")
                places = {"path": f"{folder}/{file}.fits", "sidecar": f"{folder}/{file}.json"}
                index.add(found.model_copy(update=places))

    def used():
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    index = ArrivalIndex(900.0, clock.mono)
    tracemalloc.start()
    try:
        before = used()
        land(range(20))
        full = used() - before
        assert full / len(index) < 500
        for night in range(1, 4):
            clock.advance(901.0)
            land(range(20 * night, 20 * night + 20))
            assert used() - before < 1.1 * full
    finally:
        tracemalloc.stop()


def a_list(exposure=1, group="g", detectors=(3, 4)):
    return ExpectedSensors("LSSTCam", group, exposure, frozenset(detectors))


def test_lists_are_found_by_visit_for_a_while(clock):
    index = ArrivalIndex(900.0, clock.mono)
    index.add_list(a_list(1))
    index.add_list(a_list(2, "g#1"))
    index.add_list(a_list(3, "h"))
    assert index.lists_of("LSSTCam", "g") == [a_list(1), a_list(2, "g#1")]
    assert index.lists_of("LATISS", "g") == []
    clock.advance(901.0)
    index.add_list(a_list(4, "h"))
    assert index.lists_of("LSSTCam", "g") == []


def test_lists_are_bounded_by_visit_and_altogether(clock):
    index = ArrivalIndex(900.0, clock.mono)
    for exposure in range(100):
        index.add_list(a_list(exposure))
    assert [listed.exposure for listed in index.lists_of("LSSTCam", "g")] == list(range(68, 100))
    for number in range(1000):
        index.add_list(a_list(number, f"g{number}"))
    assert index.lists_of("LSSTCam", "g") == []
    assert index.lists_of("LSSTCam", "g0")


def test_recent_keys_are_known_for_a_while_and_only_so_many():
    recent: Recent[int] = Recent(10.0, 3)
    for key in range(5):
        recent.add(key, float(key))
    assert [recent.contains(key, 5.0) for key in range(5)] == [False, False, True, True, True]
    assert not recent.contains(2, 12.5)
    assert recent.contains(3, 12.5)
    recent.add(9, 14.5)
    assert len(recent) == 1
