# SPDX-License-Identifier: BSD-3-Clause
"""With which group raws are delivered: from sidecars, headers, and other raws of the exposure."""

import gzip
import json

import pytest
from arrivalkit import (
    GROUP,
    Exposure,
    arriving,
    count_calls,
    fits_file,
    renamed_into_place,
)

from ppdaemon.node.arrivals import exposurefacts


async def test_raws_without_sidecars_wait_for_the_group_from_one_of_their_exposure(tmp_path, monkeypatch):
    asked = count_calls(monkeypatch, exposurefacts.files, "facts_of_sidecar")
    async with arriving(tmp_path, detectors=range(205), sidecar_wait_s=0.5) as catcher:
        await catcher.watching()
        exposure = Exposure(tmp_path)
        for detector in range(205):
            exposure.put(detector, sidecar=False)
        await catcher.until(lambda: len(catcher.raws) >= 205)
        assert catcher.detectors == list(range(205))
        assert {(raw.group, raw.sidecar) for raw in catcher.raws} == {(GROUP, None)}
    assert len(asked) == 2  # of one detector, at once and after the wait


async def test_a_raw_without_a_group_does_not_block_those_that_wait_for_it(tmp_path, monkeypatch):
    asked = count_calls(monkeypatch, exposurefacts.files, "facts_of_sidecar")
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


async def test_a_raw_with_a_sidecar_serves_those_that_wait_without_one(tmp_path):
    async with arriving(tmp_path, watch="poll", scan_s=0.1, sidecar_wait_s=60.0) as catcher:
        await catcher.watching()
        exposure = Exposure(tmp_path)
        for detector in (0, 1):
            exposure.put(detector, sidecar=False)
        await catcher.until(lambda: sum(source.files for source in catcher.arrivals.report()) == 2)
        exposure.put(2)
        await catcher.until(lambda: len(catcher.raws) >= 3)
        assert catcher.detectors == [0, 1, 2]


async def test_a_late_sidecar_is_waited_for(tmp_path, monkeypatch):
    asked = count_calls(monkeypatch, exposurefacts.files, "facts_of_sidecar")
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


@pytest.mark.parametrize("sidecar", [None, b'{"GROUPID": "cut of', b'{"GROUPID": null}', b"[]"])
async def test_without_a_good_sidecar_the_header_has_the_group(tmp_path, sidecar):
    async with arriving(tmp_path, sidecar_wait_s=0.3) as catcher:
        exposure = Exposure(tmp_path)
        exposure.folder.mkdir(parents=True)
        if sidecar is not None:
            exposure.put_sidecar(94, sidecar)
        await catcher.watching()
        exposure.put(94, fits_file("other#1", 2, 3), sidecar=False)
        raw = await catcher.one()
        assert (raw.group, raw.snap, raw.snaps) == ("other#1", 2, 3)


async def test_a_raw_that_nothing_assigns_to_a_group_is_counted(tmp_path):
    async with arriving(tmp_path, sidecar_wait_s=0.1) as catcher:
        Exposure(tmp_path).put(94, fits_file(group=None), sidecar=False)
        await catcher.until(lambda: catcher.count("refused.no_group"))
        assert catcher.raws == []


async def test_fault_82_one_wrong_sidecar_is_not_believed_against_the_headers_of_the_others(
    tmp_path, monkeypatch
):
    asked = count_calls(monkeypatch, exposurefacts.files, "facts_of_sidecar")
    async with arriving(tmp_path) as catcher:
        await catcher.watching()
        exposure = Exposure(tmp_path)
        exposure.put_sidecar(0, json.dumps({"GROUPID": "2020-01-01T00:00:00.000"}).encode())
        await catcher.until(lambda: asked)
        for detector in range(4):
            exposure.put(detector, sidecar=detector > 0)
        await catcher.until(lambda: len(catcher.raws) >= 4)
        assert catcher.detectors == [0, 1, 2, 3]
        assert {raw.group for raw in catcher.raws} == {GROUP}
        assert catcher.count("contradiction") >= 1


@pytest.mark.parametrize("known_first", [True, False])
async def test_where_no_header_has_a_group_each_sidecar_counts_for_its_detector(
    tmp_path, monkeypatch, known_first
):
    """One wrong sidecar of four; a fifth detector has none and follows the majority."""
    asked = count_calls(monkeypatch, exposurefacts.files, "facts_of_sidecar")
    wrong = json.dumps({"GROUPID": "wrong"}).encode()
    async with arriving(tmp_path, sidecar_wait_s=0.1) as catcher:
        await catcher.watching()
        exposure = Exposure(tmp_path)
        if known_first:
            exposure.put_sidecar(0, wrong)
            await catcher.until(lambda: asked)
        for detector in (1, 2, 3):
            exposure.put(detector, fits_file(group=None))
        await catcher.until(lambda: len(catcher.raws) == 3)
        exposure.put_sidecar(0, wrong)
        for detector in (0, 4):
            exposure.put(detector, fits_file(group=None), sidecar=False)
        await catcher.until(lambda: len(catcher.raws) == 5)
        groups = {raw.detector: raw.group for raw in catcher.raws}
        assert groups == {0: "wrong"} | dict.fromkeys((1, 2, 3, 4), GROUP)


async def test_a_header_that_was_corrected_is_delivered_to_its_group(tmp_path):
    async with arriving(tmp_path, sidecar_wait_s=0.1) as catcher:
        await catcher.watching()
        exposure = Exposure(tmp_path)
        exposure.put(1, fits_file(group="wrong"), sidecar=False)
        await catcher.one()
        exposure.put(1, sidecar=False)
        await catcher.until(lambda: len(catcher.raws) == 2)
        assert [raw.group for raw in catcher.raws] == ["wrong", GROUP]


@pytest.mark.parametrize("watch", ["inotify", "poll"])
async def test_a_raw_that_becomes_a_compressed_file_is_found_under_its_new_name(tmp_path, watch):
    async with arriving(tmp_path, watch=watch, scan_s=0.2, sidecar_wait_s=0.1) as catcher:
        await catcher.watching()
        exposure = Exposure(tmp_path)
        plain = exposure.put(1)
        await catcher.one()
        compressed = plain.with_name(f"{plain.name}.gz")
        renamed_into_place(compressed, gzip.compress(plain.read_bytes()))
        plain.unlink()
        await catcher.until(lambda: len(catcher.raws) == 2)
        assert [raw.path for raw in catcher.raws] == [str(plain), str(compressed)]


@pytest.mark.parametrize("watch", ["inotify", "poll"])
async def test_a_cut_file_that_is_sent_again_whole_is_delivered_again(tmp_path, monkeypatch, watch):
    monkeypatch.setattr("ppdaemon.node.arrivals.pending.QUIET_UNCONFIRMED_S", 1.0)
    async with arriving(tmp_path, watch=watch, scan_s=0.2, sidecar_wait_s=0.1) as catcher:
        await catcher.watching()
        exposure = Exposure(tmp_path)
        exposure.put(1, fits_file()[:3000])
        await catcher.until(lambda: catcher.raws)
        exposure.put(1)
        await catcher.until(lambda: len(catcher.raws) == 2)
        assert (catcher.count("delivered"), catcher.count("delivered_broken")) == (1, 1)
