# SPDX-License-Identifier: BSD-3-Clause
"""With which group raws are delivered: from sidecars, headers, and other raws of the exposure."""

import pytest
from arrivalkit import (
    GROUP,
    Exposure,
    arriving,
    count_calls,
    fits_file,
    run,
)

from ppdaemon.node.arrivals import exposurefacts


def test_raws_without_sidecars_wait_for_the_group_from_one_of_their_exposure(tmp_path, monkeypatch):
    asked = count_calls(monkeypatch, exposurefacts.files, "facts_of_sidecar")

    async def body() -> None:
        async with arriving(tmp_path, detectors=range(205), sidecar_wait_s=0.5) as catcher:
            await catcher.watching()
            exposure = Exposure(tmp_path)
            for detector in range(205):
                exposure.put(detector, sidecar=False)
            await catcher.until(lambda: len(catcher.raws) >= 205)
            assert catcher.detectors == list(range(205))
            assert {(raw.group, raw.sidecar) for raw in catcher.raws} == {(GROUP, None)}

    run(body)
    assert len(asked) == 2  # of one detector, at once and after the wait


def test_a_raw_without_a_group_does_not_block_those_that_wait_for_it(tmp_path, monkeypatch):
    asked = count_calls(monkeypatch, exposurefacts.files, "facts_of_sidecar")

    async def body() -> None:
        async with arriving(tmp_path, sidecar_wait_s=1.0) as catcher:
            await catcher.watching()
            exposure = Exposure(tmp_path)
            exposure.put(0, fits_file(group=None), sidecar=False)
            await catcher.until(lambda: asked)
            for detector in (1, 2):
                exposure.put(detector, sidecar=False)
            await catcher.until(lambda: len(catcher.raws) >= 2 and catcher.arrivals.refused)
            assert catcher.detectors == [1, 2]
            assert [refused.kind for refused in catcher.arrivals.refused] == ["refused.no_group"]

    run(body)


def test_a_raw_with_a_sidecar_serves_those_that_wait_without_one(tmp_path):
    async def body() -> None:
        async with arriving(tmp_path, watch="poll", scan_s=0.1, sidecar_wait_s=60.0) as catcher:
            await catcher.watching()
            exposure = Exposure(tmp_path)
            for detector in (0, 1):
                exposure.put(detector, sidecar=False)
            await catcher.until(lambda: sum(source.files for source in catcher.arrivals.report()) == 2)
            exposure.put(2)
            await catcher.until(lambda: len(catcher.raws) >= 3)
            assert catcher.detectors == [0, 1, 2]

    run(body)


def test_a_late_sidecar_is_waited_for(tmp_path, monkeypatch):
    asked = count_calls(monkeypatch, exposurefacts.files, "facts_of_sidecar")

    async def body() -> None:
        async with arriving(tmp_path, sidecar_wait_s=30.0) as catcher:
            exposure = Exposure(tmp_path)
            exposure.folder.mkdir(parents=True)
            await catcher.watching()
            exposure.put(94, fits_file(group=None), sidecar=False)
            exposure.put(95, fits_file(group=None), sidecar=False)
            await catcher.until(lambda: asked)
            assert catcher.raws == []
            exposure.put_sidecar(95)
            await catcher.until(lambda: len(catcher.raws) == 2)
            assert {raw.group for raw in catcher.raws} == {GROUP}

    run(body)


@pytest.mark.parametrize("sidecar", [None, b'{"GROUPID": "cut of', b'{"GROUPID": null}', b"[]"])
def test_without_a_good_sidecar_the_header_has_the_group(tmp_path, sidecar):
    async def body() -> None:
        async with arriving(tmp_path, sidecar_wait_s=0.3) as catcher:
            exposure = Exposure(tmp_path)
            exposure.folder.mkdir(parents=True)
            if sidecar is not None:
                exposure.put_sidecar(94, sidecar)
            await catcher.watching()
            exposure.put(94, fits_file("other#1", 2, 3), sidecar=False)
            raw = await catcher.one()
            assert (raw.group, raw.snap, raw.snaps) == ("other#1", 2, 3)

    run(body)


def test_a_raw_that_nothing_assigns_to_a_group_is_counted(tmp_path):
    async def body() -> None:
        async with arriving(tmp_path, sidecar_wait_s=0.1) as catcher:
            Exposure(tmp_path).put(94, fits_file(group=None), sidecar=False)
            await catcher.until(lambda: catcher.count("refused.no_group"))
            assert catcher.raws == []

    run(body)
