# SPDX-License-Identifier: BSD-3-Clause
"""The traces of a real relay and a real daemon, as a collector receives them."""

import os
import subprocess
import sys

import pytest
from collector import ReceivingCollector
from node import make_node, observatory

from ppdaemon.ctl.client import RelayDaemon
from ppdaemon.states import ExitCode, Stage
from ppdaemon.testing.node import PROGRAM
from ppdaemon.testing.relay import RelayProcess
from ppdaemon.testing.waiting import wait_until
from ppdaemon.traces import TraceKey, trace_number

TIMEOUT_S = 60.0
PARTS = ("prepare", "wait", "ingest", "build", "run", "spool")
PARENTS = {
    "visit-detector": "",
    "attempt": "visit-detector",
    "queue": "attempt",
    "worker": "attempt",
    **dict.fromkeys(PARTS, "worker"),
    "scripted": "run",
}
SERVICES = {
    "visit-detector": ("pprelay", "relay"),
    "attempt": ("ppdaemon", "n1"),
    "queue": ("ppdaemon", "n1"),
}


def check_tree(spans):
    """Check parents, order and programs of the spans of a trace."""
    by_number = {span.number: span for span in spans}
    assert len(by_number) == len(spans)
    for span in spans:
        parent = by_number.get(span.parent)
        assert ("" if parent is None else parent.name) == PARENTS[span.name], span
        assert span.begin_ns <= span.end_ns, span
        if parent is not None:
            assert parent.begin_ns <= span.begin_ns, span
            assert span.end_ns <= parent.end_ns, span
        service, instance = SERVICES.get(span.name, ("ppdaemon-worker", "n1/"))
        assert (span.service, span.instance[: len(instance)]) == (service, instance), span


def test_each_visit_detector_has_one_trace_from_the_relay_to_its_task(tmp_path, socket_dir):
    with ReceivingCollector() as collector:
        traces = {"traces": {"endpoint": collector.endpoint}}
        relay_keys = {**traces, "instruments": {"DemoCam": {"detectors": "0-1"}}}
        made = observatory(tmp_path, socket_dir, relay_keys=relay_keys, node_keys=traces, min=2, spare=2)
        with made as (relay, node, client):

            def is_prepared(group):
                rows = node.visit(group) if node.status().open_visits else []
                return len(rows) == 2 and all(Stage.PREPARED in row.stages for row in rows)

            def run(group, number, survey=""):
                client.announce(group, survey=survey, nimages=1)
                node.wait(lambda: is_prepared(group))
                for detector in (0, 1):
                    node.land(group, detector, number=number)
                wait_until(
                    lambda: set(client.outcomes(group).values()) == {"succeeded"}, TIMEOUT_S, node.story
                )

            # Nobody waits for a collector that refuses; it is a problem of both, and counted.
            collector.status = 404
            run("refused", 1)
            node.wait(lambda: node.status().counters.get("traces_dropped") == 2)
            status = RelayDaemon(relay.control).status
            wait_until(lambda: status().counters.get("traces_dropped") == 2, TIMEOUT_S, relay.log.read_text)
            for report in (node.status(), status()):
                assert [problem.source for problem in report.problems] == ["traces"]
                assert (report.state, report.problems[0].degrades) == ("running", False)
            collector.status = 200
            run("good", 2)
            run("retried", 3, "process:die@1/0")
            # No process that forks or was forked has another thread.
            for pid in (*node.zygotes(), *(row.pid for row in node.workers() if row.pid)):
                assert len(os.listdir(f"/proc/{pid}/task")) == 1
            wait_until(lambda: status().counters["traces_sent"] == 4, TIMEOUT_S, relay.log.read_text)
            node.wait(lambda: node.status().counters["traces_sent"] == 5)
            assert [problem.source for problem in (*node.status().problems, *status().problems)] == []
    found = {}
    for span in collector.spans:
        found.setdefault(int.from_bytes(span.trace), []).append(span)
    keys = {
        trace_number(TraceKey("DemoCam", group, d)): (group, d)
        for group in ("good", "retried")
        for d in (0, 1)
    }
    assert found.keys() == keys.keys()
    for trace, spans in found.items():
        check_tree(spans)
        attempts = sorted(
            (span for span in spans if span.name == "attempt"),
            key=lambda span: span.attributes["ppdaemon.attempt"],
        )
        whole = [span for span in spans if span.begin_ns >= attempts[-1].begin_ns]
        # The second attempt has its raw at once.
        left_out = {"visit-detector"} | ({"wait"} if len(attempts) == 2 else set())
        assert sorted(span.name for span in whole) == sorted(PARENTS.keys() - left_out)
        parts = [span for name in PARTS for span in whole if span.name == name]
        assert [part.end_ns for part in parts[:-1]] == [part.begin_ns for part in parts[1:]]
        (root,) = [span for span in spans if span.name == "visit-detector"]
        assert (root.attributes["ppdaemon.group"], root.attributes["ppdaemon.detector"]) == keys[trace]
        assert root.problem is whole[0].problem is None
        assert len(attempts) == (2 if keys[trace] == ("retried", 0) else 1)
    (failed,) = [span for span in collector.spans if span.name == "attempt" and span.problem]
    assert failed.problem == "crashed: worker ended by signal 9 (SIGKILL) while processing"
    where = [span.name for span in collector.spans if span.problem == failed.problem]
    assert sorted(where) == ["attempt", "run", "worker"]


@pytest.mark.parametrize("program", ["ppdaemon", pytest.param("pprelay", marks=pytest.mark.slow)])
def test_a_collector_without_the_extra_is_an_error_of_the_configuration(tmp_path, socket_dir, program):
    (tmp_path / "opentelemetry").mkdir()
    (tmp_path / "opentelemetry" / "__init__.py").write_text('"""Hides the installed one."""\n')
    traces = {"endpoint": "http://127.0.0.1:4318/v1/traces"}
    if program == "pprelay":
        command = RelayProcess(socket_dir, traces=traces).command("run")
    else:
        node = make_node(tmp_path, socket_dir)
        node.rewrite(traces=traces)
        command = [sys.executable, *PROGRAM, str(node.path)]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == ExitCode.CONFIG, result.stderr
    assert "traces.endpoint: traces need the extra otel: pip install 'ppdaemon[otel]'" in result.stderr
