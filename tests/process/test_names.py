# SPDX-License-Identifier: BSD-3-Clause
"""A daemon whose configuration has names that do not exist, or that cannot be resolved now."""

import os
import signal
import subprocess
import sys

import pytest
from node import make_node, running

from ppdaemon.errors import ConfigError, Refused
from ppdaemon.messages import NameFinding
from ppdaemon.reports import ReloadRequest, ResumeRequest
from ppdaemon.states import ExitCode, Outcome, SlotState
from ppdaemon.testing.played import PlayedRelay
from ppdaemon.testing.processes import alive, descendants
from ppdaemon.testing.waiting import TIMEOUT_S

ERRORS = (
    NameFinding(level="error", key=("engine", "no_return", 0), text="no task asociate"),
    NameFinding(level="error", key=("workers", "min"), text="second"),
)
AWAY = NameFinding(level="unavailable", key=("pipelines", "main"), text="the database is away")
WARNING = NameFinding(level="warning", key=("export", "retry_s"), text="matches nothing")
FALLBACK = NameFinding(level="fallback", key=("pipelines", "main", 1), text="the first is dropped")


def write(node, *findings):
    """Write the findings of the next check of names."""
    node.state.mkdir(exist_ok=True)
    lines = [finding.model_dump_json() for finding in findings]
    (node.state / "names.part").write_text("\n".join(lines))
    (node.state / "names.part").rename(node.state / "names")


def lines_of(node, *findings):
    """Return the lines that report these findings."""
    text = node.path.read_text().splitlines()
    found = []
    for finding in findings:
        key = next(step for step in reversed(finding.key) if isinstance(step, str))
        line = next(k for k, content in enumerate(text, 1) if content.strip().startswith(f"{key}:"))
        line += finding.key[-1] + 1 if isinstance(finding.key[-1], int) and key == "no_return" else 0
        found.append((line, f"{'.'.join(map(str, finding.key))}: {finding.text}"))
    return [f"{node.path}:{line}: {text}" for line, text in found]


def await_problem(node, finding):
    """Wait for a finding; before that the start may read the file of the next findings instead."""
    node.wait(lambda: any(text.endswith(finding.text) for text in node.status().problem_texts))


