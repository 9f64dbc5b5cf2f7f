# SPDX-License-Identifier: BSD-3-Clause
"""The zygote: starts all processes of a configuration, and reaps them.

It imports everything once and forks them from a single thread; or, for stacks
that cannot be forked, imports nothing and starts a fresh interpreter for each.

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
from collections.abc import Callable
from pathlib import Path

import setproctitle

from ppdaemon import messages
from ppdaemon.config import NodeConfig
from ppdaemon.processes import adopt_orphans, die_with_parent, end_orphans
from ppdaemon.wire import decode, encode
from ppdaemon.worker.childmain import import_work, live

__all__ = ("Zygote", "assert_single_threaded", "main")

type StartChild = Callable[[messages.ForkWorker, socket.socket], int]
"""Starts the process that was asked for with its end of the channel; returns its pid."""


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
    """Starts processes on request and reports which ones have ended.

    Parameters
    ----------
    control : `socket.socket`
        ``SOCK_SEQPACKET`` to the supervisor.
    start_child : `StartChild`
        May raise `OSError` and `RuntimeError`.
    """

    def __init__(self, control: socket.socket, start_child: StartChild):
        self._control = control
        self._start_child = start_child
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
        packet = self._control.recv(messages.PACKET_LIMIT)
        if packet:
            self._start(decode(packet, messages.ZYGOTE_ORDERS, limit=messages.PACKET_LIMIT))
        return bool(packet)

    def _start(self, order: messages.ForkWorker) -> None:
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:
            self._refuse(order, error)
            return
        with ours, theirs:
            try:
                pid = self._start_child(order, theirs)
            except (OSError, RuntimeError) as error:
                self._refuse(order, error)
                return
            self._children.add(pid)
            pidfd = os.pidfd_open(pid)
            try:
                words = messages.Forked(role=order.role, slot=order.slot, epoch=order.epoch, pid=pid)
                socket.send_fds(self._control, [encode(words)], [ours.fileno(), pidfd])
            finally:
                os.close(pidfd)

    def _refuse(self, order: messages.ForkWorker, error: Exception) -> None:
        self._tell(
            messages.ForkFailed(role=order.role, slot=order.slot, epoch=order.epoch, reason=str(error))
        )

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
                messages.Reaped(
                    pid=pid,
                    status=os.waitstatus_to_exitcode(status),
                    max_rss_bytes=usage.ru_maxrss * 1024,
                    cpu_s=usage.ru_utime + usage.ru_stime,
                )
            )

    def _tell(self, words: messages.ForkFailed | messages.Reaped | messages.ZygoteReady) -> None:
        self._control.send(encode(words))


def _forking(config: NodeConfig, lifeline: int) -> StartChild:
    """Import what the children need, once."""
    # An ImportError here ends the zygote: no worker pays for a missing module.
    work = import_work(config)
    assert_single_threaded()
    gc.collect()
    gc.disable()
    gc.freeze()

    def fork(order: messages.ForkWorker, channel: socket.socket) -> int:
        assert_single_threaded()
        pid = os.fork()
        if pid == 0:
            live(order, channel, lifeline, config, lambda: work)
        return pid

    return fork


def _spawning(settings: Path, lifeline: int) -> StartChild:
    def spawn(order: messages.ForkWorker, channel: socket.socket) -> int:
        os.set_inheritable(channel.fileno(), True)
        command = [sys.executable, "-m", "ppdaemon.worker.spawn", "--config", str(settings)]
        command += ["--channel", str(channel.fileno()), "--lifeline", str(lifeline)]
        command += ["--order", encode(order).decode()]
        # What goes wrong before the process opens its log by itself is there, too.
        log = (os.POSIX_SPAWN_OPEN, 1, order.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
        errors = (os.POSIX_SPAWN_DUP2, 1, 2)
        return os.posix_spawn(sys.executable, command, os.environ, file_actions=[log, errors])

    return spawn


def main() -> None:
    """Import, freeze, serve."""
    parser = argparse.ArgumentParser(prog="ppdaemon-zygote", description=__doc__)
    parser.add_argument("--channel", type=int, required=True, help="descriptor of the supervisor's socket")
    parser.add_argument("--lifeline", type=int, required=True, help="descriptor of the supervisor's pipe")
    parser.add_argument("--config", type=Path, required=True, help="the configuration as JSON")
    options = parser.parse_args()
    die_with_parent()
    adopt_orphans()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    started = time.monotonic()
    config = NodeConfig.model_validate_json(options.config.read_bytes())
    if config.workers.start == "fork":
        setproctitle.setproctitle("ppdaemon zygote")
        start_child = _forking(config, options.lifeline)
    else:
        setproctitle.setproctitle("ppdaemon spawner")
        start_child = _spawning(options.config, options.lifeline)
    control = socket.socket(fileno=options.channel)
    os.set_inheritable(options.channel, False)
    ready = messages.ZygoteReady(
        pid=os.getpid(), import_s=time.monotonic() - started, modules=len(sys.modules)
    )
    control.send(encode(ready))
    Zygote(control, start_child).run()


if __name__ == "__main__":
    main()
