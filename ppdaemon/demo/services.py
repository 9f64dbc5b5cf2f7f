# SPDX-License-Identifier: BSD-3-Clause
"""The real ``pprelay`` and ``ppdaemon`` of a demonstration, in a scratch folder.

Covers their configuration, start, stop, and what they leave behind.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from ppdaemon.ctl.client import Daemon
from ppdaemon.demo.central import APDB_CONFIG
from ppdaemon.demo.geometry import CAMERA_NAME, DETECTOR_COUNT
from ppdaemon.demo.rules import ALERT_MAP, main_rules, preprocessing_rules
from ppdaemon.errors import PPDaemonError, Unavailable
from ppdaemon.states import SlotState

__all__ = ("Places", "Service", "ServiceFailed", "node_config", "relay_config", "running")

START_S = 90.0
STOP_S = 90.0
TASKS = ("isr", "calibrate", "subtract", "detect", "associate", "alerts", "metrics", "checkcalib")
ALL_DETECTORS = f"0-{DETECTOR_COUNT - 1}"
MARK = "PPDAEMON_DEMO"
"""Environment variable by which a demonstration's processes are known."""

_IMAGE_FORMATTER = "lsst.images.formatters.GenericFormatter"
_RICE = {"algorithm": "RICE_1", "tile_shape": [128, 1024]}
_RICE_QUANTIZED = _RICE | {"quantization": {"dither": "SUBTRACTIVE_DITHER_2", "level": 16.0}}
QUICK_IMAGES: Mapping[str, Any] = {
    "write_recipes": {
        _IMAGE_FORMATTER: {"quick": {"image": _RICE_QUANTIZED, "variance": _RICE_QUANTIZED, "mask": _RICE}}
    },
    "MaskedImageV2": {"formatter": _IMAGE_FORMATTER, "parameters": {"recipe": "quick"}},
}
"""Images between tasks in Rice compression, floats in steps of a sixteenth of
their noise: written and read in half the time of the lossless default."""


class ServiceFailed(PPDaemonError):
    """A daemon of the demonstration did not start or has ended."""


@dataclass(frozen=True, slots=True)
class Places:
    """The folders of one demonstration."""

    scratch: Path
    """On a disk."""
    ramdisk: Path
    """On a tmpfs where there is one."""

    @property
    def central(self) -> Path:
        """The central repo (`pathlib.Path`)."""
        return self.scratch / "central"

    @property
    def raws(self) -> Path:
        """Where raws land (`pathlib.Path`)."""
        return self.scratch / "raw"

    @property
    def alerts(self) -> Path:
        """Where alert files go (`pathlib.Path`)."""
        return self.scratch / "alerts"

    @property
    def control(self) -> Path:
        """The daemon's control socket; its path has to be short."""
        return self.ramdisk / "control.sock"

    @property
    def submit(self) -> str:
        """The relay's submit socket (`str`)."""
        return f"ipc://{self.ramdisk}/submit.sock"

    @property
    def notices(self) -> str:
        """Where the camera publishes arrival notices (`str`)."""
        return f"ipc://{self.ramdisk}/notices.sock"


def relay_config(places: Places, detectors: str = ALL_DETECTORS) -> dict[str, Any]:
    """Return the relay's configuration.

    Parameters
    ----------
    places : `Places`
        The folders.
    detectors : `str`, optional
        Those that visits are taken of.

    Returns
    -------
    config : `dict`
        As ``etc/pprelay.yaml``.
    """
    return {
        "submit": places.submit,
        "nodes": f"ipc://{places.ramdisk}/nodes.sock",
        "state_dir": str(places.scratch / "relay"),
        "instruments": {CAMERA_NAME: {"detectors": detectors}},
    }


def node_config(places: Places, workers: int) -> dict[str, Any]:
    """Return the daemon's configuration.

    Parameters
    ----------
    places : `Places`
        The folders.
    workers : `int`
        Slots at the most.

    Returns
    -------
    config : `dict`
        As ``etc/ppdaemon.yaml``.
    """
    alert_map = places.central / ALERT_MAP
    apdb = str(places.central / APDB_CONFIG)
    return {
        "node": {
            "name": "demo",
            "state_dir": str(places.scratch / "node"),
            "ramdisk": str(places.ramdisk),
            "control": str(places.control),
            "instruments": {CAMERA_NAME: ALL_DETECTORS},
        },
        "relay": {"address": relay_config(places)["nodes"]},
        "arrivals": {"roots": [str(places.raws)], "subscribe": [places.notices], "image_timeout_s": 60},
        "workers": {
            "min": min(DETECTOR_COUNT, workers),
            "spare": min(3, workers),
            "max": workers,
            "preload": [f"ppdaemon.demo.tasks.{name}" for name in TASKS],
            "memory": {"soft": "1GB", "hard": "2GB"},
            "times": {"stop_s": 5},
        },
        "butler": {
            "central": str(places.central),
            "instrument_class": {CAMERA_NAME: "ppdaemon.demo.instrument.DemoCam"},
            "skymap": "demo",
            "local": {"datastore": {"formatters": QUICK_IMAGES}},
        },
        "pipelines": {
            "preprocessing": preprocessing_rules(alert_map),
            "main": main_rules(alert_map),
            "overrides": {
                "loadDiaCatalogs:apdb_config_url": apdb,
                "associate:apdb_config_url": apdb,
                "alerts:alert_dir": str(places.alerts),
            },
        },
        "engine": {"no_return": ["associate", "alerts"]},
        "export": {
            "types": [
                "initial_stars", "difference_image", "dia_source_.*", "alerts", "visit_metrics",
                "calibration_residuals", "regionTimeInfo", "preload_metrics", ".*_metadata", ".*_log",
            ]
        },
        "log": {"format": "console"},
    }  # fmt: skip