def check(node, *options):
    command = [sys.executable, "-m", "ppdaemon.node.app", "check-config", f"--config={node.path}", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def reload(node):
    return node.daemon.ask(ReloadRequest(), timeout_s=TIMEOUT_S).splitlines()


def test_all_errors_are_the_same_at_start_reload_and_check_config(tmp_path, socket_dir):
    """Fault 78: with names that do not exist, the daemon does not start."""
    node = make_node(tmp_path, socket_dir)
    node.config["engine"] = {"no_return": ["asociate"]}
    write(node, *ERRORS, WARNING)
    node.launch()
    assert node.process.wait(TIMEOUT_S) == ExitCode.CONFIG
    first, second = lines_of(node, *ERRORS)
    assert f"ppdaemon: {first}\n{second}\n" in node.log.read_text()
    checked = check(node)
    assert checked.returncode == ExitCode.CONFIG
    assert checked.stderr.endswith(f"ppdaemon: {first}\n{second}\n")
    assert f"ppdaemon: warning: {lines_of(node, WARNING)[0]}\n" in checked.stderr
    write(node)
    with running(tmp_path, socket_dir, environment={}) as node:
        node.wait(lambda: "s after the start" in node.log.read_text())  # it has read the file
        node.rewrite(engine={"no_return": ["asociate"]})
        write(node, *ERRORS, AWAY)
        with pytest.raises(ConfigError) as refused:
            reload(node)
        assert refused.value.problems == tuple(lines_of(node, *ERRORS))
        node.process.send_signal(signal.SIGHUP)
        node.wait(lambda: any("second" in text for text in node.status().problem_texts))
        assert node.status().generation == 1


def test_no_visit_runs_before_the_names_of_tasks_are_resolved(tmp_path, socket_dir):
    """Fault 78: a visit is recovered with a name in `no_return` that does not exist, and runs again when
    the file is correct: its results must not be written twice.
    """
    node = make_node(tmp_path, socket_dir, PlayedRelay(), attempts=3)  # each start is one more
    try:
        node.start()
        node.relay.reserve("g1")
        node.wait(lambda: any(row.state == SlotState.WAITING for row in node.workers()))
        node.kill()
        node.land("g1")
        (node.state / "task-names-hang").touch()
        write(node, *ERRORS)
        node.launch()
        node.wait(lambda: node.status().queued == 1 and node.status().slots.get(SlotState.IDLE))
        (node.state / "task-names-hang").unlink()
        assert node.process.wait(TIMEOUT_S) == ExitCode.CONFIG
        assert node.marks() == {}
        write(node)
        node.start()
        assert node.relay.outcome("g1").outcome == Outcome.SUCCEEDED
        assert node.marks() == {"g1~0": 1}
    finally:
        node.stop()
        node.relay.close()


def test_visits_end_in_time_before_an_error_ends_the_start(tmp_path, socket_dir):
    """Fault 78: an error of another name is found when visits run already."""
    node = make_node(tmp_path, socket_dir, PlayedRelay())
    node.state.mkdir()
    (node.state / "names-hang").touch()
    write(node, ERRORS[1])
    try:
        node.start()
        node.relay.reserve("g1", survey="written:gate")
        node.land("g1")
        node.wait(lambda: node.at_gate("g1"))
        (node.state / "names-hang").unlink()
        node.wait(lambda: node.status().state == "stopping")
        node.open_gate("g1")
        assert node.relay.outcome("g1").outcome == Outcome.SUCCEEDED
        assert node.process.wait(TIMEOUT_S) == ExitCode.CONFIG
        assert node.marks() == {"g1~0": 1}
    finally:
        node.stop()
        node.relay.close()


def test_an_error_ends_a_start_whose_template_fails_too(tmp_path, socket_dir):
    node = make_node(tmp_path, socket_dir)
    node.config["engine"] = {"no_return": ["asociate"]}
    write(node, *ERRORS)
    (node.state / "template-fails").touch()
    node.launch()
    assert node.process.wait(TIMEOUT_S) == ExitCode.CONFIG
    assert lines_of(node, *ERRORS)[1] in node.log.read_text()


def test_an_error_that_is_found_when_the_central_repo_is_back_ends_the_start(tmp_path, socket_dir):
    node = make_node(tmp_path, socket_dir)
    node.state.mkdir()
    (node.state / "template-unavailable").touch()
    write(node, AWAY)
    node.launch()
    try:
        node.wait(lambda: node.status().state == "degraded")
        write(node, ERRORS[1])
        (node.state / "template-unavailable").unlink()
        assert node.process.wait(TIMEOUT_S) == ExitCode.CONFIG
        assert lines_of(node, ERRORS[1])[0] in node.log.read_text()
    finally:
        node.stop()


def test_every_module_that_cannot_be_imported_is_named(tmp_path, socket_dir):
    node = make_node(tmp_path, socket_dir, preload=["ppdaemon.testing.wrok", "no_such", "json"])
    node.launch()
    assert node.process.wait(TIMEOUT_S) == ExitCode.CONFIG
    log = node.log.read_text()
    assert "workers.preload.0: ppdaemon.testing.wrok cannot be imported" in log
    assert "did you mean 'ppdaemon.testing.work'?" in log
    assert "workers.preload.1: no_such cannot be imported" in log


def test_a_script_among_the_modules_is_named(tmp_path, socket_dir):
    (tmp_path / "site_script.py").write_text("raise SystemExit(0)\n")
    node = make_node(tmp_path, socket_dir, preload=["site_script"], environment={"PYTHONPATH": str(tmp_path)})
    node.rewrite()
    checked = check(node)
    assert checked.returncode == ExitCode.CONFIG
    assert "workers.preload.0: site_script cannot be imported: SystemExit: 0" in checked.stderr


def test_bytes_of_a_name_that_are_no_text_are_reported(tmp_path, socket_dir):
    (tmp_path / "site_module.py").write_text("raise FileNotFoundError('/data/\\udc80')\n")
    node = make_node(tmp_path, socket_dir, preload=["site_module"], environment={"PYTHONPATH": str(tmp_path)})
    node.rewrite()
    assert "site_module cannot be imported: FileNotFoundError: /data/\\udc80" in check(node).stderr


def test_a_warning_that_is_found_later_is_logged_once(tmp_path, socket_dir):
    node = make_node(tmp_path, socket_dir)
    write(node, AWAY)
    with running(tmp_path, socket_dir) as node:
        write(node, WARNING, AWAY)
        text = lines_of(node, WARNING)[0]
        node.wait(lambda: text in node.log.read_text())
        write(node)
        node.wait(lambda: node.status().state == "running")
        assert node.log.read_text().count(text) == 1


def test_a_fallback_is_an_error_of_check_config_alone(tmp_path, socket_dir):
    with running(tmp_path, socket_dir) as node:
        write(node, FALLBACK)
        (line,) = lines_of(node, NameFinding(level="fallback", key=("pipelines", "main"), text=""))
        line = line.rpartition(":")[0].rpartition(":")[0]
        assert check(node).returncode == ExitCode.FAILED
        allowed = check(node, "--allow-fallback")
        assert allowed.returncode == ExitCode.OK
        assert "ppdaemon: warning: " in allowed.stderr
        answer = reload(node)
        assert answer[0] == "generation 2 serves"
        assert any(text.endswith("pipelines.main.1: the first is dropped") for text in answer[1:])


def test_what_cannot_be_resolved_is_resolved_later(tmp_path, socket_dir):
    """Fault 78: a database is away at the start, and at a reload."""
    node = make_node(tmp_path, socket_dir)
    write(node, AWAY)
    with running(tmp_path, socket_dir) as node:
        problem = f"not resolved yet: {lines_of(node, AWAY)[0]}"
        node.wait(lambda: problem in node.status().problem_texts)  # a slow check may end after the start
        assert node.status().state == "degraded"
        node.relay.reserve("g1")
        node.land("g1")
        assert node.relay.outcome("g1").outcome == Outcome.SUCCEEDED
        assert f"warning: {lines_of(node, AWAY)[0]}; it is resolved later" in reload(node)
        assert problem in node.status().problem_texts
        write(node)
        node.wait(lambda: node.status().state == "running")
        assert problem not in node.status().problem_texts


def test_an_error_that_is_found_later_stops_new_visits_if_they_could_be_doubled(tmp_path, socket_dir):
    """Fault 78: the mount of a pipeline file comes back, and a name in `no_return` does not exist."""
    node = make_node(tmp_path, socket_dir)
    write(node, AWAY)
    with running(tmp_path, socket_dir) as node:
        await_problem(node, AWAY)
        write(node, ERRORS[1])
        await_problem(node, ERRORS[1])
        assert node.status().state == "degraded"
        write(node, AWAY)
        reload(node)
        node.rewrite(engine={"no_return": ["asociate"]})
        write(node, *ERRORS)
        node.wait(lambda: node.status().state == "draining")
        assert any("no task asociate" in text for text in node.status().problem_texts)
        write(node)
        reload(node)
        assert not any("asociate" in text for text in node.status().problem_texts)


def test_an_operator_who_resumes_is_not_overruled_by_the_same_error(tmp_path, socket_dir):
    node = make_node(tmp_path, socket_dir)
    write(node, AWAY)
    with running(tmp_path, socket_dir) as node:
        await_problem(node, AWAY)
        write(node, ERRORS[0], AWAY)
        node.wait(lambda: node.status().state == "draining")
        node.daemon.ask(ResumeRequest(), timeout_s=TIMEOUT_S)
        write(node, *ERRORS, AWAY)
        await_problem(node, ERRORS[1])
        assert node.status().state == "degraded"
        assert node.log.read_text().count("correct the file, ppctl reload, then ppctl resume") == 1


@pytest.mark.waits("the service manager answers after 1.2 s; orphans are killed each second")
def test_a_reload_compares_the_stop_with_the_unit(tmp_path, socket_dir, monkeypatch):
    program = tmp_path / "systemctl"
    program.write_text("#!/bin/sh\nsleep 1.2\nprintf 'loaded\\n1s\\n'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with running(tmp_path, socket_dir) as node:
        assert [text for text in reload(node) if "workers.times.stop_s: a stop takes up to" in text]


def test_a_check_that_dies_is_no_error(tmp_path, socket_dir):
    """Fault 78: a pipeline crashes the process that imports it."""
    node = make_node(tmp_path, socket_dir)
    node.state.mkdir()
    (node.state / "names").mkdir()  # the check ends with an exception
    with running(tmp_path, socket_dir) as node:
        node.wait(lambda: any("not resolved" in text for text in node.status().problem_texts))
        (text,) = (text for text in node.status().problem_texts if "not resolved" in text)
        assert "the names of the test: the process that resolves names ended with status 70" in text
        assert "IsADirectoryError" in text


def test_a_stop_ends_the_check(tmp_path, socket_dir):
    """Fault 54: stop while a database does not answer."""
    node = make_node(tmp_path, socket_dir)
    node.state.mkdir()
    (node.state / "names-hang").touch()
    with running(tmp_path, socket_dir, ready=False) as node:
        node.wait(lambda: node.status().state == "running")
        children = descendants(node.process.pid)
    assert not any(map(alive, children))


@pytest.mark.waits("the start waits 5 s for a check that does not answer")
def test_a_check_that_hangs_delays_neither_visits_nor_the_start_for_long(tmp_path, socket_dir):
    """Fault 78: a database does not answer; visits are accepted meanwhile."""
    node = make_node(tmp_path, socket_dir)
    node.state.mkdir()
    (node.state / "names-hang").touch()
    with running(tmp_path, socket_dir) as node:
        node.relay.reserve("g1")
        node.land("g1")
        assert node.relay.outcome("g1").outcome == Outcome.SUCCEEDED
        node.wait(lambda: any("names without an answer" in text for text in node.status().problem_texts))
        (node.state / "names-hang").unlink()
        node.wait(lambda: node.status().state == "running")


def test_a_start_without_the_central_repo_is_degraded_and_refuses(tmp_path, socket_dir):
    """Fault 77: the template cannot be created yet."""
    node = make_node(tmp_path, socket_dir)
    node.state.mkdir()
    (node.state / "template-unavailable").touch()
    with running(tmp_path, socket_dir, ready=False) as node:
        text = "no worker can start: the central repo is not available by order of the test"
        node.wait(lambda: text in node.status().problem_texts)
        assert node.status().state == "degraded"
        with pytest.raises(Refused, match="starting"):
            reload(node)
        (node.state / "template-unavailable").unlink()
        node.wait(lambda: node.status().relay.startswith("connected"))
        node.wait(lambda: node.status().state == "running")
        node.relay.reserve("g1")
        node.land("g1")
        assert node.relay.outcome("g1").outcome == Outcome.SUCCEEDED
