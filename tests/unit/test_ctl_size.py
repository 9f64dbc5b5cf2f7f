# SPDX-License-Identifier: BSD-3-Clause
"""What ``ppctl size`` calculates, and from which numbers."""

import json
from pathlib import Path

import pytest

from ppdaemon.ctl import cli, options
from ppdaemon.ctl.size import Figures, measured, size_of, size_view
from ppdaemon.reports import VisitRow
from ppdaemon.states import ExitCode, Outcome, Stage
from ppdaemon.terminal import show

FIGURES = Figures.of(
    "option",
    detectors=10,
    cadence_s=40,
    visit_s=90,
    run_s=20,
    memory_gb=3,
    ramdisk_gb=1,
    cores=8,
    host_gb=128,
)


def visit_detectors(number: int, occupied_s: float = 50.0) -> list[VisitRow]:
    rows = []
    for count in range(number):
        begin = 1000.0 + 40 * (count // 5)
        times = {Stage.ACCEPTED: 0.0, Stage.ASSIGNED: 1.0, Stage.PREPARED: 10.0, Stage.ARRIVED: 30.0}
        times |= {Stage.PROCESSED: 45.0, Stage.SPOOLED: 1.0 + occupied_s}
        rows.append(
            VisitRow(
                instrument="Cam",
                group=f"g{count // 5}",
                detector=count % 5,
                attempt=1,
                outcome=Outcome.SUCCEEDED,
                stages={stage: begin + s for stage, s in times.items()},
            )
        )
    return rows


def test_each_visit_under_way_needs_a_worker_for_each_detector() -> None:
    needs = {need.resource: need.needed for need in size_of(FIGURES).needs}
    assert needs["workers"] == 10 * 3
    assert needs["cores"] == pytest.approx(5)
    assert needs["memory"] == pytest.approx(30 * 3 / 0.9)
    assert needs["RAM disk"] == 30


def test_a_visit_that_ends_before_the_next_one_needs_one_set_of_workers() -> None:
    report = size_of(FIGURES | Figures.of("option", visit_s=39))
    assert report.needs[0].needed == 10


def test_the_resource_that_decides_is_the_tightest_and_gives_the_number_of_nodes() -> None:
    assert (size_of(FIGURES).limit, size_of(FIGURES).nodes) == ("memory", 1)
    small = size_of(FIGURES | Figures.of("option", cores=2))
    assert (small.limit, small.nodes) == ("cores", 3)


def test_too_few_workers_are_not_enough_although_the_host_is(capsys: pytest.CaptureFixture[str]) -> None:
    def end(workers: int) -> tuple[bool, str]:
        report = size_of(FIGURES | Figures.of("option", workers=workers))
        show(size_view(report))
        return report.enough, capsys.readouterr().out.splitlines()[-1]

    assert end(30) == (True, "This host is enough; the tightest resource: memory.")
    enough, text = end(29)
    assert not enough
    assert "workers.max is too low: set it to 30 or more" in text
    many = size_of(FIGURES | Figures.of("option", workers=30, cores=2))
    assert (many.enough, many.nodes) == (False, 3)


def test_times_are_those_of_the_journal() -> None:
    figures = measured(visit_detectors(100))
    assert figures.values == {"visit_s": 50.0, "run_s": 30.0, "cadence_s": 40.0}
    assert set(figures.sources.values()) == {"journal, 100 visit-detectors"}


def test_a_few_slow_ones_do_not_decide_and_more_do() -> None:
    few = [*visit_detectors(96), *visit_detectors(4, 500.0)]
    many = [*visit_detectors(80), *visit_detectors(20, 500.0)]
    assert (measured(few).values["visit_s"], measured(many).values["visit_s"]) == (50.0, 500.0)


def test_a_journal_with_few_visits_is_not_used() -> None:
    assert measured(visit_detectors(19)).values == {}
    failed = [row.model_copy(update={"outcome": Outcome.FAILED}) for row in visit_detectors(50)]
    assert measured(failed).values == {}


def test_an_option_replaces_what_was_measured() -> None:
    figures = measured(visit_detectors(100)) | Figures.of("option", visit_s=70.0, run_s=None)
    assert (figures.values["visit_s"], figures.sources["visit_s"]) == (70.0, "option")
    assert figures.sources["run_s"].startswith("journal")


@pytest.fixture(autouse=True)
def no_node_on_this_host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(options, "DEFAULT_CONFIG", tmp_path / "none.yaml")


def run_size(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--socket", "/nonexistent/sock", "size", *arguments])
    return int(ended.value.code or 0)


def test_what_is_not_known_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_size("--detectors", "9") == ExitCode.USAGE
    err = capsys.readouterr().err
    assert "--cadence, --visit-s, --run-s, --memory-gb, --ramdisk-gb" in err
    assert "name the configuration with --config" in err


def test_a_camera_can_be_sized_without_a_node(capsys: pytest.CaptureFixture[str]) -> None:
    given = "--detectors 189 --cadence 34 --visit-s 90 --run-s 30 --memory-gb 4 --ramdisk-gb 1 --host-gb 512"
    assert run_size(*given.split(), "--cores", "96", "--json") == ExitCode.FAILED
    report = json.loads(capsys.readouterr().out)
    assert (report["nodes"], report["limit"]) == (5, "memory")
    assert {figure["source"] for figure in report["figures"]} == {"option"}
