# SPDX-License-Identifier: BSD-3-Clause
"""The zygote: starts all processes of a configuration, and reaps them.

It imports all modules once and forks the processes from a single thread; or, for stacks that
cannot be forked, imports nothing and starts a fresh interpreter for each.

It is a separate program: it opens no Butler, no database, no ZeroMQ context and no log file,
so that no child inherits one. It ends with the supervisor; so do its children, by their own
lifelines.
"""

import argparse
import dataclasses
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from ppdaemon import messages
from ppdaemon.config import NodeConfig
from ppdaemon.errors import ConfigError
from ppdaemon.processes import GROUP_SIGNALS, become_subreaper, die_with_parent, kill_orphans, set_title
from ppdaemon.wire import decode, encode
from ppdaemon.worker import warmup
from ppdaemon.worker.childmain import inherited, run_child
from ppdaemon.worker.imports import thread_names
from ppdaemon.worker.main import Inherited
from ppdaemon.worker.sharedpages import keep_pages_shared

__all__ = ("Zygote", "assert_single_threaded", "main")

type StartChild = Callable[[messages.ForkWorker, socket.socket], int]
"""Starts a process with its end of the channel; returns its pid."""


def assert_single_threaded() -> None:
    """Raise `RuntimeError` if there is a second thread, with the names of all: a fork would copy
    its locks in an unknown state.
    """
    names = thread_names()
    if len(names) > 1:
        raise RuntimeError(
            f"the zygote cannot fork, a module has started threads ({', '.join(names)}): see workers.start"
        )


class Zygote:
    """Starts processes on request and reports those that have ended. `control` is a
    ``SOCK_SEQPACKET`` socket to the supervisor; `start_child` may raise `OSError` and
    `RuntimeError`.
    """

    def __init__(self, control: socket.socket, start_child: StartChild):
        self._control = control
        self._start_child = start_child
        self._children: set[int] = set()

    def run(self) -> None:
        """Serve until the supervisor closes its end."""
        wake_r, wake_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        # The handler only wakes the poll below: children are reaped in the loop.
        signal.signal(signal.SIGCHLD, lambda *_: None)
        # A full pipe wakes the poll as well: no warning.
        signal.set_wakeup_fd(wake_w, warn_on_full_buffer=False)
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(wake_r, select.POLLIN)
        while True:
            for descriptor, _ in poll.poll():
                if descriptor == wake_r:
                    # Read before the reaping: a child that ends meanwhile wakes the poll again.
                    os.read(wake_r, 4096)
                    self._reap()
                elif not self._serve():
                    return

    def _serve(self) -> bool:
        """Carry out one order; return `False` when the supervisor has closed its end."""
        packet = self._control.recv(messages.PACKET_LIMIT)
        if packet:
            self._start(decode(packet, messages.ZYGOTE_ORDERS, limit=messages.PACKET_LIMIT))
        return bool(packet)

    def _start(self, order: messages.ForkWorker) -> None:
        try:
            supervisor_end, child_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:
            self._refuse(order, error)
            return
        with supervisor_end, child_end:
            try:
                pid = self._start_child(order, child_end)
            except (OSError, RuntimeError) as error:
                self._refuse(order, error)
                return
            self._children.add(pid)
            # Valid even if the child has ended: only this thread reaps it, and not before.
            pidfd = os.pidfd_open(pid)
            try:
                message = messages.Forked(role=order.role, slot=order.slot, epoch=order.epoch, pid=pid)
                socket.send_fds(self._control, [encode(message)], [supervisor_end.fileno(), pidfd])
            finally:
                os.close(pidfd)  # sent descriptors are copies

    def _refuse(self, order: messages.ForkWorker, error: Exception) -> None:
        self._send(
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
            # Its descendants are children of this process now.
            kill_orphans(self._children)
            if pid not in self._children:
                continue  # an orphan that was killed; its own children were killed just now
            self._children.discard(pid)
            self._send(
                messages.Reaped(
                    pid=pid,
                    status=os.waitstatus_to_exitcode(status),
                    cpu_s=usage.ru_utime + usage.ru_stime,
                )
            )

    def _send(self, message: messages.ForkFailed | messages.Reaped | messages.ZygoteReady) -> None:
        self._control.send(encode(message))


def _warmed(
    common: Inherited, config: NodeConfig, control: socket.socket, cold: str
) -> tuple[Inherited, str]:
    """Return also what children inherit of a warm-up, and why there was none, or a blank."""
    if cold:
        return common, cold
    try:
        with warmup.time_limit(control):
            return dataclasses.replace(common, warmed=warmup.warm_up(common.work, config)), ""
    except warmup.LeftOpen as error:
        warmup.restart_cold(f"it leaves {error}", control)
    except Exception as error:  # code of the site
        traceback.print_exc()
        return common, f"it raises {type(error).__name__}: {error}"


def _forking(common: Inherited, config: NodeConfig, lifeline: int) -> StartChild:
    """Return a function that forks."""
    assert_single_threaded()
    keep_pages_shared()

    def fork(order: messages.ForkWorker, channel: socket.socket) -> int:
        assert_single_threaded()
        pid = os.fork()
        if pid == 0:
            run_child(order, channel, lifeline, config, lambda: common)
        return pid

    return fork


def _spawning(settings: Path, lifeline: int) -> StartChild:
    def spawn(order: messages.ForkWorker, channel: socket.socket) -> int:
        os.set_inheritable(channel.fileno(), True)
        command = [sys.executable, "-m", "ppdaemon.worker.spawn", "--config", str(settings)]
        command += ["--channel", str(channel.fileno()), "--lifeline", str(lifeline)]
        command += ["--order", encode(order).decode()]
        # Errors before the process opens its log by itself are written there, too.
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
    parser.add_argument("--cold", default="", metavar="REASON", help="do not warm up")
    options = parser.parse_args()
    die_with_parent()
    become_subreaper()
    # Ignored, not handled: a process that is spawned inherits this, so that it is ignored from its start.
    for number in GROUP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    control = socket.socket(fileno=options.channel)
    os.set_inheritable(options.channel, False)
    started, cold = time.monotonic(), ""
    config = NodeConfig.model_validate_json(options.config.read_bytes())
    if config.workers.start == "fork":
        set_title("ppdaemon zygote")
        try:
            # An error here ends the zygote before any worker is forked.
            common = inherited(config)
        except ConfigError as error:
            print(error, file=sys.stderr)
            control.send(encode(messages.ZygoteRefused(problems=error.problems)))
            sys.exit(error.exit_code)
        assert_single_threaded()
        common, cold = _warmed(common, config, control, options.cold)
        start_child = _forking(common, config, options.lifeline)
    else:
        set_title("ppdaemon spawner")
        start_child = _spawning(options.config, options.lifeline)
    ready = messages.ZygoteReady(
        pid=os.getpid(), import_s=time.monotonic() - started, modules=len(sys.modules), cold=cold
    )
    control.send(encode(ready))
    Zygote(control, start_child).run()


if __name__ == "__main__":
    main()
