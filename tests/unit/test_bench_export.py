# SPDX-License-Identifier: BSD-3-Clause
"""tools/bench_export.py: its summaries, its goals, its command line."""

import pytest
from benchtools import part, program
from click.testing import CliRunner


@pytest.fixture(scope="module")
def results():
    return part("exportbench.results")


SAMPLES = {
    **{"direct_s": 60.0, "direct_cpu_s": 40.0, "batched_s": 6.0, "batched_cpu_s": 4.0, "copied_s": 2.0},
    **{"copied_cpu_s": 1.0, "placed_s": 0.5, "removed_s": 0.5, "registered_s": 4.0, "registered_cpu_s": 3.0},
    **{"rows_s": 3.0, "rows_cpu_s": 2.0, "statements_s": 1.0, "bare_s": 2.0, "bare_cpu_s": 1.0},
    **{"bare_rows": 9000.0, "transactions": 2.0, "apart_s": 7.5, "apart_cpu_s": 8.0},
}


def test_a_database_is_summarized_by_ratios_and_by_the_cost_of_a_dataset(results):
    found = results.summarize_database("sqlite", SAMPLES, 2000)
    assert (found["sqlite_faster"], found["sqlite_transactions"]) == (10.0, 2.0)
    assert (found["sqlite_registered_us"], found["sqlite_bare_us"]) == (2000.0, 1000.0)
    assert (found["sqlite_rows_us"], found["sqlite_rows_cpu_us"]) == (1500.0, 1000.0)
    assert (found["sqlite_registration_ratio"], found["sqlite_statements_ratio"]) == (2.0, 0.5)
    assert (found["sqlite_rows_ratio"], found["sqlite_cpu_ratio"]) == (1.5, 0.1)
    assert (found["sqlite_apart_faster"], found["sqlite_apart_cpu_ratio"]) == (8.0, 0.2)


def test_held_workers_are_compared_at_the_95th_percentile(results):
    found = results.summarize_held([float(k) for k in range(1, 101)], [10.0] * 100, [4.0] * 100)
    assert (found["held_before_p95_ms"], found["held_p95_ms"]) == (95.0, 10.0)
    assert found["held_ratio"] == pytest.approx(10 / 95)
    assert (found["held_floor_p95_ms"], found["held_of_floor"]) == (4.0, 2.5)


@pytest.mark.parametrize(
    ("change", "missed"),
    [
        ({}, []),
        ({"batched_s": 11.0}, ["sqlite_faster"]),
        ({"apart_s": 11.0}, ["sqlite_apart_faster"]),
        ({"transactions": 4.0}, ["sqlite_transactions"]),
        ({"registered_s": 5.0}, ["sqlite_registration_ratio"]),
        ({"rows_s": 5.0}, ["sqlite_rows_ratio"]),
        ({"batched_cpu_s": 5.0}, ["sqlite_cpu_ratio"]),
    ],
)
def test_goals_are_six_times_three_transactions_and_twice(results, change, missed):
    found = results.summarize_database("sqlite", SAMPLES | change, 2000)
    found |= results.summarize_held([10.0], [6.0], [1.0])
    assert part("benching.results").missed(found, results.goals(["sqlite"])) == missed
    found |= results.summarize_held([10.0], [6.1], [1.0])
    assert "held_ratio" in part("benching.results").missed(found, results.goals(["sqlite"]))


def test_help_explains_what_is_compared():
    with program("bench_export") as tool:
        shown = " ".join(CliRunner().invoke(tool.command, ["--help"]).output.split())
    assert "each worker copies its outputs with transfer_from" in shown
    assert "--image-kb" in shown
