# SPDX-License-Identifier: BSD-3-Clause
"""What a night has left in two real central repos, read as ``ppctl compare`` does."""

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from astropy.time import Time
from centrals import CHAIN, FIRST, make_few, run_visit
from lsst.daf.butler import Butler
from toycam import DAY, GROUP, NAME, MakeRig, ToyCam

from ppdaemon.clock import Clock
from ppdaemon.ctl import cli
from ppdaemon.middleware.export.exporter import CentralExporter
from ppdaemon.middleware.nightoutputs import NightOutputs, _tai_of, main
from ppdaemon.states import ExitCode

pytest_plugins = ("toyfixtures",)


def export(make: MakeRig, source: Path, target: Path, *detectors: int, **export: object) -> None:
    """Process detectors of the usual visit with one repo, and export their outputs to one or another."""
    rig, worker = make(source, export={"types": ["toy_.*", ".*_metadata", ".*_config"]} | export)
    spools = [run_visit(rig, worker, detector).spool for detector in detectors]
    exporter = CentralExporter(str(target), Clock(), target.name, target.parent / f"{target.name}-refused")
    exported = exporter.export([Path(spool) for spool in spools if spool])
    exporter.close()
    assert len(exported.spools) == len(detectors)


@pytest.fixture(scope="module")
def centrals(tmp_path_factory: pytest.TempPathFactory, rigs_in: Any) -> tuple[str, str]:
    """Give a central repo with detectors 1 and 2, and another one, as for shadow mode, that had nothing but
    the instrument, with detector 1 and fewer types.
    """
    folder = tmp_path_factory.mktemp("centrals")
    first, second = make_few(folder / "first", None).root, folder / "second"
    with Butler.from_config(Butler.makeRepo(str(second)), writeable=True) as butler:
        ToyCam().register(butler.registry)
    with rigs_in(folder / "rigs") as rigs:
        export(rigs, first, first, 1, 2)
        export(rigs, first, second, 1, types=["toy_.*", "isr_metadata"])
    return str(first), str(second)


def test_datasets_of_groups_exposures_and_visits_are_those_of_one_visit_detector(
    centrals: tuple[str, str],
) -> None:
    with Butler.from_config(centrals[0]) as butler:
        found = {key: (counts, latency) for key, counts, latency in NightOutputs(butler, [CHAIN]).rows()}
        assert found.keys() == {(NAME, GROUP, 1), (NAME, GROUP, 2)}
        counts, latency = found[NAME, GROUP, 1]
        # Of the group, of the exposure and of the visit; those of the run are left out.
        assert {"toy_known": 1, "toy_isr": 1, "toy_image": 1, "isr_metadata": 1}.items() <= counts.items()
        assert "isr_config" not in counts
        assert latency is None
        timed = {key: seconds for key, _, seconds in NightOutputs(butler, [CHAIN], "isr_metadata").rows()}
        (record,) = butler.query_dimension_records("exposure", instrument=NAME, exposure=FIRST)
        ids = {"instrument": NAME, "exposure": FIRST, "detector": 1}
        quantum = butler.get("isr_metadata", ids, collections=CHAIN)["quantum"]
    ended = Time(quantum["endUtc"].partition("+")[0], scale="utc")
    assert timed[NAME, GROUP, 1] == pytest.approx((ended - record.timespan.end).to_value("s"), abs=1e-3)


@pytest.mark.slow
def test_the_command_compares_two_repos(
    centrals: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = centrals
    arguments = ["compare", first, second, "--night", str(DAY), "--json", "--timing", "isr_metadata"]
    assert cli._run(arguments) == ExitCode.FAILED
    report = json.loads(capsys.readouterr().out)
    assert report["compared"] == ["outputs", "latency"]
    assert (report["both"], report["only_a"], report["slower"]["count"]) == (1, 1, 1)
    (one, two) = report["rows"]
    assert (one["detector"], one["differs"]) == (1, ["outputs"])
    missing = one["a"]["outputs"].keys() - one["b"]["outputs"].keys()
    assert missing == {"calibrate_metadata", "known_metadata"}
    assert (two["detector"], two["differs"], two["b"]) == (2, ["missing in B"], None)


@pytest.mark.parametrize("text", ["2026-11-22T01:00:00.5", "2026-11-22T03:00:00.5+02:00"])
def test_times_of_metadata_are_utc_wherever_they_are_read(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("TZ", "America/Santiago")
    time.tzset()
    try:
        assert _tai_of(text) == pytest.approx(Time("2026-11-22T01:00:00.5", scale="utc").unix_tai)
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_visit_ends_with_the_last_of_its_exposures(monkeypatch: pytest.MonkeyPatch) -> None:
    records = [SimpleNamespace(visit=7, exposure=number) for number in (4, 5, 3)]
    monkeypatch.setattr(NightOutputs, "_of_day", lambda *arguments: records)
    assert NightOutputs(MagicMock(), [])._exposure_of(NAME, {"visit": 7}) == 5


@pytest.mark.parametrize(
    ("repo", "pattern", "code", "text"),
    [
        ("", "*/prompt/output-2020-01-01", ExitCode.DATA, "has no collection */prompt/output-2020-01-01"),
        ("/no/repo", CHAIN, ExitCode.UNAVAILABLE, "/no/repo cannot be read"),
    ],
)
def test_a_repo_without_that_night_and_none_at_all_are_named(
    centrals: tuple[str, str],
    capsys: pytest.CaptureFixture[str],
    repo: str,
    pattern: str,
    code: ExitCode,
    text: str,
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([repo or centrals[0], pattern, ""])
    assert caught.value.code == code
    assert text in capsys.readouterr().err
