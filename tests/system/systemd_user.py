# SPDX-License-Identifier: BSD-3-Clause
"""A real systemd user instance in private namespaces, and units run under it.

The instance sees this machine's files, its own /run and its own processes,
and is gone with its pid namespace.
"""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import psutil

from ppdaemon.testing.waiting import wait_until

SYSTEMD = Path("/lib/systemd/systemd")
UNITS = Path(__file__).parents[2] / "systemd"
ENVIRONMENT = {"XDG_RUNTIME_DIR": "/run/user/0", "XDG_CONFIG_HOME": "/run/config"}
BOOT = f"""
mount --make-rprivate /
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/system /run/user/0 /run/config/systemd/user
{SYSTEMD} --user --log-level=notice --log-target=console &
wait
"""
"""The shell stays as process 1: systemd as process 1 would be a system's."""


def what_is_missing() -> str:
    """Return why no instance can be started here; empty if one can."""
    if os.geteuid() != 0:
        return "needs root for private namespaces"
    missing = [name for name in ("unshare", "nsenter", "systemctl") if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} not installed"
    if not SYSTEMD.exists():
        return f"{SYSTEMD} not installed"
    probe = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "true"], capture_output=True
    )
    return "" if probe.returncode == 0 else f"no namespaces: {probe.stderr.decode().strip()}"


class Instance:
    """A running systemd.

    Parameters
    ----------
    run : `~collections.abc.Callable`
        Runs a command inside, with `text` on its standard input.
    log : `~collections.abc.Callable`
        Returns what it must report.
    manager : `str`
        ``--user`` or ``--system``.
    """

    def __init__(
        self,
        run: Callable[..., subprocess.CompletedProcess[str]],
        log: Callable[[], str],
        manager: str = "--user",
    ):
        self.run = run
        self._log = log
        self._manager = manager

    def systemctl(self, *arguments: str) -> str:
        """Call ``systemctl``; return what it prints."""
        done = self.run("systemctl", self._manager, *arguments)
        return (done.stdout + (done.stderr or "")).strip()

    def show(self, unit: str, name: str) -> str:
        """Return a property of a unit."""
        return self.systemctl("show", unit, "--property", name, "--value")

    def install(self, unit: str, drop_in: str) -> None:
        """Install one of this project's units with a drop-in."""
        folder = f"/run/config/systemd/user/{unit}.d"
        self.run("mkdir", "-p", folder)
        self.run("tee", f"{folder}/test.conf", text=drop_in)
        self.run("cp", str(UNITS / unit), "/run/config/systemd/user/")
        self.systemctl("daemon-reload")

    def main_pid(self, unit: str) -> str:
        """Return the unit's main process, numbered as inside; "0" if none."""
        return self.show(unit, "MainPID")

    def signal(self, unit: str, name: str) -> None:
        """Send a signal to the unit's main process alone."""
        self.run("kill", f"-{name}", self.main_pid(unit))

    def wait(self, unit: str, deadline_s: float = 40.0, **properties: str) -> None:
        """Wait until properties of a unit have these values."""
        self._wait(
            unit,
            lambda: all(self.show(unit, name) == value for name, value in properties.items()),
            deadline_s,
            f"was {properties}",
        )

    def restarts(self, unit: str) -> int:
        """Return how often the unit was started again by itself."""
        return int(self.show(unit, "NRestarts"))

    def wait_for_restart(self, unit: str, before: int, deadline_s: float = 40.0) -> None:
        """Wait until a unit was started again and is ready."""
        self._wait(
            unit,
            lambda: self.restarts(unit) > before and self.show(unit, "ActiveState") == "active",
            deadline_s,
            f"was active again after {before} restarts",
        )

    def _wait(self, unit: str, condition: Callable[[], bool], deadline_s: float, wanted: str) -> None:
        def story() -> str:
            names = ("ActiveState", "NRestarts", "Result", "ExecMainStatus", "StatusText")
            states = " ".join(f"{name}={self.show(unit, name)!r}" for name in names)
            return f"{unit} never {wanted}, but {states}\n{self._log()[-3000:]}"

        wait_until(condition, deadline_s, story)


def _run(pid: int, *command: str, text: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command in the namespaces of a process."""
    return subprocess.run(
        ["nsenter", "--target", str(pid), "--mount", "--pid", "--", *command],
        input=text,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **ENVIRONMENT},
    )


@contextmanager
def instance(folder: Path) -> Iterator[Instance]:
    """Run a systemd user instance.

    Parameters
    ----------
    folder : `pathlib.Path`
        Takes its log.
    """
    log = folder / "systemd.log"
    with log.open("wb") as output:
        outside = subprocess.Popen(
            [
                "unshare",
                "--mount",
                "--pid",
                "--fork",
                "--mount-proc",
                "--kill-child=KILL",
                "bash",
                "-euc",
                BOOT,
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **ENVIRONMENT},
        )
    try:
        (inside,) = wait_until(psutil.Process(outside.pid).children, 40, "unshare started a shell")
        wait_until(lambda: inside.name() == "bash", 40, "the shell runs")
        systemd = Instance(partial(_run, inside.pid), log.read_text)
        wait_until(
            lambda: systemd.systemctl("is-system-running") in ("running", "degraded"), 40, log.read_text
        )
        yield systemd
    finally:
        outside.kill()
        outside.wait()
