# SPDX-License-Identifier: BSD-3-Clause
"""The ring of a bridge: limits, numbers, what a power failure leaves, and what a node gets of it."""

import shutil
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppdaemon.bridge.config import RingConfig
from ppdaemon.bridge.http import MAX_REFUSED, MAX_REMEMBERED, Refusals
from ppdaemon.bridge.outlet import AT_ONCE, BYTES_AT_ONCE, Newest, begin_of
from ppdaemon.bridge.ring import PRUNE_BATCH, RING_NAME, Extent, Ring, Stored
from ppdaemon.messages import AskNotices

ALL = RingConfig(max_notices=10**9, max_bytes=10**12, keep_s=1e9)


def add(ring: Ring, body: bytes, tai: float = 0.0) -> Extent:
    with ring.transaction():
        return ring.add([body], tai)


def bodies(ring: Ring) -> list[bytes]:
    return [each.body for each in ring.read(1, 10**6, 10**9)]


def test_numbers_follow_each_other_and_none_is_used_twice(tmp_path):
    with closing(Ring(tmp_path, RingConfig(keep_s=10.0))) as ring:
        assert ring.extent() == Extent()
        for tai, body in enumerate((b"a", b"bb", b"ccc")):
            extent = add(ring, body, float(tai))
        assert extent == Extent(1, 3, 6, 2.0)
        assert [each.number for each in ring.read(2, 10, 100)] == [2, 3]
        with ring.transaction():
            assert ring.prune(1000.0) == Extent(4, 3, 0, None)
        assert add(ring, b"d", 1000.0) == Extent(4, 4, 1, 1000.0)
    with closing(Ring(tmp_path, ALL)) as again:
        assert (again.extent(), again.epoch) == (Extent(4, 4, 1, 1000.0), ring.epoch)


def test_notices_that_are_added_together_are_numbered_in_their_order(tmp_path):
    with closing(Ring(tmp_path, ALL.model_copy(update={"max_notices": 3}))) as ring:
        add(ring, b"a")
        with ring.transaction():
            assert ring.add([b"bb", b"ccc", b"d", b"e"], 2.0) == Extent(3, 5, 5, 2.0)
        assert ring.read(1, 10, 100) == [Stored(3, b"ccc"), Stored(4, b"d"), Stored(5, b"e")]


@pytest.mark.parametrize(
    ("limits", "left"),
    [
        ({"max_notices": 2}, [b"33", b"44"]),
        ({"max_bytes": 5}, [b"33", b"44"]),
        ({"keep_s": 2.5}, [b"22", b"33", b"44"]),
    ],
)
def test_the_oldest_notices_are_deleted_above_each_limit(tmp_path, limits, left):
    with closing(Ring(tmp_path, ALL.model_copy(update=limits))) as ring:
        for number in range(1, 5):
            extent = add(ring, b"%d" % (11 * number), float(number))
        assert bodies(ring) == left
        assert extent == Extent(5 - len(left), 4, 2 * len(left), 4.0)


def test_after_the_limits_were_lowered_the_ring_shrinks_step_by_step(tmp_path):
    with closing(Ring(tmp_path, ALL)) as ring, ring.transaction():
        for number in range(2 * PRUNE_BATCH):
            ring.add([b"x"], float(number))
    with closing(Ring(tmp_path, RingConfig(max_notices=5))) as ring:
        assert add(ring, b"y", 0.0).count == PRUNE_BATCH + 1
        assert add(ring, b"y", 0.0).count == 5


def test_a_read_has_limits_and_gives_one_notice_at_least(tmp_path):
    with closing(Ring(tmp_path, ALL)) as ring:
        for body in (b"large" * 100, b"b", b"c"):
            add(ring, body)
        assert [each.number for each in ring.read(1, 10, 100)] == [1]
        assert [each.number for each in ring.read(2, 1, 100)] == [2]
        assert [each.number for each in ring.read(2, 10, 100)] == [2, 3]
        assert ring.read(4, 10, 100) == []


def test_the_first_notice_since_a_time(tmp_path):
    with closing(Ring(tmp_path, ALL)) as ring:
        assert ring.begin(0.0) == 1
        for tai in (10.0, 20.0, 30.0):
            add(ring, b"x", tai)
        assert [ring.begin(tai) for tai in (0.0, 10.0, 10.5, 30.0, 31.0)] == [1, 1, 2, 3, 4]


def test_the_newest_notice_is_the_last_one_although_the_clock_was_set_back(tmp_path):
    with closing(Ring(tmp_path, ALL)) as ring:
        assert add(ring, b"a", 9000.0).newest_tai == 9000.0
        assert add(ring, b"b", 10.0).newest_tai == 10.0


def test_a_ring_that_was_removed_or_replaced_is_not_in_place(tmp_path):
    path = tmp_path / RING_NAME
    with closing(Ring(tmp_path, ALL)) as ring:
        assert ring.is_in_place()
        shutil.copy(path, tmp_path / "other")
        path.unlink()
        assert not ring.is_in_place()
        (tmp_path / "other").rename(path)
        assert not ring.is_in_place()


