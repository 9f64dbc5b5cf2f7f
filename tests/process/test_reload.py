# SPDX-License-Identifier: BSD-3-Clause
"""A daemon that gets another configuration, and one that cannot fork."""

import copy
import os
import re
import resource
import signal

import pytest
from node import running

from ppdaemon.ctl.client import Daemon
from ppdaemon.errors import ConfigError, Refused, Unavailable
from ppdaemon.reports import ReloadRequest
from ppdaemon.states import Outcome, SlotState
from ppdaemon.testing.processes import alive, descendants
from ppdaemon.testing.waiting import TIMEOUT_S


def reload(node):
    """Reload; return the first line of the answer, without the warnings."""
    return node.daemon.ask(ReloadRequest(), timeout_s=TIMEOUT_S).splitlines()[0]


def templates(node):
    return sorted(path.name for path in (node.ramdisk / "ppdaemon-n1").glob("template-*"))


def test_a_good_file_is_in_force_after_a_reload(tmp_path, socket_dir):
    """Fault 54: reload while all workers are idle."""
    with running(tmp_path, socket_dir, min=2, spare=0, max=3) as node:
        before = {row.pid for row in node.workers()}
        (old,) = node.zygotes()
        node.rewrite(workers={"max": 1, "min": 1}, engine={"no_return": ["new"]}, log={"level": "WARNING"})
        assert reload(node) == "the new configuration is in use (generation 2)"
        status = node.status()
        assert (status.generation, status.workers_max, status.problem_texts) == (2, 1, status.problem_texts)
        assert 0 <= status.tai - status.reloaded_tai < TIMEOUT_S
        node.wait(lambda: sorted(row.state for row in node.workers()) == [SlotState.IDLE, SlotState.STOPPED])
        assert not before & {row.pid for row in node.workers()}
        node.succeed("g1")
        assert node.visit("g1")[0].engine == "new"
        node.wait(lambda: node.zygotes() != [old] and len(node.zygotes()) == 1)
        node.wait(lambda: templates(node) == ["template-2"])
        node.wait(lambda: "DemoCam~g1~0~1" in node.exported())
        node.wait(lambda: node.relay.hellos[-1].capacity == 1)


@pytest.mark.slow
def test_a_file_that_is_refused_leaves_everything_as_it_was(tmp_path, socket_dir):
    """Fault 54: reload with a broken file, and with work that cannot be imported."""
    with running(tmp_path, socket_dir) as node:
        before = [row.pid for row in node.workers()]
        good = copy.deepcopy(node.config)
        node.rewrite(workers={"max": 0, "unknown": 1})
        with pytest.raises(ConfigError) as refused:
            reload(node)
        assert {problem.rsplit(": ", 2)[1] for problem in refused.value.problems} == {
            "workers.max",
            "workers.unknown",
        }
        assert [row.pid for row in node.workers()] == before
        assert (node.status().generation, node.status().workers_max) == (1, 6)
        node.config = copy.deepcopy(good)
        node.rewrite(node={"name": "n2"}, arrivals={"roots": [str(tmp_path)]})
        with pytest.raises(ConfigError) as refused:  # to try again would never help
            reload(node)
        text = "cannot change while the daemon runs; restart it instead"
        assert refused.value.problems == (f"node.name: {text}", f"arrivals.roots: {text}")
        (problem,) = node.status().problems
        assert problem.text.endswith(f"node.name: {text}; 1 more error")
        assert node.status().node == "n1"
        node.config = good
        node.rewrite(workers={"preload": ["no_such_module"]})
        with pytest.raises(ConfigError, match="No module named 'no_such_module'"):
            reload(node)
        node.rewrite(workers={"preload": []})
        (node.state / "template-fails").touch()
        with pytest.raises(Refused, match="the template fails by order of the test") as refused:
            reload(node)
        assert "no_such_module" not in str(refused.value)
        assert [row.pid for row in node.workers()] == before
        node.wait(lambda: len(node.zygotes()) == 1 and templates(node) == ["template-1"])
        node.succeed("g1")
        (node.state / "template-fails").unlink()
        assert reload(node).startswith("the new configuration is in use")


