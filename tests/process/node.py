# SPDX-License-Identifier: BSD-3-Clause
"""A real ``ppdaemon`` with scripted workers, and a relay that a test plays."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import yaml
import zmq
from waiting import wait_until

from ppdaemon.clock import Clock, day_obs
from ppdaemon.ctl.client import Daemon
from ppdaemon.errors import Unavailable
from ppdaemon.messages import (
    NODE_LIMIT,
    AckedVisit,
    CancelVisit,
    FromNode,
    Hello,
    NakedVisit,
    ReserveVisit,
    Results,
    ResultsSeen,
    Welcome,
)
from ppdaemon.states import SlotState
from ppdaemon.visit import read_next_visit
from ppdaemon.wire import decode, encode

TESTS = Path(__file__).parent
DAY = day_obs(Clock().tai())
"""Of the raws that land: folders of nights long ago are looked into by nobody."""
EXPOSURE = DAY * 100_000
"""Exposure id before the first one's."""
PATIENCE_S = 40.0
"""For what takes a moment on a machine that is not busy."""
RISING = frozenset({SlotState.STARTING, SlotState.BACKOFF})


class PlayedRelay:
    """The relay's end of the link, driven by the test."""

    def __init__(self):
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.MAXMSGSIZE, NODE_LIMIT)
        port = self._socket.bind_to_random_port("tcp://127.0.0.1")
        self.address = f"tcp://127.0.0.1:{port}"
        self._peer = b""
        self._sequence = 0
        self.acked = set()
        self.naks = []
        self.results = {}
        self.hellos = []

    def close(self):
        self._socket.close()
        self._context.term()

    def say(self, kind, **fields):
        self._sequence += 1
        message = kind(origin="played", sent_tai=Clock().tai(), sequence=self._sequence, **fields)
        self._socket.send_multipart([self._peer, encode(message)])

    def raw(self, data):
        self._socket.send_multipart([self._peer, data])

    def reserve(self, group, detectors=(0,), survey="", nimages=1, **fields):
        visit = read_next_visit(
            {"groupId": group, "instrument": "DemoCam", "nimages": nimages, "survey": survey, **fields}
        )
        self.say(ReserveVisit, visit=visit, detectors=tuple(detectors), received_tai=Clock().tai())

    def cancel(self, group, detectors=None):
        self.say(CancelVisit, instrument="DemoCam", group=group, detectors=detectors)

    def listen(self):
        """Take in everything that is there; answer like a relay."""
        while self._socket.poll(0):
            peer, data = self._socket.recv_multipart()
            match decode(data, FromNode, limit=NODE_LIMIT):
                case Hello() as hello:
                    self._peer = peer
                    self.hellos.append(hello)
                    self.say(Welcome, life="played")
                case AckedVisit(group=group, detectors=detectors):
                    self.acked |= {(group, detector) for detector in detectors}
                case NakedVisit() as nak:
                    self.naks.append(nak)
                case Results(entries=entries):
                    for entry in entries:
                        self.results.setdefault((entry.group, entry.detector), []).append(entry)
                    keys = tuple((e.instrument, e.group, e.detector, e.attempt) for e in entries)
                    self.say(ResultsSeen, entries=keys)

    def wait(self, condition: Callable[[], object], deadline_s=PATIENCE_S, story=""):
        def listening():
            self.listen()
            return condition()

        return wait_until(listening, deadline_s, story or self.tell)

    def outcome(self, group, detector=0, deadline_s=PATIENCE_S):
        """Wait for a visit-detector's one outcome; a second one is a fault."""
        entries = self.wait(lambda: self.results.get((group, detector)), deadline_s)
        assert len({(entry.outcome, entry.attempt) for entry in entries}) == 1, entries
        return entries[0]

    def tell(self):
        return f"acked {sorted(self.acked)} naks {self.naks} results {self.results}"


