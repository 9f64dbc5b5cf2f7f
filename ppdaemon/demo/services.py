# SPDX-License-Identifier: BSD-3-Clause
"""The real ``pprelay`` and ``ppdaemon`` of a demonstration, in a scratch folder.

Covers their configuration, start, stop, and leftovers.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
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

__all__ = ("DemoPaths", "Service", "ServiceFailed", "node_config", "relay_config", "running", "start_module")

# Importing the LSST packages takes 100 s where 40 processes want two cores; one that ends is noticed at once.
START_S = 300.0
# Long, so that only a daemon that hangs is killed.
STOP_S = 90.0
TASKS = ("isr", "calibrate", "subtract", "detect", "associate", "alerts", "metrics", "checkcalib")
ALL_DETECTORS = f"0-{DETECTOR_COUNT - 1}"
MARK = "PPDAEMON_DEMO"
"""Environment variable that marks a demonstration's processes."""

_IMAGE_FORMATTER = "lsst.images.formatters.GenericFormatter"
_RICE = {"algorithm": "RICE_1", "tile_shape": [128, 1024]}
_RICE_QUANTIZED = _RICE | {"quantization": {"dither": "SUBTRACTIVE_DITHER_2", "level": 16.0}}
QUICK_IMAGES: Mapping[str, Any] = {
    "write_recipes": {
        _IMAGE_FORMATTER: {"quick": {"image": _RICE_QUANTIZED, "variance": _RICE_QUANTIZED, "mask": _RICE}}
    },
    "MaskedImageV2": {"formatter": _IMAGE_FORMATTER, "parameters": {"recipe": "quick"}},
}
"""Rice compression for images between tasks, floats in steps of 1/16 of their noise.

Written and read in half the time of the lossless default.
"""


class ServiceFailed(PPDaemonError):
    """A daemon of the demonstration did not start, or it exited."""


@dataclass(frozen=True, slots=True)
class DemoPaths:
    """The folders and sockets of one demonstration."""

    scratch: Path
    """On a disk."""
    ramdisk: Path
    """On a tmpfs if the machine has one."""

    @property
    def central(self) -> Path:
        """The central repo."""
        return self.scratch / "central"

    @property
    def raws(self) -> Path:
        """The raw root."""
        return self.scratch / "raw"

    @property
    def alerts(self) -> Path:
        """The folder of the alert files."""
        return self.scratch / "alerts"

    @property
    def control(self) -> Path:
        """The daemon's control socket; a socket path may have about 100 characters at most."""
        return self.ramdisk / "control.sock"

    @property
    def submit(self) -> str:
        """Address of the relay's submit socket."""
        return f"ipc://{self.ramdisk}/submit.sock"

    @property
    def notices(self) -> str:
        """Address on which the camera publishes arrival notices."""
        return f"ipc://{self.ramdisk}/notices.sock"


def relay_config(paths: DemoPaths, detectors: str = ALL_DETECTORS) -> dict[str, Any]:
    """Return the relay's configuration, as in ``etc/pprelay.yaml``."""
    return {
        "submit": paths.submit,
        "nodes": f"ipc://{paths.ramdisk}/nodes.sock",
        "state_dir": str(paths.scratch / "relay"),
        "instruments": {CAMERA_NAME: {"detectors": detectors}},
    }


def node_config(paths: DemoPaths, workers: int) -> dict[str, Any]:
    """Return the daemon's configuration, as in ``etc/ppdaemon.yaml``."""
    alert_map = paths.central / ALERT_MAP
    apdb = str(paths.central / APDB_CONFIG)
    return {
        "node": {
            "name": "demo",
            "state_dir": str(paths.scratch / "node"),
            "ramdisk": str(paths.ramdisk),
            "control": str(paths.control),
            "instruments": {CAMERA_NAME: ALL_DETECTORS},
        },
        "relay": {"address": relay_config(paths)["nodes"]},
        "arrivals": {"roots": [str(paths.raws)], "subscribe": [paths.notices], "image_timeout_s": 60},
        "workers": {
            "min": min(DETECTOR_COUNT, workers),
            "spare": min(3, workers),
            "max": workers,
            "preload": [f"ppdaemon.demo.tasks.{name}" for name in TASKS],
            "memory": {"soft": "1GB", "hard": "2GB"},
            "times": {"stop_s": 5},
        },
        "butler": {
            "central": str(paths.central),
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
                "alerts:alert_dir": str(paths.alerts),
            },
        },
        "engine": {"no_return": ["associate", "alerts"]},
        "export": {
            "types": [
                "initial_stars", "difference_image", "dia_source_.*", "alerts", "visit_metrics",
                "calibration_residuals", "regionTimeInfo", "preload_metrics", "promptPreload_metrics",
                "prompt_provenance", ".*_metadata", ".*_log",
            ]
        },
        "log": {"format": "console"},
    }  # fmt: skip


