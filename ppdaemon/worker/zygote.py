# SPDX-License-Identifier: BSD-3-Clause
"""The zygote: imports everything once and forks workers from a single thread.

An exec'd process of its own: it opens no Butler, no database, no ZeroMQ
context and no log file, so that nothing of the kind is ever inherited. It
ends with the supervisor; its children do so too, by themselves.
"""

import argparse
import gc
import importlib
import os
import select
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import cast

import setproctitle

from ppdaemon.config import NodeConfig
from ppdaemon.messages import (
    PACKET_LIMIT,
    ZYGOTE_ORDERS,
    Forked,
    ForkFailed,
    ForkWorker,
    Reaped,
    ZygoteReady,
)
from ppdaemon.states import ExitCode
from ppdaemon.wire import decode, encode
from ppdaemon.work import WorkModule
from ppdaemon.worker.birth import Child, be_born, die_with_parent
from ppdaemon.worker.main import run_role

__all__ = ("Zygote", "assert_single_threaded", "main")


def assert_single_threaded() -> None:
    """Make sure that forking is sound.

    Raises
    ------
    RuntimeError
        Raised if there is a second thread; names all of them.
    """
    tasks = os.listdir("/proc/self/task")
    if len(tasks) > 1:
        names = [Path(f"/proc/self/task/{task}/comm").read_text().strip() for task in tasks]
        raise RuntimeError(f"the zygote has {len(tasks)} threads and may not fork: {', '.join(names)}")


class Zygote:
    """Forks on request and reports who ended.

    Parameters
    ----------
    control : `socket.socket`
        ``SOCK_SEQPACKET`` to the supervisor.
    lifeline : `int`
        Read end of the supervisor's pipe.
    config : `~ppdaemon.config.NodeConfig`
        The node's configuration.
    work : `~ppdaemon.work.WorkModule`
        What the children do.
    """

    def __init__(self, control: socket.socket, lifeline: int, config: NodeConfig, work: WorkModule):
        self._control = control
        self._lifeline = lifeline
        self._config = config
        self._work = work

    def run(self) -> None:
        """Serve until the supervisor closes its end."""
        wake_r, wake_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake_w, warn_on_full_buffer=False)
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(wake_r, select.POLLIN)
        while True:
            for descriptor, _ in poll.poll():
                if descriptor == wake_r:
                    os.read(wake_r, 4096)
                    self._reap()
                elif not self._serve():
                    return

    def _serve(self) -> bool:
        """Take one order; tell whether the supervisor is still there."""
        packet = self._control.recv(PACKET_LIMIT)
        if packet:
            self._fork(decode(packet, ZYGOTE_ORDERS, limit=PACKET_LIMIT))
        return bool(packet)

    def _fork(self, order: ForkWorker) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            try:
                assert_single_threaded()
                pid = os.fork()
            except (OSError, RuntimeError) as error:
                self._tell(ForkFailed(role=order.role, slot=order.slot, epoch=order.epoch, reason=str(error)))
                return
            if pid == 0:
                self._live(order, theirs)
            pidfd = os.pidfd_open(pid)
            try:
                words = Forked(role=order.role, slot=order.slot, epoch=order.epoch, pid=pid)
                socket.send_fds(self._control, [encode(words)], [ours.fileno(), pidfd])
            finally:
                os.close(pidfd)

    def _live(self, order: ForkWorker, channel: socket.socket) -> None:
        """Be the child; never return."""
        status = ExitCode.SOFTWARE
        try:
            be_born(
                Child(
                    title=f"ppdaemon {order.role} {order.slot if order.role == 'worker' else ''}".strip(),
                    log=order.log,
                    lifeline=self._lifeline,
                    keep=(channel.fileno(), self._lifeline),
                    nice=self._config.workers.nice,
                    seed=time.time_ns() ^ os.getpid(),
                )
            )
            status = run_role(order, channel, self._config, self._work)
        except BaseException:
            traceback.print_exc()
        finally:
            # Without the interpreter's own ending: its atexit functions and
            # finalizers are the zygote's.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def _reap(self) -> None:
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._tell(
                Reaped(
                    pid=pid,
                    status=os.waitstatus_to_exitcode(status),
                    max_rss_bytes=usage.ru_maxrss * 1024,
                    cpu_s=usage.ru_utime + usage.ru_stime,
                )
            )

    def _tell(self, words: ForkFailed | Reaped | ZygoteReady) -> None:
        self._control.send(encode(words))


def main() -> None:
    """Import, freeze, serve."""
    parser = argparse.ArgumentParser(prog="ppdaemon-zygote", description=__doc__)
    parser.add_argument("--control", type=int, required=True, help="descriptor of the supervisor's socket")
    parser.add_argument("--lifeline", type=int, required=True, help="descriptor of the supervisor's pipe")
    parser.add_argument("--config", type=Path, required=True, help="the configuration as JSON")
    options = parser.parse_args()
    die_with_parent()
    setproctitle.setproctitle("ppdaemon zygote")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    started = time.monotonic()
    config = NodeConfig.model_validate_json(options.config.read_bytes())
    # An ImportError here ends the zygote: no worker pays for a missing module.
    modules = [importlib.import_module(name) for name in (config.workers.work, *config.workers.preload)]
    work = cast(WorkModule, modules[0])
    work.set_up_libraries()
    assert_single_threaded()
    gc.collect()
    gc.disable()
    gc.freeze()
    control = socket.socket(fileno=options.control)
    ready = ZygoteReady(pid=os.getpid(), import_s=time.monotonic() - started, modules=len(sys.modules))
    control.send(encode(ready))
    Zygote(control, options.lifeline, config, work).run()


if __name__ == "__main__":
    main()
