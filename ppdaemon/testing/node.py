# SPDX-License-Identifier: BSD-3-Clause
"""A real ``ppdaemon`` under test, with scripted workers and a played relay."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Self

import psutil
import yaml

from ppdaemon.ctl.client import Daemon
from ppdaemon.errors import Unavailable
from ppdaemon.reports import StatusReport, VisitRow, WorkerRow
from ppdaemon.states import Outcome, SlotState
from ppdaemon.testing.played import PlayedRelay
from ppdaemon.testing.processes import ResourceUsage, title, usage_of
from ppdaemon.testing.raws import RawWriter
from ppdaemon.testing.waiting import TIMEOUT_S

__all__ = ("NodeProcess", "node_config", "running_node")

PROGRAM = ("-m", "ppdaemon.node.app", "run", "--config")
TIMES = {"boot_s": 10, "prepare_s": 10, "run_s": 10, "export_s": 10, "grace_s": 0.5, "stop_s": 0.3}
STARTING_STATES = frozenset({SlotState.STARTING, SlotState.BACKOFF})
LOG_TAIL = 6000


def node_config(
    folder: Path, sockets: Path, **parts: Mapping[str, Any] | Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Return a configuration for scripted workers and short waits.

    Parameters
    ----------
    folder : `pathlib.Path`
        For everything with a long path; the folder ``raw`` is made in it.
    sockets : `pathlib.Path`
        For the control socket and the RAM disk ``ram``; its path is short, as
        a unix socket's has at most 107 characters.
    **parts
        Keys that replace the usual ones, by part: ``workers={"max": 2}``; of a part that is a
        list, all of it.

    Returns
    -------
    config : `dict`
        As a configuration file has it.
    """
    raws = folder / "raw"
    raws.mkdir(exist_ok=True)
    pipeline = folder / "any.yaml"
    pipeline.write_text("{}\n")
    config: dict[str, Any] = {
        "node": {
            "name": "n1",
            "state_dir": str(folder / "state"),
            "ramdisk": str(sockets / "ram"),
            "control": str(sockets / "control"),
            "instruments": {"DemoCam": "0-8"},
        },
        "relay": {"heartbeat_s": 0.2, "silence_s": 600},
        "arrivals": {"roots": [str(raws)], "image_timeout_s": 30, "sidecar_wait_s": 0.2, "scan_s": 0.5},
        "workers": {
            "work": "ppdaemon.testing.work",
            "min": 2,
            "spare": 1,
            "max": 6,
            "nice": 0,
            "times": TIMES,
        },
        "pipelines": {"main": [{"pipelines": [str(pipeline)]}]},
        "export": {"retry_s": 0.2, "gather_s": 0.0},
        "log": {"format": "console"},
    }
    for name, keys in parts.items():
        config[name] = config.get(name, {}) | dict(keys) if isinstance(keys, Mapping) else list(keys)
    return config


