# SPDX-License-Identifier: BSD-3-Clause
"""The zygote's warm-up, and what happens if it fails or leaves something; with the real zygote."""

import os
import platform
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from node import running

from ppdaemon.config import NodeConfig
from ppdaemon.messages import ZYGOTE_FACTS, ZygoteReady
from ppdaemon.node.processes.child import Lifeline, launch
from ppdaemon.testing.node import node_config
from ppdaemon.testing.waiting import TIMEOUT_S
from ppdaemon.wire import decode

WORK = """
import os, subprocess, sys, threading, time
from ppdaemon.testing.work import *
from ppdaemon.worker import warmup

KEPT = []

def warm_up(config):
    {}
"""


@contextmanager
def zygote(folder, sockets, body, start="fork"):
    """Start a zygote whose work module has this warm-up; yield its channel and what it has sent first."""
    (folder / "site_work.py").write_text(WORK.format(body))
    workers = {"work": "site_work", "start": start}
    config = NodeConfig.model_validate(node_config(folder, sockets, workers=workers))
    settings = folder / "config.json"
    settings.write_text(config.model_dump_json())
    lifeline, log = Lifeline(), folder / "zygote.log"
    environment = os.environ | {"PYTHONPATH": str(folder)}
    child = launch("ppdaemon.worker.zygote", ["--config", str(settings)], lifeline, environment, log)
    try:
        child.channel.settimeout(TIMEOUT_S)
        packet = child.channel.recv(100_000)
        assert packet, log.read_text()
        yield child, decode(packet, ZYGOTE_FACTS, limit=len(packet))
    finally:
        child.channel.shutdown(socket.SHUT_RDWR)
        child.reap()
        child.close()
        lifeline.close()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("pass", ""),
        ("KEPT.append(open(__file__)); KEPT.pop().close()", ""),
        ("raise SyntaxError('in a pipeline')", "it raises SyntaxError: in a pipeline"),
        ("KEPT.append(open(__file__))", "it leaves {folder}/site_work.py open"),
        ("KEPT.append(open(__file__)); 1 / 0", "it leaves {folder}/site_work.py open"),
        (
            "threading.Thread(target=threading.Event().wait, daemon=True).start()",
            "it leaves a thread, of site_work",
        ),
        ("KEPT.append(subprocess.Popen(['sleep', '60']))", "it leaves process "),
    ],
)
def test_a_warm_up_leaves_nothing_or_there_is_none(tmp_path, socket_dir, body, reason):
    with zygote(tmp_path, socket_dir, body) as (child, ready):
        assert isinstance(ready, ZygoteReady)
        assert ready.pid == child.pid  # also of a zygote that has started again
        assert ready.cold.startswith(reason.format(folder=tmp_path)) if reason else ready.cold == ""
        assert sorted(os.listdir(f"/proc/{child.pid}/task")) == [str(child.pid)]
        targets = {
            os.readlink(f"/proc/{child.pid}/fd/{name}") for name in os.listdir(f"/proc/{child.pid}/fd")
        }
        assert not any("site_work" in target for target in targets)


def test_a_warm_up_that_hangs_is_given_up(tmp_path, socket_dir):
    body = "time.sleep(600)\n\nwarmup.LIMIT_S = 0.05"
    with zygote(tmp_path, socket_dir, body) as (_, ready):
        assert ready.cold == "it takes longer than 0.05 s"


def test_spawned_workers_have_no_warm_up(tmp_path, socket_dir):
    with zygote(tmp_path, socket_dir, "KEPT.append(open(__file__))", start="spawn") as (_, ready):
        assert ready.cold == ""


def test_a_cold_node_processes_visits_and_logs_why(tmp_path, socket_dir):
    (tmp_path / "site_work.py").write_text(WORK.format("KEPT.append(open(__file__))"))
    environment = {"PYTHONPATH": str(tmp_path)}
    with running(tmp_path, socket_dir, work="site_work", environment=environment, min=1, max=1) as node:
        node.succeed("g1")
        log = (tmp_path / "daemon.log").read_text()
        assert f"without a warm-up: it leaves {tmp_path}/site_work.py open" in log


def test_a_warm_up_that_crashes_the_zygote_does_not_stop_the_node(tmp_path, socket_dir):
    (tmp_path / "site_work.py").write_text(WORK.format("os.abort()"))
    environment = {"PYTHONPATH": str(tmp_path)}
    with running(tmp_path, socket_dir, work="site_work", environment=environment, min=1, max=1):
        log = (tmp_path / "daemon.log").read_text()
        assert "without a warm-up: with one, the zygote ended by signal 6 (SIGABRT)" in log


