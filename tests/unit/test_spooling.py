# SPDX-License-Identifier: BSD-3-Clause
"""Which disk has outputs until they are exported."""

import pytest

from ppdaemon.spooling import STUCK_S, SpoolDisk, goes_to_ramdisk

ROOM, FULL = SpoolDisk(99, 100), SpoolDisk(100, 100)


@pytest.mark.parametrize(
    ("ramdisk", "spill", "expected"),
    [
        (SpoolDisk(0, 0), ROOM, False),  # outputs are never to go there
        (ROOM, ROOM, True),
        (FULL, ROOM, False),
        (FULL, FULL, False),
        (ROOM, FULL, True),
        (SpoolDisk(99, 100, STUCK_S), ROOM, True),
        (SpoolDisk(99, 100, STUCK_S + 1), ROOM, False),  # exports fail: a power failure would delete it
        (SpoolDisk(99, 100, STUCK_S + 1), SpoolDisk(0, None), False),
        (SpoolDisk(99, 100, STUCK_S + 1), FULL, True),  # rather than lose images
    ],
)
def test_outputs_go_to_the_ramdisk_while_exports_succeed_or_the_disk_is_full(ramdisk, spill, expected):
    assert goes_to_ramdisk(ramdisk, spill) == expected


def test_only_what_exceeds_a_limit_is_given_up():
    sizes = [(100, None), (99, 100), (100, 100), (130, 100)]
    assert [SpoolDisk(used, limit).excess_bytes for used, limit in sizes] == [0, 0, 0, 30]
