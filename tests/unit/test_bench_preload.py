# SPDX-License-Identifier: BSD-3-Clause
"""tools/bench_preload.py: its summaries, its goals, its command line."""

import pytest
from benchtools import part, program
from click.testing import CliRunner


@pytest.fixture(scope="module")
def results():
    return part("preloadbench.results")


@pytest.fixture(scope="module")
def tool():
    with program("bench_preload") as module:
        yield module


def visit(preload_ms, fetched_bytes=0, **extra):
    return {"preload_ms": preload_ms, "fetched_bytes": fetched_bytes, "bytes": 1000, "datasets": 25} | extra


def test_single_workers_are_summarized_by_medians_and_the_maximum_copied_warm(results):
    moved = [visit(300, 500), visit(80), visit(90), visit(100)]
    workers = [
        [visit(500, 1000, query_ms=90), visit(50, query_ms=30), visit(70, query_ms=40), *moved],
        [visit(400, 1000, query_ms=80), visit(60, query_ms=35), visit(900, 7, query_ms=36), *moved],
        [visit(450, 1000, query_ms=70), visit(55, query_ms=31), visit(65, query_ms=32), *moved],
    ]
    found = results.summarize_single(workers)
    assert (found["cold_ms"], found["warm_ms"]) == (450, 62.5)
    assert found["warm_of_cold"] == pytest.approx(62.5 / 450)
    assert (found["bytes_copied_cold"], found["bytes_copied_warm"]) == (1000, 7)
    assert (found["cold_samples"], found["warm_samples"], found["moved_samples"]) == (3, 6, 9)
    assert found["moved_ms"] == 90
    assert (found["cold_query_ms"], found["warm_query_ms"]) == (80, 33.5)


def test_workers_at_once_are_summarized_by_the_median_of_the_worst_of_each_round(results):
    rounds = [
        results.Crowd(
            [
                visit(base + k, 10 * (k == 0), cpu_ms=2, queries=100 * (k == 3), connections=k == 3)
                for k in range(20)
            ]
        )
        for base in (100, 300, 200)
    ]
    found = results.summarize_crowd(rounds, results.Crowd([visit(90, queries=50)]))
    assert (found["p50_ms"], found["p95_ms"], found["cpu_ms"], found["asker_cpu_ms"]) == (209, 218, 40, 0)
    assert (found["bytes_asked"], found["bytes_copied"], found["rounds"]) == (20_000, 10, 3)
    assert (found["queries"], found["workers_asking"], found["connections"]) == (100, 1, 1)
    assert found["queries_of_each"] == pytest.approx(100 / (20 * 50))


def test_what_the_asker_of_a_host_uses_counts_but_it_is_no_worker_that_asks(results):
    asker = {"cpu_ms": 30.0, "queries": 70, "connections": 1}
    crowd = results.Crowd([visit(100, cpu_ms=2, queries=0), visit(110, cpu_ms=3, queries=5)], asker)
    found = results.summarize_crowd([crowd], crowd)
    assert (found["cpu_ms"], found["asker_cpu_ms"]) == (35, 30)
    assert (found["queries"], found["workers_asking"], found["connections"]) == (75, 1, 1)


def test_workers_at_once_are_compared_with_copies_and_another_build(results):
    workers = [visit(300, cpu_ms=60), visit(600, cpu_ms=40)]
    found = results.summarize_crowd([results.Crowd(workers)], results.Crowd([visit(1, queries=1)]))
    copies = results.summarize_copies([results.Crowd([visit(100, cpu_ms=20), visit(200, cpu_ms=30)])])
    assert results.ratios(found, copies, "copies") == {"p95_of_copies": 3, "cpu_of_copies": 2}
    assert results.ratios(found, found, "other") == {"p50_of_other": 1, "p95_of_other": 1, "cpu_of_other": 1}


@pytest.mark.parametrize(
    ("warm", "copied", "missed"), [(90, 0, []), (110, 0, ["warm_of_cold"]), (90, 1, ["bytes_copied_warm"])]
)
def test_goals_are_a_fifth_and_no_bytes(tool, results, warm, copied, missed):
    found = results.summarize_single([[visit(500, 1000), visit(warm, copied), *[visit(300)] * 4]])
    assert part("benching.results").missed(found, results.GOALS) == missed


def test_help_explains_cold_and_warm(tool):
    shown = " ".join(CliRunner().invoke(tool.command, ["--help"]).output.split())
    assert "Cold is the first visit of a new worker with an empty cache" in shown
    assert "--image-mb" in shown


def test_a_folder_that_does_not_exist_is_refused(tool):
    result = CliRunner().invoke(tool.command, ["--ramdisk", "/nowhere"])
    assert result.exit_code == 2
    assert "'/nowhere' does not exist" in result.output
