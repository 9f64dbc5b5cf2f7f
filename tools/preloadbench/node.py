# SPDX-License-Identifier: BSD-3-Clause
"""The other processes of the bench's host, as those of a node: what a zygote does before it forks, and the
asker, where the build that is measured has them.
"""

import os
import socket
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from benching.processes import cpu_s

from ppdaemon import messages
from ppdaemon.config import NodeConfig
from ppdaemon.middleware import work
from ppdaemon.middleware.pipelines.graph import PipelineLibrary
from ppdaemon.wire import encode
from preloadbench.queries import QueryCounts
from preloadbench.survey import CAMERA, load_survey_camera
from preloadbench.worker import GENERATION, Host

_ASKER = "ppdaemon.middleware.preload.asker"
"""Earlier builds have no such module: there the workers ask by themselves."""
_CAMERA_USERS = ("ppdaemon.middleware.rehearsal", _ASKER)
_SLOT = -3


def node_config(host: Host) -> NodeConfig:
    """Return the configuration of a node with the bench's folders."""
    return NodeConfig.model_validate(
        {
            "node": {
                "name": host.ramdisk.name.removeprefix("ppdaemon-"),
                "state_dir": host.ramdisk / "state",
                "ramdisk": host.ramdisk.parent,
                "control": host.ramdisk / "control",
                "instruments": {CAMERA: f"0-{host.detectors - 1}"},
            },
            "arrivals": {"roots": [host.ramdisk], "layout": "generic"},
            "butler": host.butler,
            "pipelines": {"main": [{"pipelines": list(host.pipelines)}]},
            "log": {"level": "WARNING"},
        }
    )


def warm_up(host: Host) -> PipelineLibrary:
    """Do what a zygote does before it forks; return the pipelines."""
    for name in _CAMERA_USERS:
        if name in sys.modules:  # the cameras that they know are those that are installed with ppdaemon
            vars(sys.modules[name])["load_camera"] = lambda _: load_survey_camera(host.detectors)
    if hasattr(work, "warm_up"):
        return work.warm_up(node_config(host))
    library = PipelineLibrary({})  # earlier builds parse the pipelines in each worker
    library.load(host.pipelines)
    return library


class Asker:
    """What the process has used since `begin`; nothing if there is none."""

    def __init__(self, pid: int | None = None, queries: QueryCounts | None = None):
        self._pid = pid
        self._queries = queries
        self._before: dict[str, float] = {}

    def begin(self) -> None:
        """Leave out what it has used until now."""
        self._before = self._used()

    def measure(self) -> dict[str, float]:
        """Return CPU time in milliseconds, queries and connections."""
        return {name: value - self._before[name] for name, value in self._used().items()}

    def _used(self) -> dict[str, float]:
        if self._pid is None or self._queries is None:
            return {}
        return {"cpu_ms": cpu_s(self._pid) * 1e3, **self._queries.values()}


@contextmanager
def running_asker(host: Host, library: PipelineLibrary) -> Iterator[Asker]:
    """Run the asker, if the build has one; it has asked before its first question."""
    if _ASKER not in sys.modules:
        yield Asker()
        return
    end, its_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    queries = QueryCounts(host.central)
    if not (pid := os.fork()):
        status = 1
        try:
            end.close()
            _serve(host, library, its_end)
            status = 0
        except Exception:
            traceback.print_exc()
        finally:
            os._exit(status)
    its_end.close()
    try:
        with end:
            _wait_until_idle(end)
            yield Asker(pid, queries)
            # It sees the order before the end of the channel, which has reports that nobody has read.
            end.send(encode(messages.Quit()))
            while end.recv(messages.PACKET_LIMIT):
                pass
    finally:
        os.waitpid(pid, 0)


def _serve(host: Host, library: PipelineLibrary, end: socket.socket) -> None:
    from ppdaemon.worker import childmain
    from ppdaemon.worker.leftovers import Leftovers
    from ppdaemon.worker.main import Inherited, run_role

    order = messages.ForkWorker(
        role="asker", slot=_SLOT, epoch=1, repo=str(host.ramdisk / "asker"), log="", generation=GENERATION
    )
    config = node_config(host)
    # Earlier builds have no such function: all processes have the niceness of workers.
    os.nice(childmain.niceness(order.role, config) if hasattr(childmain, "niceness") else config.workers.nice)
    run_role(order, end, config, Inherited(work, Leftovers((), ()), library))


def _wait_until_idle(end: socket.socket) -> None:
    while packet := end.recv(messages.PACKET_LIMIT):
        match messages.ASKER_FACTS.validate_json(packet):
            case messages.Asked(idle=True):
                return
    sys.exit("the asker has ended; see the output above")
