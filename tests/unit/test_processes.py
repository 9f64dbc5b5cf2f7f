# SPDX-License-Identifier: BSD-3-Clause
"""Names of signals, and signals that end no worker."""

import signal
import subprocess
import sys

from ppdaemon.processes import signal_name


def test_signals_have_names_where_python_knows_one():
    assert signal_name(signal.SIGKILL) == "SIGKILL"
    assert signal_name(signal.SIGRTMIN + 3) == f"signal {signal.SIGRTMIN + 3}"


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
