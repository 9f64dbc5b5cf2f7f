# SPDX-License-Identifier: BSD-3-Clause
"""One read finds the group for all detectors of an exposure."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ppdaemon.camera import load_camera
from ppdaemon.config import ArrivalsConfig
from ppdaemon.errors import BadMessage
from ppdaemon.node.arrivals import files as module
from ppdaemon.node.arrivals.counts import ErrorCounts
from ppdaemon.node.arrivals.exposurefacts import ExposureFactsCache, FileReader
from ppdaemon.node.arrivals.files import ExposureFacts
from ppdaemon.node.arrivals.index import ExpectedSensors
from ppdaemon.node.arrivals.roots import RawPath, RawRoots
from ppdaemon.node.arrivals.threads import FileThreads
from ppdaemon.raws.path import RawName, sidecar_path
from ppdaemon.testing.raws import fits_header

GROUP = "2025-11-22T03:25:16.951"
CAMERA = load_camera("LSSTCam")


class Night:
    """Files of some exposures, and how often they are read."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, sidecar_wait_s: float = 5.0):
        self.tree = RawRoots(ArrivalsConfig.model_validate({"roots": [root]}), {"LSSTCam": range(205)})
        self.threads = FileThreads(4, time.monotonic)
        self.counts = ErrorCounts(time.monotonic)
        self.exposures = ExposureFactsCache(
            FileReader({str(root): self.threads}), sidecar_wait_s, time.monotonic, self.counts, self.tree
        )
        self.reads: Counter[str] = Counter()
        self._root = root
        for reader in ("facts_of_sidecar", "facts_of_image"):
            monkeypatch.setattr(module, reader, self._counted(reader, getattr(module, reader)))

    def _counted(
        self, reader: str, read: Callable[[RawPath], ExposureFacts]
    ) -> Callable[[RawPath], ExposureFacts]:
        def counted(place: RawPath) -> ExposureFacts:
            facts = read(place)
            self.reads[reader] += 1
            return facts

        return counted

    def file(self, detector: int, sequence: int = 156, ending: str = ".fits") -> tuple[RawName, RawPath]:
        obsid = f"MC_O_20251121_{sequence:06d}"
        name = "" if ending.startswith("_") else f"_{CAMERA.detectors[detector].name}"
        located = self.tree.locate(f"{self._root}/LSSTCam/20251121/{obsid}/{obsid}{name}{ending}")
        assert located is not None
        return located

    def put(self, place: RawPath, content: Any) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        Path(place.path).parent.mkdir(parents=True, exist_ok=True)
        Path(place.path).write_bytes(data)

    def put_sidecar(self, image: RawPath, **fields: Any) -> None:
        self.put(RawPath(image.root, sidecar_path(image.path)), {"GROUPID": GROUP} | fields)

    def put_header(self, image: RawPath, group: str) -> None:
        self.put(image, fits_header("SIMPLE  =                    T", f"GROUPID = '{group}'"))

    async def facts(self, detectors: range, sequence: int = 156) -> list[ExposureFacts | None]:
        return await asyncio.gather(
            *(self.exposures.facts(*self.file(detector, sequence)) for detector in detectors)
        )


@pytest.fixture
def night(tmp_path, monkeypatch):
    made = Night(tmp_path, monkeypatch)
    yield made
    made.threads.close()


async def test_205_detectors_cost_one_read_of_each_exposure(night):
    for sequence in range(10):
        for detector in range(205):
            night.put_sidecar(night.file(detector, sequence)[1], CURINDEX=1, MAXINDEX=2)
    found = await asyncio.gather(*(night.facts(range(205), sequence) for sequence in range(10)))
    assert {fact for exposure in found for fact in exposure} == {ExposureFacts(GROUP, 1, 2)}
    assert night.reads == {"facts_of_sidecar": 10}


async def test_a_sidecar_met_by_itself_saves_the_detectors_their_reads(night):
    name, image = night.file(5)
    night.put_sidecar(image)
    assert night.exposures.needs_sidecar(name)
    await asyncio.gather(*(night.exposures.read_sidecar(*night.file(5, ending=".json")) for _ in range(205)))
    assert not night.exposures.needs_sidecar(name)
    assert await night.facts(range(205)) == [ExposureFacts(GROUP)] * 205
    assert night.reads == {"facts_of_sidecar": 1}