def test_what_a_power_failure_cuts_is_the_end_only(tmp_path):
    """The log of the file is cut at each kind of place: whole notices are left, the first ones."""
    written = tmp_path / "written"
    written.mkdir()
    with closing(Ring(written, ALL)) as ring:
        for number in range(8):
            add(ring, b"%d" % number * 500)
        log = Path(f"{written / RING_NAME}-wal")
        whole, found = log.stat().st_size, set()
        for number, size in enumerate([*range(0, whole, whole // 40), whole - 1, whole]):
            cut = tmp_path / f"cut{number}"
            shutil.copytree(written, cut)
            Path(f"{cut / RING_NAME}-shm").unlink()
            with open(f"{cut / RING_NAME}-wal", "r+b") as file:
                file.truncate(size)
            with closing(Ring(cut, ALL)) as after:
                assert after.moved_aside is None
                left = bodies(after)
                assert left == [b"%d" % n * 500 for n in range(len(left))]
                extent = after.extent()
                assert (extent.count, extent.bytes) == (len(left), 500 * len(left))
                found.add(len(left))
        assert {0, 8} <= found
        assert len(found) > 4


def test_a_corrupt_ring_is_replaced_by_one_of_another_epoch(tmp_path):
    with closing(Ring(tmp_path, ALL)) as ring:
        add(ring, b"x" * 20_000)
    path = tmp_path / RING_NAME
    path.write_bytes(b"nonsense" * 1000)
    with closing(Ring(tmp_path, ALL)) as new:
        assert new.moved_aside is not None
        assert new.epoch != ring.epoch
        assert new.extent() == Extent()


EXTENT = Extent(first=11, last=20)


@pytest.mark.parametrize(
    ("ask", "recent", "begin", "lost"),
    [
        ({"epoch": "e", "number": 15}, 21, 16, 0),
        ({"epoch": "e", "number": 20}, 21, 21, 0),
        ({"epoch": "e", "number": 10}, 21, 11, 0),
        ({"epoch": "e", "number": 7}, 21, 11, 3),  # 8, 9 and 10 are gone
        ({"epoch": "e", "number": 18}, 14, 14, 0),  # a new run takes recent ones again
        ({"epoch": "e", "number": 18}, 3, 11, 0),
        ({"epoch": "", "number": 0}, 18, 18, 0),  # a new node needs no old ones
        ({"epoch": "other", "number": 15}, 21, 11, 0),
        ({"epoch": "e", "number": 99}, 21, 11, 0),  # the ring is an old copy
    ],
)
def test_what_a_node_gets(ask, recent, begin, lost):
    question = AskNotices(node="n", request=1, **ask)
    assert begin_of(question, "e", EXTENT, recent) == (begin, lost)


@given(st.integers(0, 40), st.integers(1, 41), st.integers(1, 30), st.integers(0, 10), st.booleans())
def test_a_node_gets_all_that_it_lacks_or_learns_what_is_lost(number, recent, first, count, known):
    extent = Extent(first=first, last=first + count - 1)
    ask = AskNotices(node="n", request=1, epoch="e" if known else "", number=number)
    begin, lost = begin_of(ask, "e", extent, recent)
    assert first <= begin <= max(extent.last + 1, recent, number + 1)
    if known and number <= extent.last:
        assert begin <= max(number + 1, first)
        assert number + 1 + lost == max(number + 1, first)


def test_a_body_is_refused_some_times_and_then_taken_off_the_store():
    refusals = Refusals()
    assert [refusals.refuse(b"bad") for _ in range(MAX_REFUSED + 2)] == [True] * MAX_REFUSED + [False] * 2
    assert refusals.refuse(b"other")
    for number in range(MAX_REMEMBERED):
        refusals.refuse(b"%d" % number)
    assert refusals.refuse(b"bad")  # forgotten


def newest_of(*sizes: int, first: int = 1) -> Newest:
    newest = Newest()
    for number, size in enumerate(sizes, first):
        newest.add(Stored(number, b"x" * size))
    return newest


def test_who_is_up_to_date_gets_the_newest_notices_from_memory():
    newest = newest_of(1, 2, 3, first=8)
    extent = Extent(first=5, last=10)
    assert newest.after(10, extent) == []
    assert newest.after(9, extent) == [b"xxx"]
    assert newest.after(7, extent) == [b"x", b"xx", b"xxx"]
    assert newest.after(6, extent) is None
    assert newest.after(11, extent) is None  # of an old copy of the ring
    assert newest.after(8, Extent(first=10, last=10)) is None  # what it lacks was deleted
    assert newest.after(9, Extent(first=10, last=11)) is None  # the last one is not here
    assert Newest().after(7, Extent(first=8, last=7)) == []
    assert Newest().after(6, extent) is None


def test_the_newest_notices_are_as_many_as_one_answer_may_have():
    assert len(newest_of(*[1] * (AT_ONCE + 5)).after(5, Extent(1, AT_ONCE + 5)) or ()) == AT_ONCE
    assert newest_of(*[1] * (AT_ONCE + 5)).after(4, Extent(1, AT_ONCE + 5)) is None
    half = BYTES_AT_ONCE // 2
    assert newest_of(half, half, half).after(0, Extent(1, 3)) is None
    assert newest_of(half, half, half).after(1, Extent(1, 3)) == [b"x" * half] * 2
    assert newest_of(1, BYTES_AT_ONCE + 1).after(1, Extent(1, 2)) is None


def test_a_gap_in_the_newest_notices_begins_them_anew():
    newest = newest_of(1, 2)
    newest.add(Stored(4, b"d"))
    assert newest.after(1, Extent(1, 4)) is None
    assert newest.after(3, Extent(1, 4)) == [b"d"]
