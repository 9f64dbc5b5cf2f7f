# SPDX-License-Identifier: BSD-3-Clause
"""The spans of a visit-detector, and how they are sent."""

import logging
import socket
import sys
import threading
from pathlib import Path

import pytest
from collector import ReceivingCollector
from hypothesis import given
from hypothesis import strategies as st

from ppdaemon.config import TracesConfig
from ppdaemon.node.slots.assignment import Key
from ppdaemon.node.visits.model import JournalEntry
from ppdaemon.node.visits.spans import spans_of
from ppdaemon.relay.orders import Ended
from ppdaemon.states import Outcome, Stage
from ppdaemon.testing.waiting import wait_until
from ppdaemon.traces import Span, TraceKey, is_sampled, root_of, span_number, trace_number
from ppdaemon.tracesender import MAX_WAITING, TraceSender
from ppdaemon.visit import NextVisit

TIMEOUT_S = 20.0
KEY = Key("DemoCam", "g", 4, 1)
TRACE = trace_number(TraceKey(*KEY[:3]))
NAMES = ["queue", "prepare", "wait", "ingest", "build", "run", "spool"]


def entry(outcome=Outcome.SUCCEEDED, reason="", *, ended=100.0, figures=None, **stages):
    return JournalEntry(
        KEY,
        NextVisit.model_validate({"instrument": "DemoCam", "groupId": "g", "survey": "BLOCK-1"}),
        0.0,
        {Stage(name): tai for name, tai in stages.items()},
        figures or {},
        outcome,
        reason,
        pipeline="ap.yaml",
        slot=3,
        exposures=(7,),
        ended_tai=ended,
    )


def whole(**changes):
    times = dict(zip((str(stage) for stage in Stage), range(10, 90, 10), strict=False))
    return entry(**(times | changes))


def spans(row, *, has_relay=True):
    return list(spans_of(row, "n1", has_relay=has_relay))


def test_an_attempt_has_a_span_for_each_part_and_each_task():
    tasks = [("isr", 61.0, 63.0, None), ("detect", 63.0, 70.0, "ValueError: no star")]
    attempt, worker, *parts, isr, detect = spans(whole(figures={"tasks": tasks, "preload_ms": 3.5}))
    assert [(each.name, each.begin_tai, each.end_tai) for each in parts] == [
        (name, 10.0 * n, 10.0 * n + 10) for n, name in enumerate(NAMES, 1)
    ]
    assert (attempt.parent, attempt.begin_tai, attempt.end_tai) == (root_of(TRACE), 10, 100)
    assert (worker.parent, worker.begin_tai, worker.end_tai) == (attempt.number, 20, 100)
    assert [each.parent for each in parts] == [attempt.number, *[worker.number] * 6]
    assert (isr.name, isr.begin_tai, isr.end_tai, isr.problem) == ("isr", 61.0, 63.0, None)
    assert (detect.name, detect.problem) == ("detect", "ValueError: no star")
    assert isr.parent == detect.parent == parts[5].number
    assert worker.attributes["ppdaemon.preload_ms"] == 3.5
    assert "ppdaemon.tasks" not in worker.attributes
    assert (attempt.service, attempt.instance) == ("ppdaemon", "n1") == (parts[0].service, parts[0].instance)
    assert {(each.service, each.instance) for each in (worker, *parts[1:], isr)} == {
        ("ppdaemon-worker", "n1/3")
    }
    assert {each.trace for each in (attempt, worker, *parts, isr, detect)} == {TRACE}
    assert attempt.problem is worker.problem is None
    assert attempt.attributes["ppdaemon.group"] == "g"


def test_without_a_relay_the_attempt_is_the_root():
    assert spans(whole(), has_relay=False)[0].parent is None


def test_a_failure_is_in_the_part_in_which_it_happened_and_above():
    found = spans(entry(Outcome.CRASHED, "killed", accepted=10, assigned=20, prepared=30))
    assert {each.name: each.problem for each in found} == {
        "attempt": "crashed: killed",
        "worker": "crashed: killed",
        "queue": None,
        "prepare": None,
        "wait": "crashed: killed",
    }


def test_a_visit_that_had_no_worker_or_no_image_has_no_error():
    assert [each.name for each in spans(entry(Outcome.CANCELLED, accepted=10))] == ["attempt", "queue"]
    # A raw had arrived while it was queued.
    assert [each.name for each in spans(entry(accepted=10, arrived=20))] == ["attempt", "queue"]
    found = spans(entry(Outcome.NO_IMAGE, accepted=10, assigned=20, prepared=30))
    assert [each.problem for each in found] == [None] * 5


def test_a_raw_that_was_there_first_takes_no_time():
    found = {each.name: each for each in spans(whole(arrived=5.0))}
    assert "wait" not in found
    assert (found["ingest"].begin_tai, found["ingest"].end_tai) == (30, 50)


