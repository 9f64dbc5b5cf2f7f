# SPDX-License-Identifier: BSD-3-Clause
"""The zygote: imports everything once and forks workers from a single thread.

An exec'd process of its own: it opens no Butler, no database, no ZeroMQ
context and no log file, so that nothing of the kind is ever inherited. It
ends with the supervisor; its children do so too, by themselves.
"""

import argparse
import gc
import os
import select
import signal
import socket
import sys
import time
from pathlib import Path

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
from ppdaemon.processes import adopt_orphans, die_with_parent, end_orphans
from ppdaemon.wire import decode, encode
from ppdaemon.work import WorkModule
from ppdaemon.worker.life import import_work, live

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
        self._children: set[int] = set()

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
        try:
            assert_single_threaded()
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except (OSError, RuntimeError) as error:
            self._refuse(order, error)
            return
        with ours, theirs:
            try:
                pid = os.fork()
            except OSError as error:
                self._refuse(order, error)
                return
            if pid == 0:
                live(order, theirs, self._lifeline, self._config, lambda: self._work)
            self._children.add(pid)
            pidfd = os.pidfd_open(pid)
            try:
                words = Forked(role=order.role, slot=order.slot, epoch=order.epoch, pid=pid)
                socket.send_fds(self._control, [encode(words)], [ours.fileno(), pidfd])
            finally:
                os.close(pidfd)

    def _refuse(self, order: ForkWorker, error: Exception) -> None:
        self._tell(ForkFailed(role=order.role, slot=order.slot, epoch=order.epoch, reason=str(error)))

    def _reap(self) -> None:
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            end_orphans(self._children)
            if pid not in self._children:
                continue  # an orphan that was swept; its own children were so now
            self._children.discard(pid)
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
    parser.add_argument("--channel", type=int, required=True, help="descriptor of the supervisor's socket")
    parser.add_argument("--lifeline", type=int, required=True, help="descriptor of the supervisor's pipe")
    parser.add_argument("--config", type=Path, required=True, help="the configuration as JSON")
    options = parser.parse_args()
    die_with_parent()
    adopt_orphans()
    setproctitle.setproctitle("ppdaemon zygote")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    started = time.monotonic()
    config = NodeConfig.model_validate_json(options.config.read_bytes())
    # An ImportError here ends the zygote: no worker pays for a missing module.
    work = import_work(config)
    assert_single_threaded()
    gc.collect()
    gc.disable()
    gc.freeze()
    control = socket.socket(fileno=options.channel)
    ready = ZygoteReady(pid=os.getpid(), import_s=time.monotonic() - started, modules=len(sys.modules))
    control.send(encode(ready))
    Zygote(control, options.lifeline, config, work).run()


if __name__ == "__main__":
    main()
