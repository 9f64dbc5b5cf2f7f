# SPDX-License-Identifier: BSD-3-Clause
"""Raws landing in real folders, by inotify, by scanning and by notices."""

import asyncio
import gzip
import json
import os
import shutil
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import quote_plus

import pytest
import zmq

from ppdaemon.camera import load_camera
from ppdaemon.clock import Clock, day_obs
from ppdaemon.config import ArrivalsConfig
from ppdaemon.errors import ConfigError
from ppdaemon.messages import Raw
from ppdaemon.node.arrivals import candidate, exposures, settle
from ppdaemon.node.arrivals.merge import Arrivals
from ppdaemon.node.arrivals.patience import Look
from ppdaemon.node.arrivals.tree import Place
from ppdaemon.raws.path import Expected
from ppdaemon.testing.raws import fits_header
from ppdaemon.testing.waiting import wait_until

GROUP = "2026-11-22T03:25:16.951"
DEADLINE_S = 20.0
HANG_S = 60.0
"""How long a call hangs: what is over sooner has not waited for it."""

CAMERA = load_camera("LSSTCam")


def fits_file(group: str | None = GROUP, snap: int = 1, snaps: int = 1) -> bytes:
    """Make a small FITS file: a primary header and two images."""
    primary = [
        "SIMPLE  =                    T",
        "BITPIX  =                    8",
        "NAXIS   =                    0",
    ]
    if group is not None:
        primary += [f"GROUPID = '{group}'", f"CURINDEX= {snap:>20}", f"MAXINDEX= {snaps:>20}"]
    image = fits_header(
        "XTENSION= 'IMAGE   '",
        "BITPIX  =                   16",
        "NAXIS   =                    2",
        "NAXIS1  =                   40",
        "NAXIS2  =                   40",
        "PCOUNT  =                    0",
        "GCOUNT  =                    1",
    )
    return fits_header(*primary) + 2 * (image + bytes(5760))


class Exposure:
    """Writes the files of one exposure as a camera would."""

    def __init__(self, root: Path, sequence: int = 156, day: int | None = None):
        day = day or day_obs(Clock().tai())
        self.id = day * 100_000 + sequence
        self.obsid = f"MC_O_{day}_{sequence:06d}"
        self.folder = root / "LSSTCam" / str(day) / self.obsid

    def image(self, detector: int = 94, suffix: str = ".fits") -> Path:
        return self.folder / f"{self.obsid}_{CAMERA.detectors[detector].name}{suffix}"

    def put(self, detector: int = 94, content: bytes | None = None, *, sidecar: bool = True) -> Path:
        """Rename a sidecar and an image into place."""
        if sidecar:
            self.put_sidecar(detector)
        path = self.image(detector)
        renamed_into_place(path, fits_file() if content is None else content)
        return path

    def put_sidecar(self, detector: int = 94, content: bytes | None = None) -> None:
        header = json.dumps({"GROUPID": GROUP, "CURINDEX": 1, "MAXINDEX": 1, "RA": None}).encode()
        renamed_into_place(self.image(detector, ".json"), header if content is None else content)


