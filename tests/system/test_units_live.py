# SPDX-License-Identifier: BSD-3-Clause
"""The real daemons under a real systemd: ready, watched, restarted, stopped."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
import zmq
from systemd_user import Instance, instance, what_is_missing

from ppdaemon.ctl.client import Daemon
from ppdaemon.errors import Unavailable
from ppdaemon.testing.waiting import wait_until

MISSING = what_is_missing()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"systemd user instance: {MISSING}"),
]

ROOT = Path(__file__).parents[2]

# What a user instance cannot have, or programs and folders below /home and /tmp.
DROP_IN = """
[Service]
User=
Group=
ExecStart=
ExecStart={python} -m {module} run --config {config}
Environment=PYTHONPATH={path}
ProtectHome=no
PrivateTmp=no
ProtectKernelLogs=no
ProtectKernelTunables=no
ReadWritePaths={folder}
WatchdogSec={watchdog_s}
RestartSec=100ms
StandardError=append:{folder}/log
"""


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Instance]:
    with instance(tmp_path) as running:
        yield running


def drop_in(module: str, config: Path, folder: Path, watchdog_s: float = 20.0) -> str:
    path = str(ROOT)
    return DROP_IN.format(
        python=sys.executable, module=module, config=config, folder=folder, path=path, watchdog_s=watchdog_s
    )


def relay_config(folder: Path, **changes: object) -> Path:
    path = folder / "pprelay.yaml"
    config = {
        "submit": f"ipc://{folder}/submit",
        "nodes": f"ipc://{folder}/nodes",
        "state_dir": str(folder / "relay"),
        "instruments": {"DemoCam": {"detectors": "0-8"}},
        "heartbeat_s": 0.2,
    }
    path.write_text(yaml.safe_dump(config | changes))
    return path


def submit(folder: Path, fields: dict[str, object]) -> dict[str, object]:
    """Send one event to the relay; return its answer."""
    with zmq.Context() as context, context.socket(zmq.REQ) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(f"ipc://{folder}/submit")
        socket.send_json(fields)
        assert socket.poll(30_000), "the relay did not answer"
        answer: dict[str, object] = json.loads(socket.recv())
        return answer


def test_the_relay_is_ready_watched_restarted_and_stopped(systemd: Instance, socket_dir: Path) -> None:
    config = relay_config(socket_dir)
    systemd.install("pprelay.service", drop_in("ppdaemon.relay.app", config, socket_dir, watchdog_s=4))
    systemd.systemctl("start", "pprelay")
    systemd.wait("pprelay", ActiveState="active")
    assert "visits" in systemd.show("pprelay", "StatusText")
    event = {"groupId": "g1", "instrument": "DemoCam", "nimages": 1}
    assert submit(socket_dir, event)["status"] == "accepted"

    for name in ("KILL", "STOP"):  # the watchdog ends a stopped one
        before = systemd.restarts("pprelay")
        systemd.signal("pprelay", name)
        systemd.wait_for_restart("pprelay", before)
        assert submit(socket_dir, event)["status"] == "duplicate"

    systemd.systemctl("stop", "pprelay")
    systemd.wait("pprelay", ActiveState="inactive", Result="success")


def test_a_relay_that_cannot_be_configured_is_not_started_again(systemd: Instance, socket_dir: Path) -> None:
    config = relay_config(socket_dir, expiry_s="soon")
    systemd.install("pprelay.service", drop_in("ppdaemon.relay.app", config, socket_dir))
    systemd.systemctl("start", "pprelay")
    systemd.wait("pprelay", ActiveState="failed", ExecMainStatus="78", NRestarts="0")
    assert "expiry_s" in (socket_dir / "log").read_text()


def node_config(folder: Path) -> Path:
    (folder / "raw").mkdir()
    (folder / "any.yaml").write_text("{}\n")
    path = folder / "ppdaemon.yaml"
    config = {
        "node": {
            "name": "n1",
            "state_dir": str(folder / "state"),
            "ramdisk": "/run/ppramdisk",
            "control": str(folder / "control"),
            "instruments": {"DemoCam": "0-8"},
        },
        "arrivals": {"roots": [str(folder / "raw")]},
        "workers": {"work": "ppdaemon.testing.work", "min": 1, "spare": 0, "max": 2, "nice": 0},
        "pipelines": {"main": [{"pipelines": [str(folder / "any.yaml")]}]},
    }
    path.write_text(yaml.safe_dump(config))
    return path


def idle_slots(folder: Path) -> int | None:
    """Return how many workers are idle; `None` while it does not answer."""
    try:
        return Daemon(folder / "control").status().slots.get("idle")
    except Unavailable:
        return None


def test_the_daemon_is_ready_watched_restarted_and_stopped(systemd: Instance, socket_dir: Path) -> None:
    systemd.install("run-ppramdisk.mount", "[Mount]\nOptions=\nOptions=size=64m,mode=0750\n")
    config = node_config(socket_dir)
    systemd.install("ppdaemon.service", drop_in("ppdaemon.node.app", config, socket_dir, watchdog_s=4))
    systemd.systemctl("start", "ppdaemon")
    systemd.wait("ppdaemon", ActiveState="active")
    assert systemd.show("run-ppramdisk.mount", "ActiveState") == "active"
    assert systemd.run("ls", "/run/ppramdisk").stdout.split() == ["ppdaemon-n1"]
    assert systemd.show("ppdaemon", "StatusText")
    wait_until(lambda: idle_slots(socket_dir), 40, "a worker is idle")

    for name in ("KILL", "STOP"):
        before = systemd.restarts("ppdaemon")
        systemd.signal("ppdaemon", name)
        systemd.wait_for_restart("ppdaemon", before)
        wait_until(lambda: idle_slots(socket_dir), 40, "a worker is idle again")

    systemd.systemctl("stop", "ppdaemon")
    systemd.wait("ppdaemon", ActiveState="inactive", Result="success")
    found = systemd.run("find", "/run/ppramdisk")
    assert found.stdout.split() == ["/run/ppramdisk"], (socket_dir / "log").read_text()[-3000:]
