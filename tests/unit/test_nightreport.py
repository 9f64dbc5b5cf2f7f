# SPDX-License-Identifier: BSD-3-Clause
"""The report of a simulated night: what is counted as lost, doubled, late and busy."""

import json
from collections import namedtuple

import pytest

from ppdaemon.demo.nightreport import (
    CameraReport,
    HostLoad,
    HostReport,
    Lateness,
    NightMeter,
    SimulatedNight,
    _busy_share,
    night_facts,
)
from ppdaemon.night.report import Latency
from ppdaemon.night.totals import NightTotals
from ppdaemon.reports import VisitRow
from ppdaemon.states import Outcome, Stage

HOST = HostReport(load=HostLoad(cores=2, begin=0.5, end=3.0, cpu_share=0.75))


def row(group, detector, attempt=1, outcome=Outcome.SUCCEEDED, **changes):
    fields = {"instrument": "DemoCam", "group": group, "detector": detector, "attempt": attempt}
    return VisitRow(**fields | {"outcome": outcome} | changes)


def report(totals, visits=1, announced=4, **changes):
    fields = {"total_s": 9.5, "camera": CameraReport(), "host": HOST, "doubled": totals.doubled}
    return SimulatedNight(**totals.fields() | {"visits": visits, "announced": announced} | fields | changes)


def test_the_last_attempt_is_the_outcome_and_what_has_none_is_lost():
    totals = NightTotals()
    totals.add([row("g", 0, 1, Outcome.CRASHED), row("g", 0, 2), row("g", 1), row("g", 2, outcome=None)])
    found = report(totals)
    assert (found.accepted, found.succeeded, found.retried, found.doubled) == (3, 2, 1, 0)
    assert found.outcomes == {Outcome.SUCCEEDED: 2}
    assert found.lost == 2  # detector 2 is open, detector 3 in no journal


def test_what_two_attempts_completed_is_doubled_once():
    totals = NightTotals()
    totals.add([row("g", 0, 1), row("g", 0, 2), row("g", 1)])
    totals.add([row("h", 0)])
    assert totals.doubled == 1
    assert report(totals).succeeded == 3


def test_latencies_leave_out_failures_and_visits_with_two_snaps():
    stages = {Stage.ASSIGNED: 10.0, Stage.PREPARED: 12.0}
    totals = NightTotals()
    totals.add(
        [
            row("g", 0, stages=stages, exposures=(1,)),
            row("g", 1, stages=stages | {Stage.PREPARED: 99.0}, exposures=(1, 2)),
            row("g", 2, outcome=Outcome.FAILED, stages=stages | {Stage.PREPARED: 99.0}),
        ]
    )
    totals.measure("answer_ms", [0.001, None])
    found = report(totals).latencies
    assert found == {
        "prepare_ms": Latency(p50_ms=2000.0, p95_ms=2000.0, p99_ms=2000.0, max_ms=2000.0, count=1),
        "answer_ms": Latency(p50_ms=1.0, p95_ms=1.0, p99_ms=1.0, max_ms=1.0, count=1),
    }


def test_lateness_is_median_and_maximum():
    assert Lateness.of([0.0, 0.25, 4.0]) == Lateness(p50=0.25, max=4.0, count=3)
    assert Lateness.of([]) is None


def test_the_busy_share_counts_guests_once_and_waiting_for_disks_as_idle():
    times = namedtuple("times", "user idle iowait guest")
    assert _busy_share(times(10.0, 50.0, 5.0, 1.0), times(16.0, 52.0, 7.0, 7.0)) == 0.6
    assert _busy_share(times(1.0, 1.0, 1.0, 1.0), times(1.0, 1.0, 1.0, 1.0)) == 0.0


def test_a_meter_measures_host_and_camera():
    meter = NightMeter()
    assert meter.fields()["camera"].lateness_s is None
    meter.late_s += [0.5, 1.5]
    fields = meter.fields()
    assert fields["camera"].lateness_s == Lateness(p50=1.0, max=1.5, count=2)
    load = fields["host"].load
    assert load.cores >= 1
    assert load.begin >= 0.0
    assert 0.0 <= load.cpu_share <= 1.0


def test_the_file_has_what_is_computed_and_the_summary_names_lateness_and_load(tmp_path):
    late = CameraReport(lateness_s=Lateness(p50=0.5, max=7.0, count=9))
    found = report(NightTotals(), camera=late)
    found.write(tmp_path / "report.json")
    written = json.loads((tmp_path / "report.json").read_text())
    assert written["lost"] == 4
    assert written["camera"]["lateness_s"] == {"p50": 0.5, "max": 7.0, "count": 9}
    assert written["host"]["load"] == {"cores": 2, "begin": 0.5, "end": 3.0, "cpu_share": 0.75}
    assert dict(night_facts(found)) == {
        "raws later than planned": "0.5 s median, 7.0 s at most",
        "host": "2 cores, load 0.5 to 3.0, 75% busy",
    }


@pytest.mark.parametrize("doubled", [0, None])
def test_doubled_may_be_unknown(doubled):
    totals = NightTotals()
    totals.doubled = doubled
    totals.count(Outcome.FAILED, 2)
    found = report(totals, announced=1)
    assert (found.doubled, found.lost, found.retried, found.succeeded) == (doubled, 0, 1, 0)