async def test_a_late_sidecar_of_one_detector_serves_all_of_them(night):
    waiting = asyncio.create_task(night.facts(range(205)))
    await asyncio.sleep(0)
    night.put_sidecar(night.file(204)[1])
    await night.exposures.read_sidecar(*night.file(204, ending=".json"))
    assert await waiting == [ExposureFacts(GROUP)] * 205
    assert night.reads == {"facts_of_sidecar": 1}


async def test_without_sidecars_one_fits_header_is_read(tmp_path, monkeypatch):
    night = Night(tmp_path, monkeypatch, sidecar_wait_s=0.05)
    for detector in range(205):
        night.put_header(night.file(detector)[1], f"{GROUP}#1")
    assert await night.facts(range(205)) == [ExposureFacts(f"{GROUP}#1")] * 205
    assert night.reads == {"facts_of_image": 1}
    night.threads.close()


async def test_a_supplement_is_a_separate_exposure(night):
    night.put_sidecar(night.file(5, 1)[1])
    night.put_sidecar(night.file(5, 2)[1], GROUPID=f"{GROUP}#1")
    assert await night.facts(range(5, 6), 1) == [ExposureFacts(GROUP)]
    assert await night.facts(range(5, 6), 2) == [ExposureFacts(f"{GROUP}#1")]


async def test_fault_18_a_misplaced_file_does_not_affect_the_other_detectors(night):
    night.put_sidecar(night.file(0)[1], GROUPID="other", OBSID="MC_O_20251121_000155")
    night.put_header(night.file(0)[1], "")
    night.put_sidecar(night.file(1)[1], OBSID="MC_O_20251121_000156")
    # The sidecar of a detector that is not served has the group.
    assert await night.facts(range(1)) == [ExposureFacts(GROUP, obsid="MC_O_20251121_000156")]
    assert night.counts.by_kind["bad_sidecar"] >= 1


async def test_fault_18_where_nothing_names_the_group_there_is_none(tmp_path, monkeypatch):
    night = Night(tmp_path, monkeypatch, sidecar_wait_s=0.05)
    night.put_sidecar(night.file(0)[1], GROUPID="other", OBSID="MC_O_20251121_000155")
    night.put_header(night.file(0)[1], "")
    night.put_sidecar(night.file(1)[1], GROUPID="other", OBSID="MC_O_20251121_000155")
    assert await night.facts(range(1)) == [None]
    night.threads.close()


async def test_a_broken_sidecar_is_counted_and_the_next_one_is_read(night):
    night.put(RawPath(night.file(0)[1].root, sidecar_path(night.file(0)[1].path)), b'{"GROUPID": "2')
    night.put_sidecar(night.file(1)[1])
    await night.exposures.read_sidecar(*night.file(0, ending=".json"))
    assert night.counts.by_kind == {"sidecar_unread": 1}
    assert await night.facts(range(1, 2)) == [ExposureFacts(GROUP)]


async def test_the_group_of_most_detectors_is_used_for_those_without(night):
    name, image = night.file(1)
    night.put_sidecar(image, GROUPID="wrong")
    assert (await night.exposures.facts(name, image)).group == "wrong"
    night.exposures.count_group(name, ExposureFacts("wrong"))
    for detector, group in ((2, "right"), (3, "right")):
        assert night.exposures.cached(night.file(7)[0]).group == "wrong", "no other has more yet"
        night.exposures.count_group(night.file(detector)[0], ExposureFacts(group, snap=1))
    assert night.exposures.cached(night.file(7)[0]) == ExposureFacts("right", snap=1)


async def test_the_majority_counts_also_where_it_is_known_before_the_first_read(night):
    for detector in (2, 3):
        night.exposures.count_group(night.file(detector)[0], ExposureFacts("right"))
    name, image = night.file(1)
    night.put_sidecar(image, GROUPID="wrong")
    assert (await night.exposures.facts(name, image)).group == "right"