@pytest.mark.slow
def test_a_visit_ends_as_it_began_and_the_next_is_of_the_new_configuration(tmp_path, socket_dir):
    """Fault 54: reload in each stage of a visit."""
    times = {"prepare_s": 60, "run_s": 60, "export_s": 60}  # the stage lasts as long as the reload
    with running(tmp_path, socket_dir, min=1, spare=0, max=1, times=times) as node:
        engine = "none"
        for generation, stage in enumerate(("prepare", "process", "export"), 2):
            node.relay.reserve(stage, survey=f"{stage}:gate")
            node.land(stage, number=2 * generation)
            node.wait(lambda stage=stage: node.at_gate(stage))
            (old,) = node.zygotes()
            (worker,) = node.workers()
            node.rewrite(engine={"no_return": [f"in-{stage}"]})
            reload(node)
            assert node.workers()[0].pid == worker.pid
            assert alive(old)
            node.open_gate(stage)
            assert node.relay.outcome(stage).outcome == Outcome.SUCCEEDED
            after = f"after-{stage}"
            node.relay.reserve(after)
            node.land(after, number=2 * generation + 1)
            assert node.relay.outcome(after).outcome == Outcome.SUCCEEDED
            assert [node.visit(group)[0].engine for group in (stage, after)] == [engine, f"in-{stage}"]
            only = [f"template-{generation}"]
            node.wait(lambda old=old, only=only: not alive(old) and templates(node) == only)
            assert node.workers()[0].epoch == generation
            engine = f"in-{stage}"


@pytest.mark.slow
def test_a_visit_that_waits_is_not_disturbed(tmp_path, socket_dir):
    """Fault 54: reload while a worker waits for its raw."""
    with running(tmp_path, socket_dir, min=1, spare=0, max=1, image_timeout_s=100) as node:
        node.relay.reserve("g1")
        node.wait(lambda: node.workers()[0].state == SlotState.WAITING)
        node.rewrite(engine={"no_return": ["new"]})
        for _ in range(2):
            reload(node)
        node.relay.reserve("g2")
        node.land("g1")
        assert node.relay.outcome("g1").outcome == Outcome.SUCCEEDED
        node.land("g2", number=2)
        assert node.relay.outcome("g2").outcome == Outcome.SUCCEEDED
        assert [node.visit(group)[0].engine for group in ("g1", "g2")] == ["none", "new"]
        node.wait(lambda: len(node.zygotes()) == 1 and templates(node) == ["template-3"])


def test_sighup_reloads_and_a_refusal_stays_in_the_status_and_a_stop_during_a_reload_is_a_stop(
    tmp_path, socket_dir
):
    """Fault 54: reload by signal; stop while a reload is under way."""
    with running(tmp_path, socket_dir, environment=path_with(tmp_path)) as node:
        node.rewrite(workers={"max": "many"})
        node.process.send_signal(signal.SIGHUP)
        (problem,) = node.wait(lambda: [each for each in node.status().problems if "refused" in each.text])
        assert "workers.max" in problem.text
        assert (problem.source, problem.degrades) == ("configuration", False)
        assert node.status().state == "running"
        node.rewrite(workers={"max": 5})
        node.process.send_signal(signal.SIGHUP)
        node.wait(lambda: node.status().workers_max == 5)
        assert not [each for each in node.status().problems if "refused" in each.text]
        node.wait(lambda: len(node.zygotes()) == 1)
        (tmp_path / "slow.py").write_text("import time\ntime.sleep(60)\n")
        node.rewrite(workers={"preload": ["slow"]})
        node.process.send_signal(signal.SIGHUP)
        node.wait(lambda: len(node.zygotes()) == 2)
        with pytest.raises(Refused, match="under way"):
            reload(node)


def test_a_stop_during_the_start_is_a_stop(tmp_path, socket_dir):
    """Fault 54: stop before the zygote is ready."""
    (tmp_path / "slow.py").write_text("import time\ntime.sleep(60)\n")
    with running(
        tmp_path, socket_dir, environment=path_with(tmp_path), preload=["slow"], ready=False
    ) as node:
        node.wait(lambda: descendants(node.process.pid) and node.status().state == "starting")


def path_with(folder):
    return {"PYTHONPATH": str(folder)}