STAGES = [str(stage) for stage in Stage if stage is not Stage.CENTRAL]


@given(st.dictionaries(st.sampled_from(STAGES), st.floats(1, 1e10)), st.floats(1, 1e10))
def test_spans_of_any_times_are_ordered_and_within_their_parents(stages, ended):
    found = spans(entry(accepted=1.0, ended=ended, **{n: t for n, t in stages.items() if n != "accepted"}))
    numbers = {each.number: each for each in found}
    assert len(numbers) == len(found)
    for each in found:
        assert each.begin_tai <= each.end_tai
        if each.parent in numbers:
            above = numbers[each.parent]
            assert above.begin_tai <= each.begin_tai
            assert each.end_tai <= above.end_tai
        else:
            assert (each.name, each.parent) == ("attempt", root_of(TRACE))


def test_attempts_and_nodes_have_spans_of_their_own_in_one_trace():
    second = whole()
    second.key = KEY._replace(attempt=2)
    numbers = [
        {each.number for each in found}
        for found in (spans(whole()), spans(second), list(spans_of(whole(), "n2", has_relay=True)))
    ]
    assert len(set.union(*numbers)) == sum(map(len, numbers))
    assert {each.trace for each in spans(second)} == {TRACE}


def test_the_relay_s_span_is_the_root():
    ended = Ended("DemoCam", "g", 4, "BLOCK-1", 5.0, "n1", 2, Outcome.FAILED, "no star")
    span = ended.span("relay", 9.0)
    assert (span.trace, span.number, span.parent) == (TRACE, root_of(TRACE), None)
    assert (span.begin_tai, span.end_tai, span.problem) == (5.0, 9.0, "failed: no star")
    assert span.attributes["ppdaemon.node"] == "n1"
    assert ended.span("relay", 3.0).end_tai == 5.0  # a clock was set


def test_the_ratio_decides_by_the_number_of_the_trace():
    traces = [trace_number(TraceKey("DemoCam", f"g{n}", n % 9)) for n in range(4000)]
    assert not any(is_sampled(trace, 0.0) for trace in traces)
    assert all(is_sampled(trace, 1.0) for trace in traces)
    tenth = {trace for trace in traces if is_sampled(trace, 0.1)}
    assert 300 < len(tenth) < 500
    assert tenth < {trace for trace in traces if is_sampled(trace, 0.2)}
    assert max(traces) < 2**128
    assert span_number(TRACE, "a") != span_number(TRACE, "b")


# --- sending -------------------------------------------------------------------


def a_span(number=5, **changes):
    fields = {"begin_tai": 1000.0, "end_tai": 1001.5, "attributes": {"ppdaemon.detector": 4}, **changes}
    return Span("attempt", "ppdaemon", "n1", TRACE, number, root_of(TRACE), **fields)


@pytest.fixture
def collector():
    with ReceivingCollector() as collector:
        yield collector


@pytest.fixture
def sender(collector):
    library = logging.getLogger("opentelemetry")
    before = library.handlers[:], library.propagate
    sender = TraceSender(TracesConfig(endpoint=collector.endpoint))
    yield sender
    collector.go_on.set()
    sender.close()
    library.handlers[:], library.propagate = before
    assert not [thread for thread in threading.enumerate() if thread.name == "traces"]


def put(sender, *made, detector=4):
    sender.put(TraceKey("DemoCam", "g", detector), lambda: made)


def test_a_collector_receives_what_was_put(collector, sender):
    put(sender, a_span(problem="crashed: killed"))
    wait_until(lambda: sender.sent, TIMEOUT_S)
    (span,) = collector.spans
    assert (span.name, span.service, span.instance) == ("attempt", "ppdaemon", "n1")
    assert int.from_bytes(span.trace) == TRACE
    assert (int.from_bytes(span.number), int.from_bytes(span.parent)) == (5, root_of(TRACE))
    assert (span.begin_ns, span.end_ns) == (963_000_000_000, 964_500_000_000)
    assert (span.attributes, span.problem) == ({"ppdaemon.detector": 4}, "crashed: killed")
    assert sender.counters == {"traces_sent": 1, "traces_dropped": 0}


def test_without_a_collector_nothing_is_made_and_no_thread_runs():
    sender = TraceSender(TracesConfig())
    sender.put(TraceKey(*KEY[:3]), lambda: pytest.fail("made"))
    assert sender.counters == {}
    assert not [thread for thread in threading.enumerate() if thread.name == "traces"]
    sender.close()


