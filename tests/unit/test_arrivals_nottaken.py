# SPDX-License-Identifier: BSD-3-Clause
"""The text about files that were not taken, and its length."""

import pytest

from ppdaemon.node.arrivals.nottaken import FileNotTaken, FilesNotTaken
from ppdaemon.node.visits.core import MAX_REASON_CHARS

BEFORE = "the exposures were taken without this detector; "


def describe(files: list[FileNotTaken], detector: int = 5) -> str:
    return FilesNotTaken(files).of(detector)[1]


def test_without_files_there_is_no_text():
    assert describe([]) == ""


def test_files_are_listed_by_folder_the_ones_of_the_detector_first():
    files = [
        FileNotTaken("/raw/2/z.txt", "no name of the layout"),
        FileNotTaken("/raw/1/b.fits", "it has the group x", 5, "x"),
        FileNotTaken("/raw/1/c.part", "not complete", 5),
    ]
    assert describe(files) == (
        "3 files not taken, in /raw/1: c.part (not complete), b.fits (it has the group x); "
        "in /raw/2: z.txt (no name of the layout)"
    )


def test_above_five_files_the_number_of_the_others_is_given():
    files = [FileNotTaken(f"/raw/{number}.txt", "unknown") for number in range(40)]
    text = describe(files)
    assert text.startswith("40 files not taken, in /raw: 0.txt (unknown), 1.txt")
    assert text.endswith("12.txt (unknown) and 35 more")


@pytest.mark.parametrize("chars", [10, 40, 90, 160, 300])
def test_the_number_of_the_others_is_never_cut_off(chars):
    files = [
        FileNotTaken(f"/raw/{number}{'d' * chars}/{number}{'n' * chars}", "w" * chars) for number in range(30)
    ]
    text = describe(files)
    assert len(BEFORE + text) <= MAX_REASON_CHARS
    assert text.endswith(" more")


def test_a_reason_as_long_as_a_path_leaves_room_for_the_number():
    files = [FileNotTaken(f"/raw/{number}", "r" * 2000) for number in range(6)]
    text = describe(files)
    assert len(BEFORE + text) <= MAX_REASON_CHARS
    assert text.endswith(" more")


def test_control_characters_are_escaped():
    assert describe([FileNotTaken("/raw/a\nb", "unknown")]) == "1 file not taken, in /raw: 'a\\nb' (unknown)"