@pytest.mark.slow
def test_a_zygote_that_dies_repeatedly_is_restarted_after_longer_pauses(tmp_path, socket_dir):
    """Fault 52: the zygote dies, also while it imports."""
    mood = tmp_path / "bad-mood"
    (tmp_path / "moody.py").write_text(f"import os\nassert not os.path.exists({str(mood)!r}), 'bad mood'\n")
    options = {"environment": path_with(tmp_path), "preload": ["moody"], "image_timeout_s": 100}
    with running(tmp_path, socket_dir, min=1, spare=0, max=2, **options) as node:
        node.relay.reserve("g1")
        node.wait(lambda: node.workers()[0].state == SlotState.WAITING)
        mood.touch()
        os.kill(node.zygotes()[0], signal.SIGKILL)
        node.wait(lambda: any("ended by signal 9 (SIGKILL)" in text for text in node.status().problem_texts))
        again = re.compile(r"ended with status 78, \d+ deaths in a row")
        node.wait(lambda: any(map(again.search, node.status().problem_texts)))
        node.land("g1")
        assert node.relay.outcome("g1").outcome == Outcome.SUCCEEDED
        os.kill(node.workers()[0].pid, signal.SIGKILL)
        node.wait(lambda: "not forked: no zygote" in node.workers()[0].note)
        node.wait(lambda: node.status().state == "degraded")
        node.wait(lambda: node.status().capacity == 0)
        mood.unlink()
        node.wait(lambda: node.status().capacity == 2)
        node.relay.reserve("g2")
        node.land("g2", number=2)
        assert node.relay.outcome("g2").outcome == Outcome.SUCCEEDED
        assert node.status().counters["zygote_gone"] >= 2


@pytest.mark.slow
def test_a_zygote_that_hangs_is_replaced(tmp_path, socket_dir):
    """Fault 52: the zygote is stopped, not dead."""
    with running(tmp_path, socket_dir, min=1, spare=0, max=1, times={"boot_s": 4}) as node:
        os.kill(node.zygotes()[0], signal.SIGSTOP)
        os.kill(node.workers()[0].pid, signal.SIGKILL)
        node.wait(lambda: any("has not answered for 2 s" in text for text in node.status().problem_texts))
        node.wait(lambda: node.workers()[0].state == SlotState.IDLE)


def limit_descriptors(pid, free):
    """Let a process open a few more files and no other; return its old limit."""
    opened = set(map(int, os.listdir(f"/proc/{pid}/fd")))
    unused = [number for number in range(len(opened) + free + 1) if number not in opened]
    _, most = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    return resource.prlimit(pid, resource.RLIMIT_NOFILE, (unused[free] if free else 5, most))


@pytest.fixture(scope="module")
def changes():
    """Return the configuration of the daemon whose descriptors run out."""
    return {"min": 2, "spare": 0, "max": 2, "memory": {"sample_s": 0.1}}


@pytest.mark.slow
def test_a_zygote_without_descriptors_is_reported_and_retried(node, group):
    """Fault 53: forks fail."""
    node.wait(node.is_ready)
    failed = node.status().counters.get("fork_failed", 0)
    (zygote,) = node.zygotes()
    limit = limit_descriptors(zygote, 1)  # it lists its threads before it forks
    try:
        os.kill(node.workers()[0].pid, signal.SIGKILL)
        node.wait(lambda: any("forking fails: " in text for text in node.status().problem_texts))
        assert node.status().state == "degraded"
        node.wait(lambda: node.status().counters["fork_failed"] > failed + 2)
    finally:
        resource.prlimit(zygote, resource.RLIMIT_NOFILE, limit)
    node.wait(lambda: node.status().slots == {SlotState.IDLE: 2})
    node.succeed(group)
    assert node.zygotes() == [zygote]


@pytest.mark.slow
def test_a_supervisor_without_free_descriptors_continues(node, group):
    """Fault 53: descriptors run out."""
    node.wait(lambda: node.status().slots == {SlotState.IDLE: 2})
    node.relay.reserve(group)
    node.wait(lambda: any(row.state == SlotState.WAITING for row in node.workers()))
    (idle,) = [row for row in node.workers() if row.state == SlotState.IDLE]
    limit = limit_descriptors(node.process.pid, 0)
    try:
        os.kill(idle.pid, signal.SIGKILL)
        with pytest.raises(Unavailable):
            Daemon(node.control, timeout_s=1.5).status()
    finally:
        resource.prlimit(node.process.pid, resource.RLIMIT_NOFILE, limit)
    node.land(group)
    assert node.relay.outcome(group).outcome == Outcome.SUCCEEDED
    node.wait(lambda: node.status().slots == {SlotState.IDLE: 2})
