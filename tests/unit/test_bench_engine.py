# SPDX-License-Identifier: BSD-3-Clause
"""tools/bench_engine.py: its summaries, the comparison of engines, its command line."""

import pytest
from benchtools import part, program
from click.testing import CliRunner


@pytest.fixture(scope="module")
def results():
    return part("enginebench.results")


@pytest.fixture(scope="module")
def tool():
    with program("bench_engine") as module:
        yield module


def visit(first_task_ms, tasks_ms, spool_ms, memory_mb=300.0, warm_ms=5.0):
    return {
        "raw_to_first_task_ms": first_task_ms,
        "tasks_ms": tasks_ms,
        "processed_ms": first_task_ms + tasks_ms,
        "spool_ms": spool_ms,
        "total_ms": first_task_ms + tasks_ms + spool_ms,
        "warm_ms": warm_ms,
        "prepare_ms": 80.0,
        "prepare_cpu_ms": 40.0,
        "held_ms": spool_ms + 1,
        "free_ms": spool_ms + 11,
        "raw_to_free_ms": first_task_ms + tasks_ms + spool_ms + 10,
        "visit_ms": 90 + first_task_ms + tasks_ms + spool_ms,
        "cpu_ms": 50 + tasks_ms,
        "memory_peak_mb": memory_mb,
        "ramdisk_mb": 4.0,
    }


def workers(first, *later):
    """Return visits of two workers, the first one of which has only the node's first visit."""
    return [[visit(1e3, 1e3, 1e3, 1e3)], [first, *later]]


def test_first_visits_of_workers_are_listed_separately(results):
    first = [visit(90, 90, 90, 900, 400), visit(91, 91, 91, 900, 401), visit(500, 90, 90, 900, 500)]
    others = [visit(4, 10, 6), visit(6, 20, 8, 310), visit(5, 15, 100)]
    node_first = visit(1e3, 1e3, 1e3)
    found = results.summarize([[node_first], [first[0]], [first[2]], [first[1], *others]], 5, idle=True)
    assert (found["first_total_ms"], found["first_warm_ms"], found["first_visit_ms"]) == (273, 401, 363)
    assert (found["node_first_visit_ms"], found["node_first_cpu_ms"]) == (3090, 1050)
    assert (found["raw_to_first_task_ms"], found["between_tasks_ms"], found["visits"]) == (5, 3, 3)
    assert (found["overhead_ms"], found["total_worst_ms"]) == (34, 120)
    assert (found["memory_peak_mb"], found["warm_ms"]) == (310, 5)


def test_tasks_that_do_something_are_not_overhead(results):
    found = results.summarize(workers(*[visit(4, 10, 6)] * 2), 5, idle=False)
    assert found["total_ms"] == 20
    assert "overhead_ms" not in found
    assert "between_tasks_ms" not in found


def test_engines_are_compared_where_both_were_measured(results):
    fast = results.summarize(workers(*[visit(4, 10, 6)] * 2), 5, idle=True)
    slow = results.summarize(workers(*[visit(100, 150, 50)] * 2), 5, idle=True)
    found = results.ratios({"direct": fast, "separable": slow, "direct_20": fast, "floor": slow})
    assert found == {
        "first_task_of_separable": pytest.approx(0.04),
        "between_tasks_of_separable": pytest.approx(1 / 15),
        "overhead_of_separable": pytest.approx(1 / 15),
        "prepare_of_separable": 1,
        "prepare_cpu_of_separable": 1,
        "raw_to_free_of_separable": 30 / 310,
        "cpu_of_separable": 60 / 200,
        "held_of_floor": 7 / 51,
        "free_of_floor": 17 / 51,
        "first_visit_of_later": 1,
        "first_visit_cpu_of_later": 1,
    }


def test_the_floor_is_compared_with_and_without_writing(results):
    engine = results.summarize(workers(*[visit(10, 940, 250, memory_mb=330)] * 2), 6, idle=False)
    floor = {"total_ms": 800, "tasks_cpu_ms": 900, "written_ms": 1000, "held_ms": 200, "memory_peak_mb": 300}
    found = results.ratios({"direct_appipe": engine, "floor_appipe": floor})
    assert found == {
        "total_of_floor_appipe": 1.5,
        "processed_of_floor_appipe": 950 / 800,
        "total_written_of_floor_appipe": 1.2,
        "held_of_floor_appipe": 251 / 200,
        "free_of_floor_appipe": 261 / 200,
        "memory_peak_of_floor_appipe": 1.1,
        "cpu_of_floor_appipe": 1.1,
        "first_visit_of_later_appipe": 1,
        "first_visit_cpu_of_later_appipe": 1,
    }


def test_a_first_visit_is_compared_with_the_later_ones(results):
    engine = results.summarize(workers(visit(300, 400, 200), *[visit(10, 100, 50)] * 3), 6, idle=False)
    found = results.ratios({"direct_appipe": engine})
    assert found["first_visit_of_later_appipe"] == 990 / 250
    assert found["first_visit_cpu_of_later_appipe"] == 450 / 150


@pytest.mark.parametrize(("first_task_ms", "missed"), [(9, False), (11, True)])
def test_a_goal_is_a_ratio(tool, results, first_task_ms, missed):
    groups = {
        "direct": results.summarize(workers(*[visit(first_task_ms, 1, 1)] * 2), 5, idle=True),
        "separable": results.summarize(workers(*[visit(100, 150, 150)] * 2), 5, idle=True),
    }
    shared = part("benching.results")
    listed = shared.flatten(groups | {"ratios": results.ratios(groups)})
    assert listed["direct.raw_to_first_task_ms"] == first_task_ms
    assert ("ratios.first_task_of_separable" in shared.missed(listed, results.GOALS)) is missed


def test_all_goals_are_of_ratios_that_are_computed(results):
    sides = [side for one, other, _, _ in results._PAIRS for side in (one, other)]
    of_floor = {"written_ms": 1.0, "tasks_cpu_ms": 1.0}
    summary = results.summarize(workers(*[visit(1, 1, 1) | of_floor] * 2), 5, idle=True)
    summaries = dict.fromkeys(sides, summary) | {"floor_field": summary | {"total_ms": 1.0}}
    listed = part("benching.results").flatten({"ratios": results.ratios(summaries)})
    assert set(results.GOALS) <= set(listed)
    assert {goal.kind for goal in results.GOALS.values()} == {"ratio"}


def test_the_tasks_own_time_is_no_overhead_of_the_engines(results):
    names = ("direct_field", "separable_field", "floor_field")
    times = dict(zip(names, (300.0, 1100.0, 100.0), strict=True))
    summary = results.summarize(workers(*[visit(1, 1, 1)] * 2), 5, idle=False) | {
        "tasks_cpu_ms": 1.0,
        "written_ms": 1.0,
    }
    found = results.ratios({name: summary | {"total_ms": total_ms} for name, total_ms in times.items()})
    assert found["field_large_overhead_ratio"] == pytest.approx(0.2)


def test_help_explains_when_the_time_begins_and_ends(tool):
    shown = " ".join(CliRunner().invoke(tool.command, ["--help"]).output.split())
    assert "total_ms begins when the raw is complete" in shown
    assert "[empty|twenty|images|appipe|snaps|detector|field]" in shown


def test_an_unknown_section_is_refused(tool):
    result = CliRunner().invoke(tool.command, ["--only", "all"])
    assert result.exit_code == 2
    assert "'all' is not one of" in result.output
