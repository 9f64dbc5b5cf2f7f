# SPDX-License-Identifier: BSD-3-Clause
"""The camera of the benchmark, in its own process, so that it does not delay the measurement.

Orders are sent through a pipe one at a time, each with one answer.
"""

import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from poolbench.node import BenchFailed

from ppdaemon.clock import Clock
from ppdaemon.demo.delivery import NoticeKind, NoticeSender
from ppdaemon.demo.oldfiles import write_old_files
from ppdaemon.demo.plan import ExposurePlan
from ppdaemon.demo.raws import exposure_folder, publish, raw_path, write_expected_sensors
from ppdaemon.demo.telescope import SimulatedCamera
from ppdaemon.demo.visits import Cadence, plan_visits
from ppdaemon.raws.path import sidecar_path

CAMERA = "LSSTCam"
NIGHT = Cadence(exposure_s=0.0, readout_s=0.0, lead_s=0.0)
# After so many folders the day's folder is new, too.
RACES_PER_DAY = 100
OLD_S = 3600.0
"""Age of files that the daemon ignores although they are of the current night."""
DAY_S = 86_400.0
SUBSCRIBER_S = 30.0
# Longer than a tick of the kernel's clock for file times (4 to 10 ms).
TICK_S = 0.02
STOP_S = 10.0


@dataclass(frozen=True, slots=True)
class Expose:
    """Order: write the files of an exposure into a new folder."""

    seq_num: int
    group: str
    within_s: float
    renamed: bool
    """Whether files are renamed into the folder; else they are written in place."""


@dataclass(frozen=True, slots=True)
class Written:
    """Answer: an exposure was written."""

    exposure: int
    complete: dict[int, float]
    """Monotonic seconds just before the rename or the close of each detector's image."""


@dataclass(frozen=True, slots=True)
class RaceFolders:
    """Order: make folders with one file in each, as fast as possible."""

    count: int


@dataclass(frozen=True, slots=True)
class MakeFolders:
    """Order: make the folders of exposures that are written later."""

    exposures: int


@dataclass(frozen=True, slots=True)
class WriteBurst:
    """Order: write files into the existing folders, as fast as possible."""

    count: int


@dataclass(frozen=True, slots=True)
class WriteOld:
    """Order: fill the root with old files; a fifth of them are of the current night."""

    count: int


