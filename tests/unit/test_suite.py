# SPDX-License-Identifier: BSD-3-Clause
"""Guarantees of the test suite: no long waits, files created once, no LSST code where it is not needed."""

import asyncio
import select
import time

import pytest
from longwaits import refuse_long_waits
from nolsst import NoLsst
from once import made_once


@pytest.mark.parametrize("wait", [lambda: time.sleep(0.6), lambda: select.select([], [], [], 0.6)])
def test_a_long_wait_fails_its_test_and_is_not_waited_for(wait, monkeypatch):
    def waits(*_):
        raise AssertionError("it waits")

    monkeypatch.setattr(time, "sleep", waits)
    monkeypatch.setattr(select, "select", waits)
    refuse_long_waits(monkeypatch)
    with pytest.raises(pytest.fail.Exception, match=r"waits for 0\.6 s"):
        wait()


async def test_a_long_wait_of_a_coroutine_fails_its_test(monkeypatch):
    refuse_long_waits(monkeypatch)
    with pytest.raises(pytest.fail.Exception, match=r"waits for 0\.6 s"):
        await asyncio.sleep(0.6)


def test_files_are_created_by_the_first_process_and_again_after_a_failure(tmp_path_factory):
    made = []

    def make(path):
        path.mkdir()
        made.append(path)
        if len(made) == 1:
            raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        made_once(tmp_path_factory, "thing", make)
    first = made_once(tmp_path_factory, "thing", make)
    assert made_once(tmp_path_factory, "thing", make) == first
    assert made == [first, first]


@pytest.mark.parametrize("name", ["lsst", "lsst.utils"])
def test_without_lsst_an_import_of_it_fails(name):
    assert NoLsst().find_spec("lsst_distrib") is None
    with pytest.raises(AssertionError, match=f"{name} is imported in a run --without-lsst"):
        NoLsst().find_spec(name)
