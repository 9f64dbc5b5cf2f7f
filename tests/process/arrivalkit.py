# SPDX-License-Identifier: BSD-3-Clause
"""Shared by tests of arrivals: files as a camera writes them, and Arrivals that watch for them."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from urllib.parse import quote_plus

import pytest
import zmq

from ppdaemon.camera import load_camera
from ppdaemon.clock import Clock, day_obs
from ppdaemon.config import ArrivalsConfig
from ppdaemon.messages import Raw
from ppdaemon.node.arrivals.arrivals import Arrivals
from ppdaemon.raws.path import ExpectedRaws
from ppdaemon.reports import ArrivalSource
from ppdaemon.testing.raws import fits_header, publish
from ppdaemon.testing.waiting import TIMEOUT_S

GROUP = "2026-11-22T03:25:16.951"
DEADLINE_S = TIMEOUT_S
HANG_S = 60.0
"""How long a call hangs: a test that ends sooner has not waited for it."""
CAMERA = load_camera("LSSTCam")
FOCAL_PLANE = range(189)
BUSY_MACHINE = 4.0
"""Factor by which an action may take longer on a busy machine."""


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
    publish(path, content)


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
        """Wait until all sources are live."""
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
    waiting: Callable[[], Sequence[ExpectedRaws]] = tuple,
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


def count_calls(monkeypatch: pytest.MonkeyPatch, module: ModuleType, function: str) -> list[object]:
    """Record and return the first argument of each further call of a function."""
    calls: list[object] = []
    real = getattr(module, function)
    monkeypatch.setattr(
        module, function, lambda first, *args, **keys: (calls.append(first), real(first, *args, **keys))[1]
    )
    return calls


def source(catcher: Catcher, kind: str) -> ArrivalSource:
    (found,) = [each for each in catcher.arrivals.report() if each.name.startswith(f"{kind} ")]
    return found


def waiting_for(*detectors: int) -> Callable[[], list[ExpectedRaws]]:
    return lambda: [ExpectedRaws("LSSTCam", frozenset(detectors), GROUP)]


async def reported_by_inotify(catcher: Catcher, exposure: Exposure) -> None:
    """Write raws until inotify is the first to report one: a survey may be sooner."""
    before = source(catcher, "inotify").files
    for detector in range(100, 150):
        await asyncio.to_thread(exposure.put, detector)
        await catcher.until(lambda: detector in catcher.detectors)  # noqa: B023
        if source(catcher, "inotify").files > before:
            return
    raise AssertionError(catcher.story())


class Publisher:
    """A PUB socket that waits for a subscriber."""

    def __init__(self, address: str = "tcp://127.0.0.1:*") -> None:
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.XPUB)
        self.socket.linger = 0
        # Otherwise a subscription that arrives before the end of the previous one is not reported.
        self.socket.set(zmq.XPUB_VERBOSE, 1)
        self.socket.bind(address)
        self.address = self.socket.getsockopt_string(zmq.LAST_ENDPOINT)

    async def subscribed(self) -> None:
        """Wait for a subscription; the end of another one may come first."""
        while await asyncio.to_thread(self.socket.recv) != b"\x01":
            pass

    def send(self, content: object) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.socket.send_multipart([b"raws", data])

    def close(self) -> None:
        self.context.destroy(linger=0)


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