SHARED = """
import os, sys
from ppdaemon.worker.sharedpages import keep_pages_shared

def private_bytes():
    with open("/proc/self/smaps_rollup") as lines:
        return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))

{}
if keep_pages_shared:
    keep_pages_shared()
if os.fork() == 0:
    before = private_bytes()
    {}
    print(private_bytes() - before)
    sys.stdout.flush()
    os._exit(0)
os.wait()
"""


def growth(setup, use, *, kept=True):
    """Return how much private memory a forked child gets by an action."""
    script = SHARED.format(setup if kept else f"{setup}; keep_pages_shared = None", use)
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return int(ended.stdout)


def test_a_child_that_reads_objects_copies_no_pages():
    objects, reading = "objects = [(number, str(number)) for number in range(100_000)]", "all(objects)"
    assert growth(objects, reading) < 500_000
    assert growth(objects, reading, kept=False) > 5_000_000  # what it is good for


def test_a_child_that_runs_functions_copies_no_pages_of_their_constants():
    functions = "functions = [eval(f'lambda: (0.5, {n}.5, b{n!r})[1]') for n in map(str, range(20_000))]"
    # Run before the fork, too: Python replaces instructions in the first few runs.
    functions += "\nfor _ in range(4): all(each() for each in functions)"
    running = "all(each() for each in functions)"
    assert growth(functions, running) < 500_000
    assert growth(functions, running, kept=False) > 2_000_000


@pytest.mark.parametrize("kept", [True, False])
def test_gaps_in_the_heap_are_not_used_again(kept):
    script = f"""
import ctypes
from ppdaemon.worker.sharedpages import keep_pages_shared
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, (ctypes.c_void_p,)
gaps = [libc.malloc(1000) for _ in range(8_000)][::8]
for gap in gaps:
    libc.free(gap)
if {kept}:
    keep_pages_shared()
print(len(set(gaps) & {{libc.malloc(1000) for _ in range(1_000)}}))
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    # The C library has seven blocks of each size in a cache.
    assert int(ended.stdout) <= 7 if kept else int(ended.stdout) > 900


@pytest.mark.parametrize("kept", [True, False])
def test_gaps_between_objects_are_not_used_again(kept):
    script = f"""
from ppdaemon.worker.sharedpages import keep_pages_shared
objects = [bytes(100) for _ in range(80_000)]
gaps = {{id(each) for each in objects[::8]}}
del objects[::8]
if {kept}:
    keep_pages_shared()
new = [bytes(100) for _ in range(5_000)]
print(len(gaps & {{id(each) for each in new}}))
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(ended.stdout) < 100 if kept else int(ended.stdout) > 4_500


def test_memory_in_use_is_put_into_huge_pages():
    script = """
import mmap
from pathlib import Path
from ppdaemon.worker.sharedpages import keep_pages_shared
used, size = bytearray(64 << 20), 64 << 20
sparse = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for address in range(0, size, 2 << 20):
    sparse[address] = 1
keep_pages_shared()
lines = map(str.split, Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
values = {line[0]: int(line[1]) * 1024 for line in lines}
print(values["AnonHugePages:"], values["Anonymous:"])
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    huge_bytes, used_bytes = map(int, ended.stdout.split())
    release = tuple(map(int, platform.release().split(".")[:2]))
    assert huge_bytes > 0 or release < (6, 1) or not Path("/sys/kernel/mm/transparent_hugepage").exists()
    assert used_bytes < 120_000_000, "what is hardly used stays small"


def test_an_allocator_with_new_memory_below_the_heap_does_not_take_all_memory():
    script = """
import resource
from types import SimpleNamespace
from ppdaemon.worker import sharedpages
libc, limit = sharedpages._LIBC, 1_000_000_000
names = {name: getattr(libc, name) for name in ("malloc", "free", "malloc_trim")}
sharedpages._LIBC = SimpleNamespace(sbrk=lambda _: 2**63, **names)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
sharedpages.keep_pages_shared()
bytearray(limit // 2)
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_what_a_child_creates_is_counted_and_deleted():
    script = """
import gc, os, sys, weakref
from ppdaemon.worker.sharedpages import keep_pages_shared
class Thing: pass
old = Thing()
number = keep_pages_shared()
assert number > 10_000 and not gc.isenabled() and gc.get_freeze_count() > 1_000
assert sys.getrefcount(old) == sys.getrefcount(None) == sys.getrefcount(Thing)
old.new = new = Thing()
gone = weakref.ref(new)
del new, old.new
assert gone() is None
cycle = Thing()
cycle.self, gone = cycle, weakref.ref(cycle)
del cycle
gc.collect()
assert gone() is None
"""
    subprocess.run([sys.executable, "-c", script], check=True)
