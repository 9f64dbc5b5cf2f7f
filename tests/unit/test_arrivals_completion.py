# SPDX-License-Identifier: BSD-3-Clause
"""How pending raws are checked, grouped and delivered, with simulated files and headers."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from ppdaemon.clock import Clock
from ppdaemon.errors import BadMessage
from ppdaemon.messages import Raw
from ppdaemon.node.arrivals import completion
from ppdaemon.node.arrivals.completion import RawCompletion, until_concluded
from ppdaemon.node.arrivals.counts import ErrorCounts
from ppdaemon.node.arrivals.files import ExposureFacts, read_sidecars
from ppdaemon.node.arrivals.pending import FileState
from ppdaemon.node.arrivals.roots import RawPath, Sighting
from ppdaemon.raws.path import RawFileKind, RawName

ROOT = "/raw"


def sighting(detector: int, *, confirmed: bool = True) -> Sighting:
    name = RawName(RawFileKind.IMAGE, "LSSTCam", 2025112100156, 20251121, detector)
    return Sighting("scan /raw", name, RawPath(ROOT, f"{ROOT}/{detector}.fits"), confirmed)


class SimulatedThreads:
    """Files that are all complete unless configured otherwise."""

    def __init__(self) -> None:
        self.states: dict[str, FileState | BadMessage] = {}
        self.sidecars: dict[str, tuple[bool, ExposureFacts | None]] = {}
        self.orders: list[tuple[str, bool]] = []
        self.batches: list[int] = []
        """Number of files in each batch."""
        self.first_may_end = asyncio.Event()
        self.first_may_end.set()

    async def run(self, function: Callable[..., Any], *args: Any) -> Any:
        await asyncio.sleep(0)
        if function is read_sidecars:
            return [self.sidecars.get(image.path, (False, None)) for image, _ in args[0]]
        self.batches.append(len(args[0]))
        if len(self.batches) == 1:
            await self.first_may_end.wait()
        return [self._state(*order) for order in args[0]]

    def _state(self, files: Sequence[RawPath], structure: bool, _writers: bool) -> FileState | BadMessage:
        self.orders.append((files[0].path, structure))
        intact = FileState(files[0], 1, 5760, 1000, 1001, read=structure, intact=structure)
        return self.states.get(files[0].path, intact)


class SimulatedExposures:
    """One exposure, whose group the raws of some detectors contain."""

    def __init__(self, *with_group: int):
        self.with_group = with_group
        self.broken: set[int] = set()
        self.asked: list[int | None] = []
        self.counted: list[str] = []
        self.found: ExposureFacts | None = None

    def cached(self, name: RawName) -> ExposureFacts | None:
        return self.found

    def count_group(self, name: RawName, own: ExposureFacts) -> None:
        self.counted.append(own.group)

    async def facts(self, name: RawName, image: RawPath, since_mono: float) -> ExposureFacts | None:
        self.asked.append(name.detector)
        await asyncio.sleep(0.01)
        if name.detector in self.broken:
            raise RuntimeError("broken")
        if name.detector in self.with_group:
            self.found = ExposureFacts("g")
        return self.found


class Played:
    """A RawCompletion, and the raws that it delivers."""

    def __init__(self, exposures: SimulatedExposures):
        self.threads, self.exposures = SimulatedThreads(), exposures
        self.raws: list[Raw] = []
        self.tasks: list[asyncio.Task[None]] = []
        clock = Clock()
        self.counts = ErrorCounts(clock.mono)
        self.completion = RawCompletion(
            {ROOT: self.threads},  # type: ignore[dict-item]
            exposures,  # type: ignore[arg-type]
            clock,
            self.counts,
            900.0,
            self.raws.append,
            self._spawn,
            lambda: None,
            lambda root: False,
            {"LSSTCam": range(205)},
        )

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self.tasks.append(asyncio.create_task(work))

    @property
    def detectors(self) -> list[int]:
        return sorted(raw.detector for raw in self.raws)

    async def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 20.0
        while not condition():
            assert time.monotonic() < deadline, (self.detectors, self.counts.by_kind, self.exposures.asked)
            await asyncio.sleep(0.002)


@asynccontextmanager
async def playing(exposures: SimulatedExposures) -> AsyncIterator[Played]:
    play = Played(exposures)
    play.completion.start()
    try:
        yield play
    finally:
        play.completion.stop()
        for task in play.tasks:
            task.cancel()
        await asyncio.gather(*play.tasks, return_exceptions=True)


async def test_of_many_raws_of_an_exposure_one_is_asked():
    async with playing(SimulatedExposures(*range(205))) as play:
        for detector in range(205):
            play.completion.take(sighting(detector))
        await play.until(lambda: len(play.raws) >= 205)
        assert play.detectors == [*range(205)]
        assert len(play.exposures.asked) == 1


async def test_raws_that_arrive_one_by_one_during_a_check_are_checked_together(monkeypatch):
    monkeypatch.setattr(completion, "HELP_S", 1000.0)
    async with playing(SimulatedExposures()) as play:
        play.exposures.found = ExposureFacts("g")
        play.threads.first_may_end.clear()
        for detector in range(20):
            play.completion.take(sighting(detector))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert play.completion.checking
        play.threads.first_may_end.set()
        await play.until(lambda: len(play.raws) >= 20)
        assert play.threads.batches == [1, 19]
        assert not play.completion.checking


async def test_a_file_that_cannot_be_read_for_long_does_not_stop_the_others():
    async with playing(SimulatedExposures()) as play:
        play.exposures.found = ExposureFacts("g")
        play.threads.first_may_end.clear()
        play.completion.take(sighting(0))
        await play.until(lambda: play.threads.batches)
        for detector in range(1, 30):
            play.completion.take(sighting(detector))
        await play.until(lambda: len(play.raws) >= 29)
        assert play.detectors == [*range(1, 30)]
        play.threads.first_may_end.set()
        await play.until(lambda: len(play.raws) >= 30)


async def test_raws_without_a_group_are_refused_and_the_next_one_is_asked():
    async with playing(SimulatedExposures(2)) as play:
        for detector in range(5):
            play.completion.take(sighting(detector))
        await play.until(lambda: len(play.raws) + len(play.completion.refused) >= 5)
        assert play.detectors == [2, 3, 4]
        assert [refused.path for refused in play.completion.refused] == ["/raw/0.fits", "/raw/1.fits"]
        assert play.exposures.asked == [0, 1, 2]


async def test_an_error_with_one_raw_is_not_in_the_way_of_the_others():
    async with playing(SimulatedExposures(*range(5))) as play:
        play.exposures.broken = {0}
        for detector in range(5):
            play.completion.take(sighting(detector))
        await play.until(lambda: len(play.raws) >= 4)
        assert play.detectors == [1, 2, 3, 4]


@pytest.mark.parametrize("confirmed", [True, False])
async def test_the_structure_is_ordered_at_once_only_of_what_was_reported_as_finished(confirmed):
    async with playing(SimulatedExposures(1)) as play:
        play.completion.take(sighting(1, confirmed=confirmed))
        await play.until(lambda: play.raws)
        orders = [("/raw/1.fits", True)]
        assert play.threads.orders == (orders if confirmed else [("/raw/1.fits", False), *orders])


async def test_a_raw_is_delivered_once_and_one_that_was_refused_may_come_again():
    async with playing(SimulatedExposures(1)) as play:
        play.threads.states["/raw/1.fits"] = BadMessage("a link", "symlink")
        play.completion.take(sighting(1))
        await play.until(lambda: play.completion.refused)
        assert play.counts.by_kind == {"refused.symlink": 1}
        del play.threads.states["/raw/1.fits"]
        play.completion.take(sighting(1))
        await play.until(lambda: play.raws)
        assert play.completion.delivered(sighting(1).name)
        assert play.counts.by_kind == {"refused.symlink": 1, "delivered": 1}


async def test_a_wait_for_a_raw_ends_when_it_is_delivered_or_abandoned():
    async with playing(SimulatedExposures(1)) as play:
        play.threads.states["/raw/2.fits"] = BadMessage("a link", "symlink")
        taken = [play.completion.take(sighting(detector)) for detector in (1, 2)]
        for pending in taken:
            assert pending is not None
            async with asyncio.timeout(20.0):
                await until_concluded(pending)
        assert (play.detectors, len(play.completion.refused)) == ([1], 1)


def state_of(
    detector: int, *, file: str = "", inode: int = 1, size: int = 5760, group: str | None = None
) -> FileState:
    path = RawPath(ROOT, f"{ROOT}/{file or f'{detector}.fits'}")
    facts = None if group is None else ExposureFacts(group)
    return FileState(path, inode, size, 1000, 1001, intact=True, facts=facts)


async def test_a_file_is_delivered_once_and_another_file_of_the_raw_again():
    async with playing(SimulatedExposures(1)) as play:
        states = play.threads.states
        for number, state in enumerate(
            (
                state_of(1),
                state_of(1, inode=2),
                state_of(1, size=8640),
                state_of(1, file="1.fits.fz", inode=3),
            ),
            1,
        ):
            assert state.file is not None
            states["/raw/1.fits"] = state
            play.completion.take(sighting(1))
            await play.until(lambda number=number: len(play.raws) == number)
            pending = play.completion.take(sighting(1))
            assert pending is not None
            async with asyncio.timeout(20.0):
                await until_concluded(pending)
            assert len(play.raws) == number, "the same file again"
        assert play.raws[-1].path == "/raw/1.fits.fz"
        assert len({raw.file_id for raw in play.raws}) == 4


async def test_a_rescan_delivers_the_same_file_again():
    async with playing(SimulatedExposures(1)) as play:
        play.completion.take(sighting(1))
        await play.until(lambda: play.raws)
        play.completion.take(sighting(1), again=True)
        await play.until(lambda: len(play.raws) == 2)
        assert play.raws[0].file_id == play.raws[1].file_id


async def test_fault_82_each_detector_goes_by_its_own_header_where_sources_contradict():
    """One wrong sidecar, which was read first, of four detectors."""
    async with playing(SimulatedExposures(*range(4))) as play:
        for detector in range(4):
            play.threads.states[f"/raw/{detector}.fits"] = state_of(detector, inode=detector, group="right")
            play.completion.take(sighting(detector))
        await play.until(lambda: len(play.raws) == 4)
        assert {raw.group for raw in play.raws} == {"right"}
        assert play.counts.by_kind["contradiction"] == 4


async def test_a_sidecar_that_arrives_while_the_group_is_read_counts_for_its_detector():
    async with playing(SimulatedExposures(0)) as play:
        for detector in range(3):
            play.threads.states[f"/raw/{detector}.fits"] = replace(state_of(detector), facts=None)
            play.completion.take(sighting(detector))
        play.threads.sidecars["/raw/1.fits"] = True, ExposureFacts("own")
        await play.until(lambda: len(play.raws) == 3)
        assert {raw.detector: raw.group for raw in play.raws} == {0: "g", 1: "own", 2: "g"}
        assert play.exposures.counted == ["own"]


async def test_an_exposure_number_used_for_another_group_is_delivered_to_that():
    async with playing(SimulatedExposures(1)) as play:
        play.threads.states["/raw/1.fits"] = state_of(1, group="g")
        play.completion.take(sighting(1))
        await play.until(lambda: play.raws)
        play.threads.states["/raw/1.fits"] = state_of(1, inode=2, group="h")
        play.completion.take(sighting(1))
        await play.until(lambda: len(play.raws) == 2)
        assert [raw.group for raw in play.raws] == ["g", "h"]


@pytest.mark.parametrize("in_path", [True, False])
async def test_fault_18_a_misplaced_file_of_another_exposure_stays_with_the_visit_of_its_path(in_path):
    async with playing(SimulatedExposures()) as play:
        play.exposures.found = ExposureFacts("g", obsid=None if in_path else "MC_O_20251121_000156")
        state = replace(state_of(1), facts=ExposureFacts("other", obsid="MC_O_20251121_000155"))
        play.threads.states["/raw/1.fits"] = state
        here = sighting(1)
        obsid = "MC_O_20251121_000156" if in_path else None
        play.completion.take(replace(here, name=replace(here.name, obsid=obsid)))
        await play.until(lambda: play.raws)
        assert play.raws[0].group == "g"


async def test_a_group_in_the_path_counts_more_than_the_header():
    async with playing(SimulatedExposures()) as play:
        play.exposures.found = ExposureFacts("g")
        play.threads.states["/raw/1.fits"] = state_of(1, group="other")
        here = sighting(1)
        play.completion.take(replace(here, name=replace(here.name, group="g")))
        await play.until(lambda: play.raws)
        assert play.raws[0].group == "g"


@pytest.mark.parametrize("stored", [False, True])
async def test_a_file_of_all_detectors_is_delivered_for_each_served_one(stored):
    exposures = SimulatedExposures()
    exposures.found = ExposureFacts("g")
    async with playing(exposures) as played:
        played.completion.served = {"LSSTCam": frozenset({7, 2, 40})}
        seen = sighting(0)
        seen = replace(seen, name=replace(seen.name, detector=None))
        for _ in range(2):
            if stored:
                played.completion.take_stored(seen.name, "zmq", "s3://bucket/a.fits", ExposureFacts("g"))
            else:
                played.completion.take(seen)
                await played.until(lambda: not played.completion._pending)
        assert [raw.detector for raw in played.raws] == [2, 7, 40]
        assert len({raw.path for raw in played.raws}) == 1
        assert played.counts.by_kind["delivered"] == 1