class Writer:
    """Starts the writing process, sends it orders and receives its answers."""

    def __init__(self, root: Path, detectors: Sequence[int], notices: str | None = None):
        # Not forked: this process has the threads and sockets of the relay.
        context = multiprocessing.get_context("spawn")
        self._pipe, child_end = context.Pipe()
        self._process = context.Process(target=_serve, args=(child_end, root, tuple(detectors), notices))
        self._process.start()
        # Without a copy in this process, the exit of the child closes the pipe.
        child_end.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pipe.close()
        self._process.join(STOP_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process.close()

    def send(self, order: Any) -> None:
        """Send an order."""
        self._pipe.send(order)

    def execute(self, order: Any, wait: Callable[[Callable[[], object]], object]) -> Any:
        """Send an order and return its answer; `wait` waits for a condition."""
        answers: list[Any] = []

        def answered() -> bool:
            answer = self.receive()
            answers.extend([] if answer is None else [answer])
            return answer is not None

        self.send(order)
        wait(answered)
        return answers[0]

    def receive(self) -> Any:
        """Return the answer to an order, or `None` if it has not arrived.

        Raises `BenchFailed` if the process has exited.
        """
        try:
            return self._pipe.recv() if self._pipe.poll() else None
        except EOFError:
            raise BenchFailed("the writing process exited; its traceback is above") from None


def _serve(pipe: Connection, root: Path, detectors: tuple[int, ...], notices: str | None) -> None:
    with ExitStack() as stack:
        sender = None
        if notices is not None:
            sender = stack.enter_context(NoticeSender(notices, NoticeKind.S3))
            sender.wait_for_subscriber(SUBSCRIBER_S)
        camera = _Camera(root, SimulatedCamera(CAMERA, detectors), sender)
        while True:
            try:
                order = pipe.recv()
            except EOFError:
                return
            pipe.send(camera.execute(order))


class _Camera:
    """Executes the orders."""

    def __init__(self, root: Path, camera: SimulatedCamera, sender: NoticeSender | None):
        self._root = root
        self._staged = root.with_name("staged")
        self._staged.mkdir(exist_ok=True)
        self._camera = camera
        self._sender = sender
        self._clock = Clock()

    def execute(self, order: Any) -> Any:
        match order:
            case Expose():
                return self._expose(order)
            case RaceFolders(count):
                return self._race(count)
            case MakeFolders(exposures):
                for number in range(1, exposures + 1):
                    (self._root / exposure_folder(self._plan(number))).mkdir(parents=True)
                return exposures
            case WriteBurst(count):
                return self._write_burst(count)
            case WriteOld(count):
                today = write_old_files(self._root, CAMERA, count // 5, self._clock.tai() - OLD_S)
                before = self._clock.tai() - OLD_S - DAY_S
                return today + write_old_files(self._root, CAMERA, count - count // 5, before)
            case unexpected:
                raise AssertionError(unexpected)

    def _plan(self, seq_num: int, group: str | None = None, days_ago: int = 0) -> ExposurePlan:
        now_tai_s = self._clock.tai() - days_ago * DAY_S
        (visit,) = plan_visits(1, now_tai_s, NIGHT, instrument=CAMERA, group=group, first_seq_num=seq_num)
        return visit.exposures[0]

    def _read_out(self, plan: ExposurePlan) -> list[tuple[int, Path, bytes, bytes]]:
        """Return files that are all raws: those of guiders would not be."""
        return [
            (detector, path.with_name(path.name.replace("_guider", "")), image, sidecar)
            for detector, path, image, sidecar in self._camera.read_out(plan)
        ]

    def _stage(self, files: list[tuple[int, Path, bytes, bytes]]) -> None:
        """Write files beside the raw root.

        They are renamed into it only after a pause: within one tick of the
        clock a renamed file cannot be distinguished from one written in place.
        """
        for _, path, image, _ in files:
            (self._staged / path.name).write_bytes(image)
        time.sleep(TICK_S)

    def _expose(self, order: Expose) -> Written:
        plan = self._plan(order.seq_num, order.group)
        files = self._read_out(plan)
        if order.renamed:
            self._stage(files)
        complete = {}
        begin = time.monotonic()
        write_expected_sensors(self._root, plan, self._camera.detectors)
        for number, (detector, path, image, sidecar) in enumerate(files):
            time.sleep(max(0.0, begin + number * order.within_s / len(files) - time.monotonic()))
            beside_image = Path(sidecar_path(str(path)))
            publish(self._root / beside_image, sidecar)
            if order.renamed:
                # Before the rename: afterwards the worker may have its order already.
                complete[detector] = time.monotonic()
                os.rename(self._staged / path.name, self._root / path)
            else:
                complete[detector] = _write(self._root / path, image)
            if self._sender is not None:
                self._sender.send(beside_image, len(sidecar), self._clock.tai())
                self._sender.send(path, len(image), self._clock.tai())
        return Written(plan.exposure_id, complete)

    def _race(self, count: int) -> int:
        """Write and rename in turns; after each hundred folders the day's folder is new, too."""
        staged = self._staged / "raced.fits"
        _, path, image, _ = next(self._camera.read_out(self._plan(1)))
        template = path.parent.name
        for number in range(count):
            plan = self._plan(number % RACES_PER_DAY + 1, days_ago=number // RACES_PER_DAY)
            content = image.replace(template.encode(), plan.obs_id.encode())
            target = self._root / raw_path(plan, path.name.removesuffix(".fits")[len(template) + 1 :])
            if number % 2:
                staged.write_bytes(content)
                os.makedirs(target.parent)
                os.rename(staged, target)
            else:
                os.makedirs(target.parent)
                target.write_bytes(content)
        return count

    def _write_burst(self, count: int) -> int:
        files = self._read_out(self._plan(1))
        template = files[0][1].parent.name
        for first in range(0, count, len(files)):
            plan = self._plan(first // len(files) + 1)
            for _, path, image, _ in files[: count - first]:
                content = image.replace(template.encode(), plan.obs_id.encode())
                name = path.name.replace(template, plan.obs_id)
                publish(self._root / exposure_folder(plan) / name, content)
        return count


def _write(target: Path, content: bytes) -> float:
    """Write a file in an existing folder; return the time just before it was closed."""
    with target.open("wb", buffering=0) as stream:
        stream.write(content)
        return time.monotonic()