def test_what_is_not_sampled_is_not_made(collector, sender):
    sender.reconfigure(TracesConfig(endpoint=collector.endpoint, ratio=0.0))
    sender.put(TraceKey(*KEY[:3]), lambda: pytest.fail("made"))
    sender.reconfigure(TracesConfig(endpoint=collector.endpoint))
    put(sender, a_span())
    wait_until(lambda: sender.sent, TIMEOUT_S)
    assert len(collector.spans) == 1


def test_a_collector_that_is_away_is_a_problem_in_few_words(sender, monkeypatch):
    monkeypatch.setattr("ppdaemon.otlp.TIMEOUT_S", 1.5)  # of repetitions after 1, 2 and 4 s only the first
    with socket.create_server(("127.0.0.1", 0)) as unused:
        endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}/v1/traces"
    sender.reconfigure(TracesConfig(endpoint=endpoint))
    put(sender, a_span())
    wait_until(lambda: sender.dropped, 2 * TIMEOUT_S)
    assert sender.problem == f"traces cannot be sent to {endpoint} and are dropped: Connection refused"


def test_what_a_collector_refuses_is_dropped_counted_and_logged_once(collector, sender, caplog):
    collector.status = 404
    for number in (1, 2):
        put(sender, a_span(number))
        wait_until(lambda number=number: sender.dropped == number, TIMEOUT_S)
    assert sender.problem.startswith(f"traces cannot be sent to {collector.endpoint} and are dropped: ")
    assert "404" in sender.problem
    collector.status = 200
    put(sender, a_span(3))
    wait_until(lambda: sender.sent, TIMEOUT_S)
    assert sender.problem == ""
    assert [(record.name, record.levelname) for record in caplog.records] == [
        ("ppdaemon.tracesender", "WARNING"),
    ] + [("ppdaemon.tracesender", "INFO")] * (len(caplog.records) - 1)


def test_while_a_collector_hangs_putting_does_not_wait_and_a_stop_not_long(collector, sender):
    collector.go_on.clear()
    put(sender, a_span())
    wait_until(lambda: collector.requests, TIMEOUT_S)
    for _ in range(MAX_WAITING + 7):
        put(sender, a_span())
    assert sender.dropped == 7
    assert sender.sent == 0


def test_a_stop_sends_what_waits(collector, sender):
    for number in range(3):
        put(sender, a_span(number + 1), detector=number)
    sender.close()
    assert (sender.sent, len(collector.spans)) == (3, 3)


def test_a_reload_uses_another_collector(collector, sender):
    put(sender, a_span())
    wait_until(lambda: sender.sent, TIMEOUT_S)
    with ReceivingCollector() as other:
        sender.reconfigure(TracesConfig(endpoint=other.endpoint))
        put(sender, a_span(6))
        wait_until(lambda: sender.sent == 2, TIMEOUT_S)
        assert [int.from_bytes(span.number) for span in other.spans] == [6]
    assert len(collector.spans) == 1


def test_times_of_tasks_that_are_no_times_cost_their_trace_only(collector, sender, caplog):
    put(sender, a_span(6))
    sender.put(TraceKey(*KEY[:3]), lambda: spans_of(whole(figures={"tasks": ["isr"]}), "n1", has_relay=True))
    put(sender, a_span(7))
    wait_until(lambda: sender.sent == 2, TIMEOUT_S)
    assert sender.dropped == 1
    assert "please report this" in caplog.text


def test_values_that_the_protocol_does_not_have_are_replaced(collector, sender):
    odd = {"ppdaemon.reason": "no file \udc80", "ppdaemon.bytes": 2**70, "ppdaemon.load": float("nan")}
    put(sender, a_span(attributes=odd, problem="failed: \udc80"))
    wait_until(lambda: sender.sent, TIMEOUT_S)
    (span,) = collector.spans
    assert (span.attributes["ppdaemon.reason"], span.problem) == ("no file ?", "failed: ?")
    assert span.attributes["ppdaemon.bytes"] == str(2**70)


# --- configuration ---------------------------------------------------------------


@pytest.mark.parametrize("url", ["127.0.0.1:4318", "grpc://host:4317", "http://", "http:///v1/traces"])
def test_an_endpoint_that_is_no_url_is_refused(url):
    with pytest.raises(ValueError, match=r"is not an address: write for instance http://127\.0\.0\.1:4318"):
        TracesConfig(endpoint=url)


def test_without_the_extra_an_endpoint_is_refused(monkeypatch):
    paths = [path for path in sys.path if not (Path(path) / "opentelemetry").exists()]
    monkeypatch.setattr(sys, "path", paths)
    for name in [name for name in sys.modules if name.partition(".")[0] == "opentelemetry"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ValueError, match=r"pip install 'ppdaemon\[otel\]'"):
        TracesConfig(endpoint="http://127.0.0.1:4318/v1/traces")
    assert TracesConfig().endpoint is None
