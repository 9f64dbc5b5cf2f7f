# SPDX-License-Identifier: BSD-3-Clause
"""Network namespaces as hosts: connections that are cut and healed, and what a killed test leaves."""

import signal
import subprocess
import sys

import pytest

from ppdaemon.testing import hosts as module
from ppdaemon.testing.hosts import Hosts, why_not
from ppdaemon.testing.waiting import wait_until

pytestmark = pytest.mark.skipif(bool(reason := why_not()), reason=reason or "")

SERVER = """
import socket, sys
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind((sys.argv[1], 5000))
print("bound", flush=True)
while True:
    data, sender = server.recvfrom(100)
    print(data.decode(), flush=True)
    server.sendto(data, sender)
"""
CLIENT = """
import socket, sys
client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
client.settimeout(float(sys.argv[3]))
client.sendto(sys.argv[2].encode(), (sys.argv[1], 5000))
try:
    print(client.recv(100).decode())
except TimeoutError:
    print("nothing")
"""


def ask(hosts, text, wait_s=10.0):
    """Send a text from the first host to the second, and return the answer."""
    command = [*hosts.launcher("one"), sys.executable, "-c", CLIENT, hosts.address("two"), text, str(wait_s)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_a_connection_is_cut_in_one_direction_and_healed():
    with Hosts(["one", "two"]) as hosts:
        command = [*hosts.launcher("two"), sys.executable, "-c", SERVER, hosts.address("two")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            try:
                assert server.stdout.readline() == "bound\n"
                assert ask(hosts, "whole") == "whole"
                hosts.cut("one", "two")
                assert ask(hosts, "lost", wait_s=0.2) == "nothing"
                hosts.heal()
                hosts.cut("two", "one")
                assert ask(hosts, "unanswered", wait_s=0.2) == "nothing"
                hosts.heal("one")
                assert ask(hosts, "healed") == "healed"
            finally:
                server.kill()
            received = server.stdout.read().splitlines()
    assert received == ["whole", "unanswered", "healed"]


def test_the_hosts_of_a_killed_process_are_removed_by_the_next_one():
    script = (
        "import time; from ppdaemon.testing.hosts import Hosts\n"
        "with Hosts(['one']): print('made', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "made\n"
        namespace = f"{module.PREFIX}-{process.pid}-0-one"
        assert namespace in module._namespaces()  # not later: the next one may be another test process
        process.send_signal(signal.SIGKILL)
    with Hosts(["one"]):
        assert namespace not in module._namespaces()


def test_nothing_remains_after_the_end():
    with Hosts(["one"]) as hosts:
        namespaces = {hosts._namespace("one"), hosts._namespace("switch")}
        assert namespaces <= set(module._namespaces())
    wait_until(lambda: not namespaces & set(module._namespaces()))