class Node:
    """A running ``ppdaemon``."""

    def __init__(self, folder: Path, sockets: Path, relay: PlayedRelay | None, **workers):
        self.folder = folder
        self.sockets = sockets
        self.relay = relay
        self.state = folder / "state"
        self.raw_root = folder / "raw"
        self.raw_root.mkdir(exist_ok=True)
        self.launcher = workers.pop("launcher", ())
        self.program = workers.pop("program", ("-m", "ppdaemon.node.app", "run", "--config"))
        pipeline = folder / "any.yaml"
        pipeline.write_text("{}\n")
        times = {"boot_s": 10, "prepare_s": 10, "run_s": 10, "export_s": 10, "grace_s": 0.5, "stop_s": 1}
        times |= workers.pop("times", {})
        self.config = {
            "node": {
                "name": "n1",
                "state_dir": str(self.state),
                "ramdisk": str(sockets / "ram"),
                "control": str(sockets / "control"),
                "instruments": {"DemoCam": "0-8"},
            },
            "relay": {"heartbeat_s": 0.2, "silence_s": 600},
            "arrivals": {
                "roots": [str(self.raw_root)],
                "image_timeout_s": workers.pop("image_timeout_s", 30),
                "sidecar_wait_s": 0.2,
                "scan_s": 0.5,
                **workers.pop("arrivals", {}),
            },
            "workers": {
                "work": "scripted",
                "min": 2,
                "spare": 1,
                "max": 6,
                "nice": 0,
                "environment": {"PYTHONPATH": str(TESTS)},
                "times": times,
                **workers,
            },
            "pipelines": {
                "main": [{"survey": "ignore", "pipelines": None}, {"pipelines": [str(pipeline)]}],
            },
            "export": {"retry_s": 0.2},
            "log": {"format": "console"},
        }
        if relay is not None:
            self.config["relay"]["address"] = relay.address
        self.path = folder / "node.yaml"
        self.control = Path(self.config["node"]["control"])
        self.process = None

    def rewrite(self, **parts):
        """Change parts of the configuration file: ``workers={...}``."""
        for name, keys in parts.items():
            self.config[name] = self.config.get(name, {}) | keys
        self.path.write_text(yaml.safe_dump(self.config))

    def start(self, *, ready=True):
        self.rewrite()
        command = [*self.launcher, sys.executable, *self.program, str(self.path)]
        with (self.folder / "daemon.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        if ready:
            self.wait(self._serves)
        return self

    def _serves(self):
        """Tell whether all is up: nobody is being born any more."""
        status = self.status()
        connected = self.relay is None or status.relay.startswith("connected")
        settled = not RISING & status.slots.keys() and status.exporter != "starting"
        return connected and settled and status.state in ("running", "degraded") and status.slots.get("idle")

    def wait(self, condition, deadline_s=PATIENCE_S):
        """Wait for something while the daemon lives; it may not answer yet."""

        def living():
            assert self.process.poll() is None, self.tell()
            if self.relay is not None:
                self.relay.listen()
            try:
                return condition()
            except Unavailable:
                return None

        return wait_until(living, deadline_s, self.tell)

    @property
    def daemon(self):
        return Daemon(self.control, timeout_s=PATIENCE_S / 2)

    def status(self):
        return self.daemon.status()

    def workers(self):
        return self.daemon.workers()

    def zygotes(self):
        """Return their process ids; whoever is just being forked bears the name, too, one level below."""
        children = psutil.Process(self.process.pid).children()
        return [child.pid for child in children if title(child.pid) == "ppdaemon zygote"]

    def visit(self, group):
        return self.daemon.visit(group)

    def delivered(self):
        """Tell how many complete raws the arrivals have given to the daemon."""
        return self.status().counters.get("arrivals.delivered", 0)

    def land(self, group, detector=0, number=1, snap=1, snaps=1):
        """Let a raw and its sidecar land, renamed into place."""
        obsid = f"DC_O_{DAY}_{number:06d}"
        folder = self.raw_root / "DemoCam" / str(DAY) / obsid
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{obsid}_R22_S{detector // 3}{detector % 3}"
        sidecar = {"OBSID": obsid, "GROUPID": group, "CURINDEX": snap, "MAXINDEX": snaps}
        sidecar |= {"DAYOBS": str(DAY), "SEQNUM": number, "CONTRLLR": "O", "CAMCODE": "DC"}
        for suffix, data in ((".json", json.dumps(sidecar).encode()), (".fits", small_fits())):
            part = folder / f".{name}{suffix}.part"
            part.write_bytes(data)
            part.rename(folder / f"{name}{suffix}")
        return folder / f"{name}.fits"

    def stop(self):
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise AssertionError(f"the daemon did not stop\n{self.tell()}") from None
        return self.process.returncode

    def tell(self):
        text = (self.folder / "daemon.log").read_text()[-6000:]
        return f"--- daemon ---\n{text}\n--- relay ---\n{self.relay.tell() if self.relay else ''}"

    def exported(self):
        """Return the names of the spools that were exported."""
        path = self.state / "exported"
        return path.read_text().split() if path.exists() else []

    def marks(self):
        """Return how often each visit-detector wrote what cannot be undone."""
        folder = self.state / "marks"
        return {path.name: len(path.read_text()) for path in folder.iterdir()} if folder.exists() else {}


def small_fits() -> bytes:
    """Return a whole FITS file of one byte."""
    cards = (
        "SIMPLE  =                    T",
        "BITPIX  =                    8",
        "NAXIS   =                    1",
    )
    header = "".join(card.ljust(80) for card in (*cards, "NAXIS1  =                    1", "END"))
    return header.ljust(2880).encode() + bytes(2880)


def descendants(pid: int) -> list[int]:
    """Return the process ids of all living descendants."""
    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


def alive(pid: int) -> bool:
    """Tell whether a process runs (a zombie does not)."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def title(pid: int) -> str:
    """Return what ``ps`` shows of a process; blank if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


@contextmanager
def running(folder: Path, sockets: Path, *, ready=True, **workers) -> Iterator[Node]:
    """Run a node with a played relay, and stop it."""
    relay = PlayedRelay()
    node = Node(folder, sockets, relay, **workers)
    try:
        yield node.start(ready=ready)
    finally:
        try:
            status = node.stop()
        finally:
            relay.close()
    assert status == 0, node.tell()
    assert not (sockets / "ram" / "ppdaemon-n1").exists(), "the RAM disk was not cleaned"
