# SPDX-License-Identifier: BSD-3-Clause
"""Names of signals, signals that end no worker, and children."""

import os
import signal
import subprocess
import sys

import pytest

from ppdaemon.processes import describe_end, signal_name


def test_signals_have_names_where_python_knows_one():
    assert signal_name(signal.SIGKILL) == "SIGKILL"
    assert signal_name(signal.SIGRTMIN + 3) == f"signal {signal.SIGRTMIN + 3}"


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (0, "ended with status 0"),
        (70, "ended with status 70"),
        (-signal.SIGKILL, "ended by signal 9 (SIGKILL)"),
        (-signal.SIGRTMIN - 3, f"ended by signal {signal.SIGRTMIN + 3}"),
        (None, "ended with unknown status"),
    ],
)
def test_the_end_of_a_process_has_its_status_or_signal(status, text):
    assert describe_end(status) == text


def test_a_signal_to_the_group_ends_programs_that_a_task_has_started_and_not_the_worker():
    code = (
        "import os, signal, subprocess\n"
        "from ppdaemon.processes import GROUP_SIGNALS, disregard_group_signals\n"
        "disregard_group_signals()\n"
        "for number in GROUP_SIGNALS:\n"
        "    os.kill(os.getpid(), number)\n"
        "    print(subprocess.run(['sh', '-c', f'kill -{int(number)} $$']).returncode)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(-number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]


CLONE = {"x86_64": 56, "aarch64": 220}
"""Number of the system call by processor."""


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        ("", False),
        ("child = os.fork() or time.sleep(60)", True),
        ("os.fork() or os._exit(0)", True),  # nothing has waited for it
        ("os.waitpid(os.fork() or os._exit(0), 0)", False),
        # Its end would send no signal.
        (f"ctypes.CDLL(None).syscall({CLONE[os.uname().machine]}, 0, 0, 0, 0, 0) or time.sleep(60)", True),
        ("signal.signal(signal.SIGCHLD, signal.SIG_IGN); os.fork() or time.sleep(60)", True),
    ],
)
def test_children_are_found_as_in_their_list(step, expected):
    code = (
        "import ctypes, os, signal, time\n"
        "from ppdaemon.processes import children, has_children\n"
        f"{step}\n"
        "print(has_children(), bool(children()))\n"
        "for child in children():\n"
        "    os.kill(child, signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(expected)] * 2
