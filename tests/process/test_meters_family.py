# SPDX-License-Identifier: BSD-3-Clause
"""Memory of a worker together with processes that it has forked."""

import subprocess
import sys

from ppdaemon.node.slots.meters import anonymous_bytes, private_bytes, proportional_bytes
from ppdaemon.processes import process_tree

SIZE_BYTES = 100_000_000
PARENT = f"""
import os, sys
content = bytearray(os.urandom(1000)) * ({SIZE_BYTES} // 1000)
if os.fork() == 0:
    print("forked", flush=True)
    sys.stdin.read()
    os._exit(0)
sys.stdin.read()
os.wait()
"""


def test_memory_that_a_worker_shares_with_its_fork_counts_once():
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as worker:
        assert worker.stdout.readline() == b"forked\n"
        members = process_tree(worker.pid)
        assert len(members) == 2
        assert sum(map(anonymous_bytes, members)) > 2 * SIZE_BYTES
        assert sum(map(private_bytes, members)) < SIZE_BYTES // 2
        assert SIZE_BYTES < sum(map(proportional_bytes, members)) < 1.5 * SIZE_BYTES