class NodeProcess:
    """A ``ppdaemon``, started and stopped in permanent folders; a ``with`` statement stops it at its end.

    Parameters
    ----------
    folder : `pathlib.Path`
        For the configuration file and the log.
    config : `dict`
        As `node_config` returns it.
    relay : `~ppdaemon.testing.played.PlayedRelay`, optional
        Receives and answers in every method here that waits.
    program : `~collections.abc.Sequence` [`str`], optional
        Arguments of the interpreter, before the path of the configuration.
    launcher : `~collections.abc.Sequence` [`str`], optional
        A command that starts the command after it.
    environment : `~collections.abc.Mapping`, optional
        Variables in addition to those of this process.

    Attributes
    ----------
    config : `dict`
        Written by `rewrite` and `start`.
    state : `pathlib.Path`
        State directory, with the records of `ppdaemon.testing.work`.
    raws : `~ppdaemon.testing.raws.RawWriter`
        Writes raws below the first raw root.
    """

    def __init__(
        self,
        folder: Path,
        config: dict[str, Any],
        relay: PlayedRelay | None = None,
        *,
        program: Sequence[str] = PROGRAM,
        launcher: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ):
        self.config = config
        self.relay = relay
        self.state = Path(config["node"]["state_dir"])
        self.ramdisk = Path(config["node"]["ramdisk"])
        self.control = Path(config["node"]["control"])
        self.raws = RawWriter(Path(config["arrivals"]["roots"][0]))
        self.path = folder / "node.yaml"
        self.log = folder / "daemon.log"
        self.daemon = Daemon(self.control, timeout_s=TIMEOUT_S / 2)
        self._command = (*launcher, sys.executable, *program, str(self.path))
        self._environment = {**os.environ, **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None

    # --- its process -----------------------------------------------------

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The supervisor's process (`subprocess.Popen`)."""
        if self._process is None:
            raise AssertionError("the daemon was never started")
        return self._process

    @property
    def pid(self) -> int:
        """The supervisor's process id (`int`)."""
        return self.process.pid

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended (`bool`)."""
        return self._process is not None and self._process.poll() is None

    def rewrite(self, **parts: Mapping[str, Any]) -> None:
        """Change parts of the configuration file: ``workers={"max": 1}``."""
        for name, keys in parts.items():
            self.config[name] = self.config.get(name, {}) | dict(keys)
        # Renamed into place: a daemon that reads the file now reads a complete one.
        part = self.path.with_suffix(".part")
        part.write_text(yaml.safe_dump(self.config))
        part.rename(self.path)

    def launch(self) -> None:
        """Write the configuration and start the process; return at once."""
        self.rewrite()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
                start_new_session=True,  # Ctrl-C in a terminal must end the test, not the daemon
            )

    def start(self) -> Self:
        """Start it and wait until a worker is idle and none is starting."""
        self.launch()
        self.wait(self.is_ready)
        return self

    def is_ready(self) -> bool:
        """Return whether a worker is idle and none is starting, and a played relay is connected."""
        status = self.status()
        connected = self.relay is None or status.relay.startswith("connected")
        return (
            connected
            and status.slots.get(SlotState.IDLE, 0) > 0
            and not STARTING_STATES & status.slots.keys()
        )

    def stop(self, limit_s: float = TIMEOUT_S) -> int:
        """Stop it by SIGTERM, and play its relay meanwhile.

        Parameters
        ----------
        limit_s : `float`, optional
            How long it may take.

        Returns
        -------
        status : `int`
            Its exit status; 0 is expected. If it ended before, or was killed, that status.

        Raises
        ------
        AssertionError
            Raised if it had to be killed.
        """
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        until = time.monotonic() + limit_s
        while (status := self.process.poll()) is None:
            if time.monotonic() > until:
                self.kill()
                raise AssertionError(f"the daemon did not stop within {limit_s:g} s\n{self.story()}")
            self._pause(0.01)
        return status

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if self._process is None or self._process.returncode is not None:
            return  # the test has seen its end
        status = self.stop()
        if error is None and status != 0:
            raise AssertionError(f"the daemon ended with {status}\n{self.story()}")

    def kill(self) -> None:
        """Kill the supervisor without warning, as a power cut does."""
        self.process.kill()
        self.process.wait()

    @property
    def raw_root(self) -> Path:
        """The first raw root (`pathlib.Path`)."""
        return self.raws.root

    # --- waiting and asking ----------------------------------------------

    def wait[T](self, condition: Callable[[], T], deadline_s: float = TIMEOUT_S, pause_s: float = 0.01) -> T:
        """Wait for a condition while the daemon runs, and play its relay meanwhile.

        Parameters
        ----------
        condition : `~collections.abc.Callable`
            Counts as false if the daemon does not answer yet.
        deadline_s : `float`, optional
            How long it may take.
        pause_s : `float`, optional
            Between two calls, unless a message arrives.

        Returns
        -------
        value : `object`
            The condition's first true value.

        Raises
        ------
        AssertionError
            Raised if the daemon ended or the time is up; has the end of its log.
        """
        __tracebackhide__ = True
        until = time.monotonic() + deadline_s
        while True:
            if self.relay is not None:
                self.relay.listen()
            try:
                if value := condition():
                    return value
            except Unavailable:
                pass
            if self.process.poll() is not None:
                raise AssertionError(f"the daemon ended with {self.process.returncode}\n{self.story()}")
            if time.monotonic() > until:
                raise AssertionError(f"not within {deadline_s:g} s\n{self.story()}")
            self._pause(pause_s)

    def _pause(self, seconds: float) -> None:
        if self.relay is not None:
            self.relay.listen(seconds)
        else:
            time.sleep(seconds)

    def status(self) -> StatusReport:
        """Return its status report."""
        return self.daemon.status()

    def workers(self) -> list[WorkerRow]:
        """Return its slots."""
        return list(self.daemon.workers())

    def visit(self, group: str) -> list[VisitRow]:
        """Return its journal's rows of a visit."""
        return list(self.daemon.visit(group))

    def usage(self) -> ResourceUsage:
        """Return the resource use of the supervisor."""
        return usage_of(self.pid)

    def zygotes(self) -> list[int]:
        """Return the zygotes' process ids.

        A worker that is being forked has the same title, one level below.
        """
        children = psutil.Process(self.pid).children()
        return [child.pid for child in children if title(child.pid) == "ppdaemon zygote"]

    def story(self) -> str:
        """Return the end of its log, and the messages that the relay has received."""
        text = self.log.read_text(errors="replace")[-LOG_TAIL:]
        return f"--- daemon ---\n{text}\n--- relay ---\n{self.relay.story() if self.relay else ''}"

    # --- raws and what the workers did -----------------------------------

    def land(self, group: str, detector: int = 0, **fields: Any) -> Path:
        """Write one raw; see `~ppdaemon.testing.raws.RawWriter.land`."""
        (path,) = self.raws.land(group, (detector,), **fields)
        return path

    def succeed(self, group: str, **fields: Any) -> None:
        """Reserve detector 0 of a visit, write its raw, and wait until it has succeeded.

        Parameters
        ----------
        group : `str`
            Group of the visit, unique in the test.
        **fields
            Further fields of the next_visit, as `~ppdaemon.testing.played.PlayedRelay.reserve` takes them.

        Raises
        ------
        AssertionError
            Raised if it has another outcome, or none in time.
        """
        __tracebackhide__ = True
        assert self.relay is not None
        self.relay.reserve(group, **fields)
        self.land(group)
        entry = self.relay.outcome(group)
        if entry.outcome is not Outcome.SUCCEEDED:
            raise AssertionError(f"{group} is {entry.outcome}: {entry.reason}\n{self.story()}")

    def delivered(self) -> int:
        """Return how many complete raws the arrivals have delivered."""
        return self.status().counters.get("arrivals.delivered", 0)

    def at_gate(self, group: str) -> bool:
        """Return whether a worker waits at the gate of a visit."""
        return (self.state / "gates" / f"{group}.reached").exists()

    def open_gate(self, group: str) -> None:
        """Let the workers of a visit continue at the gate, also those that reach it later."""
        gates = self.state / "gates"
        gates.mkdir(exist_ok=True)
        (gates / f"{group}.open").touch()

    def exported(self) -> list[str]:
        """Return the names of the spools that were exported."""
        return sorted(path.name for path in (self.state / "exported").glob("*"))

    def marks(self, group: str = "*") -> dict[str, int]:
        """Return how often visit-detectors wrote permanently, by ``GROUP~DETECTOR``."""
        return {path.name: path.stat().st_size for path in (self.state / "marks").glob(f"{group}~*")}


@contextmanager
def running_node(
    folder: Path,
    sockets: Path | None = None,
    *,
    launcher: Sequence[str] = (),
    program: Sequence[str] = PROGRAM,
    ready: bool = True,
    **parts: Mapping[str, Any],
) -> Iterator[NodeProcess]:
    """Run a node with a played relay, and stop it.

    Parameters
    ----------
    folder : `pathlib.Path`
        An empty folder, such as pytest's ``tmp_path``.
    sockets : `pathlib.Path`, optional
        An empty folder with a short path; a temporary one by default, on a RAM disk where there is one.
    launcher, program : `~collections.abc.Sequence` [`str`], optional
        As `NodeProcess` takes them.
    ready : `bool`, optional
        Whether to wait until there are idle workers.
    **parts
        As `node_config` takes them.

    Yields
    ------
    node : `NodeProcess`
        The daemon, whose ``relay`` is a `~ppdaemon.testing.played.PlayedRelay`.

    Raises
    ------
    AssertionError
        Raised if it does not start, exits with an error, or leaves files on the RAM disk.
    """
    with nullcontext(sockets) if sockets else _short_folder() as chosen, PlayedRelay() as relay:
        config = node_config(folder, chosen, **parts)
        config["relay"]["address"] = relay.address
        with NodeProcess(folder, config, relay, program=program, launcher=launcher) as node:
            node.launch()
            if ready:
                node.wait(node.is_ready)
            yield node
        if status := node.process.returncode:
            raise AssertionError(f"the daemon ended with {status}\n{node.story()}")
        if left := list(node.ramdisk.glob("ppdaemon*")):
            raise AssertionError(f"left on the RAM disk: {left}\n{node.story()}")


@contextmanager
def _short_folder() -> Iterator[Path]:
    """Create a temporary folder, on a RAM disk where this user has one, and delete it."""
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="pp-", dir=shm if os.access(shm, os.W_OK) else None) as name:
        yield Path(name)