async def test_a_detector_that_is_read_again_counts_once_with_its_last_group(night):
    name, image = night.file(6)
    night.put_sidecar(image, GROUPID="right")
    assert (await night.exposures.facts(name, image)).group == "right"
    night.exposures.count_group(name, ExposureFacts("right"))
    for _ in range(3):  # its arrival and two rescans
        night.exposures.count_group(night.file(7)[0], ExposureFacts("wrong"))
    assert night.exposures.cached(night.file(8)[0]).group == "right"
    for detector in (8, 7):
        night.exposures.count_group(night.file(detector)[0], ExposureFacts("new"))
    assert night.exposures.cached(night.file(9)[0]).group == "new", "7 was replaced"


async def test_a_misplaced_file_has_no_vote(night):
    name, image = night.file(1)
    night.put_sidecar(image, GROUPID="right")
    assert (await night.exposures.facts(name, image)).group == "right"
    for detector in range(2, 9):
        own = ExposureFacts("other", obsid="MC_O_20251121_000155")
        night.exposures.count_group(night.file(detector)[0], own)
    assert night.exposures.cached(name).group == "right"


async def test_the_list_of_detectors_is_reported_when_the_group_is_known(night):
    name, place = night.file(0, ending="_expectedSensors.json")
    expected = {CAMERA.detectors[detector].name: "SCIENCE" for detector in (3, 4)}
    night.put(place, {"expectedSensors": expected | {"R99_S99": "SCIENCE"}})
    assert night.exposures.needs_list(name)
    listing = asyncio.create_task(night.exposures.expected(name, place))
    night.put_sidecar(night.file(3)[1])
    assert await night.facts(range(3, 4)) == [ExposureFacts(GROUP)]
    assert await listing == ExpectedSensors("LSSTCam", GROUP, 2025112100156, frozenset({3, 4}))
    assert not night.exposures.needs_list(name)
    assert await night.exposures.expected(name, place) is None


async def test_a_list_that_is_reported_again_while_half_of_it_is_read_is_read_again(night, monkeypatch):
    name, place = night.file(0, ending="_expectedSensors.json")
    with_group: list[asyncio.Task[ExpectedSensors | None]] = []
    listed = module.expected_sensors
    loop = asyncio.get_running_loop()

    def release() -> None:
        with_group.append(asyncio.create_task(night.exposures.expected(name, place)))

    def read(place: RawPath) -> frozenset[str]:
        if not with_group:
            # Its writer closes it, which is reported, after this has read half of it.
            night.put(place, {"expectedSensors": [CAMERA.detectors[3].name]})
            loop.call_soon_threadsafe(release)
            raise BadMessage("no JSON object", "sidecar")
        return listed(place)

    monkeypatch.setattr(module, "expected_sensors", read)
    night.put_sidecar(night.file(3)[1])
    await night.facts(range(3, 4))
    assert await night.exposures.expected(name, place) is None
    assert await with_group[0] == ExpectedSensors("LSSTCam", GROUP, 2025112100156, frozenset({3}))


async def test_a_raw_that_arrives_before_the_end_of_its_sidecar_waits_for_that(night, monkeypatch):
    read = module.facts_of_image
    with_group: list[asyncio.Task[None]] = []
    loop = asyncio.get_running_loop()

    def release() -> None:
        sidecar = night.file(0, ending=".json")
        with_group.append(asyncio.create_task(night.exposures.read_sidecar(*sidecar)))

    def read_header(image: RawPath) -> ExposureFacts:
        try:
            return read(image)
        finally:
            night.put_sidecar(image)
            loop.call_soon_threadsafe(release)

    monkeypatch.setattr(module, "facts_of_image", read_header)
    _, image = night.file(0)
    night.put_header(image, "")
    night.put(RawPath(image.root, sidecar_path(image.path)), b'{"GROUPID": "2')
    assert await night.facts(range(1)) == [ExposureFacts(GROUP)]


async def test_a_broken_list_of_detectors_may_come_again(night):
    name, place = night.file(0, ending="_expectedSensors.json")
    night.put(place, b"{")
    assert await night.exposures.expected(name, place) is None
    assert night.exposures.needs_list(name)
    assert night.counts.by_kind == {"bad_list": 1}
