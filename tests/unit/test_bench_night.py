# SPDX-License-Identifier: BSD-3-Clause
"""tools/bench_night.py: the steps of an exposure, the nights that are compared, its command line."""

import pytest
from benchtools import part, program
from click.testing import CliRunner

STAGES = (
    *("announced", "accepted", "assigned", "prepared", "complete"),
    *("arrived", "ingested", "first_task", "processed", "spooled", "central"),
)


@pytest.fixture(scope="module")
def results():
    return part("nightbench.results")


def stages(seconds):
    return {stage: 100.0 + number * seconds for number, stage in enumerate(STAGES)}


def test_a_step_is_from_one_stage_to_the_next(results):
    samples = results.NightSamples()
    samples.add([3, 4], {3: stages(0.1), 4: stages(0.2)})
    found = samples.results(2)
    assert (found["visit_detectors"], found["lost"]) == (2, 0)
    for name in ("relayed", "assigned", "prepared", "noticed", "ingested", "exported"):
        assert (found[f"{name}_p50_ms"], found[f"{name}_p99_ms"]) == pytest.approx((100, 200))
    assert (found["whole_p50_ms"], found["whole_p99_ms"]) == pytest.approx((600, 1200))


def test_a_detector_without_all_stages_is_lost(results):
    samples = results.NightSamples()
    incomplete = stages(0.1)
    del incomplete["central"]
    samples.add([0, 1, 2], {0: stages(0.1), 1: incomplete})
    found = samples.results(3)
    assert (found["visit_detectors"], found["lost"]) == (3, 2)
    assert found["whole_p99_ms"] == pytest.approx(600)


def test_cpu_time_is_that_of_one_visit_detector(results):
    samples = results.NightSamples()
    for used_s in (0.4, 0.6, 9.0):
        samples.add_cpu({"relay": 1.0}, {"relay": 1.0 + used_s, "exporter": 0.2, "zygote": 5.0})
    found = samples.results(200)
    assert found["relay_cpu_ms"] == pytest.approx(3)
    assert found["exporter_cpu_ms"] == pytest.approx(1)
    assert "zygote_cpu_ms" not in found


def test_a_long_journal_is_compared_with_a_short_one(results):
    night = {"relayed_p50_ms": 10.0, "whole_p50_ms": 100.0, "supervisor_cpu_ms": 2.0}
    slow = {"relayed_p50_ms": 20.0, "whole_p50_ms": 110.0, "supervisor_cpu_ms": 3.0}
    found = results.compare([night, slow])
    assert found == pytest.approx({"relayed_p50": 2, "whole_p50": 1.1, "supervisor_cpu": 1.5})
    assert results.compare([night]) == {}


def test_each_night_has_its_goals(results):
    night = results.NightSamples()
    night.add([0], {0: stages(0.001)})
    night.add_cpu({}, {"relay": 1.0})
    measured = {"rows_10": {**night.results(1), "doubled": 0}}
    listed = part("benching.results").flatten(measured)
    goals = results.goals(measured)
    assert {name for name in goals if name.startswith("rows_10")} <= set(listed)
    assert part("benching.results").missed(listed, goals) == ["rows_10.relay_cpu_ms"]


def test_help_explains_the_steps():
    with program("bench_night") as tool:
        shown = " ".join(CliRunner().invoke(tool.command, ["--help"]).output.split())
    assert '"noticed" from the rename of a raw until the supervisor takes it' in shown
    assert all(name in shown for name in ("--rows", "--exposures", "--check", "--quick"))
