# SPDX-License-Identifier: BSD-3-Clause
"""tools/bench_sources.py: its arithmetic, its goals, its command line."""

import pytest
from benchtools import part, program
from click.testing import CliRunner


@pytest.fixture(scope="module")
def results():
    return part("sourcesbench.results")


@pytest.fixture(scope="module")
def tool():
    with program("bench_sources") as module:
        yield module


def test_latencies_are_from_the_message_to_the_first_order(results):
    samples = results.Samples()
    samples.add({0: 10.0, 1: 10.5, 2: 11.0}, [(1, 10.6), (0, 10.02), (1, 12.0), (7, 1.0)])
    assert (samples.sent, samples.lost, samples.doubled) == (3, 1, 1)
    assert samples.latencies_ms == pytest.approx([20.0, 100.0])
    assert samples.results("notice") == pytest.approx(
        {"notice_p50_ms": 20.0, "notice_p99_ms": 100.0, "notice_worst_ms": 100.0}
    )


def test_a_source_stands_beside_zeromq_of_the_same_run(results):
    samples, zeromq = results.Samples(latencies_ms=[30.0, 50.0]), results.Samples(latencies_ms=[10.0, 15.0])
    found = results.beside(samples, zeromq)
    assert found == {"above_zeromq_p50_ms": 20.0, "above_zeromq_p99_ms": 35.0}
    assert not results.GOALS["bridge.above_zeromq_p99_ms"].met(found["above_zeromq_p99_ms"])
    assert results.beside(results.Samples(), zeromq) == {}
    assert set(results.Samples().results().values()) == {None}


def test_a_burst_stands_beside_one_over_zeromq_and_keeps_its_own_goal(results):
    samples, zeromq = results.Samples(), results.Samples()
    samples.add({0: 1.0, 1: 1.0, 2: 1.0}, [(0, 1.1), (1, 1.2)])
    zeromq.add({0: 1.0}, [(0, 1.15)])
    kept, floor = results.Samples(), results.Samples(latencies_ms=[20.0])
    kept.add({0: 1.0, 1: 1.0}, [(0, 1.12)])
    found = results.bursts(samples, kept, zeromq, floor)
    assert (found["sent"], found["lost"]) == (5, 2)
    assert found["p99_ms"] == pytest.approx(200.0)
    assert found["zeromq_p99_ms"] == pytest.approx(150.0)
    assert found["above_zeromq_p99_ms"] == pytest.approx(50.0)
    assert found["floor_p99_ms"] == 20.0
    assert found["kept_p99_ms"] == pytest.approx(120.0)
    for name in ("p99_ms", "kept_p99_ms"):
        assert not results.GOALS[f"burst.{name}"].met(found[name])
    assert "burst.above_zeromq_p99_ms" not in results.GOALS


def test_orders_are_read_as_they_are_appended(tmp_path):
    paths = tmp_path / "n1", tmp_path / "n2"
    orders = part("benching.orders").Orders(*paths)
    assert orders.of("a") == []
    paths[0].write_text("a 3 100 -1 1.5\nb 1 101 -1 2.5\na 4 100 -1 2.")  # the last line is half written
    assert orders.of("a") == [(3, 1.5)]
    paths[0].write_text(paths[0].read_text() + "75\n")
    paths[1].write_text("a 3 7.0\n")
    assert orders.of("a") == [(3, 1.5), (4, 2.75), (3, 7.0)]
    assert orders.of("b") == [(1, 2.5)]
    assert (orders.count("a"), orders.count("c")) == ({3: 2, 4: 1}, {})


def test_messages_are_sent_evenly():
    pace = part("sourcesbench.zeromq").pace
    assert list(pace({3: b"", 1: b"", 2: b""}, 0.0)) == [3, 1, 2]
    assert list(pace({}, 1.0)) == []


def test_a_ring_is_filled_and_replayed_completely(tool, tmp_path):
    """The measurement itself, with few notices: its figures depend on what it reads."""
    folders = part("benching.folders").FolderRoots(tmp_path, tmp_path)
    workload = tool.Workload(exposures=1, detectors=1, within_s=0.0, ring=50)
    found = tool.measure(frozenset({"ring"}), folders, workload)["ring"]
    assert found["notices"] == 50
    assert 20 < found["memory_mb"] <= found["peak_mb"]
    assert found["disk_mb"] > 0.05


def test_the_floor_is_that_of_workers_without_a_node(tool, tmp_path, socket_dir):
    folders = part("benching.folders").BenchFolders(tmp_path, socket_dir)
    workload = tool.Workload(exposures=2, detectors=3, within_s=0.0, ring=1)
    samples = part("sourcesbench.floor").measure_floor(folders, workload)
    assert (samples.sent, samples.lost, samples.doubled) == (6, 0, 0)
    assert min(samples.latencies_ms) > 0


def test_help_names_every_section(tool):
    result = CliRunner().invoke(tool.command, ["--help"])
    assert result.exit_code == 0
    assert all(section in result.output for section in tool.SECTIONS)
    assert all(name in result.output for name in ("--check", "--json", "--quick"))