@dataclass(slots=True)
class Service:
    """A running program."""

    name: str
    process: "subprocess.Popen[bytes]"
    log: Path

    def check(self) -> None:
        """Raise `ServiceFailed` with the end of the log if the program has exited."""
        if (status := self.process.poll()) is not None:
            raise ServiceFailed(f"{self.name} ended with status {status}:\n{self.tail()}")

    def tail(self, lines: int = 12) -> str:
        """Return the last lines of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def stop(self) -> int:
        """Terminate the program, kill it if it does not exit in time; return its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        return self.process.returncode


def _start(name: str, module: str, config: dict[str, Any], paths: DemoPaths, mark: str) -> Service:
    path = paths.scratch / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return start_module(name, [module, "run", "--config", str(path)], paths, mark)


def start_module(name: str, arguments: Sequence[str], paths: DemoPaths, mark: str) -> Service:
    """Start a module as a program that logs to a file; return at once.

    `arguments` begin with the module's name.
    """
    log = paths.scratch / f"{name}.log"
    # A file, not a pipe: no program reads the log while the service runs.
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, MARK: mark},
            # Ctrl-C at the terminal must reach only this program, which stops both in order.
            start_new_session=True,
        )
    return Service(name, process, log)


@contextlib.contextmanager
def running(
    paths: DemoPaths,
    workers: int,
    mark: str,
    *,
    detectors: str = ALL_DETECTORS,
    metrics: str | None = None,
    **arrivals: float,
) -> Iterator[tuple[Service, Service]]:
    """Run relay and daemon; stop both at the end, also after an error.

    `mark` identifies the processes, see `leftover_processes`. `metrics` is the
    address of the daemon's metrics. `arrivals` are
    keys of the daemon's ``arrivals`` section that replace the defaults. Yields
    when both are connected and a worker is idle.
    """
    for folder in (paths.raws, paths.alerts, paths.ramdisk):
        folder.mkdir(parents=True, exist_ok=True)
    # The relay starts first and stops last: the node can send its last results.
    relay = _start("pprelay", "ppdaemon.relay.app", relay_config(paths, detectors), paths, mark)
    try:
        config = node_config(paths, workers)
        config["arrivals"] |= arrivals
        if metrics is not None:
            config["metrics"] = {"listen": metrics}
        node = _start("ppdaemon", "ppdaemon.node.app", config, paths, mark)
        try:
            _wait_until_connected(paths, relay, node)
            yield relay, node
        finally:
            node.stop()
    finally:
        relay.stop()


def _wait_until_connected(paths: DemoPaths, relay: Service, node: Service) -> None:
    until = time.monotonic() + START_S
    daemon = Daemon(paths.control)
    while time.monotonic() < until:
        relay.check()
        node.check()
        with contextlib.suppress(Unavailable):
            status = daemon.status()
            if status.relay.startswith("connected") and status.slots.get(SlotState.IDLE):
                return
        time.sleep(0.05)
    raise ServiceFailed(f"ppdaemon is not ready after {START_S:g} s:\n{node.tail()}")


def leftover_processes(mark: str) -> list[str]:
    """Return pid and title of each process of a demonstration that still runs."""
    needle = f"{MARK}={mark}".encode()
    found = []
    for process in psutil.process_iter():
        try:
            environment = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
            if needle in environment and process.status() != psutil.STATUS_ZOMBIE:
                found.append(f"{process.pid} {' '.join(process.cmdline())}")
        except (OSError, psutil.Error):
            continue  # a process of another user, or one that has just exited
    return found


def leftover_repos(paths: DemoPaths) -> list[str]:
    """Return the paths that the daemon left on the RAM disk."""
    return [str(path) for path in paths.ramdisk.glob("ppdaemon-*")]
