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
from ppdaemon.testing.processes import alive, descendants, title
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


def check(node, *options):
    command = [sys.executable, "-m", "ppdaemon.node.app", "check-config", f"--config={node.path}", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def reload(node):
    return node.daemon.ask(ReloadRequest(), timeout_s=TIMEOUT_S).splitlines()


@pytest.mark.slow
@pytest.mark.waits("the service manager answers after 1.2 s; orphans are killed each second")
def test_all_findings_are_the_same_at_start_reload_and_check_config(tmp_path, socket_dir, monkeypatch):
    """Fault 78: with names that do not exist, the daemon does not start. What is no error at a start is
    one of check-config alone.
    """
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    node = make_node(tmp_path, socket_dir)
    node.config["engine"] = {"no_return": ["asociate"]}
    write(node, *ERRORS, WARNING)
    node.launch()
    assert node.process.wait(TIMEOUT_S) == ExitCode.CONFIG
    first, second = lines_of(node, *ERRORS)
    assert f"ppdaemon: {first}\nppdaemon: {second}\n" in node.log.read_text()
    checked = check(node)
    assert checked.returncode == ExitCode.CONFIG
    assert checked.stderr.endswith(f"ppdaemon: {first}\nppdaemon: {second}\n")
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
        node.wait(
            lambda: any("asociate" in text and "1 more error" in text for text in node.status().problem_texts)
        )
        assert node.status().generation == 1
        write(node, FALLBACK)
        assert check(node).returncode == ExitCode.FAILED
        allowed = check(node, "--allow-fallback")
        assert allowed.returncode == ExitCode.OK
        assert "ppdaemon: warning: " in allowed.stderr
        program = tmp_path / "systemctl"
        program.write_text("#!/bin/sh\nsleep 1.2\nprintf 'loaded\\n1s\\n'\n")
        program.chmod(0o755)
        answer = reload(node)
        assert answer[0] == "the new configuration is in use (generation 4)"  # two were refused
        assert any(text.endswith("pipelines.main.1: the first is dropped") for text in answer[1:])
        assert any("workers.times.stop_s: a stop takes up to" in text for text in answer[1:])


def test_every_module_that_cannot_be_imported_is_named(tmp_path, socket_dir):
    """Also a script, bytes of a name that are no text, and the innermost module that starts a thread."""
    package = tmp_path / "classifier"
    package.mkdir()
    (package / "__init__.py").write_text("from classifier import model\n")
    (package / "model.py").write_text("import classifier.telemetry\n")
    thread = "threading.Thread(target=threading.Event().wait, daemon=True).start()"
    (package / "telemetry.py").write_text(f"import threading\n{thread}\n")
    (tmp_path / "site_script.py").write_text("raise SystemExit(0)\n")
    (tmp_path / "site_module.py").write_text("raise FileNotFoundError('/data/\\udc80')\n")
    preload = ["ppdaemon.testing.wrok", "no_such", "json", "site_script", "site_module", "classifier"]
    node = make_node(tmp_path, socket_dir, preload=preload, environment={"PYTHONPATH": str(tmp_path)})
    node.launch()
    assert node.process.wait(TIMEOUT_S) == ExitCode.CONFIG
    log = node.log.read_text()
    assert "workers.preload.0: ppdaemon.testing.wrok cannot be imported" in log
    assert "did you mean 'ppdaemon.testing.work'?" in log
    assert "workers.preload.1: no_such cannot be imported" in log
    assert "workers.preload.2" not in log
    assert "workers.preload.3: site_script cannot be imported: SystemExit: 0" in log
    assert "workers.preload.4: site_module cannot be imported: FileNotFoundError: /data/\\udc80" in log
    assert "workers.preload.5: classifier: classifier.telemetry starts a thread" in log
    assert "workers.start: spawn" in log


@pytest.mark.slow
def test_no_visit_runs_before_the_names_of_tasks_are_resolved(tmp_path, socket_dir):
    """Fault 78: a visit is recovered with a name in `no_return` that does not exist, and runs again when
    the file is correct: its results must not be written twice. It ends in time when an error of another
    name is found then.
    """
    # Each start is one more attempt.
    with PlayedRelay() as relay, make_node(tmp_path, socket_dir, relay, attempts=3) as node:
        node.start()
        node.relay.reserve("g1", survey="written:gate")
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
        (node.state / "names-hang").touch()
        write(node, ERRORS[1])
        node.launch()
        node.wait(lambda: node.at_gate("g1"))
        (node.state / "names-hang").unlink()
        node.wait(lambda: node.status().state == "stopping")
        node.open_gate("g1")
        assert node.relay.outcome("g1").outcome == Outcome.SUCCEEDED
        assert node.process.wait(TIMEOUT_S) == ExitCode.CONFIG
        assert node.marks() == {"g1~0": 1}


@pytest.mark.slow
def test_what_cannot_be_resolved_is_resolved_later(tmp_path, socket_dir):
    """Fault 78: a database is away at the start and at a reload, and a pipeline crashes the process that
    imports it. The mount of a pipeline file comes back, and a name in `no_return` does not exist.
    """
    node = make_node(tmp_path, socket_dir)
    write(node, AWAY)
    with running(tmp_path, socket_dir) as node:
        problem = f"not resolved yet: {lines_of(node, AWAY)[0]}"
        node.wait(lambda: problem in node.status().problem_texts)  # a slow check may end after the start
        assert node.status().state == "degraded"
        node.succeed("g1")
        assert f"warning: {lines_of(node, AWAY)[0]}; it is resolved later" in reload(node)
        assert problem in node.status().problem_texts
        (node.state / "names").unlink()
        (node.state / "names").mkdir()  # the check ends with an exception
        text = (
            "the names of the test: the process that resolves names ended with status 70: IsADirectoryError"
        )
        node.wait(lambda: any(text in problem for problem in node.status().problem_texts))
        (node.state / "names").rmdir()
        node.rewrite(engine={"no_return": ["asociate"]})
        write(node, *ERRORS)
        node.wait(lambda: node.status().state == "draining")
        assert any("no task asociate" in text for text in node.status().problem_texts)
        write(node)
        reload(node)
        assert not any("asociate" in text for text in node.status().problem_texts)
        node.daemon.ask(ResumeRequest(), timeout_s=TIMEOUT_S)
        node.wait(lambda: node.status().state == "running")


@pytest.mark.slow
@pytest.mark.waits("the start waits 5 s for a check that does not answer")
def test_a_check_that_hangs_delays_neither_visits_nor_the_start_nor_a_stop_for_long(tmp_path, socket_dir):
    """Faults 54 and 78: a database does not answer; visits are accepted meanwhile."""
    node = make_node(tmp_path, socket_dir)
    node.state.mkdir()
    hang = node.state / "names-hang"
    hang.touch()
    with running(tmp_path, socket_dir) as node:
        node.succeed("g1")
        node.wait(lambda: any("names without an answer" in text for text in node.status().problem_texts))
        hang.unlink()
        node.wait(lambda: node.status().state == "running")
        hang.touch()
        node.process.send_signal(signal.SIGHUP)
        node.wait(lambda: any(title(pid) == "ppdaemon names" for pid in descendants(node.process.pid)))
        children = descendants(node.process.pid)
    assert not any(map(alive, children))


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
    with node:
        node.launch()
        node.wait(lambda: node.status().state == "degraded")
        write(node, ERRORS[1])
        (node.state / "template-unavailable").unlink()
        assert node.process.wait(TIMEOUT_S) == ExitCode.CONFIG
        assert lines_of(node, ERRORS[1])[0] in node.log.read_text()


def test_a_start_without_the_central_repo_is_degraded_and_refuses(tmp_path, socket_dir):
    """Fault 77: the template cannot be created yet."""
    node = make_node(tmp_path, socket_dir)
    node.state.mkdir()
    (node.state / "template-unavailable").touch()
    with running(tmp_path, socket_dir, ready=False) as node:
        text = "no worker can start: the central repo is not available by order of the test"
        node.wait(lambda: any(found.startswith(text) for found in node.status().problem_texts))
        assert node.status().state == "degraded"
        with pytest.raises(Refused, match="starting"):
            reload(node)
        # A part of what an operator makes is there, and the rest looks like a misspelled name.
        write(node, ERRORS[1])
        node.wait(lambda: any("workers.min: second" in found for found in node.status().problem_texts))
        write(node)
        (node.state / "template-unavailable").unlink()
        node.wait(lambda: node.status().relay.startswith("connected"))
        node.wait(lambda: node.status().state == "running")
        node.succeed("g1")