def renamed_into_place(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part")
    partial.write_bytes(content)
    os.replace(partial, path)


class Catcher:
    """Takes the delivered raws and waits for them."""

    def __init__(self) -> None:
        self.raws: list[Raw] = []
        self.arrivals: Arrivals
        self.thread = threading.get_ident()

    def deliver(self, raw: Raw) -> None:
        assert threading.get_ident() == self.thread
        self.raws.append(raw)

    @property
    def detectors(self) -> list[int]:
        return sorted(raw.detector for raw in self.raws)

    async def until(self, condition: Callable[[], object], deadline_s: float = DEADLINE_S) -> None:
        deadline = time.monotonic() + deadline_s
        while not condition():
            assert time.monotonic() < deadline, self.story()
            await asyncio.sleep(0.005)

    async def watching(self) -> None:
        """Wait until the sources do what they can."""
        await self.until(lambda: all(source.live for source in self.arrivals.report()))

    async def one(self, deadline_s: float = DEADLINE_S) -> Raw:
        await self.until(lambda: self.raws, deadline_s)
        assert len(self.raws) == 1, self.story()
        return self.raws[0]

    def count(self, kind: str) -> int:
        return self.arrivals.counters.get(kind, 0)

    def story(self) -> str:
        return f"{self.detectors} {dict(self.arrivals.counters)} {self.arrivals.report()}"


@asynccontextmanager
async def arriving(
    root: Path | Sequence[Path],
    detectors: Sequence[int] = range(189),
    *,
    waiting: Callable[[], Sequence[Expected]] = tuple,
    canaries: Path | None = None,
    **config: object,
) -> AsyncIterator[Catcher]:
    roots = (root,) if isinstance(root, Path) else tuple(root)
    catcher = Catcher()
    catcher.arrivals = Arrivals(
        ArrivalsConfig.model_validate({"roots": roots, "scan_s": 60.0} | config),
        {"LSSTCam": detectors},
        Clock(),
        catcher.deliver,
        waiting=waiting,
        canaries=canaries,
    )
    await catcher.arrivals.start()
    try:
        yield catcher
    finally:
        await catcher.arrivals.stop()


def count_calls(monkeypatch: pytest.MonkeyPatch, reader: str) -> list[Place]:
    """Return the places that a reader of headers is called with from now on."""
    places: list[Place] = []
    read = getattr(exposures, reader)
    monkeypatch.setattr(exposures, reader, lambda place: (places.append(place), read(place))[1])
    return places


def run(coroutine: Callable[..., object], *args: object) -> None:
    asyncio.run(coroutine(*args))  # type: ignore[arg-type]


@pytest.fixture
def no_quiet(monkeypatch):
    """Let no file be taken because nothing happens to it for a while."""
    for name in ("QUIET_WHOLE_S", "QUIET_BROKEN_S", "QUIET_UNCONFIRMED_S"):
        monkeypatch.setattr(f"ppdaemon.node.arrivals.patience.{name}", 3.0 * DEADLINE_S)


@pytest.mark.usefixtures("no_quiet")
def test_a_raw_renamed_into_place_is_delivered_with_all_that_is_known(tmp_path):
    async def body() -> None:
        async with arriving(tmp_path) as catcher:
            exposure = Exposure(tmp_path)
            exposure.folder.mkdir(parents=True)
            await catcher.watching()
            began = Clock().tai()
            path = exposure.put(94)
            raw = await catcher.one()
            assert raw == Raw(
                path=str(path),
                sidecar=str(path.with_suffix(".json")),
                instrument="LSSTCam",
                group=GROUP,
                detector=94,
                exposure=exposure.id,
                snap=1,
                snaps=1,
                seen_tai=raw.seen_tai,
            )
            assert began <= raw.seen_tai <= Clock().tai()

    run(body)


@pytest.mark.parametrize("scan_s", [60.0, 0.2])
def test_of_200_raws_in_new_folders_none_is_missed(tmp_path, scan_s):
    """Each exposure's folder appears with its files at once: the race that
    inotify loses.
    """

    async def body() -> None:
        async with arriving(tmp_path, scan_s=scan_s) as catcher:
            await catcher.watching()
            exposures = [Exposure(tmp_path, sequence) for sequence in range(1, 201)]
            await asyncio.to_thread(lambda: [exposure.put(94) for exposure in exposures])
            await catcher.until(lambda: len(catcher.raws) >= 200)
            assert sorted(raw.exposure for raw in catcher.raws) == [each.id for each in exposures]

    run(body)


def test_a_whole_focal_plane_at_once_is_delivered_once_each(tmp_path):
    async def body() -> None:
        async with arriving(tmp_path, detectors=range(205)) as catcher:
            await catcher.watching()
            exposure = Exposure(tmp_path)
            await asyncio.to_thread(lambda: [exposure.put(detector) for detector in range(205)])
            await catcher.until(lambda: len(catcher.raws) >= 205)
            assert catcher.detectors == list(range(205))
            assert {raw.group for raw in catcher.raws} == {GROUP}

    run(body)


def test_raws_without_sidecars_wait_for_what_one_of_their_exposure_says(tmp_path, monkeypatch):
    asked = count_calls(monkeypatch, "facts_of_sidecar")

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


def test_a_raw_that_says_nothing_does_not_silence_those_that_wait_for_it(tmp_path, monkeypatch):
    asked = count_calls(monkeypatch, "facts_of_sidecar")

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


def test_a_raw_with_a_sidecar_tells_those_that_wait_without_one(tmp_path):
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


def test_in_a_flood_each_raw_is_delivered_once(tmp_path, monkeypatch):
    monkeypatch.setattr("ppdaemon.node.arrivals.settle.FLOOD", 5)
    monkeypatch.setattr("ppdaemon.node.arrivals.settle.AT_ONCE", 2)
    monkeypatch.setattr("ppdaemon.node.arrivals.settle.CALM_S", 1.0)
    flooded = []

    class Queue(settle._Queue):
        @property
        def is_flooded(self) -> bool:
            flooded.append(super().is_flooded)
            return flooded[-1]

    monkeypatch.setattr(settle, "_Queue", Queue)
    exposure = Exposure(tmp_path)
    for detector in range(189):
        exposure.put(detector)

    async def body() -> None:
        async with arriving(tmp_path, scan_s=0.2) as catcher:
            await catcher.until(lambda: len(catcher.raws) >= 189)
            assert catcher.detectors == list(range(189))
        assert {True, False} == {*flooded}

    run(body)


def test_above_what_can_be_looked_at_soon_surveys_pause_and_lose_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("ppdaemon.node.arrivals.settle.BUSY", 3)
    monkeypatch.setattr("ppdaemon.node.arrivals.scan.CHUNK", 5)
    monkeypatch.setattr("ppdaemon.node.arrivals.root.SLICE_FILES", 5)
    exposure = Exposure(tmp_path)
    for detector in range(189):
        exposure.put(detector)

    async def body() -> None:
        async with arriving(tmp_path) as catcher:
            await catcher.until(lambda: len(catcher.raws) >= 189)
            assert catcher.detectors == list(range(189))

    run(body)


def test_raws_that_landed_before_the_start_are_found(tmp_path):
    Exposure(tmp_path).put(94)

    async def body() -> None:
        async with arriving(tmp_path) as catcher:
            await catcher.one()

    run(body)


def test_the_first_night_of_an_instrument_and_even_its_root_may_be_made_later(tmp_path):
    async def body() -> None:
        root = tmp_path / "raw"
        async with arriving(root, scan_s=0.1) as catcher:
            await catcher.until(lambda: "No such file" in catcher.arrivals.report()[0].note)
            Exposure(root).put(94)
            await catcher.one()
            await catcher.watching()

    async def made_under_the_watch() -> None:
        root = tmp_path / "other"
        root.mkdir()
        async with arriving(root) as catcher:
            await catcher.watching()
            Exposure(root, day=20200101).put(94)
            await catcher.one()

    run(body)
    run(made_under_the_watch)


def test_without_events_raws_are_found_by_scanning(tmp_path):
    async def body() -> None:
        async with arriving(tmp_path, watch="poll", scan_s=0.1) as catcher:
            await catcher.watching()
            Exposure(tmp_path).put(94)
            await catcher.one()
            poll, scan = catcher.arrivals.report()
            assert (poll.name, poll.live, poll.files) == (f"poll {tmp_path}", True, 0)
            assert (scan.name, scan.live, scan.files) == (f"scan {tmp_path}", True, 1)

    run(body)


@pytest.mark.usefixtures("no_quiet")
def test_a_slow_writer_s_file_is_not_delivered_before_it_is_closed(tmp_path):
    content = fits_file()

    async def body() -> None:
        async with arriving(tmp_path, scan_s=0.1) as catcher:
            exposure = Exposure(tmp_path)
            exposure.put_sidecar()
            await catcher.watching()
            with exposure.image().open("wb") as file:
                for start in range(0, len(content) - 2880, 2880):
                    file.write(content[start : start + 2880])
                    file.flush()
                    await asyncio.sleep(0.15)  # this is the slowness, not a synchronisation
                    assert catcher.raws == []
                file.write(content[-2880:])
            await catcher.one()

    run(body)


@pytest.mark.waits("that the writer stalls for longer than a file must be quiet")
def test_a_writer_that_stalls_between_two_parts_is_waited_for(tmp_path):
    """What it has written is a whole FITS file."""
    content = fits_file()

    async def body() -> None:
        async with arriving(tmp_path, scan_s=0.1) as catcher:
            exposure = Exposure(tmp_path)
            exposure.put_sidecar()
            await catcher.watching()
            with exposure.image().open("wb") as file:
                file.write(content[: len(content) // 2 + 1440])
                file.flush()
                await asyncio.sleep(1.0)  # more than what nobody tells of must be quiet
                assert catcher.raws == []
                file.write(content[len(content) // 2 + 1440 :])
            await catcher.one()

    run(body)


@pytest.mark.usefixtures("no_quiet")
def test_a_file_opened_twice_is_not_delivered_with_its_header_alone(tmp_path):
    content = fits_file()

    async def body() -> None:
        async with arriving(tmp_path) as catcher:
            exposure = Exposure(tmp_path)
            exposure.put_sidecar()
            await catcher.watching()
            exposure.image().write_bytes(content[:2880])
            await asyncio.sleep(0.2)  # between the writer's two openings
            assert catcher.raws == []
            with exposure.image().open("ab") as file:
                file.write(content[2880:])
            await catcher.one()

    run(body)


def test_a_hard_linked_raw_is_delivered(tmp_path):
    async def body() -> None:
        async with arriving(tmp_path) as catcher:
            exposure = Exposure(tmp_path)
            exposure.put_sidecar()
            (tmp_path / "staged").write_bytes(fits_file())
            await catcher.watching()
            exposure.image().hardlink_to(tmp_path / "staged")
            await catcher.one()

    run(body)


def test_a_truncated_raw_is_delivered_after_its_quiet_time(tmp_path):
    async def body() -> None:
        async with arriving(tmp_path) as catcher:
            exposure = Exposure(tmp_path)
            exposure.folder.mkdir(parents=True)
            await catcher.watching()
            began = time.monotonic()
            exposure.put(94, fits_file()[:-4000])
            raw = await catcher.one()
            assert time.monotonic() - began >= 2.0
            assert raw.group == GROUP
            assert catcher.count("delivered_broken") == 1

    run(body)


def test_a_late_sidecar_is_waited_for(tmp_path):
    async def body() -> None:
        async with arriving(tmp_path, sidecar_wait_s=30.0) as catcher:
            exposure = Exposure(tmp_path)
            exposure.folder.mkdir(parents=True)
            await catcher.watching()
            exposure.put(94, fits_file(group=None), sidecar=False)
            exposure.put(95, fits_file(group=None), sidecar=False)
            await asyncio.sleep(0.2)  # the sidecar's lateness
            assert catcher.raws == []
            exposure.put_sidecar(95)
            await catcher.until(lambda: len(catcher.raws) == 2)
            assert {raw.group for raw in catcher.raws} == {GROUP}

    run(body)


@pytest.mark.parametrize("sidecar", [None, b'{"GROUPID": "cut of', b'{"GROUPID": null}', b"[]"])
def test_without_a_good_sidecar_the_header_tells_the_group(tmp_path, sidecar):
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


def test_detectors_of_other_nodes_are_never_opened(tmp_path):
    async def body() -> None:
        async with arriving(tmp_path, detectors=[94]) as catcher:
            await catcher.watching()
            exposure = Exposure(tmp_path)
            exposure.folder.mkdir(parents=True)
            # Opening a FIFO would show: it is no regular file.
            os.mkfifo(exposure.image(93))
            os.mkfifo(exposure.image(95))
            exposure.put(94)
            await catcher.one()
            assert catcher.count("refused.not_a_file") == 0

    run(body)


def test_links_out_of_the_root_fifos_and_folders_are_refused(tmp_path):
    root, outside = tmp_path / "raw", tmp_path / "outside.fits"
    outside.write_bytes(fits_file())

    async def body() -> None:
        async with arriving(root, detectors=range(205), scan_s=0.1) as catcher:
            exposure = Exposure(root)
            exposure.folder.mkdir(parents=True)
            await catcher.watching()
            exposure.image(1).symlink_to(outside)
            os.mkfifo(exposure.image(2))
            exposure.put(3)
            exposure.image(4).symlink_to(exposure.image(3))
            await catcher.until(
                lambda: (
                    catcher.count("refused.symlink")
                    and catcher.count("refused.not_a_file")
                    and len(catcher.raws) == 2
                )
            )
            assert catcher.detectors == [3, 4]

    run(body)


def test_a_raw_that_comes_back_while_it_is_given_up_is_delivered(tmp_path, monkeypatch):
    monkeypatch.setattr("ppdaemon.node.arrivals.patience.MISSING_S", 0.0)
    look_at, exposure = candidate.look_at, Exposure(tmp_path)
    looked = []

    async def body() -> None:
        async with arriving(tmp_path) as catcher:
            exposure.put_sidecar()
            await catcher.watching()

            def look(*args: object, **keys: object) -> Look:
                """Find it gone; at once it is here again, and heard of."""
                if not looked:
                    exposure.image().unlink()
                found = look_at(*args, **keys)
                if not looked:
                    looked.append(found)
                    (waiting,) = catcher.arrivals._settler._candidates.values()
                    waiting.news = False
                    exposure.put(94, sidecar=False)
                    wait_until(lambda: waiting.news)
                return found

            monkeypatch.setattr(candidate, "look_at", look)
            exposure.put(94, sidecar=False)
            await catcher.one()
            assert [found.place for found in looked] == [None]

    run(body)


def test_a_file_that_is_replaced_after_delivery_is_not_delivered_again(tmp_path):
    async def body() -> None:
        async with arriving(tmp_path, scan_s=0.1) as catcher:
            exposure = Exposure(tmp_path)
            exposure.put(94)
            await catcher.one()
            exposure.put(94)
            exposure.put(95)
            await catcher.until(lambda: len(catcher.raws) >= 2)
            assert catcher.detectors == [94, 95]

    run(body)


def test_an_unreadable_folder_of_the_root_does_not_stop_the_others(tmp_path):
    async def body() -> None:
        gone, good = tmp_path / "gone", tmp_path / "good"
        good.mkdir()
        async with arriving([gone, good], scan_s=0.1) as catcher:
            Exposure(good).put(94)
            await catcher.one()
            live = {source.name: source.live for source in catcher.arrivals.report()}
            assert live[f"scan {good}"]
            assert not live[f"scan {gone}"]

    run(body)


def test_a_root_that_is_deleted_and_made_anew_is_watched_again(tmp_path):
    async def body() -> None:
        root = tmp_path / "raw"
        root.mkdir()
        async with arriving(root, scan_s=0.1) as catcher:
            await catcher.watching()
            shutil.rmtree(root)
            await catcher.until(lambda: not catcher.arrivals.report()[0].live)
            first, second = Exposure(root, 1), Exposure(root, 2)
            first.put(94)
            second.folder.mkdir()
            await catcher.until(lambda: len(catcher.raws) == 1)
            await catcher.watching()
            inotify = catcher.arrivals.report()[0]
            for sequence in range(3, 60):
                await asyncio.to_thread(Exposure(root, sequence).put, 94)
                if catcher.arrivals.report()[0].files > inotify.files:
                    break
            await catcher.until(lambda: catcher.arrivals.report()[0].files > inotify.files)

    run(body)


def test_the_generic_layout_and_gzipped_files_are_delivered_too(tmp_path):
    async def body() -> None:
        async with arriving(tmp_path, layout="generic") as catcher:
            folder = tmp_path / "LSSTCam/94/2026-11-22T03:25:16.951%231/0/2026112100156/r_03"
            await catcher.watching()
            renamed_into_place(folder / "any.fits.gz", gzip.compress(fits_file("another group", 1, 2)))
            raw = await catcher.one()
            assert (raw.group, raw.snap, raw.snaps) == ("2026-11-22T03:25:16.951#1", 1, 2)
            assert (raw.exposure, raw.detector, raw.sidecar) == (2026112100156, 94, None)

    run(body)


def test_incomplete_files_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("ppdaemon.node.arrivals.settle.MOST_CANDIDATES", 3)

    async def body() -> None:
        async with arriving(tmp_path) as catcher:
            exposure = Exposure(tmp_path)
            exposure.folder.mkdir(parents=True)
            for detector in range(6):
                exposure.image(detector).write_bytes(b"SIMPLE  =")
            await catcher.until(lambda: catcher.count("dropped") >= 3)
            assert sum(source.files for source in catcher.arrivals.report()) == 3

    run(body)


# --- notices ---


class Publisher:
    """A PUB socket; messages are repeated until somebody is seen to listen."""

    def __init__(self) -> None:
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.XPUB)
        self.socket.linger = 0
        self.address = f"tcp://127.0.0.1:{self.socket.bind_to_random_port('tcp://127.0.0.1')}"

    async def subscribed(self) -> None:
        await asyncio.to_thread(self.socket.recv)

    def say(self, content: object) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.socket.send_multipart([b"raws", data])

    def close(self) -> None:
        self.context.destroy(linger=0)


@pytest.fixture
def publisher():
    publisher = Publisher()
    yield publisher
    publisher.close()


def created(*keys: str) -> dict[str, object]:
    return {
        "Records": [
            {
                "eventName": "ObjectCreated:Put",
                "s3": {"bucket": {"name": "raws"}, "object": {"key": quote_plus(key)}},
            }
            for key in keys
        ]
    }


def test_watch_and_notice_of_one_file_make_one_delivery(tmp_path, publisher):
    async def body() -> None:
        async with arriving(tmp_path, subscribe=[publisher.address], scan_s=0.1) as catcher:
            await publisher.subscribed()
            await catcher.watching()
            exposure = Exposure(tmp_path)
            path = exposure.put(94)
            for _ in range(3):
                publisher.say(created(str(path.relative_to(tmp_path)), str(path)[1:]))
                publisher.say({"path": str(path)})
            publisher.say({"path": str(exposure.put(95))})
            await catcher.until(lambda: len(catcher.raws) >= 2)
            assert catcher.detectors == [94, 95]

    run(body)


def test_a_notice_finds_a_file_that_no_watch_can_see(tmp_path, publisher):
    old = Exposure(tmp_path, day=20200101)
    old.put(94)
    empty = tmp_path / "empty"
    empty.mkdir()

    async def body() -> None:
        async with arriving([empty, tmp_path], subscribe=[publisher.address], watch="poll") as catcher:
            await publisher.subscribed()
            os.utime(old.folder.parent, (0, 0))
            publisher.say(created(str(old.image(94).relative_to(tmp_path))))
            raw = await catcher.one()
            assert raw.path == str(old.image(94))

    run(body)


def test_junk_notices_are_counted_and_the_good_ones_used(tmp_path, publisher):
    outside = tmp_path / "outside.fits"
    outside.write_bytes(fits_file())
    root = tmp_path / "raw"
    exposure = Exposure(root)
    inside = str(exposure.image(94).relative_to(root))
    junk = [
        b"\xff\xfe",
        b"{",
        b"[" * 100_000,
        b'{"path": NaN}',
        {"Records": [{"eventName": "ObjectRemoved:Delete", "s3": {"object": {"key": inside}}}, 5]},
        {"path": f"../{outside.name}"},
        {"path": str(outside)},
        {"path": inside + "\n"},
        {"path": f"{exposure.folder}/../../../../{outside.name}"},
        {"uri": "http://example.org/a.fits"},
        created("/etc/passwd", "other/bucket/key"),
        {},
    ]

    async def body() -> None:
        async with arriving(root, subscribe=[publisher.address], watch="poll", scan_s=60.0) as catcher:
            await publisher.subscribed()
            for item in junk:
                publisher.say(item)
            exposure.put(94)
            publisher.say(created(inside))
            raw = await catcher.one()
            assert raw.path == str(exposure.image(94))
            counted = dict(catcher.arrivals.counters)
            assert counted == {
                "notice.encoding": 1,
                "notice.json": 2,
                "notice.depth": 1,
                "notice.record": 1,
                "notice.field": 1,
                "refused.escape": 2,
                "refused.outside": 3,
                "refused.control": 1,
                "delivered": 1,
            }

    run(body)


def test_a_notice_before_its_file_is_remembered(tmp_path, publisher):
    async def body() -> None:
        async with arriving(tmp_path, subscribe=[publisher.address], watch="poll") as catcher:
            await publisher.subscribed()
            exposure = Exposure(tmp_path)
            publisher.say({"path": str(exposure.image(94))})
            await catcher.until(lambda: any(source.files for source in catcher.arrivals.report()))
            exposure.put(94)
            await catcher.one()

    run(body)


def test_an_address_nobody_can_publish_at_is_a_configuration_error(tmp_path):
    async def body() -> None:
        with pytest.raises(ConfigError, match=r"arrivals\.subscribe"):
            async with arriving(tmp_path, subscribe=["tcp://127.0.0.1:*"]):
                pass

    run(body)


# --- a filesystem that hangs ---


def test_a_filesystem_that_hangs_blocks_neither_the_loop_nor_the_stop(tmp_path, monkeypatch):
    release = threading.Event()

    def hang(*_args: object) -> None:
        release.wait(HANG_S)

    async def body() -> None:
        async with arriving(tmp_path) as catcher:
            await catcher.watching()
            monkeypatch.setattr("ppdaemon.node.arrivals.candidate.look_at", hang)
            exposure = Exposure(tmp_path)
            await asyncio.to_thread(lambda: [exposure.put(detector) for detector in range(20)])
            await catcher.until(lambda: sum(source.files for source in catcher.arrivals.report()) == 20)
            worst, last = 0.0, time.monotonic()
            for _ in range(50):
                await asyncio.sleep(0.002)
                worst, last = max(worst, time.monotonic() - last), time.monotonic()
            assert worst < HANG_S / 10
            began = time.monotonic()
        assert time.monotonic() - began < HANG_S / 3

    run(body)
    release.set()