@dataclass(slots=True)
class Service:
    """One running program."""

    name: str
    process: "subprocess.Popen[bytes]"
    log: Path

    def check(self) -> None:
        """Make sure that the program runs.

        Raises
        ------
        ServiceFailed
            Raised with the end of its log if it has ended.
        """
        if (status := self.process.poll()) is not None:
            raise ServiceFailed(f"{self.name} ended with status {status}:\n{self.tail()}")

    def tail(self, lines: int = 12) -> str:
        """Return the end of its log.

        Parameters
        ----------
        lines : `int`, optional
            How many lines.

        Returns
        -------
        text : `str`
            The lines.
        """
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def stop(self) -> int:
        """End the program as an operator would.

        Returns
        -------
        status : `int`
            Its exit status; minus 9 if it had to be killed.
        """
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        return self.process.returncode


def _start(name: str, module: str, config: dict[str, Any], places: Places, mark: str) -> Service:
    path = places.scratch / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    log = places.scratch / f"{name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", module, "run", "--config", str(path)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, MARK: mark},
            start_new_session=True,  # an interrupt at the terminal is this program's to handle
        )
    return Service(name, process, log)


@contextlib.contextmanager
def running(
    places: Places, workers: int, mark: str, *, detectors: str = ALL_DETECTORS, **arrivals: float
) -> Iterator[tuple[Service, Service]]:
    """Run relay and daemon; stop them at the end, whatever happens.

    Parameters
    ----------
    places : `Places`
        The folders; the central repo exists.
    workers : `int`
        Slots at the most.
    mark : `str`
        By which the processes are known.
    detectors : `str`, optional
        Those that visits are taken of.
    **arrivals
        Keys of the daemon's ``arrivals`` that differ from the usual.

    Yields
    ------
    relay, node : `Service`
        Both are up, and connected with each other.
    """
    for folder in (places.raws, places.alerts, places.ramdisk):
        folder.mkdir(parents=True, exist_ok=True)
    relay = _start("pprelay", "ppdaemon.relay.app", relay_config(places, detectors), places, mark)
    try:
        config = node_config(places, workers)
        config["arrivals"] |= arrivals
        node = _start("ppdaemon", "ppdaemon.node.app", config, places, mark)
        try:
            _wait_until_connected(places, relay, node)
            yield relay, node
        finally:
            node.stop()
    finally:
        relay.stop()


def _wait_until_connected(places: Places, relay: Service, node: Service) -> None:
    until = time.monotonic() + START_S
    daemon = Daemon(places.control)
    while time.monotonic() < until:
        relay.check()
        node.check()
        with contextlib.suppress(Unavailable):
            status = daemon.status()
            if status.relay.startswith("connected") and status.slots.get(SlotState.IDLE):
                return
        time.sleep(0.05)
    raise ServiceFailed(f"ppdaemon is not ready after {START_S:g} s:\n{node.tail()}")


def left_processes(mark: str) -> list[str]:
    """Return the processes of a demonstration that still live.

    Parameters
    ----------
    mark : `str`
        By which they are known.

    Returns
    -------
    processes : `list` [`str`]
        Pid and title of each.
    """
    needle = f"{MARK}={mark}".encode()
    found = []
    for process in psutil.process_iter():
        try:
            environment = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
            if needle in environment and process.status() != psutil.STATUS_ZOMBIE:
                found.append(f"{process.pid} {' '.join(process.cmdline())}")
        except (OSError, psutil.Error):
            continue  # another user's, or just gone
    return found


def left_repos(places: Places) -> list[str]:
    """Return what the daemon has left on the RAM disk.

    Parameters
    ----------
    places : `Places`
        The folders.

    Returns
    -------
    repos : `list` [`str`]
        Paths.
    """
    return [str(path) for path in places.ramdisk.glob("ppdaemon-*")]
